"""Feature extractors behind one registry: a batch of images in, patch features out."""

from u2seg.features.build import build_feature_extractor, build_voting_extractor, feature_settings
from u2seg.features.extractor import (
    FEATURE_EXTRACTOR_REGISTRY,
    FeatureExtractor,
    resolve_device,
    stack_on,
)
from u2seg.features.handmade import HandmadeDescriptor, RawPixels
from u2seg.features.position_free import PositionFreeFeatures
from u2seg.features.resnet import ResNetFeatures
from u2seg.features.several_backbones import SeveralBackbones
from u2seg.features.vit import TimmViT

__all__ = [
    "FEATURE_EXTRACTOR_REGISTRY",
    "FeatureExtractor",
    "HandmadeDescriptor",
    "PositionFreeFeatures",
    "RawPixels",
    "ResNetFeatures",
    "SeveralBackbones",
    "TimmViT",
    "build_feature_extractor",
    "build_voting_extractor",
    "feature_settings",
    "resolve_device",
    "stack_on",
]
