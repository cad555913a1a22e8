"""The merge rule: instances and a semantic map become one panoptic map."""

import numpy as np

from u2seg.structures.label_space import IGNORE_LABEL, VOID_SEGMENT
from u2seg.structures.segments import Segment


def merge_panoptic(
    masks: np.ndarray,
    thing_clusters: np.ndarray,
    semantic: np.ndarray,
    *,
    max_covered: float = 0.7,
    min_instance_pixels: int = 1,
    min_stuff_pixels: int = 1,
) -> tuple[np.ndarray, list[Segment]]:
    """Returns a panoptic map and its segments, things first.

    Instances are drawn from the largest to the smallest, so that small ones win; those of which fewer than
    ``min_instance_pixels`` stay visible are dropped, and their pixels are free again. Then each semantic cluster, in ascending
    order, takes its free pixels, unless more than ``max_covered`` of it lies under instances: what is left of it is void.

    Args:
        masks: bool (N, H, W), instances; they may overlap.
        thing_clusters: int (N,), 0-based.
        semantic: int (H, W), 0-based stuff cluster of each pixel, 255 where unknown.
        max_covered: share, 0..1.
        min_instance_pixels: pixels, at least 1.
        min_stuff_pixels: pixels, at least 1.

    Returns:
        int32 (H, W) of segment ids, 0 being void, and the segments.

    Raises:
        ValueError: shapes that do not fit together.

    Source: U2Seg, equation 5; the 70 % rule stands in the authors' release only. Differs from the release in drawing by mask
    area, not by box area.
    """
    height, width = semantic.shape
    if masks.shape[1:] != (height, width) or masks.ndim != 3 or masks.dtype != bool:
        raise ValueError(
            f"masks must be bool of shape (N, {height}, {width}) to match the semantic map, got {masks.dtype} {masks.shape}"
        )
    if len(masks) != len(thing_clusters):
        raise ValueError(f"{len(masks)} masks need as many clusters, got {len(thing_clusters)}")
    owner = _draw_instances(masks, max(1, min_instance_pixels))
    panoptic = np.zeros((height, width), np.int32)
    segments: list[Segment] = []
    areas = np.bincount(owner.ravel() + 1, minlength=len(masks) + 1)[1:]
    # Visible instances keep the order in which they came.
    for index in np.flatnonzero(areas):
        segments.append(Segment(len(segments) + 1, int(thing_clusters[index]), True, int(areas[index]), int(index)))
        panoptic[owner == index] = len(segments)

    free = owner < 0
    totals = np.bincount(semantic.ravel(), minlength=IGNORE_LABEL + 1)
    frees = np.bincount(semantic[free], minlength=IGNORE_LABEL + 1)
    for cluster in np.flatnonzero(totals[:IGNORE_LABEL]):
        covered = 1 - frees[cluster] / totals[cluster]
        if frees[cluster] < max(1, min_stuff_pixels) or covered > max_covered:
            continue
        segments.append(Segment(len(segments) + 1, int(cluster), False, int(frees[cluster])))
        panoptic[free & (semantic == cluster)] = len(segments)
    return panoptic, segments


def _draw_instances(masks: np.ndarray, min_pixels: int) -> np.ndarray:
    """Returns int32 (H, W): the index of the instance that each pixel shows, -1 where none does."""
    order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    kept = list(order)
    while True:
        owner = np.full(masks.shape[1:], -1, np.int32)
        for index in kept:
            owner[masks[index]] = index
        visible = np.bincount(owner.ravel() + 1, minlength=len(masks) + 1)[1:]
        # Dropping an instance uncovers what lies below it; the smallest offender goes first, so that no other goes without need.
        offenders = [index for index in kept if visible[index] < min_pixels]
        if not offenders:
            return owner
        kept.remove(min(offenders, key=lambda index: (visible[index], index)))


def void_share(panoptic: np.ndarray) -> float:
    """Returns the share of pixels, 0..1, that belong to no segment."""
    return float((panoptic == VOID_SEGMENT).mean())
