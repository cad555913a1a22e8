"""Panoptic pseudo-labels: the merge rule, and the files that leave the label maker."""
