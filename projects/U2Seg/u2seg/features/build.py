"""From a configuration to its feature extractor."""

from detectron2.config import CfgNode

from u2seg.features.extractor import FEATURE_EXTRACTOR_REGISTRY, FeatureExtractor, resolve_device
from u2seg.features.position_free import PositionFreeFeatures
from u2seg.features.several_backbones import SeveralBackbones
from u2seg.utils.files import short_file_digest
from u2seg.utils.hub_files import local_file
from u2seg.utils.manifest import keys_read_by, settings_of
from u2seg.utils.registry import get_registered

# Keys that every run reads, whatever its extractor.
_KEYS = ("FEATURES.NAME", "FEATURES.IMAGE_SIZE", "FEATURES.POSITION_SHARE", "FEATURES.OTHERS")
# Keys that say how the work is done, not what comes out.
_NOT_IN_MANIFEST = ("BATCH_SIZE", "DEVICE")


def build_feature_extractor(cfg: CfgNode) -> FeatureExtractor:
    """Returns the extractor that ``cfg.FEATURES.NAME`` names, in eval mode, on ``cfg.FEATURES.DEVICE``.

    Where ``FEATURES.POSITION_SHARE`` asks for it, the part of the features that tells a patch's position is projected out.

    Raises:
        UnknownNameError: no such extractor; the message lists those that are registered.
    """
    extractor = get_registered(FEATURE_EXTRACTOR_REGISTRY, cfg.FEATURES.NAME, "FEATURES.NAME")(cfg)
    extractor = extractor.eval().requires_grad_(False).to(resolve_device(cfg.FEATURES.DEVICE))
    return PositionFreeFeatures(extractor, cfg.FEATURES.POSITION_SHARE) if cfg.FEATURES.POSITION_SHARE else extractor


def build_voting_extractor(cfg: CfgNode) -> FeatureExtractor:
    """Returns the extractor of a configuration, together with those that ``FEATURES.OTHERS`` describes, if there are any.

    Raises:
        ValueError: an unknown extractor, or an entry of ``FEATURES.OTHERS`` that is not a list of KEY VALUE pairs with keys of
            ``FEATURES``.
    """
    main = build_feature_extractor(cfg)
    if not cfg.FEATURES.OTHERS:
        return main
    return SeveralBackbones(main, [build_feature_extractor(other) for other in _other_configs(cfg)])


def feature_settings(cfg: CfgNode) -> dict:
    """Returns the settings below ``FEATURES`` on which features depend, for the manifests of stages.

    They are those that the extractors in use declare with ``u2seg.utils.manifest.reads``; all where one declares nothing. A digest
    of the file stands for the value of a key ``WEIGHTS``.

    Raises:
        ValueError: as for :func:`build_voting_extractor`.
        OSError: as for :func:`u2seg.utils.hub_files.local_file`; or a file of weights is not there.
    """
    keys = list(_KEYS)
    for own in (cfg, *_other_configs(cfg)):
        declared = keys_read_by(get_registered(FEATURE_EXTRACTOR_REGISTRY, own.FEATURES.NAME, "FEATURES.NAME"))
        keys += ("FEATURES",) if declared is None else declared
    settings = settings_of(cfg, keys)["FEATURES"]
    for section in (value for value in settings.values() if isinstance(value, dict)):
        section.update({key: _content(key, value) for key, value in section.items()})
    settings["OTHERS"] = [
        [part for key, value in zip(pairs[::2], pairs[1::2]) for part in (key, _content(key, value))]
        for pairs in settings["OTHERS"]
    ]
    return {key: value for key, value in settings.items() if key not in _NOT_IN_MANIFEST}


def _content(key: str, value: object) -> object:
    if key.rpartition(".")[2] != "WEIGHTS" or not value:
        return value
    path = local_file(str(value))
    if not path.is_file():
        raise FileNotFoundError(
            f"FEATURES names the weights {str(value)!r}, and there is no such file; labels are made and resumed with it"
        )
    return short_file_digest(path)


def _other_configs(cfg: CfgNode) -> list[CfgNode]:
    found = []
    for pairs in cfg.FEATURES.OTHERS:
        if len(pairs) % 2:
            raise ValueError(
                f"each entry of FEATURES.OTHERS is KEY VALUE KEY VALUE ..., keys below FEATURES, got {list(pairs)}"
            )
        other = cfg.clone()
        other.defrost()
        for key, value in zip(pairs[::2], pairs[1::2]):
            *sections, leaf = str(key).split(".")
            node = other.FEATURES
            for section in sections:
                node = node.get(section, CfgNode())
            if leaf not in node:
                raise ValueError(f"FEATURES.OTHERS names {key!r}, but there is no FEATURES.{key}")
            node[leaf] = tuple(value) if isinstance(value, (list, tuple)) else value
        found.append(other)
    return found
