"""LUSS's metrics as pure functions on the counts of all images: mIoU, boundary mIoU, accuracy, F-beta, size bins, sweeps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from u2seg.evaluation.matching.assignment import best_category, hungarian, mixed
from u2seg.luss.evaluation.luss_counts import OTHER

EPSILON = 1e-10  # in the denominator of every IoU, as in the released evaluation
BETA_SQUARED = 0.3
# Largest share of the image's pixels, in percent (rounded up), of a class in each bin.
SIZE_BINS = {"S": 5, "MS": 25, "ML": 50, "L": 100}


@dataclass(frozen=True)
class LussScores:
    """All scores of a dataset under one matching, in 0..100.

    Attributes:
        scores: name -> value: mIoU, b-mIoU, Acc, F-beta, and mIoU and b-mIoU of each size bin (S, MS, ML, L; BS, BMS, BML, BL).
            Boundary scores are NaN where several clusters share a class: their boundary would have to be found anew.
        class_iou: float64 (C + 1,), "other" first.
        class_boundary_iou: float64 (C + 1,).
    """

    scores: dict[str, float]
    class_iou: np.ndarray
    class_boundary_iou: np.ndarray


def co_occurrence(counts: np.ndarray, num_clusters: int, num_classes: int) -> np.ndarray:
    """Returns in how many images each cluster and class occur together, int64 (clusters, classes), both without "other".

    An image's set of clusters is paired with its set of classes: where they lie, and their areas, do not count. Pixels without
    ground truth are not looked at.

    Source: LUSS, matching of the fully unsupervised protocol.
    """
    present = np.unique(counts[counts["predicted"] > OTHER][["image", "predicted"]])
    index, gt = _classes_beside(present["image"], counts)
    table = np.zeros((num_clusters, num_classes), np.int64)
    np.add.at(table, (present["predicted"][index] - 1, gt - 1), 1)
    return table


def content_digests(counts: np.ndarray, num_clusters: int) -> np.ndarray:
    """Returns numbers for each cluster that depend on what it covers and not on the cluster's id, uint64 (2, clusters).

    Each is a sum, over images and classes, of the pixels covered times a fixed pseudo-random number of the image and the class,
    modulo 2^64. So it can be updated as pixels leave a cluster, and is the same whichever rows the pixels are counted in. In the
    first row an image is known by its ground truth's areas, so that the order of the images does not count; in the second, which
    tells apart what the first does not, by its number.

    Args:
        counts: rows of ``COUNTS`` or ``SWEEP_COUNTS``.
        num_clusters: "other" not counted; rows of other ids are left out.
    """
    return _sums_of_terms(_of_clusters(counts, num_clusters), _content_terms(counts, num_clusters), num_clusters)


def one_to_one(counts: np.ndarray, digests: np.ndarray | None = None) -> np.ndarray:
    """Returns the class of each cluster, int64 (clusters,), by Hungarian matching; -1 only where clusters outnumber classes.

    Pairs without a common image are matched too, in ascending order, as a complete assignment does; they add no true pixel.

    Args:
        counts: from `co_occurrence`.
        digests: from `content_digests`. Clusters are taken in their order, so that among matchings of equal sum the choice does
            not depend on how clusters are numbered. None takes them by number.
    """
    order = np.arange(counts.shape[0]) if digests is None else np.lexsort(digests[::-1])
    # Rows and columns without any count take no part: with 919 classes and few images that is most of them.
    rows, columns = order[counts[order].any(axis=1)], np.flatnonzero(counts.any(axis=0))
    among = hungarian(counts[np.ix_(rows, columns)])
    matched = np.full(counts.shape[0], -1, np.int64)
    matched[rows[among >= 0]] = columns[among[among >= 0]]
    free = np.setdiff1d(np.arange(counts.shape[1]), matched)
    left = order[matched[order] < 0][: len(free)]
    matched[left] = free[: len(left)]
    return matched


def majority(counts: np.ndarray, digests: np.ndarray | None = None) -> np.ndarray:
    """Returns for each cluster the class with which it shares most images, int64 (clusters,); many may share one, -1: none.

    Of equal classes the lowest id is taken, so that ``digests`` are not needed.
    """
    return best_category(counts)


def identity(counts: np.ndarray, digests: np.ndarray | None = None) -> np.ndarray:
    """Returns the class of the same number for each cluster: for predictions that are class ids already."""
    ids = np.arange(counts.shape[0])
    return np.where(ids < counts.shape[1], ids, -1)


def match_clusters(matching: str, counts: np.ndarray, num_clusters: int, num_classes: int) -> np.ndarray:
    """Returns the 0-based class of each cluster, -1 for none, int64 (clusters,), fitted on the counts of all images.

    Args:
        matching: key of ``MATCHERS``.
        counts: rows of ``COUNTS``.
        num_clusters: "other" not counted.
        num_classes: C, "other" not counted.
    """
    together = co_occurrence(counts, num_clusters, num_classes)
    return MATCHERS[matching](together, content_digests(counts, num_clusters))


MATCHERS: dict[str, Callable[..., np.ndarray]] = {
    "hungarian": one_to_one,
    "majority": majority,
    "none": identity,
}


def full_label_map(matched: np.ndarray) -> np.ndarray:
    """Returns the class id of each predicted id, int64 (clusters + 2,): "other" to "other", the last entry (no id) to -1."""
    return np.concatenate([[OTHER], np.where(matched >= 0, matched + 1, -1), [-1]])


def score(counts: np.ndarray, matched: np.ndarray, num_classes: int) -> LussScores:
    """Returns all scores of a dataset.

    Args:
        counts: rows of ``COUNTS`` of all images.
        matched: int64 (clusters,), 0-based class of each cluster, -1 for none.
        num_classes: C, "other" not counted.

    Size bins: an image belongs to a bin if a class of it, "other" not counted, falls into the bin. From the images of a bin come
    the pixels of those classes and of "other"; an image without such a class adds nothing to the bin, its "other" neither.
    A bin is averaged over the classes that have pixels in it, "other" among them; NaN if no image belongs to it.

    Source: LUSS, section "evaluation protocol"; Acc, F-beta and the images of a bin as its released evaluation has them.
    """
    rows = counts.copy()
    rows["predicted"] = full_label_map(matched)[rows["predicted"]]  # index -1 is the last entry
    images = np.unique(rows["image"])
    used = matched[matched >= 0]
    bijective = len(np.unique(used)) == len(used)
    class_iou, _ = _ious(*_area_tables(rows, num_classes))
    boundary_iou = np.full(num_classes + 1, np.nan)
    if bijective:
        boundary_iou, _ = _ious(*_boundary_tables(rows, num_classes))
    values = {
        "mIoU": _percent(class_iou.mean()),
        "b-mIoU": _percent(boundary_iou.mean()),
        "Acc": _percent(_image_accuracy(rows, images, num_classes)),
        "F-beta": _percent(_f_beta(rows, images)),
    }
    bins = _size_bins(rows, num_classes)
    for index, name in enumerate(SIZE_BINS):
        of_bin = (rows["gt"] != OTHER) & (bins == index)
        images_of_bin = np.isin(rows["image"], rows["image"][of_bin])
        inside = rows[of_bin | ((rows["gt"] == OTHER) & images_of_bin)]
        values[name] = _percent(_mean_present(*_ious(*_area_tables(inside, num_classes))))
        boundary = _mean_present(*_ious(*_boundary_tables(inside, num_classes)))
        values[f"B{name}"] = _percent(boundary if bijective else np.nan)
    return LussScores(values, class_iou, boundary_iou)


def sweep_scores(
    counts: np.ndarray, thresholds: np.ndarray, num_clusters: int, num_classes: int, matcher: Callable
) -> list[dict[str, float]]:
    """Returns threshold and mIoU (0..100) of each threshold of a sweep, each with a matching of its own.

    Args:
        counts: rows of ``SWEEP_COUNTS`` of all images.
        thresholds: float (T,), ascending.
        num_clusters: number of clusters, "other" not counted.
        num_classes: C, "other" not counted.
        matcher: of ``MATCHERS``.
    """
    presence = _sweep_presence(counts)
    results = []
    tables = _sweep_confusions(counts, len(thresholds), num_clusters, num_classes)
    for index, (table, digests) in enumerate(zip(tables, _sweep_digests(counts, len(thresholds), num_clusters))):
        pairs = presence[presence["level"] >= index]
        together = np.zeros((num_clusters, num_classes), np.int64)
        np.add.at(together, (pairs["predicted"] - 1, pairs["gt"] - 1), 1)
        label_map = full_label_map(matcher(together, digests))
        kept = np.flatnonzero(label_map >= 0)
        true, predicted = np.zeros(num_classes + 1, np.int64), np.zeros(num_classes + 1, np.int64)
        np.add.at(true, label_map[kept], table[kept, label_map[kept]])
        np.add.at(predicted, label_map[kept], table[kept].sum(axis=1))
        iou, _ = _ious(true, predicted, table.sum(axis=0))
        results.append({"threshold": float(thresholds[index]), "mIoU": _percent(iou.mean())})
    return results


def _sweep_confusions(
    counts: np.ndarray, num_thresholds: int, num_clusters: int, num_classes: int
) -> Iterator[np.ndarray]:
    """Yields for each threshold int64 (clusters + 2, C + 1) pixels: "other", the clusters, no id; one array, changed in place."""
    rows = counts[np.argsort(counts["level"], kind="stable")]
    predicted = np.where(rows["predicted"] < 0, num_clusters + 1, rows["predicted"])
    table = np.zeros((num_clusters + 2, num_classes + 1), np.int64)
    np.add.at(table, (predicted, rows["gt"]), rows["pixels"])
    bounds = np.searchsorted(rows["level"], np.arange(-1, num_thresholds + 1))
    for index in range(num_thresholds):
        # Pixels whose last threshold was the one before become "other".
        fall = slice(bounds[index], bounds[index + 1])
        np.subtract.at(table, (predicted[fall], rows["gt"][fall]), rows["pixels"][fall])
        np.add.at(table[OTHER], rows["gt"][fall], rows["pixels"][fall])
        yield table


def _sweep_digests(counts: np.ndarray, num_thresholds: int, num_clusters: int) -> Iterator[np.ndarray]:
    """Yields `content_digests` at each threshold: equal to those of a run at that threshold alone; one array, changed in place."""
    counts = counts[np.argsort(counts["level"], kind="stable")]
    rows, terms = _of_clusters(counts, num_clusters), _content_terms(counts, num_clusters)
    digests = _sums_of_terms(rows, terms, num_clusters)
    bounds = np.searchsorted(rows["level"], np.arange(-1, num_thresholds + 1))
    for index in range(num_thresholds):
        fall = slice(bounds[index], bounds[index + 1])
        digests -= _sums_of_terms(rows[fall], terms[:, fall], num_clusters)
        yield digests


def _of_clusters(counts: np.ndarray, num_clusters: int) -> np.ndarray:
    return counts[(counts["predicted"] > OTHER) & (counts["predicted"] <= num_clusters)]


def _content_terms(counts: np.ndarray, num_clusters: int) -> np.ndarray:
    """Returns what each row of a cluster adds to its two digests, uint64 (2, rows of `_of_clusters`), wrapping on overflow."""
    images, index = np.unique(counts["image"], return_inverse=True)
    signatures = np.zeros(len(images), np.uint64)
    np.add.at(signatures, index, mixed(_unsigned(counts["gt"])) * counts["pixels"].astype(np.uint64))
    inside = (counts["predicted"] > OTHER) & (counts["predicted"] <= num_clusters)
    gt, pixels = _unsigned(counts["gt"][inside]), counts["pixels"][inside].astype(np.uint64)
    return np.stack([mixed(signatures[index[inside]], gt), mixed(_unsigned(counts["image"][inside]), gt)]) * pixels


def _sums_of_terms(rows: np.ndarray, terms: np.ndarray, num_clusters: int) -> np.ndarray:
    digests = np.zeros((len(terms), num_clusters), np.uint64)
    for sums, values in zip(digests, terms):
        np.add.at(sums, rows["predicted"] - 1, values)
    return digests


def _unsigned(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int64).astype(np.uint64)


def _sweep_presence(counts: np.ndarray) -> np.ndarray:
    """Returns one row (predicted, ground truth, level) for each cluster and class of an image: up to which level they occur together.

    A class occurs wherever it has pixels, whatever is predicted there; a cluster up to its highest level in the image.
    """
    clusters = counts[counts["predicted"] > OTHER]
    order = np.lexsort((-clusters["level"].astype(np.int64), clusters["predicted"], clusters["image"]))
    clusters = clusters[order]
    first = np.ones(len(clusters), bool)
    first[1:] = (clusters["image"][1:] != clusters["image"][:-1]) | (
        clusters["predicted"][1:] != clusters["predicted"][:-1]
    )
    clusters = clusters[first]
    index, gt = _classes_beside(clusters["image"], counts)
    rows = np.empty(len(index), np.dtype([("predicted", np.int32), ("gt", np.int32), ("level", np.int16)]))
    rows["predicted"] = clusters["predicted"][index]
    rows["level"] = clusters["level"][index]
    rows["gt"] = gt
    return rows


def _classes_beside(images: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns every pair of an entry of ``images`` and a class of that image: the entry's index, and the class id."""
    classes = np.unique(counts[counts["gt"] > OTHER][["image", "gt"]])
    start = np.searchsorted(classes["image"], images, side="left")
    repeats = np.searchsorted(classes["image"], images, side="right") - start
    index = np.repeat(np.arange(len(images)), repeats)
    offsets = np.arange(len(index)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    return index, classes["gt"][start[index] + offsets]


def _area_tables(rows: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns true, predicted and ground-truth pixels of each class, int64 (C + 1,) each."""
    return _marginals(rows["predicted"], rows["gt"], rows["pixels"], num_classes)


def _boundary_tables(rows: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns true, predicted and ground-truth boundary pixels of each class, int64 (C + 1,) each."""
    predicted = np.where(rows["predicted_boundary"], rows["predicted"], -1)
    gt = np.where(rows["gt_boundary"], rows["gt"], -1)
    return _marginals(predicted, gt, rows["pixels"], num_classes)


def _marginals(
    predicted: np.ndarray, gt: np.ndarray, pixels: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    def total(labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        table = np.zeros(num_classes + 1, np.int64)
        np.add.at(table, labels[chosen], pixels[chosen])
        return table

    return total(gt, (gt == predicted) & (gt >= 0)), total(predicted, predicted >= 0), total(gt, gt >= 0)


def _ious(true: np.ndarray, predicted: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the IoU of each class, and whether it has ground truth."""
    return true / (predicted + gt - true + EPSILON), gt > 0


def _mean_present(ious: np.ndarray, present: np.ndarray) -> float:
    return float(ious[present].mean()) if present.any() else float("nan")


def _image_accuracy(rows: np.ndarray, images: np.ndarray, num_classes: int) -> float:
    """Returns the share of images whose largest predicted class is one that they hold, 0..1."""
    index = np.searchsorted(images, rows["image"])
    best_area, best_class = np.zeros(len(images), np.int64), np.full(len(images), -1)
    inside = rows["predicted"] > OTHER
    keys, where = np.unique(index[inside] * (num_classes + 1) + rows["predicted"][inside], return_inverse=True)
    areas = np.zeros(len(keys), np.int64)
    np.add.at(areas, where, rows["pixels"][inside])
    for key, area in zip(keys.tolist(), areas.tolist()):  # ascending ids: the lowest wins a tie
        image, label = divmod(key, num_classes + 1)
        if area > best_area[image]:
            best_area[image], best_class[image] = area, label
    held = set(np.unique(index * (num_classes + 1) + rows["gt"]).tolist())
    right = [label > 0 and image * (num_classes + 1) + label in held for image, label in enumerate(best_class.tolist())]
    return float(np.mean(right)) if right else float("nan")


def _f_beta(rows: np.ndarray, images: np.ndarray) -> float:
    """Returns the mean over images of F with beta^2 = 0.3 between predicted and true foreground, 0..1; 0 without overlap."""
    index = np.searchsorted(images, rows["image"])
    # Clusters without a class are foreground all the same: the score does not depend on the matching.
    predicted, gt = rows["predicted"] != OTHER, rows["gt"] != OTHER
    areas = [
        np.bincount(index[chosen], rows["pixels"][chosen], len(images)) for chosen in (predicted & gt, predicted, gt)
    ]
    common, predicted_area, true_area = areas
    precision = common / np.maximum(predicted_area, 1)
    recall = common / np.maximum(true_area, 1)
    below = BETA_SQUARED * precision + recall
    f = np.where(below > 0, (1 + BETA_SQUARED) * precision * recall / np.where(below > 0, below, 1), 0)
    return float(f.mean()) if len(f) else float("nan")


def _size_bins(rows: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the index of the size bin of each row's class in its image, int64 (rows,)."""
    images, index = np.unique(rows["image"], return_inverse=True)
    total = np.zeros(len(images), np.int64)
    np.add.at(total, index, rows["pixels"])
    keys, where = np.unique(index * (num_classes + 1) + rows["gt"], return_inverse=True)
    areas = np.zeros(len(keys), np.int64)
    np.add.at(areas, where, rows["pixels"])
    whole = total[keys // (num_classes + 1)]
    percent = -(-100 * areas // np.maximum(whole, 1))  # rounded up, in integers
    return np.searchsorted(list(SIZE_BINS.values()), percent, side="left")[where]


def _percent(value: float) -> float:
    return 100.0 * float(value)
