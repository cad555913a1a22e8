"""The label maker: from unlabeled photos to panoptic pseudo-labels."""

from u2seg.pseudo_labels.clusters.mask_embeddings import MASK_EMBEDDING_REGISTRY
from u2seg.pseudo_labels.masks import AutomaticMaskGenerator, make_masks
from u2seg.pseudo_labels.panoptic.panoptic_merge import merge_panoptic
from u2seg.pseudo_labels.pipeline import STAGES, make_pseudo_labels
from u2seg.pseudo_labels.relabel import LABEL_MERGE_REGISTRY
from u2seg.pseudo_labels.semantics.learned import SemanticHeadSegmenter
from u2seg.pseudo_labels.semantics.semantic_providers import SEMANTIC_PROVIDER_REGISTRY

__all__ = [
    "LABEL_MERGE_REGISTRY",
    "MASK_EMBEDDING_REGISTRY",
    "SEMANTIC_PROVIDER_REGISTRY",
    "STAGES",
    "AutomaticMaskGenerator",
    "SemanticHeadSegmenter",
    "make_masks",
    "make_pseudo_labels",
    "merge_panoptic",
]
