"""The label maker: from unlabeled photos to panoptic pseudo-labels."""

from u2seg.pseudo_labels.pipeline import STAGES, make_pseudo_labels

__all__ = ["STAGES", "make_pseudo_labels"]
