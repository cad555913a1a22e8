#!/usr/bin/env python
"""Which self-supervised objective makes the best patch features from a few thousand photos? Equal budgets, one table.

    python benchmarks/photo_backbones.py --photos PHOTOS --classes CLASSES --coco COCO_MINI --output output/backbones

Trains one small ResNet with each objective on the same photos, for the same number of steps and images, and compares their features
with those of the random network and of the hand-made descriptor. Killed and started again, it goes on where it was; with other
``--iterations`` it needs another output directory. ``--only NAME,...`` makes some of the rows, ``--weights NAME=FILE`` adds one.

* ``k-NN``: accuracy of a weighted vote of 20 neighbors on CLASSES (one directory for each class), leave one out, image features.
* ``NMI``: of 27 k-means clusters of all patches and the categories of COCO_MINI's train2017 (panoptic), 0..100.
* ``ARI``: adjusted Rand index of each image's patches, k-means with as many clusters as the image has segments, mean over images.
* ``AR10``, ``AR100``: class-agnostic recall of ``KMeansRegions`` masks on train2017: connected regions of 8 clusters, not refined.

Labels are read to measure, never to train. Promise: each objective's features beat the random network's k-NN accuracy.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from u2seg.config import setup_cfg
from u2seg.data.datasets.class_directories import class_directory_records
from u2seg.evaluation.metrics.mask_quality import evaluate_masks
from u2seg.evaluation.tables.ground_truth import PanopticGroundTruth
from u2seg.features import build_feature_extractor
from u2seg.luss.modeling.knn import knn_accuracy
from u2seg.pseudo_labels.pipeline import make_pseudo_labels
from u2seg.utils.command_line import comma_separated
from u2seg.utils.files import read_json, write_json
from u2seg.utils.image_io import read_image_rgb
from u2seg.utils.kmeans import assign, kmeans, l2_normalize

ROOT = Path(__file__).parent.parent
DENSE, PASS = "LUSS/dense_contrast_photos_cpu.yaml", "LUSS/pass_photos_cpu.yaml"
# Name -> configuration and settings of its training.
OBJECTIVES = {
    "dense contrast": (DENSE, []),
    "whole views alone": (DENSE, ["MODEL.DENSE_CONTRAST.POINT_WEIGHT", 0.0]),
    "PASS": (PASS, []),
}
RANDOM, HANDMADE = "random network", "hand-made descriptor"
NUM_CLUSTERS = 27
GRID = ["FEATURES.IMAGE_SIZE", (192, 256)]
NETWORK = [
    *("FEATURES.NAME", "ResNetFeatures", "FEATURES.RESNET.CONFIG_FILE", DENSE),
    *("FEATURES.RESNET.OUT_FEATURE", "res5", "FEATURES.RESNET.STRIDE", 8),
]
MASKS = ["MASKS.GENERATOR", "KMeansRegions", "MASKS.REFINEMENT", "none", "MASKS.MAX_AREA", 0.8, "MASKS.MIN_AREA", 0.002]
COLUMNS = ("k-NN", "NMI", "ARI", "AR10", "AR100")


def train(name: str, args: argparse.Namespace) -> Path:
    """Returns the averaged weights of one objective, trained now or before."""
    output = args.output / name.replace(" ", "_")
    weights = output / "model_ema.pth"
    if not weights.is_file():
        config, opts = OBJECTIVES[name]
        command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", config, "--resume"]
        opts = [*opts, "DATASETS.BY_PATH.pass_images.ROOT", args.photos, "OUTPUT_DIR", output, "SEED", args.seed]
        opts += ["SOLVER.MAX_ITER", args.iterations, "SOLVER.WARMUP_ITERS", max(1, args.iterations // 10)]
        subprocess.run([*command, *map(str, opts)], check=True)
    return weights


def measure(opts: list, args: argparse.Namespace, masks: Path) -> dict[str, float]:
    """Returns the columns of one row; ``masks`` is a directory for its masks."""
    start = time.perf_counter()
    features = build_feature_extractor(setup_cfg("quick_schedules/photos.yaml", [*GRID, *opts]))
    squared = build_feature_extractor(
        setup_cfg("quick_schedules/photos.yaml", [*opts, "FEATURES.IMAGE_SIZE", (128, 128)])
    )
    row = {"k-NN": 100 * image_accuracy(squared, args.classes)}
    row.update(patch_scores(features, args.coco))
    cfg = setup_cfg("quick_schedules/photos.yaml", [*GRID, *opts, *MASKS])
    make_pseudo_labels(cfg, args.coco / "train2017", masks, stages=["masks"])
    quality = evaluate_masks(masks, args.coco / "annotations/instances_train2017.json")["segm"]
    return {**row, "AR10": quality["AR10"], "AR100": quality["AR100"], "seconds": time.perf_counter() - start}


@torch.no_grad()
def image_accuracy(extractor: torch.nn.Module, classes: Path) -> float:
    """Returns the leave-one-out k-NN accuracy, 0..1, of image features on one directory for each class."""
    records = class_directory_records(classes)
    rows = [
        extractor.embed(extractor.preprocess(read_image_rgb(record["file_name"]))[None])[0].numpy()
        for record in records
    ]
    features = torch.from_numpy(l2_normalize(np.stack(rows))).float()
    labels = torch.tensor([record["image_class"] for record in records])
    return knn_accuracy(features, labels, features, labels, 20, 0.07, own=torch.arange(len(labels)))


@torch.no_grad()
def patch_scores(extractor: torch.nn.Module, coco: Path) -> dict[str, float]:
    """Returns NMI and ARI, 0..100, of the patches of the annotated training photos."""
    gt = PanopticGroundTruth(coco / "annotations/panoptic_train2017.json", coco / "panoptic_train2017")
    names = {image["id"]: image["file_name"] for image in read_json(gt.path)["images"]}
    vectors, categories, indices = [], [], []
    for image_id in sorted(gt.annotations):
        image = extractor.preprocess(read_image_rgb(coco / "train2017" / names[image_id]))
        patches = l2_normalize(extractor(image[None])[0].flatten(1).T.numpy())
        segment_map, segments = gt.read(image_id)
        at_patches = _at_centers(segment_map, extractor.grid_size).ravel()
        known = np.isin(at_patches, [segment.id for segment in segments])
        patches, at_patches = patches[known], at_patches[known]
        label = {segment.id: segment.label for segment in segments}
        vectors.append(patches)
        categories.append(np.array([label[i] for i in at_patches]))
        count = len(np.unique(at_patches))
        if count > 1:
            indices.append(adjusted_rand(_cluster(patches, count), at_patches))
    clusters = _cluster(np.concatenate(vectors), NUM_CLUSTERS)
    return {"NMI": 100 * mutual_information(clusters, np.concatenate(categories)), "ARI": 100 * float(np.mean(indices))}


def _at_centers(segment_map: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns the map's values at the centers of a grid's patches."""
    rows, columns = (
        ((np.arange(count) + 0.5) * side / count).astype(int) for count, side in zip(grid, segment_map.shape)
    )
    return segment_map[np.ix_(rows, columns)]


def _cluster(vectors: np.ndarray, count: int) -> np.ndarray:
    found = kmeans(vectors, count, num_iterations=20, num_restarts=2, seed=0)
    return assign(vectors, found.centroids)[0]


def _contingency(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = (np.unique(labels, return_inverse=True)[1] for labels in (first, second))
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    return table


def mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the mutual information of two labelings over the geometric mean of their entropies, 0..1."""
    joint = _contingency(first, second) / len(first)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    filled = joint > 0
    information = (joint[filled] * np.log((joint / np.outer(rows, columns))[filled])).sum()
    return float(information / np.sqrt((rows * np.log(rows)).sum() * (columns * np.log(columns)).sum()))


def adjusted_rand(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the adjusted Rand index of two labelings, at most 1, 0 on average for random ones (Hubert & Arabie, 1985)."""
    table = _contingency(first, second)

    def pairs(counts: np.ndarray) -> float:
        return float((counts * (counts - 1) / 2).sum())

    rows, columns, total = pairs(table.sum(axis=1)), pairs(table.sum(axis=0)), pairs(np.array([len(first)]))
    expected = rows * columns / total
    largest = (rows + columns) / 2
    return (pairs(table) - expected) / (largest - expected) if largest != expected else 1.0


def rows_to_make(args: argparse.Namespace) -> dict[str, Callable[[], list]]:
    """Returns, for each row of the table, what gives its feature settings; calling it trains."""
    rows: dict[str, Callable[[], list]] = {HANDMADE: lambda: [], RANDOM: lambda: NETWORK}
    for name in OBJECTIVES:
        rows[name] = lambda name=name: [*NETWORK, "FEATURES.RESNET.WEIGHTS", str(train(name, args))]
    for given in args.weights:
        name, _, file = given.partition("=")
        rows[name] = lambda file=file: [*NETWORK, "FEATURES.RESNET.WEIGHTS", file]
    return {name: make for name, make in rows.items() if not args.only or name in args.only}


def main() -> int:
    """Trains, measures and prints; returns 1 where an objective does not beat the random network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="training photos, without labels")
    parser.add_argument("--classes", type=Path, required=True, help="one directory of photos for each class")
    parser.add_argument("--coco", type=Path, required=True, help="train2017, panoptic_train2017 and annotations")
    parser.add_argument("--output", type=Path, required=True, help="trainings, masks and scores")
    parser.add_argument("--iterations", type=int, default=400, help="steps of 64 photos for each objective")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=comma_separated(), default=[], help="names of rows")
    parser.add_argument("--weights", action="append", default=[], metavar="NAME=FILE", help="a further checkpoint")
    args = parser.parse_args()
    results = {}
    for name, settings in rows_to_make(args).items():
        directory = args.output / name.replace(" ", "_")
        scores = directory / "quality.json"
        if not scores.is_file():
            write_json(scores, measure(settings(), args, directory / "masks"))
        results[name] = read_json(scores)
        print(name, {key: round(value, 2) for key, value in results[name].items()}, flush=True)
    print(f"\n| features | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}")
    for name, row in results.items():
        print(f"| {name} | {' | '.join(f'{row[column]:.1f}' for column in COLUMNS)} |")
    learned = [results[name]["k-NN"] for name in OBJECTIVES if name in results]
    return 0 if RANDOM not in results or all(value > results[RANDOM]["k-NN"] for value in learned) else 1


if __name__ == "__main__":
    sys.exit(main())
