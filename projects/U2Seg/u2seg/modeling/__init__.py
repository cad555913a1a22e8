"""Meta-architectures and heads, registered with Detectron2 by importing this package."""

from u2seg.modeling.drop_loss import DropLossCascadeROIHeads
from u2seg.modeling.pass_meta_arch import PASSPixelAttention, PASSPretrainer
from u2seg.modeling.small_resnet import SmallResNet, build_small_resnet_backbone

__all__ = [
    "DropLossCascadeROIHeads",
    "PASSPixelAttention",
    "PASSPretrainer",
    "SmallResNet",
    "build_small_resnet_backbone",
]
