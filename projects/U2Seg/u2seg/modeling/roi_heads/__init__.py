"""Region-of-interest heads."""

from u2seg.modeling.roi_heads.drop_loss import DropLossCascadeROIHeads

__all__ = ["DropLossCascadeROIHeads"]
