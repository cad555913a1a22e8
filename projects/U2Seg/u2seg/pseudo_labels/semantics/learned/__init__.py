"""Semantic providers that train: STEGO and CAUSE, whole: keys, losses, heads, training, maps, published files.

Importing this package registers its configuration keys, its providers and its meta-architecture.
"""

from u2seg.pseudo_labels.semantics.learned import config as _config  # noqa: F401 - registers the configuration keys
from u2seg.pseudo_labels.semantics.learned import learned_providers as _providers  # noqa: F401 - registers the providers
from u2seg.pseudo_labels.semantics.learned.semantic_head_segmenter import SemanticHeadSegmenter

__all__ = ["SemanticHeadSegmenter"]
