"""The data structures that packages hand to one another."""

from u2seg.structures.label_space import IGNORE_LABEL, MAX_STUFF, THING_LABEL, VOID_SEGMENT, LabelSpace
from u2seg.structures.mask_overlaps import mask_iou, mask_overlaps, pairwise_mask_iou
from u2seg.structures.mask_records import ImageMasks
from u2seg.structures.segments import Segment, segment_values, semantic_target

__all__ = [
    "IGNORE_LABEL",
    "MAX_STUFF",
    "THING_LABEL",
    "VOID_SEGMENT",
    "ImageMasks",
    "LabelSpace",
    "Segment",
    "mask_iou",
    "mask_overlaps",
    "pairwise_mask_iou",
    "segment_values",
    "semantic_target",
]
