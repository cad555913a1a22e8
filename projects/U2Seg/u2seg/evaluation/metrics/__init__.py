"""Metrics as pure functions: panoptic quality, average precision, semantic scores, quality of class-agnostic masks."""
