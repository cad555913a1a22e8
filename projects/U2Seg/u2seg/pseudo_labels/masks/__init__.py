"""Class-agnostic masks: MaskCut and its relatives, their refinement, and the stage that runs them over a dataset."""

from u2seg.data.formats.mask_shards import iter_records
from u2seg.pseudo_labels.masks.automatic import AutomaticMaskGenerator
from u2seg.pseudo_labels.masks.baselines import KMeansRegions, WholeImage
from u2seg.pseudo_labels.masks.dense_crf import MASKCUT_CRF, STEGO_CRF, CRFSettings, DenseCRF
from u2seg.pseudo_labels.masks.hierarchy.region_hierarchy import RegionHierarchy
from u2seg.pseudo_labels.masks.interfaces import (
    MASK_GENERATOR_REGISTRY,
    MASK_REFINEMENT_REGISTRY,
    MaskGenerator,
    MaskRefinement,
    PatchMasks,
    build_mask_generator,
    build_mask_refinement,
)
from u2seg.pseudo_labels.masks.mask_stage import make_masks
from u2seg.pseudo_labels.masks.maskcut import MaskCut, StrictMaskCut
from u2seg.pseudo_labels.masks.recursive_cut import RecursiveCut
from u2seg.pseudo_labels.masks.refinement import guided_filter_masks
from u2seg.pseudo_labels.masks.votecut import VoteCut
from u2seg.structures.mask_records import ImageMasks

__all__ = [
    "MASKCUT_CRF",
    "MASK_GENERATOR_REGISTRY",
    "MASK_REFINEMENT_REGISTRY",
    "STEGO_CRF",
    "AutomaticMaskGenerator",
    "CRFSettings",
    "DenseCRF",
    "ImageMasks",
    "MaskCut",
    "KMeansRegions",
    "MaskGenerator",
    "MaskRefinement",
    "PatchMasks",
    "RecursiveCut",
    "RegionHierarchy",
    "StrictMaskCut",
    "VoteCut",
    "WholeImage",
    "build_mask_generator",
    "build_mask_refinement",
    "guided_filter_masks",
    "iter_records",
    "make_masks",
]
