"""Region-of-interest heads."""

from u2seg.modeling.roi_heads.drop_loss import DropLossCascadeROIHeads, DropLossStandardROIHeads
from u2seg.modeling.roi_heads.soft_targets import SoftTargetMaskHead

__all__ = ["DropLossCascadeROIHeads", "DropLossStandardROIHeads", "SoftTargetMaskHead"]
