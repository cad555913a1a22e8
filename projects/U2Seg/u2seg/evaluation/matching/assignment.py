"""Matching clusters to categories: pure functions on count matrices.

In every matrix rows are clusters and columns are categories; every result is an int64 array with the category of each cluster,
-1 where it has none. A cluster and a category that have nothing in common are never matched.
"""

from collections.abc import Callable

import numpy as np

from u2seg.evaluation.tables.segment_tables import SegmentTables

# From counts, int (clusters, categories), to the category of each cluster, int64 (clusters,), -1 for none.
Matcher = Callable[[np.ndarray], np.ndarray]

NO_CATEGORY = -1


def hungarian(counts: np.ndarray) -> np.ndarray:
    """Returns the one-to-one matching with the largest sum of counts; the clusters left over get -1.

    Args:
        counts: (clusters, categories), 0 or above.

    Example:
        >>> hungarian(np.array([[5, 4], [6, 0], [1, 1]]))
        array([ 1,  0, -1])

    Source: Kuhn 1955; as cluster evaluation uses it since Xie et al., ICML 2016.
    """
    matched = np.full(counts.shape[0], NO_CATEGORY, np.int64)
    rows, columns = largest_sum_pairs(counts)
    common = counts[rows, columns] > 0
    matched[rows[common]] = columns[common]
    return matched


def largest_sum_pairs(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows and the columns of the one-to-one pairs with the largest sum, as many as the shorter side has.

    Args:
        counts: (rows, columns).
    """
    # Here, and not above: every import of u2seg would pay for it with a third of a second.
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(counts, maximize=True)


def best_category(counts: np.ndarray) -> np.ndarray:
    """Returns the category with the largest count of each cluster, the lowest of equals; -1 for a cluster without counts.

    On votes it is the majority. Many clusters may share a category.

    Example:
        >>> best_category(np.array([[5, 4], [6, 0], [0, 0]]))
        array([ 0,  0, -1])

    Source: U2Seg, CVPR 2024, appendix B, which calls it multi-to-one Hungarian matching.
    """
    if not counts.shape[1]:
        return np.full(counts.shape[0], NO_CATEGORY, np.int64)
    return np.where(counts.max(axis=1, initial=0) > 0, counts.argmax(axis=1), NO_CATEGORY)


def hungarian_then_best(counts: np.ndarray) -> np.ndarray:
    """Returns :func:`hungarian`, its left-over clusters going to their best category.

    Source: CUPS, CVPR 2025, evaluation protocol.
    """
    matched = hungarian(counts)
    return np.where(matched == NO_CATEGORY, best_category(counts), matched)


def pair_counts(
    clusters: np.ndarray, categories: np.ndarray, weights: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Returns the matrix of summed weights, int64 of ``shape``; rows with a label outside of it are left out."""
    inside = (clusters >= 0) & (clusters < shape[0]) & (categories >= 0) & (categories < shape[1])
    keys = clusters[inside].astype(np.int64) * shape[1] + categories[inside]
    return np.bincount(keys, weights=weights[inside], minlength=shape[0] * shape[1]).astype(np.int64).reshape(shape)


def canonical_clusters(tables: SegmentTables) -> np.ndarray:
    """Returns the joint cluster labels, int64 (K + S,), in an order that depends on what they cover and not on their numbers.

    Equal counts leave a matching free to choose. Chosen in this order, the choice, and so every score, stays the same when
    clusters are renamed. Two clusters that no table tells apart may come in either order, and score the same in both.
    """
    image_ids = tables.images["id"].astype(np.uint64)
    segments = np.zeros(len(tables.predicted), np.uint64)
    inside = tables.overlaps[tables.overlaps["predicted"] >= 0]
    gt = inside["gt"].astype(np.int64).astype(np.uint64)
    np.add.at(segments, inside["predicted"], mixed(gt, inside["pixels"].astype(np.uint64)))
    segments = mixed(segments, image_ids[tables.predicted["image"]], tables.predicted["area"].astype(np.uint64))

    scores = np.ascontiguousarray(tables.detections["score"]).view(np.uint64)
    boxes = np.ascontiguousarray(tables.detections["box_xywh"]).view(np.uint64).reshape(-1, 4)
    detections = mixed(image_ids[tables.detections["image"]], scores, *boxes.T)

    digests = np.zeros(tables.space.num_clusters, np.uint64)
    np.add.at(digests, tables.predicted["label"], segments)
    np.add.at(digests, tables.detections["label"], detections)
    stuff = tables.head_pixels[tables.head_pixels["predicted"] > 0]  # the semantic head numbers stuff from 1
    gt = stuff["gt"].astype(np.int64).astype(np.uint64)
    covered = mixed(image_ids[stuff["image"]], gt, stuff["pixels"].astype(np.uint64))
    np.add.at(digests, tables.space.num_things + stuff["predicted"] - 1, covered)
    return np.argsort(digests, kind="stable")


def in_canonical_order(match: Matcher, counts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns ``match(counts)``, computed with the rows in ``order`` and given back in their own."""
    matched = np.empty(counts.shape[0], np.int64)
    matched[order] = match(counts[order])
    return matched


def mixed(*columns: np.ndarray) -> np.ndarray:
    """Returns one well-spread 64-bit number a row (the finalizer of splitmix64 over the columns), wrapping on overflow."""
    value = np.full(len(columns[0]), 0x9E3779B97F4A7C15, np.uint64)
    for column in columns:
        value = value ^ column
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return value
