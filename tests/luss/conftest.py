"""Tiny PASS models for the tests of LUSS."""

import pytest
import torch
from u2seg.config import setup_cfg


@pytest.fixture
def tiny_cfg():
    """The scenes' PASS configuration, made so small that a step takes milliseconds."""
    return setup_cfg(
        "LUSS/pass_scenes.yaml",
        [
            *("MODEL.DEVICE", "cpu", "MODEL.SMALL_RESNET.WIDTH", 8, "MODEL.PASS.HIDDEN_DIM", 16),
            *("MODEL.PASS.FEAT_DIM", 8, "MODEL.PASS.NUM_PROTOTYPES", 6, "MODEL.PASS.FREEZE_PROTOTYPES_ITERS", 0),
            *("MODEL.PASS.QUEUE_LENGTH", 0),
        ],
    )


@pytest.fixture
def multi_crop_batch():
    """Six samples as the mapper gives them, random pixels; the last pair of views does not overlap."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "views": [
                torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator) for size in (32, 32, 16)
            ],
            "overlap_grids": torch.rand(2, 7, 7, 2, generator=generator) * 2 - 1,
            "overlaps": index < 5,
        }
        for index in range(6)
    ]
