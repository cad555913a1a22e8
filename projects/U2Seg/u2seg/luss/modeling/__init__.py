"""PASS's networks and dense contrastive pretraining, registered with Detectron2 by importing this package."""

from u2seg.luss.modeling.dense_contrast import DenseContrastPretrainer
from u2seg.luss.modeling.pass_meta_arch import PASSPixelAttention, PASSPretrainer
from u2seg.luss.modeling.pass_segmentor import DistanceMatcher, LussSegmentor, PASSPixelClusterer, PixelLinearHead

__all__ = [
    "DenseContrastPretrainer",
    "DistanceMatcher",
    "LussSegmentor",
    "PASSPixelAttention",
    "PASSPixelClusterer",
    "PASSPretrainer",
    "PixelLinearHead",
]
