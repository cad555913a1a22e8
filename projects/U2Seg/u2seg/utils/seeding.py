"""Seeding the global random generators from a tuple of numbers."""

import random

import numpy as np
import torch


def seed_random(key: tuple[int, ...]) -> None:
    """Seeds Python's, NumPy's and PyTorch's (CPU) global generators, on which augmentations draw."""
    state = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))  # noqa: NPY002 - Detectron2's augmentations draw from the global generator
    # Not torch.manual_seed, which also walks the devices and costs ten times as much.
    torch.default_generator.manual_seed(int(state[2]) << 32 | int(state[3]))
