"""Meta-architectures and heads, registered with Detectron2 by importing this package."""

from u2seg.modeling.drop_loss import DropLossCascadeROIHeads
from u2seg.modeling.pass_meta_arch import PASSPixelAttention, PASSPretrainer
from u2seg.modeling.pass_segmentor import DistanceMatcher, LussSegmentor, PASSPixelClusterer, PixelLinearHead
from u2seg.modeling.small_resnet import SmallResNet, build_small_resnet_backbone

__all__ = [
    "DistanceMatcher",
    "DropLossCascadeROIHeads",
    "LussSegmentor",
    "PASSPixelAttention",
    "PASSPixelClusterer",
    "PASSPretrainer",
    "PixelLinearHead",
    "SmallResNet",
    "build_small_resnet_backbone",
]
