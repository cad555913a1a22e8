#!/usr/bin/env python
"""How fast LUSS scores are computed, against an implementation that follows the protocol word by word.

    python benchmarks/luss_evaluation.py [--classes 919] [--num-images 40] [--sweep-images 2]

Promises: equal scores (to 1e-5 of 100) and a sweep of 81 attention thresholds at least 10 times faster. Images are rendered,
375 x 500 pixels, with objects of random classes; both sides run in this process, on one thread.
"""

import argparse
import json
import sys
import time
import tracemalloc

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from u2seg.luss.data.id_maps import LUSS_IGNORE
from u2seg.luss.evaluation.luss_counts import boundary_width, count_image, count_sweep
from u2seg.luss.evaluation.luss_metrics import co_occurrence, one_to_one, score, sweep_scores

RATIO = 0.03
THRESHOLDS = np.linspace(0, 0.8, 81)
MIN_SPEEDUP = 10


def render(rng: np.random.Generator, num_classes: int, size: tuple[int, int] = (375, 500)):
    """Returns ground truth, clusters and attention of one image."""
    height, width = size
    gt = np.zeros(size, np.int32)
    clusters = cv2.resize(rng.integers(1, num_classes + 1, (6, 8)).astype(np.float32), size[::-1], interpolation=0)
    for label in rng.integers(1, num_classes + 1, 2):
        center = tuple(int(v) for v in (rng.integers(width), rng.integers(height)))
        axes = tuple(int(v) for v in rng.integers(40, 140, 2))
        cv2.ellipse(gt, center, axes, float(rng.uniform(0, 180)), 0, 360, int(label), -1)
        shifted = np.roll(gt == label, rng.integers(-12, 13, 2), (0, 1))
        clusters[shifted] = num_classes + 1 - label  # clusters are classes under other names
    gt[: int(rng.integers(5, 40)), :80] = LUSS_IGNORE
    attention = cv2.resize(rng.random((12, 16), np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return gt, clusters.astype(np.int32), attention


class Obvious:
    """The protocol word by word: erosion of each class, a full confusion matrix for each image, one run for each threshold."""

    def __init__(self, num_classes: int):
        self.num_ids = num_classes + 1
        self.area = np.zeros((self.num_ids, self.num_ids), np.int64)
        self.boundary = np.zeros((self.num_ids + 1, self.num_ids + 1), np.int64)
        self.together = np.zeros((num_classes, num_classes), np.int64)

    def boundary_labels(self, labels: np.ndarray) -> np.ndarray:
        """Returns label + 1 on the boundary of each label, 0 elsewhere."""
        width = boundary_width(*labels.shape, RATIO)
        result = np.zeros(labels.shape, np.int64)
        for value in np.unique(labels):
            mask = (labels == value).astype(np.uint8)
            eroded = cv2.erode(cv2.copyMakeBorder(mask, 1, 1, 1, 1, 0), np.ones((3, 3), np.uint8), iterations=width)
            result[(mask - eroded[1:-1, 1:-1]) > 0] = value + 1
        return result

    def add(self, gt: np.ndarray, predicted: np.ndarray) -> None:
        """Takes one image."""
        valid = gt != LUSS_IGNORE
        n = self.num_ids
        self.area += np.bincount(predicted[valid] * n + gt[valid], minlength=n * n).reshape(n, n)
        p, t = self.boundary_labels(predicted)[valid], self.boundary_labels(gt)[valid]
        self.boundary += np.bincount(p * (n + 1) + t, minlength=(n + 1) ** 2).reshape(n + 1, n + 1)
        for cluster in set(np.unique(predicted[valid]).tolist()) - {0}:
            for label in set(np.unique(gt[valid]).tolist()) - {0}:
                self.together[cluster - 1, label - 1] += 1

    def scores(self, matched: np.ndarray) -> dict[str, float]:
        """Returns mIoU and boundary mIoU under a one-to-one matching."""
        order = np.concatenate([[0], np.argsort(matched) + 1])
        results = {}
        for name, table in (
            ("mIoU", self.area[order]),
            ("b-mIoU", self.boundary[np.concatenate([[0], order + 1])]),
        ):
            true = np.diag(table)
            iou = true / (table.sum(0) + table.sum(1) - true + 1e-10)
            results[name] = 100 * float((iou if name == "mIoU" else iou[1:]).mean())
        return results


def peak_mib(function) -> float:
    """Returns the most memory that ``function`` held at once beyond what was there before, MiB, by Python's own account."""
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=919)
    parser.add_argument("--num-images", type=int, default=40)
    parser.add_argument("--sweep-images", type=int, default=2)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    classes = args.classes
    rng = np.random.default_rng(0)
    images = [render(rng, classes) for _ in range(args.num_images)]

    def ours():
        counts = np.concatenate([count_image(i, c, t, RATIO) for i, (t, c, _) in enumerate(images)])
        matched = one_to_one(co_occurrence(counts, classes, classes))
        return score(counts, matched, classes).scores, matched, counts.nbytes

    (scores, matched, num_bytes), seconds = timed(ours)

    def obvious():
        one = Obvious(classes)
        for gt, clusters, _ in images:
            one.add(gt, clusters)
        # Equal matchings may be reached by different ties: the sums are compared, the scores under one matching.
        rows, columns = linear_sum_assignment(-one.together)
        return one.scores(matched), int(one.together[rows, columns].sum()), int(one.together[rows, matched].sum())

    (expected, best, reached), obvious_seconds = timed(obvious)

    few = images[: args.sweep_images]

    def our_sweep():
        rows = np.concatenate([count_sweep(i, c, a, t, THRESHOLDS) for i, (t, c, a) in enumerate(few)])
        for index, (gt, clusters, _) in enumerate(few):  # the scores at one threshold are had in the same pass
            count_image(index, clusters, gt, RATIO)
        # Among equal matchings the plain way takes clusters by number; so does this comparison.
        return sweep_scores(rows, THRESHOLDS, classes, classes, lambda together, _: one_to_one(together))

    curve, sweep_seconds = timed(our_sweep)

    def obvious_sweep():
        results = []
        for threshold in THRESHOLDS:
            one = Obvious(classes)
            for gt, clusters, attention in few:
                one.add(gt, np.where(attention < threshold, 0, clusters))
            results.append(one.scores(one_to_one(one.together))["mIoU"])
        return results

    expected_curve, obvious_sweep_seconds = timed(obvious_sweep)
    sweep_error = max(abs(row["mIoU"] - value) for row, value in zip(curve, expected_curve))
    error = max(abs(scores[name] - expected[name]) for name in expected)
    figures = {
        "classes": classes,
        "ms_per_image": 1000 * seconds / len(images),
        "obvious_ms_per_image": 1000 * obvious_seconds / len(images),
        "speedup": obvious_seconds / seconds,
        "sweep_ms_per_image": 1000 * sweep_seconds / len(few),
        "obvious_sweep_ms_per_image": 1000 * obvious_sweep_seconds / len(few),
        "sweep_speedup": obvious_sweep_seconds / sweep_seconds,
        "count_bytes_per_image": num_bytes / len(images),
        "peak_mib": peak_mib(ours),
        "obvious_peak_mib": peak_mib(obvious),
        "largest_difference": error,
        "largest_sweep_difference": sweep_error,
        "matching_is_optimal": best == reached,
    }
    rows = [
        ("all 12 scores", "", "mIoU, b-mIoU alone", "obvious_", ""),
        ("and 81 thresholds", "sweep_", "81 runs", "obvious_sweep_", "sweep_"),
    ]
    body = [
        [what, figures[f"{ours}ms_per_image"], other, figures[f"{theirs}ms_per_image"], figures[f"{ratio}speedup"]]
        for what, ours, other, theirs, ratio in rows
    ]
    headers = [f"{classes} classes, ms an image", "this project", "", "word by word", "ratio"]
    body.append(
        [
            "MiB held, 12 scores",
            figures["peak_mib"],
            "",
            figures["obvious_peak_mib"],
            figures["obvious_peak_mib"] / figures["peak_mib"],
        ]
    )
    print(tabulate(body, headers=headers, floatfmt=".1f", tablefmt="github"))
    failures = [
        text
        for text, broken in (
            (f"scores differ by {error}", error > 1e-5),
            (f"sweeps differ by {sweep_error}", sweep_error > 1e-5),
            ("the matching is not optimal", best != reached),
            (f"the sweep is only {figures['sweep_speedup']:.1f} times faster", figures["sweep_speedup"] < MIN_SPEEDUP),
        )
        if broken
    ]
    for text in failures:
        print(f"promise missed: {text}", file=sys.stderr)
    print(json.dumps(figures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
