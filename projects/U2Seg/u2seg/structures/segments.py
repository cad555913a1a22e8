"""A segment: one region of a panoptic map of clusters."""

from dataclasses import dataclass


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
