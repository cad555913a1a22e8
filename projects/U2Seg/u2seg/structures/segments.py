"""A segment: one region of a panoptic map; and maps of what segments stand for."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from u2seg.structures.label_space import IGNORE_LABEL


@dataclass(frozen=True)
class Segment:
    """A region of a panoptic map.

    Attributes:
        segment_id: its pixel value, 1, 2, 3, ...
        cluster: 0-based thing or stuff cluster.
        is_thing: which of the two.
        area: pixels, at least 1.
        source: for things, the index of the instance that it shows; -1 for stuff.
    """

    segment_id: int
    cluster: int
    is_thing: bool
    area: int
    source: int = -1


def semantic_target(panoptic_map: np.ndarray, targets: Mapping[int, int]) -> np.ndarray:
    """Returns the semantic target of a panoptic map, uint8 (H, W): 0 under things, 1..S under stuff, 255 elsewhere.

    >>> semantic_target(np.array([[0, 7, 9]]), {7: 0, 9: 3}).tolist()
    [[255, 0, 3]]

    Args:
        panoptic_map: int (H, W), segment ids.
        targets: segment id -> its value in the target; segments that are not in it are void.

    Source: U2Seg release, ``prepare_stuff_panoptic_fpn.py`` (0 thing, 1..S stuff, 255 void).
    """
    return segment_values(panoptic_map, targets, IGNORE_LABEL).astype(np.uint8)


def segment_values(panoptic_map: np.ndarray, values: Mapping[int, int], default: int) -> np.ndarray:
    """Returns the value of each pixel's segment, int32, shaped as the map.

    Args:
        panoptic_map: int, segment ids.
        values: segment id -> value.
        default: of segments that are not in ``values``.
    """
    if not values:
        return np.full(panoptic_map.shape, default, np.int32)
    ids = np.array(sorted(values), np.int64)
    ordered = np.array([values[segment] for segment in ids.tolist()], np.int32)
    # A search among a few ids costs a third of np.unique's sort of all pixels.
    place = np.searchsorted(ids, panoptic_map).clip(max=len(ids) - 1)
    return np.where(ids[place] == panoptic_map, ordered[place], np.int32(default))
