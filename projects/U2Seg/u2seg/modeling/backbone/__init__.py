"""Backbones."""

from u2seg.modeling.backbone.activation_checkpointing import checkpoint_residual_blocks
from u2seg.modeling.backbone.small_resnet import (
    SmallResNet,
    build_small_resnet_backbone,
    build_small_resnet_fpn_backbone,
)

__all__ = [
    "SmallResNet",
    "build_small_resnet_backbone",
    "build_small_resnet_fpn_backbone",
    "checkpoint_residual_blocks",
]
