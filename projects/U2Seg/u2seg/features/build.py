"""From a configuration to its feature extractor."""

from detectron2.config import CfgNode

from u2seg.features.extractor import FEATURE_EXTRACTOR_REGISTRY, FeatureExtractor, resolve_device
from u2seg.features.position_free import PositionFreeFeatures
from u2seg.utils.registry import get_registered


def build_feature_extractor(cfg: CfgNode) -> FeatureExtractor:
    """Returns the extractor that ``cfg.FEATURES.NAME`` names, in eval mode, on ``cfg.FEATURES.DEVICE``.

    Where ``FEATURES.POSITION_SHARE`` asks for it, the part of the features that tells a patch's position is projected out.

    Raises:
        KeyError: no such extractor; the message lists those that are registered.
    """
    extractor = get_registered(FEATURE_EXTRACTOR_REGISTRY, cfg.FEATURES.NAME, "FEATURES.NAME")(cfg)
    extractor = extractor.eval().requires_grad_(False).to(resolve_device(cfg.FEATURES.DEVICE))
    return PositionFreeFeatures(extractor, cfg.FEATURES.POSITION_SHARE) if cfg.FEATURES.POSITION_SHARE else extractor
