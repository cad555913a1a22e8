"""Feature extractors behind one registry: a batch of pictures in, patch features out."""

from u2seg.features.base import (
    FEATURE_EXTRACTOR_REGISTRY,
    FeatureExtractor,
    build_feature_extractor,
    resolve_device,
)
from u2seg.features.handmade import HandmadeDescriptor

__all__ = [
    "FEATURE_EXTRACTOR_REGISTRY",
    "FeatureExtractor",
    "HandmadeDescriptor",
    "build_feature_extractor",
    "resolve_device",
]
