"""PASS's networks, registered with Detectron2 by importing this package."""

from u2seg.luss.modeling.pass_meta_arch import PASSPixelAttention, PASSPretrainer
from u2seg.luss.modeling.pass_segmentor import DistanceMatcher, LussSegmentor, PASSPixelClusterer, PixelLinearHead

__all__ = [
    "DistanceMatcher",
    "LussSegmentor",
    "PASSPixelAttention",
    "PASSPixelClusterer",
    "PASSPretrainer",
    "PixelLinearHead",
]
