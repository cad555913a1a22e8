"""Heads and backbones, registered with Detectron2 by importing this package."""

from u2seg.modeling.backbone import SmallResNet, build_small_resnet_backbone, checkpoint_residual_blocks
from u2seg.modeling.build import ModelSettingsError, build_model, complete_config
from u2seg.modeling.roi_heads import DropLossCascadeROIHeads, DropLossStandardROIHeads

__all__ = [
    "DropLossCascadeROIHeads",
    "DropLossStandardROIHeads",
    "ModelSettingsError",
    "SmallResNet",
    "build_model",
    "build_small_resnet_backbone",
    "checkpoint_residual_blocks",
    "complete_config",
]
