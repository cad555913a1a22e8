"""Class-agnostic masks: MaskCut and its relatives, their refinement, and the stage that runs them over a data set."""

from u2seg.masks import baselines as _baselines  # noqa: F401  (registers)
from u2seg.masks.base import (
    MASK_GENERATOR_REGISTRY,
    MASK_REFINEMENT_REGISTRY,
    MaskGenerator,
    PatchMasks,
    build_mask_generator,
    build_mask_refinement,
)
from u2seg.masks.crf import MASKCUT_CRF, STEGO_CRF, CRFSettings, DenseCRF, dense_crf
from u2seg.masks.maskcut import MaskCut, StrictMaskCut
from u2seg.masks.records import ImageMasks, iter_records
from u2seg.masks.recursive import RecursiveCut
from u2seg.masks.refinement import guided_filter_masks
from u2seg.masks.stage import make_masks
from u2seg.masks.votecut import VoteCut

__all__ = [
    "MASKCUT_CRF",
    "MASK_GENERATOR_REGISTRY",
    "MASK_REFINEMENT_REGISTRY",
    "STEGO_CRF",
    "CRFSettings",
    "DenseCRF",
    "ImageMasks",
    "MaskCut",
    "MaskGenerator",
    "PatchMasks",
    "RecursiveCut",
    "StrictMaskCut",
    "VoteCut",
    "build_mask_generator",
    "build_mask_refinement",
    "dense_crf",
    "guided_filter_masks",
    "iter_records",
    "make_masks",
]
