"""Data of LUSS: ImageNet-S, maps of 16-bit ids, pseudo-labels on disk, crops."""

from u2seg.luss.data import imagenet_s as _imagenet_s  # noqa: F401 - registers its dataset formats
from u2seg.luss.data.label_store import LabelStore
from u2seg.luss.data.multi_crop import MultiCropMapper
from u2seg.luss.data.semantic_mapper import LussSemanticMapper

__all__ = ["LabelStore", "LussSemanticMapper", "MultiCropMapper"]
