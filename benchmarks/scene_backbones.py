#!/usr/bin/env python
"""What is a backbone learned from the scenes worth? PASS against the hand-made descriptor and against a random network.

    python benchmarks/scene_backbones.py [--num-images 60] [--seed 0] [--weights MODEL.pth]

Pretrains on the scenes' 240 training images (LUSS/pass_scenes.yaml; not with --weights), then makes masks, clusters and panoptic labels
of the validation images with each set of features, by MaskCut with the same settings and by RecursiveCut with those of the demo, which
were tuned for the descriptor. Prints mask AR, cluster purity (share of the labels' things with IoU of at least 0.5 to an object that
are of their cluster's most frequent kind) and the labels' PQ, protocol ``hungarian``.

Promise: with MaskCut, PASS's features find more than a random network's (mask AR).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from u2seg.config import setup_cfg
from u2seg.engine.end_to_end import METRICS
from u2seg.evaluation.metrics.mask_quality import evaluate_masks
from u2seg.evaluation.score_files import score_panoptic_files
from u2seg.pseudo_labels.pipeline import make_pseudo_labels
from u2seg.utils.files import read_json

ROOT = Path(__file__).parent.parent
LABELS_CONFIG = "quick_schedules/scenes.yaml"
NETWORK_CONFIG = "LUSS/pass_scenes.yaml"
PROTOCOL = "hungarian"
MASKCUT = [
    *("MASKS.GENERATOR", "MaskCut", "MASKS.ROUNDS", 6, "MASKS.MAX_AREA", 0.4, "MASKS.MAX_CORNERS", 3),
    *("MASKS.REFINEMENT", "guided_filter"),
]
NETWORK = [
    *("FEATURES.NAME", "ResNetFeatures", "FEATURES.RESNET.CONFIG_FILE", NETWORK_CONFIG, "FEATURES.RESNET.STRIDE", 4),
    *("FEATURES.RESNET.OUT_FEATURE", "res4", "MASKS.TAU", 0.3),
]


def methods(weights: str) -> dict[str, list]:
    """Returns the settings of each row of the table; tau and radius are each kind of feature's own."""
    return {
        "hand-made, MaskCut": [*MASKCUT, "MASKS.TAU", 0.5],
        "PASS res4, MaskCut": [*MASKCUT, *NETWORK, "FEATURES.RESNET.WEIGHTS", weights],
        "random network, MaskCut": [*MASKCUT, *NETWORK],
        "hand-made, RecursiveCut (the demo)": [],
        "PASS res4, RecursiveCut": [*NETWORK, "FEATURES.RESNET.WEIGHTS", weights, "MASKS.RECURSIVE.RADIUS", 5.5],
        "random network, RecursiveCut": [*NETWORK, "MASKS.RECURSIVE.RADIUS", 1.7],
    }


def purity(instances: Path, gt: Path) -> float:
    """Returns the share of labeled things on an object that are of their cluster's most frequent kind, 0..1."""
    kinds = _by_image(gt)
    found = defaultdict(Counter)
    for name, things in _by_image(instances).items():
        objects = kinds.get(name, [])
        if not objects:
            continue
        ious = np.asarray(coco_mask.iou([rle for rle, _ in things], [rle for rle, _ in objects], [0] * len(objects)))
        for (_, cluster), row in zip(things, ious):
            if row.max() >= 0.5:
                found[cluster][objects[int(row.argmax())][1]] += 1
    total = sum(sum(counts.values()) for counts in found.values())
    return sum(max(counts.values()) for counts in found.values()) / total if total else float("nan")


def _by_image(path: Path) -> dict[str, list[tuple[dict, int]]]:
    content = read_json(path)
    names = {image["id"]: image["file_name"] for image in content["images"]}
    rows = defaultdict(list)
    for annotation in content["annotations"]:
        rle = dict(annotation["segmentation"])
        if isinstance(rle["counts"], str):
            rle["counts"] = rle["counts"].encode()
        elif isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, *rle["size"])
        rows[names[annotation["image_id"]]].append((rle, annotation["category_id"]))
    return rows


def pretrain(scenes: Path, output: Path) -> tuple[str, float]:
    """Returns PASS's weights, learned from the training images, and the seconds that it took."""
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", NETWORK_CONFIG]
    opts = ["DATASETS.BY_PATH.pass_images.ROOT", str(scenes / "train"), "OUTPUT_DIR", str(output)]
    start = time.perf_counter()
    subprocess.run([*command, *opts], check=True)
    return str(output / "model_final.pth"), time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=60, help="validation images")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    parser.add_argument("--weights", help="PASS weights, instead of pretraining")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        scenes = root / "scenes"
        render = [sys.executable, str(ROOT / "datasets/prepare_scenes.py"), "--output", str(scenes)]
        subprocess.run([*render, "--val", str(args.num_images), "--seed", str(args.seed)], check=True)
        weights, seconds = (args.weights, 0.0) if args.weights else pretrain(scenes, root / "pass")
        for index, (name, opts) in enumerate(methods(weights).items()):
            labels = root / f"labels{index}"
            start = time.perf_counter()
            make_pseudo_labels(setup_cfg(LABELS_CONFIG, opts), scenes / "val", labels)
            elapsed = time.perf_counter() - start
            score_panoptic_files(
                scenes / "annotations/panoptic_val.json",
                scenes / "panoptic_val",
                labels / "panoptic/panoptic.json",
                labels / "panoptic/panoptic",
                output=root / f"scores{index}",
                protocols=[PROTOCOL],
            )
            gt = scenes / "annotations/instances_val.json"
            quality = evaluate_masks(labels / "masks", gt)["segm"]
            panoptic = read_json(root / f"scores{index}" / METRICS)["panoptic_seg"][PROTOCOL]
            results[name] = {
                "mask AR100": quality["AR100"],
                "purity": 100 * purity(labels / "panoptic/instances.json", gt),
                "PQ": panoptic["PQ"],
                "PQ_th": panoptic["PQ_th"],
                "PQ_st": panoptic["PQ_st"],
                "seconds": elapsed,
            }
            print(name, results[name], flush=True)
    columns = list(next(iter(results.values())))
    print(f"\n| features | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    for name, row in results.items():
        print(f"| {name} | {' | '.join(f'{row[column]:.1f}' for column in columns)} |")
    print(json.dumps({"pretraining_seconds": round(seconds, 1), **results}))
    better = results["PASS res4, MaskCut"]["mask AR100"] > results["random network, MaskCut"]["mask AR100"]
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(main())
