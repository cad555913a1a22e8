#!/usr/bin/env python
"""What are labels and a model worth that were made from photos alone? The method and its baselines, one table.

    python benchmarks/photo_labels.py --photos PHOTOS --coco COCO_MINI --backbone output/photos/backbone --output output/photos

Trains the backbone on PHOTOS if --backbone has none yet (an hour on one core; a training that has begun goes on with --train-backbone,
else its last checkpoint is used). Then makes labels of COCO_MINI's training photos and of --num-photos of PHOTOS, labels the validation
photos with the clusters of the training photos, and trains a detector, which starts from the backbone. Killed and started again, it goes
on where it was, and makes no row twice. ``--only NAME,...`` makes some of the rows. ``--seeds 0,1,2`` makes all rows for each seed of the
clusters and of the training; the backbone is one, and masks depend on no seed. Scores are then means, with the lowest and the highest.

Scores are those of protocol ``hungarian`` on the validation photos, with label maps fitted on the annotated training photos, with
95 % intervals (bootstrap over images, label maps held fixed). The second table has label maps fitted on the scored photos, as the
literature does, which flatters labels with many clusters on few photos.
"""

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
from detectron2.config import CfgNode
from u2seg.config import setup_cfg
from u2seg.engine.end_to_end import METRICS
from u2seg.engine.end_to_end import train as train_model
from u2seg.engine.release import AVERAGED, trained_weights
from u2seg.evaluation.evaluator import TABLES
from u2seg.evaluation.metrics.mask_quality import evaluate_masks
from u2seg.evaluation.score_files import score_panoptic_files, score_saved_tables
from u2seg.luss import export_backbone
from u2seg.pseudo_labels.pipeline import make_pseudo_labels
from u2seg.utils.command_line import comma_separated
from u2seg.utils.files import atomic_path, read_json, write_json
from u2seg.utils.image_io import list_images
from u2seg.utils.kmeans import CENTROIDS

ROOT = Path(__file__).parent.parent
BACKBONE = "LUSS/dense_contrast_photos_cpu.yaml"
HANDMADE, LEARNED = "quick_schedules/coco_mini_handmade.yaml", "quick_schedules/coco_mini_learned.yaml"
PROTOCOL = "hungarian"
MODEL = "model"
PATCH_STUFF = ["SEMANTICS.PROVIDER", "PatchKMeans", "SEMANTICS.NUM_CLUSTERS", 27]
WHOLE_IMAGE = [
    *("MASKS.GENERATOR", "WholeImage", "MASKS.REFINEMENT", "none", "MASKS.MAX_AREA", 1.0, "MASKS.MAX_CORNERS", 5),
    *("SEMANTICS.SKIP_MASKED", False),  # no patch is left otherwise
    *PATCH_STUFF,
]
# Masks of pixels alone, which do not lie in each other.
REGIONS = [
    *("MASKS.GENERATOR", "RegionHierarchy", "MASKS.REFINEMENT", "none"),
    *("MASKS.HIERARCHY.MAX_SHARED", 0.1, "MASKS.HIERARCHY.MAX_MASKS", 10, "MASKS.MIN_AREA", 0.005),
]
# Of them, large ones at the image's border are left to stuff, whose maps follow contours too.
OBJECTS = [*REGIONS, "MASKS.HIERARCHY.MAX_IMAGE_BORDER", 0.3]
RANDOM = ["CLUSTERS.EMBEDDING", "random_vectors"]
# Crops of masks at the size of the crops that the backbone was learned from.
LEARNED_CROPS = ["CLUSTERS.EMBEDDING", "masked_crop", "FEATURES.IMAGE_SIZE", (96, 96)]


@dataclass(frozen=True)
class Row:
    """How the labels of one row are made: configuration and settings of each stage.

    Attributes:
        masks: of the mask stage, or the name of the row whose masks are taken.
        clusters: of the thing clusters.
        semantics: of the stuff clusters.
    """

    masks: tuple[str, list] | str
    clusters: tuple[str, list]
    semantics: tuple[str, list]


ROWS = {
    "whole image": Row((LEARNED, WHOLE_IMAGE), (LEARNED, WHOLE_IMAGE), (LEARNED, WHOLE_IMAGE)),
    "hand-made descriptor": Row((HANDMADE, []), (HANDMADE, []), (HANDMADE, [])),
    "regions": Row((HANDMADE, REGIONS), (HANDMADE, REGIONS), (HANDMADE, REGIONS)),
    "regions with random clusters": Row("regions", (HANDMADE, RANDOM), (HANDMADE, [])),
    "regions with learned things": Row("regions", (LEARNED, LEARNED_CROPS), (HANDMADE, [])),
    "regions with learned things and stuff": Row("regions", (LEARNED, LEARNED_CROPS), (LEARNED, PATCH_STUFF)),
    "objects and region stuff": Row((HANDMADE, OBJECTS), (LEARNED, LEARNED_CROPS), (LEARNED, [])),
}
TAUGHT_BY = "objects and region stuff"  # the row whose labels the detector learns
COLUMNS = ("PQ", "PQ_th", "PQ_st", "mIoU", "AR100")


def backbone_weights(args: argparse.Namespace) -> Path:
    """Returns a checkpoint of the learned backbone, averaged weights alone; trains it where it is not there."""
    finished = args.backbone / AVERAGED
    if not finished.is_file() and (args.train_backbone or not (args.backbone / "last_checkpoint").is_file()):
        command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", BACKBONE, "--resume"]
        opts = ["DATASETS.BY_PATH.pass_images.ROOT", str(args.photos), "OUTPUT_DIR", str(args.backbone)]
        subprocess.run([*command, *opts], check=True)
    kept = args.output / "backbone_ema.pth"
    if not kept.is_file():  # kept, since labels that were begun with one checkpoint must not go on with the next
        with atomic_path(kept) as temporary:
            torch.save({"model": trained_weights(args.backbone)}, temporary)
        export_backbone(kept, args.output / "backbone.pth")
    return kept


def link_photos(args: argparse.Namespace) -> Path:
    """Returns a directory of links to COCO's training photos and, evenly spaced, to some of the other photos."""
    root = args.output / "images"
    if not root.is_dir():
        partial = args.output / "images.part"
        shutil.rmtree(partial, ignore_errors=True)
        (partial / "more").mkdir(parents=True)
        for name in list_images(args.coco / "train2017"):
            (partial / name).symlink_to((args.coco / "train2017" / name).resolve())
        names = list_images(args.photos)
        step = len(names) / max(args.num_photos, 1)
        for index in range(min(args.num_photos, len(names))):
            name = names[int(index * step)]
            (partial / "more" / name.replace("/", "__")).symlink_to((args.photos / name).resolve())
        partial.rename(root)
    return root


def label_row(name: str, seed: str, args: argparse.Namespace) -> dict:
    """Returns the scores of one row of labels: of the training photos, then of the validation photos with the same clusters."""
    root = _directory(args, name, seed)
    centroids: dict[str, list] = {stage: [f"{stage.upper()}.SEED", seed] for stage in ("clusters", "semantics")}
    for split, images in (("train", link_photos(args)), ("val", args.coco / "val2017")):
        labels = root / split
        made = _masks_of(name, seed, split, args)
        make_stages(ROWS[name], args, images, labels, centroids, made)
        for stage in centroids:
            centroids[stage] += [f"{stage.upper()}.CENTROIDS", str(labels / stage / CENTROIDS)]
        score_panoptic_files(
            args.coco / f"annotations/panoptic_{split}2017.json",
            args.coco / f"panoptic_{split}2017",
            labels / "panoptic/panoptic.json",
            labels / "panoptic/panoptic",
            output=root / f"{split}_scores",
            protocols=(PROTOCOL,),
        )
    scores = _both_fits(root / "train_scores" / TABLES, root / "val_scores" / TABLES, root, args)
    quality = evaluate_masks(root / "val/masks", args.coco / "annotations/instances_val2017.json")["segm"]
    return {**scores, "masks": {metric: quality[metric] for metric in ("AP", "AR10", "AR100")}}


def _masks_of(name: str, seed: str, split: str, args: argparse.Namespace) -> Path | None:
    """Returns where the masks of a row were made already, by another row or for the first seed; None: nowhere."""
    masks = ROWS[name].masks
    if isinstance(masks, str):
        return _directory(args, masks, args.seeds[0]) / split / "masks"
    return _directory(args, name, args.seeds[0]) / split / "masks" if seed != args.seeds[0] else None


def make_stages(
    row: Row, args: argparse.Namespace, images: Path, labels: Path, stage_opts: dict[str, list], made: Path | None
) -> None:
    """Makes the labels of one split.

    Args:
        row: what to make.
        args: of the command line.
        images: of the split.
        labels: directory to fill.
        stage_opts: settings of single stages: the seed, and an earlier split's clusters.
        made: finished masks to copy; None: they are made.
    """

    def cfg_of(setting: tuple[str, list], stage: str) -> CfgNode:
        config, opts = setting
        learned = ["FEATURES.RESNET.WEIGHTS", str(backbone_weights(args))] if config == LEARNED else []
        return setup_cfg(config, [*learned, *opts, *stage_opts.get(stage, []), *args.opts])

    if made is None:
        make_pseudo_labels(cfg_of(row.masks, "masks"), images, labels, stages=["masks"])
    elif not (labels / "masks").is_dir():
        partial = labels / "masks.part"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(made, partial)
        partial.rename(labels / "masks")
    make_pseudo_labels(cfg_of(row.clusters, "clusters"), images, labels, stages=["clusters"])
    make_pseudo_labels(cfg_of(row.semantics, "semantics"), images, labels, stages=["semantics"])
    make_pseudo_labels(cfg_of(row.clusters, "panoptic"), images, labels, stages=["panoptic"])


def model_row(seed: str, args: argparse.Namespace) -> dict:
    """Returns the scores of a detector that starts from the backbone and learns the labels of the row ``TAUGHT_BY``."""
    backbone_weights(args)
    labels = _directory(args, TAUGHT_BY, seed) / "train"
    datasets = {"coco_mini_train.ROOT": labels, "coco_mini_train.IMAGES": link_photos(args)}
    datasets.update({f"{name}.ROOT": args.coco for name in ("coco_mini_fit", "coco_mini_val")})
    opts = ["MODEL.WEIGHTS", str(args.output / "backbone.pth"), "SEED", seed, "SOLVER.MAX_ITER", str(args.iterations)]
    opts += [word for key, value in datasets.items() for word in (f"DATASETS.BY_PATH.{key}", str(value))]
    output = _directory(args, MODEL, seed)
    train_model(LEARNED, output, opts, 0, output.with_name("log.txt"))
    tables = [output / "inference" / name / TABLES for name in ("coco_mini_fit", "coco_mini_val")]
    return _both_fits(*tables, output.with_name("model_scores"), args)


def _both_fits(fit: Path, scored: Path, output: Path, args: argparse.Namespace) -> dict:
    """Returns the scores with label maps fitted on the training photos, and on the scored ones."""
    found = {}
    for name, fit_on in (("fitted on training photos", fit), ("fitted on the scored photos", None)):
        directory = output / name.replace(" ", "_")
        score_saved_tables(scored, protocols=(PROTOCOL,), fit_on=fit_on, bootstrap=args.bootstrap, output=directory)
        results, intervals = read_json(directory / METRICS), read_json(directory / "intervals.json")
        found[name] = {
            "PQ interval": intervals["panoptic_seg"][PROTOCOL]["PQ"],
            **{metric: results["panoptic_seg"][PROTOCOL][metric] for metric in ("PQ", "PQ_th", "PQ_st")},
            "mIoU": results["sem_seg"][PROTOCOL]["mIoU"],
            "AR100": results["segm"]["class_agnostic"]["AR100"],
            "AR100 interval": intervals["segm"]["class_agnostic"]["AR100"],
        }
    return found


def _directory(args: argparse.Namespace, row: str, seed: str) -> Path:
    return args.output / f"seed_{seed}" / row.replace(" ", "_")


def print_table(results: dict[str, list[dict]], fit: str) -> None:
    """Prints one table in Markdown, in percent: one seed with 95 % intervals, or the mean of several with the lowest and the highest."""
    print(
        f"\nProtocol {PROTOCOL}, label maps {fit}\n\n| labels | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}"
    )
    for name, seeds in results.items():
        rows = [scores[fit] for scores in seeds]
        cells = []
        for column in COLUMNS:
            values = [row[column] for row in rows]
            interval = rows[0].get(f"{column} interval") if len(rows) == 1 else (min(values), max(values))
            cells.append(f"{mean(values):.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""))
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> int:
    """Makes the rows and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="photos without labels")
    parser.add_argument("--coco", type=Path, required=True, help="train2017, val2017, panoptic_*2017 and annotations")
    parser.add_argument("--backbone", type=Path, required=True, help="OUTPUT_DIR of the backbone's training")
    parser.add_argument("--train-backbone", action="store_true", help="go on with a training that has begun")
    parser.add_argument("--output", type=Path, required=True, help="labels, model and scores")
    parser.add_argument("--num-photos", type=int, default=0, help="of PHOTOS to label, beside COCO's")
    parser.add_argument("--iterations", type=int, default=1500, help="of the detector")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the scored photos")
    parser.add_argument("--seeds", type=comma_separated(), default=["0"], help="of clusters and detector (default 0)")
    parser.add_argument("--only", type=comma_separated(), default=[], help="names of rows")
    parser.add_argument("opts", nargs="*", help="configuration of all rows of labels, KEY VALUE ...")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {}
    for seed in args.seeds:
        for name in (*ROWS, MODEL):
            if args.only and name not in args.only:
                continue
            path = _directory(args, name, seed).with_suffix(".json")
            if not path.is_file():
                write_json(path, model_row(seed, args) if name == MODEL else label_row(name, seed, args))
            results.setdefault(name, []).append(read_json(path))
            print(f"seed {seed}: {name}", results[name][-1], flush=True)
    for fit in ("fitted on training photos", "fitted on the scored photos"):
        print_table(results, fit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
