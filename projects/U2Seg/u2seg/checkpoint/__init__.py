"""Checkpoints: other people's weights read without running code, converted and checked; our own written whole or not at all."""

from u2seg.checkpoint.checkpointer import AtomicCheckpointer, require_finite, save_to_disk
from u2seg.checkpoint.loading import check_class_counts, checkpoint_class_counts, load_weights, take_class_counts
from u2seg.checkpoint.reading import CheckpointError, read_checkpoint, read_weights
from u2seg.checkpoint.torchvision import convert_torchvision_resnet, torchvision_to_detectron2

__all__ = [
    "AtomicCheckpointer",
    "CheckpointError",
    "check_class_counts",
    "checkpoint_class_counts",
    "convert_torchvision_resnet",
    "load_weights",
    "read_checkpoint",
    "read_weights",
    "require_finite",
    "save_to_disk",
    "take_class_counts",
    "torchvision_to_detectron2",
]
