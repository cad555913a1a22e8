#!/usr/bin/env python
"""What do STEGO and CAUSE add to k-means on patches? One table for each kind of data.

    python benchmarks/learned_semantics.py --output DIR [--seeds 0,1,2] [--methods k-means,STEGO,CAUSE]
    python benchmarks/learned_semantics.py --output DIR --data scenes
    python benchmarks/learned_semantics.py --output DIR --data coco_mini --coco COCO_MINI --backbone backbone_ema.pth

``textures`` (the default): a surface's color says nothing about its kind. Each image is cut into regions with one of six textures each,
in two random colors; the kind of a region is its texture. On 300 such images without annotation a network learns by dense contrast
(LUSS/dense_contrast_photos_cpu.yaml, made small). From its features each method makes semantic maps of the same images, and then of 60
others, which have ground truth. mIoU is that of the 60 under protocol ``stego``, whose one matching is fitted on them. Images, network
and heads are drawn anew for each seed.

``scenes``: the demo's scenes, with its hand-made features. ``coco_mini``: photos in COCO's layout, with the features of a network that
was learned from photos (docs/photos.md). Here the methods learn from the training images, and whole panoptic labels are made of these
and of the validation images, with the same things for every method. mIoU and pixel accuracy of the validation images' maps are those of
``stego``; PQ of stuff is that of their labels under ``hungarian``, with label maps fitted on the annotated training photos, or on the
validation images where the training images have no ground truth.

What is done in DIR is not done again. Times are CPU seconds of one process, of learning and of labeling the training images; of a run
that was interrupted, those of its last part.

Promise (textures): the mean mIoU of STEGO, and that of CAUSE, over three seeds is at least 10 points above that of k-means. Else the
exit status is 1; docs/semantics.md has the numbers.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.data.formats.coco_writer import PanopticWriter
from u2seg.engine.end_to_end import METRICS
from u2seg.evaluation import score_panoptic_files, score_semantic_maps
from u2seg.evaluation.evaluator import TABLES
from u2seg.pseudo_labels import make_masks, make_pseudo_labels
from u2seg.pseudo_labels.semantics.learned.semantic_head import MODEL
from u2seg.utils.files import read_json, write_json
from u2seg.utils.kmeans import CENTROIDS

ROOT = Path(__file__).parent.parent
SIZE, TRAIN, VAL = 96, 300, 60
NETWORK = "LUSS/dense_contrast_photos_cpu.yaml"
NETWORK_OPTS = [
    *("MODEL.SMALL_RESNET.WIDTH", "16", "MODEL.SMALL_RESNET.BLOCKS_PER_STAGE", "1"),
    *("MODEL.SMALL_RESNET.STRIDES", "[1,2,2,1]", "MODEL.DENSE_CONTRAST.POINT_WEIGHT", "0.8"),
    *("INPUT.MULTI_CROP.SIZES", "[48]", "INPUT.MULTI_CROP.MIN_SCALES", "[0.2]", "INPUT.MULTI_CROP.MAX_SCALES", "[0.5]"),
    *("INPUT.MULTI_CROP.JITTER", "[0.8,0.8,0.8,0.5]", "INPUT.MULTI_CROP.GRAY_PROBABILITY", "0.5"),
    *(
        "SOLVER.AMP.ENABLED",
        "False",
        "SOLVER.IMS_PER_BATCH",
        "24",
        "SOLVER.WARMUP_ITERS",
        "20",
        "SOLVER.BASE_LR",
        "0.002",
    ),
    *("SOLVER.MAX_ITER", "200", "SOLVER.CHECKPOINT_PERIOD", "50", "TEST.EVAL_PERIOD", "0"),
]
LABEL_OPTS = [
    *("FEATURES.NAME", "ResNetFeatures", "FEATURES.RESNET.OUT_FEATURE", "res5"),
    *("FEATURES.RESNET.CENTER", "False", "FEATURES.IMAGE_SIZE", "(96,96)", "FEATURES.BATCH_SIZE", "20"),
    *("MASKS.GENERATOR", "WholeImage", "MASKS.REFINEMENT", "none", "MASKS.NUM_WORKERS", "0"),
    *("SEMANTICS.NUM_CLUSTERS", "6", "SEMANTICS.SKIP_MASKED", "False", "SEMANTICS.LEARNED.CROP_RATIO", "1.0"),
    *("SEMANTICS.LEARNED.TRAIN_SIZE", "(96,96)", "SEMANTICS.LEARNED.MAP_SIZE", "(96,96)"),
]
SCHEDULE = [
    *("SEMANTICS.LEARNED.CRF.ENABLED", "False", "SEMANTICS.LEARNED.CHECKPOINT_PERIOD", "50"),
    *("SEMANTICS.LEARNED.CENTER", "True"),
    *("SEMANTICS.STEGO.MAX_ITER", "200", "SEMANTICS.STEGO.BASE_LR", "0.002", "SEMANTICS.STEGO.NUM_POINTS", "7"),
    *("SEMANTICS.CAUSE.CODEBOOK_SIZE", "64", "SEMANTICS.CAUSE.PROJECTION_DIM", "128"),
    *("SEMANTICS.CAUSE.BANK_SIZE", "20", "SEMANTICS.CAUSE.CODEBOOK_EPOCHS", "4"),
    *("SEMANTICS.CAUSE.HEAD_EPOCHS", "5", "SEMANTICS.CAUSE.PROBE_EPOCHS", "8"),
    # Published: cells of 4 x 4, of a grid of 40 x 40, which gives 100 tokens of an image. Of 12 x 12 they would give 9, these give 36.
    *("SEMANTICS.CAUSE.CELL", "2"),
]
METHODS = {"k-means": "PatchKMeans", "STEGO": "STEGO", "CAUSE": "CAUSE"}
PROTOCOL = "hungarian"  # of the labels
SECONDS = "seconds.json"  # of the semantic stage
MARGIN = 10.0  # mIoU points


def textures() -> list[np.ndarray]:
    """Returns the patterns, bool (SIZE, SIZE): fine and coarse stripes of two directions, fine and coarse checks."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return [y % 6 < 3, x % 6 < 3, y % 16 < 8, x % 16 < 8, (y // 3 + x // 3) % 2 == 0, (y // 8 + x // 8) % 2 == 0]


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image, uint8 (SIZE, SIZE, 3), and the texture of each pixel, 0..5."""
    patterns, count = textures(), int(rng.integers(3, 6))
    places = np.mgrid[:SIZE, :SIZE].transpose(1, 2, 0)[:, :, None]
    region = np.square(places - rng.uniform(0, SIZE, (count, 2))).sum(axis=3).argmin(axis=2)
    kinds = rng.choice(len(patterns), count, replace=False)
    image = np.zeros((SIZE, SIZE, 3))
    for number, kind in enumerate(kinds):
        light, dark = rng.uniform(0.45, 1, 3), rng.uniform(0, 0.55, 3)
        pattern = np.roll(patterns[kind], rng.integers(0, 16, 2), axis=(0, 1))
        image[region == number] = np.where(pattern[..., None], light, dark)[region == number]
    image = np.clip(image + rng.normal(0, 0.03, image.shape), 0, 1)
    return (image * 255).astype(np.uint8), kinds[region]


def render(root: Path, seed: int) -> Path:
    """Writes the training images, and 60 with their ground truth; returns the latter's JSON."""
    rng = np.random.default_rng(seed)
    (root / "train").mkdir(parents=True, exist_ok=True)
    (root / "val").mkdir(exist_ok=True)
    for index in range(TRAIN):
        Image.fromarray(draw(rng)[0]).save(root / f"train/{index:04d}.png")
    names = ["fine rows", "fine columns", "coarse rows", "coarse columns", "fine checks", "coarse checks"]
    writer = PanopticWriter(root, "val", [{"id": i, "name": name, "isthing": 0} for i, name in enumerate(names, 1)])
    for index in range(VAL):
        image, kinds = draw(rng)
        Image.fromarray(image).save(root / f"val/{index:04d}.png")
        ids = (kinds + 1).astype(np.int32)
        present = [{"id": int(i), "category_id": int(i), "iscrowd": 0} for i in np.unique(ids)]
        writer.add(f"{index:04d}.png", ids, present)
    return writer.close()


def pretrain(root: Path, seed: int) -> str:
    """Returns the network's averaged weights, learned from the training images; goes on from the last checkpoint."""
    weights = root / "network" / "model_ema.pth"
    if not weights.is_file():
        command = [
            sys.executable,
            str(ROOT / "tools/train_net.py"),
            "--config-file",
            NETWORK,
            "--resume",
            *NETWORK_OPTS,
        ]
        paths = ["DATASETS.BY_PATH.pass_images.ROOT", str(root / "train"), "OUTPUT_DIR", str(root / "network")]
        subprocess.run([*command, *paths, "SEED", str(seed)], check=True)
    return str(weights)


def network_config(root: Path) -> str:
    """Returns a file that describes the pretrained network to the extractor."""
    return str(root / "network" / "config.yaml")


def score(root: Path, method: str, weights: str, seed: int, opts: list[str]) -> dict:
    """Returns mIoU, pixel accuracy and seconds of one method's maps of the images with ground truth."""
    found = root / f"{method}.json"
    if found.is_file():
        return read_json(found)
    features = ["FEATURES.RESNET.CONFIG_FILE", network_config(root), "FEATURES.RESNET.WEIGHTS", weights]
    options = [
        *LABEL_OPTS,
        *SCHEDULE,
        *features,
        "SEMANTICS.PROVIDER",
        METHODS[method],
        "SEMANTICS.SEED",
        str(seed),
        *opts,
    ]
    start = time.process_time()
    cfg = setup_cfg("quick_schedules/scenes.yaml", options)
    train = make_maps(cfg, root, "train", root / method)
    seconds = time.process_time() - start
    cfg = setup_cfg("quick_schedules/scenes.yaml", [*options, *learned_from(method, train)])
    val = make_maps(cfg, root, "val", root / f"{method}_val")
    score_semantic_maps(root / "annotations/panoptic_val.json", root / "panoptic_val", val, root / f"{method}_scores")
    scores = read_json(root / f"{method}_scores" / METRICS)["sem_seg"]["stego"]
    write_json(found, {"mIoU": scores["mIoU"], "pACC": scores["pACC"], "seconds": seconds})
    return read_json(found)


def make_maps(cfg: CfgNode, root: Path, split: str, output: Path) -> Path:
    """Returns the directory of a split's semantic maps; the masks, which all methods share, are made once."""
    masks = make_masks(cfg, root / split, root / f"masks_{split}")
    output.mkdir(exist_ok=True)
    if not (output / "masks").exists():
        (output / "masks").symlink_to(masks.absolute())
    return make_pseudo_labels(cfg, root / split, output, stages=["semantics"]) / "semantics"


def learned_from(method: str, semantics: Path) -> list[str]:
    """Returns the settings that label other images by what a method has learned in a stage's directory."""
    if method == "k-means":
        return ["SEMANTICS.CENTROIDS", str(semantics / CENTROIDS)]
    return ["SEMANTICS.LEARNED.WEIGHTS", str(semantics / MODEL)]


@dataclass(frozen=True)
class LabelData:
    """Images of which whole panoptic labels are made and scored.

    Attributes:
        config: of the labels.
        opts: KEY VALUE, for all methods.
        images: directory of each split, "train" and "val".
        gt: JSON and PNGs of the splits that have ground truth; label maps are fitted on "train" if it is among them.
    """

    config: str
    opts: list[str]
    images: dict[str, Path]
    gt: dict[str, tuple[Path, Path]]


def scenes_data(root: Path) -> LabelData:
    """Returns the demo's scenes, rendered where they are not there."""
    scenes = root / "scenes"
    if not (scenes / "annotations/panoptic_val.json").is_file():
        subprocess.run([sys.executable, str(ROOT / "datasets/prepare_scenes.py"), "--output", str(scenes)], check=True)
    return LabelData(
        "quick_schedules/scenes.yaml",
        ["SEMANTICS.LEARNED.TRAIN_SIZE", "(64,64)", "SEMANTICS.LEARNED.MAP_SIZE", "(128,160)"],
        {split: scenes / split for split in ("train", "val")},
        {"val": (scenes / "annotations/panoptic_val.json", scenes / "panoptic_val")},
    )


def coco_data(coco: Path, backbone: Path) -> LabelData:
    """Returns photos in COCO's layout, with a network that was learned from photos."""
    return LabelData(
        "quick_schedules/coco_mini_learned.yaml",
        [
            *("FEATURES.RESNET.WEIGHTS", str(backbone), "MASKS.NUM_WORKERS", "0"),
            *("SEMANTICS.LEARNED.TRAIN_SIZE", "(128,128)", "SEMANTICS.LEARNED.MAP_SIZE", "(240,320)"),
            # About ten codewords for each cluster, as for the textures.
            *("SEMANTICS.CAUSE.CODEBOOK_SIZE", "256"),
        ],
        {split: coco / f"{split}2017" for split in ("train", "val")},
        {
            split: (coco / f"annotations/panoptic_{split}2017.json", coco / f"panoptic_{split}2017")
            for split in ("train", "val")
        },
    )


def score_labels(root: Path, data: LabelData, method: str, seed: int, opts: list[str]) -> dict:
    """Returns mIoU and pixel accuracy of one method's maps, PQ of the stuff of the labels made from them, and CPU seconds."""
    found = root / f"{method}.json"
    if found.is_file():
        return read_json(found)
    schedule = [*SCHEDULE, *data.opts, "SEMANTICS.SEED", str(seed), *opts]
    things = make_things(root, data, schedule)
    options = [*schedule, "SEMANTICS.PROVIDER", METHODS[method]]
    learned: list[str] = []
    tables = None
    for split in ("train", "val"):
        labels = root / method / split
        for stage in ("masks", "clusters"):
            if not (labels / stage).is_dir():
                shutil.copytree(things[split] / stage, labels / f"{stage}.part")
                (labels / f"{stage}.part").rename(labels / stage)
        cfg = setup_cfg(data.config, [*options, *learned, *clusters_of(things, split)])
        start = time.process_time()
        make_pseudo_labels(cfg, data.images[split], labels, stages=["semantics"])
        if not (labels / SECONDS).is_file():
            write_json(labels / SECONDS, time.process_time() - start)
        make_pseudo_labels(cfg, data.images[split], labels, stages=["panoptic"])
        learned = learned or learned_from(method, labels / "semantics")
        if split in data.gt:
            files = (labels / "panoptic/panoptic.json", labels / "panoptic/panoptic")
            output = labels / "panoptic_scores"
            score_panoptic_files(*data.gt[split], *files, output=output, protocols=[PROTOCOL], fit_on=tables)
            tables = output / TABLES
    score_semantic_maps(*data.gt["val"], root / method / "val/semantics", root / method / "map_scores")
    maps = read_json(root / method / "map_scores" / METRICS)["sem_seg"]["stego"]
    stuff = read_json(root / method / "val/panoptic_scores" / METRICS)["panoptic_seg"][PROTOCOL]["PQ_st"]
    seconds = read_json(root / method / "train" / SECONDS)
    write_json(found, {"mIoU": maps["mIoU"], "pACC": maps["pACC"], "PQ_st": stuff, "seconds": seconds})
    return read_json(found)


def make_things(root: Path, data: LabelData, options: list[str]) -> dict[str, Path]:
    """Returns directories with the masks and clusters of each split, which all methods share."""
    things = {split: root / "things" / split for split in ("train", "val")}
    for split, directory in things.items():
        cfg = setup_cfg(data.config, [*options, *clusters_of(things, split)])
        make_pseudo_labels(cfg, data.images[split], directory, stages=["masks", "clusters"])
    return things


def clusters_of(things: dict[str, Path], split: str) -> list[str]:
    """Returns the settings with which the validation images get the training images' clusters."""
    return ["CLUSTERS.CENTROIDS", str(things["train"] / "clusters" / CENTROIDS)] if split == "val" else []


def print_table(results: dict[str, list[dict]]) -> None:
    """Prints one table in Markdown, means over the seeds."""
    columns = [key for key in ("mIoU", "pACC", "PQ_st", "seconds") if key in next(iter(results.values()))[0]]
    print(f"\n| method | mIoU by seed | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 2)}")
    for method, rows in results.items():
        by_seed = ", ".join(f"{row['mIoU']:.1f}" for row in rows)
        means = " | ".join(f"{np.mean([row[key] for row in rows]):.1f}" for key in columns)
        print(f"| {method} | {by_seed} | {means} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", choices=("textures", "scenes", "coco_mini"), default="textures")
    parser.add_argument("--coco", type=Path, help="coco_mini: photos with ground truth, in COCO's layout")
    parser.add_argument("--backbone", type=Path, help="coco_mini: the network's averaged weights")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("opts", nargs="*", help="KEY VALUE for all methods")
    args = parser.parse_args()
    if args.data == "coco_mini" and not (args.coco and args.backbone):
        parser.error("--data coco_mini needs --coco and --backbone")
    results: dict[str, list[dict]] = {}
    for seed in map(int, args.seeds.split(",")):
        root = args.output / f"seed{seed}"
        if args.data == "textures":
            if not (root / "annotations/panoptic_val.json").is_file():
                render(root, seed)
            weights = pretrain(root, seed)
        else:
            data = scenes_data(args.output) if args.data == "scenes" else coco_data(args.coco, args.backbone)
        for method in args.methods.split(","):
            if args.data == "textures":
                found = score(root, method, weights, seed, args.opts)
            else:
                found = score_labels(root, data, method, seed, args.opts)
            results.setdefault(method, []).append(found)
            print(seed, method, found, flush=True)
    print_table(results)
    print(json.dumps(results))
    means = {method: np.mean([row["mIoU"] for row in rows]) for method, rows in results.items()}
    base = means.pop("k-means", None)
    return int(args.data == "textures" and base is not None and any(m < base + MARGIN for m in means.values()))


if __name__ == "__main__":
    sys.exit(main())
