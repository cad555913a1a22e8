"""Region-of-interest heads."""

from u2seg.modeling.roi_heads.drop_loss import DropLossCascadeROIHeads, DropLossStandardROIHeads

__all__ = ["DropLossCascadeROIHeads", "DropLossStandardROIHeads"]
