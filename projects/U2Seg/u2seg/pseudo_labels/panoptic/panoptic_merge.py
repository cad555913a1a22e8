"""The merge rule: instances and a semantic map become one panoptic map."""

from collections.abc import Callable

import numpy as np

from u2seg.structures.label_space import IGNORE_LABEL, VOID_SEGMENT
from u2seg.structures.segments import Segment
from u2seg.utils.registry import NamedRegistry

INSTANCE_SIZE_REGISTRY = NamedRegistry("INSTANCE_SIZE")
INSTANCE_SIZE_REGISTRY.__doc__ = """
What counts as an instance's size where instances are drawn from the largest to the smallest, chosen
by ``PANOPTIC_LABELS.ORDER_BY``; an entry takes masks, bool (N, H, W), and returns int64 (N,),
pixels.
"""


@INSTANCE_SIZE_REGISTRY.register("box_area")
def box_areas(masks: np.ndarray) -> np.ndarray:
    """Returns the areas of the tight boxes of masks, bool (N, H, W), in pixels, int64 (N,); 0 for an empty one.

    Source: U2Seg release, stage 3.
    """
    return _extents(np.any(masks, axis=1)) * _extents(np.any(masks, axis=2))


@INSTANCE_SIZE_REGISTRY.register("mask_area")
def mask_areas(masks: np.ndarray) -> np.ndarray:
    """Returns the areas of masks, bool (N, H, W), in pixels, int64 (N,).

    Source: ours. A thin diagonal object is small, its box is not.
    """
    return masks.sum(axis=(1, 2), dtype=np.int64)


def _extents(occupied: np.ndarray) -> np.ndarray:
    """Returns the distance from the first to behind the last True of each row, int64 (N,); 0 for a row without any."""
    first, last = occupied.argmax(axis=1), occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)
    return np.where(occupied.any(axis=1), last - first, 0)


def merge_panoptic(
    masks: np.ndarray,
    thing_clusters: np.ndarray,
    semantic: np.ndarray,
    *,
    size_of: Callable[[np.ndarray], np.ndarray] = box_areas,
    max_covered: float = 0.7,
    min_instance_pixels: int = 1,
    min_stuff_pixels: int = 1,
) -> tuple[np.ndarray, list[Segment]]:
    """Returns a panoptic map and its segments, things first.

    Instances are drawn from the largest to the smallest, so that small ones win, and of equal ones
    the last; those of which fewer than ``min_instance_pixels`` stay visible are dropped, and their
    pixels are free again. Then each semantic cluster, in ascending order, takes its free pixels,
    unless more than ``max_covered`` of it lies under instances: what is left of it is void.

    Args:
        masks: bool (N, H, W), instances; they may overlap.
        thing_clusters: int (N,), 0-based.
        semantic: int (H, W), 0-based stuff cluster of each pixel, 255 where unknown.
        size_of: what an instance's size is: :func:`box_areas` or :func:`mask_areas`.
        max_covered: share, 0..1.
        min_instance_pixels: pixels, at least 1.
        min_stuff_pixels: pixels, at least 1.

    Returns:
        int32 (H, W) of segment ids, 0 being void, and the segments.

    Raises:
        ValueError: shapes that do not fit together.

    Source: U2Seg, equation 5; the 70 % rule and the order by box area stand in the authors' release
    only.
    """
    height, width = semantic.shape
    if masks.shape[1:] != (height, width) or masks.ndim != 3 or masks.dtype != bool:
        raise ValueError(
            f"masks must be bool of shape (N, {height}, {width}) to match the semantic map, got {masks.dtype} {masks.shape}"
        )
    if len(masks) != len(thing_clusters):
        raise ValueError(f"{len(masks)} masks need as many clusters, got {len(thing_clusters)}")
    owner = _draw_instances(masks, size_of(masks), max(1, min_instance_pixels))
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


def _draw_instances(masks: np.ndarray, sizes: np.ndarray, min_pixels: int) -> np.ndarray:
    """Returns int32 (H, W): the index of the instance that each pixel shows, -1 where none does."""
    order = np.argsort(-sizes, kind="stable")
    kept = list(order)
    while True:
        owner = np.full(masks.shape[1:], -1, np.int32)
        for index in kept:
            owner[masks[index]] = index
        visible = np.bincount(owner.ravel() + 1, minlength=len(masks) + 1)[1:]
        # Dropping an instance uncovers what lies below it; the smallest offender goes first, so
        # that no other goes without need.
        offenders = [index for index in kept if visible[index] < min_pixels]
        if not offenders:
            return owner
        kept.remove(min(offenders, key=lambda index: (visible[index], index)))


def void_share(panoptic: np.ndarray) -> float:
    """Returns the share of pixels, 0..1, that belong to no segment."""
    return float((panoptic == VOID_SEGMENT).mean())
