"""Does the demo's score come from the method, or are its scenes easy?

Promise: on scenes that nothing was tuned on, labeling each image by its mean color alone, and one k-means on raw pixel colors in
place of the masks stage, reach less than half of the PQ (protocol ``hungarian``) of the labels that the demo's configuration makes.
Beside them, as a control that is no part of the promise: the demo's masks and stuff with random clusters.

    python benchmarks/scene_baselines.py [--num-images 60] [--seed 3] [--train]

Without ``--train`` the pseudo-labels themselves are scored, made on the scored images; with it, a model is trained on 200 images
with each method's labels by the demo's schedule and scored on images that it did not see (minutes each).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from u2seg.config import setup_cfg
from u2seg.data.formats.coco_panoptic import panoptic_annotation, write_panoptic_png
from u2seg.engine.end_to_end import METRICS, train
from u2seg.evaluation.score_files import score_panoptic_files
from u2seg.pseudo_labels.pipeline import make_pseudo_labels
from u2seg.structures.label_space import LabelSpace
from u2seg.structures.segments import Segment
from u2seg.utils.files import read_json, write_json
from u2seg.utils.image_io import image_ids, list_images, png_names, read_image_rgb
from u2seg.utils.kmeans import assign, kmeans

CONFIG = "quick_schedules/scenes.yaml"
PROTOCOL = "hungarian"
RENDER = Path(__file__).parent.parent / "datasets" / "prepare_scenes.py"
# Method -> configuration of its masks and clusters; the semantic stage is the demo's.
METHODS = {
    "demo": [],
    "k-means on raw pixel colors": [
        *("FEATURES.NAME", "RawPixels", "MASKS.GENERATOR", "KMeansRegions", "MASKS.REFINEMENT", "none"),
    ],
    "demo's masks, random clusters": ["CLUSTERS.EMBEDDING", "random_vectors"],
}
MEAN_COLOR = "mean color of the image"
PROMISED = ("k-means on raw pixel colors", MEAN_COLOR)


def label_by_mean_color(images: Path, output: Path) -> Path:
    """Returns panoptic labels that give each whole image to one stuff cluster, found by k-means on their mean colors."""
    space = LabelSpace.of_clusters(1, setup_cfg(CONFIG).SEMANTICS.NUM_CLUSTERS)
    names = list_images(images)
    images_rgb = [read_image_rgb(images / name) for name in names]
    means = np.stack([image.reshape(-1, 3).mean(axis=0) for image in images_rgb])
    found = kmeans(means, space.num_stuff, num_iterations=50, num_restarts=10, seed=0)
    rows, records = [], []
    for image_id, name, image, cluster in zip(image_ids(names), names, images_rgb, assign(means, found.centroids)[0]):
        panoptic = np.ones(image.shape[:2], np.int32)
        png = png_names([name])[0]
        write_panoptic_png(output / "panoptic" / "panoptic" / png, panoptic)
        rows.append(
            panoptic_annotation(image_id, png, panoptic, [Segment(1, int(cluster), False, panoptic.size)], space)
        )
        records.append({"id": image_id, "file_name": name, "height": panoptic.shape[0], "width": panoptic.shape[1]})
    write_json(
        output / "panoptic" / "panoptic.json",
        {"images": records, "annotations": rows, "categories": space.categories()},
    )
    return output


def make_labels(opts: list[str], images: Path, output: Path) -> Path:
    """Returns labels whose masks and clusters follow ``opts``, while the semantic stage is the demo's own."""
    make_pseudo_labels(setup_cfg(CONFIG, opts), images, output, stages=["masks", "clusters"])
    return make_pseudo_labels(setup_cfg(CONFIG), images, output, stages=["semantics", "panoptic"])


def score_labels(scenes: Path, labels: Path, output: Path) -> dict:
    """Returns the scores of labels made on the validation images."""
    score_panoptic_files(
        scenes / "annotations" / "panoptic_val.json",
        scenes / "panoptic_val",
        labels / "panoptic" / "panoptic.json",
        labels / "panoptic" / "panoptic",
        output=output,
        protocols=[PROTOCOL],
    )
    return read_json(output / METRICS)


def train_and_score(scenes: Path, labels: Path, output: Path) -> dict:
    """Returns the scores of a model trained on labels of the training images."""
    opts = [
        "DATASETS.BY_PATH.scenes_train.ROOT",
        str(labels),
        "DATASETS.BY_PATH.scenes_train.IMAGES",
        str(scenes / "train"),
    ]
    opts += ["DATASETS.BY_PATH.scenes_val.ROOT", str(scenes)]
    train(CONFIG, output, opts)
    return read_json(output / "inference" / "scenes_val" / METRICS)


def main() -> int:
    """Runs every method on the same images; returns 1 where a baseline reaches half of the method's PQ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=60, help="validation images")
    parser.add_argument("--seed", type=int, default=3, help="of the scenes; any that the demo was not chosen on")
    parser.add_argument("--train", action="store_true", help="score trained models, not the labels")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        scenes = root / "scenes"
        counts = ["--train", "200" if args.train else "1", "--val", str(args.num_images), "--seed", str(args.seed)]
        subprocess.run([sys.executable, str(RENDER), "--output", str(scenes), *counts], check=True)
        for index, (name, opts) in enumerate(METHODS.items()):
            images = scenes / ("train" if args.train else "val")
            labels = make_labels(opts, images, root / f"labels{index}")
            score = train_and_score if args.train else score_labels
            results[name] = score(scenes, labels, root / f"scores{index}")["panoptic_seg"][PROTOCOL]
        if not args.train:  # a model could learn no thing from it
            labels = label_by_mean_color(scenes / "val", root / "mean")
            results[MEAN_COLOR] = score_labels(scenes, labels, root / "mean_scores")["panoptic_seg"][PROTOCOL]
    print(f"\n{'method':36} {'PQ':>6} {'PQ_th':>6} {'PQ_st':>6}")
    for name, row in results.items():
        print(f"{name:36} {row['PQ']:6.1f} {row['PQ_th']:6.1f} {row['PQ_st']:6.1f}")
    best = max(row["PQ"] for name, row in results.items() if name in PROMISED)
    share = best / results["demo"]["PQ"]
    print(f"the best baseline reaches {share:.0%} of the demo's PQ; promised: below 50 %")
    print(json.dumps({name: round(row["PQ"], 2) for name, row in results.items()}))
    return 0 if share < 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
