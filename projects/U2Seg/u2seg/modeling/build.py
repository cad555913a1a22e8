"""What a configuration still lacks when it has been read: datasets, class counts, and what the machine decides."""

import functools
import logging
from typing import Any

import torch
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from u2seg.config import check_config
from u2seg.data import DatasetFilesError, register_datasets
from u2seg.utils.registry import get_registered

logger = logging.getLogger(__name__)

# Where a layer's normalization is written in Detectron2's configuration.
_NORM_KEYS = (
    "MODEL.RESNETS.NORM",
    "MODEL.FPN.NORM",
    "MODEL.SEM_SEG_HEAD.NORM",
    "MODEL.ROI_BOX_HEAD.NORM",
    "MODEL.ROI_MASK_HEAD.NORM",
)


# What gives each name of a part its meaning; the first two are parts of every model.
_PARTS = {
    "MODEL.META_ARCHITECTURE": modeling.META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": modeling.BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": modeling.ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": modeling.PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": modeling.RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": modeling.ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": modeling.ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": modeling.ROI_MASK_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": modeling.SEM_SEG_HEADS_REGISTRY,
}
_FEATURE_KEYS = tuple(f"MODEL.{part}.IN_FEATURES" for part in ("FPN", "RPN", "ROI_HEADS", "SEM_SEG_HEAD"))
# What Detectron2's and torch's constructors raise on settings that do not go together; many are bare assertions.
_BUILD_ERRORS = (AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class ModelSettingsError(ValueError):
    """Settings from which no model can be built; the message says which, as far as Detectron2 tells."""


def build_model(cfg: CfgNode) -> torch.nn.Module:
    """Returns the model of a configuration, as Detectron2's ``build_model`` does.

    Raises:
        UnknownNameError: an unknown name of a part; the message lists those that are registered.
        ModelSettingsError: the settings under ``MODEL`` do not go together.
    """
    for key, registry in _PARTS.items():
        name = _value(cfg, key)
        if name not in ("", "PrecomputedProposals"):  # Detectron2's names for "no head" and "read from a file"
            get_registered(registry, name, key)
    try:
        return modeling.build_model(cfg)
    except _BUILD_ERRORS as error:
        raise ModelSettingsError(_build_fault(cfg, error)) from error


def _build_fault(cfg: CfgNode, error: Exception) -> str:
    if isinstance(error, KeyError):
        keys = [key for key in _FEATURE_KEYS if error.args and error.args[0] in _value(cfg, key)]
        if keys:
            return f"{', '.join(keys)}: the backbone {cfg.MODEL.BACKBONE.NAME} has no output {error.args[0]!r}"
    if isinstance(error, AssertionError) and error.args == ([],):  # Detectron2's FPN asserts that the list is not empty
        return f"MODEL.FPN.IN_FEATURES is empty: {cfg.MODEL.BACKBONE.NAME} needs the names of the feature maps that it merges"
    reason = (str(error).splitlines() or [""])[0]
    return f"the settings under MODEL do not go together: {type(error).__name__}: {reason or 'no reason given'}"


def _value(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(CfgNode.__getitem__, key.split("."), cfg)


def complete_config(cfg: CfgNode, eval_only: bool = False) -> CfgNode:
    """Returns the configuration, completed in place; it is frozen afterwards if it was before.

    Registers the datasets of ``DATASETS.BY_PATH`` that ``DATASETS.TRAIN`` and ``TEST`` name; takes the class counts of the heads from
    the first training set; replaces SyncBN by BN where one process trains, CUDA by the CPU where there
    is none, and the device "auto" by CUDA or the CPU.

    Args:
        cfg: from :func:`u2seg.config.setup_cfg`.
        eval_only: nothing will be trained, so the training set's files may be absent: the class counts are then
            ``CLUSTERS.NUM_CLUSTERS`` and ``SEMANTICS.NUM_CLUSTERS`` + 1.

    Raises:
        DatasetFilesError: files of a dataset are missing.
        ValueError: a dataset that is named is not registered.
    """
    check_config(cfg)
    frozen = cfg.is_frozen()
    cfg.defrost()
    if cfg.MODEL.DEVICE == "auto":
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is cuda and there is none: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    resolve_norms(cfg)
    if not eval_only or _has_test_sets(cfg):
        _register(cfg, eval_only)
    _set_class_counts(cfg, eval_only)
    if not eval_only:
        _warn_of_hard_targets(cfg)
    if frozen:
        cfg.freeze()
    return cfg


def _warn_of_hard_targets(cfg: CfgNode) -> None:
    """Warns where ``SOFT_TARGETS`` is set and a head pays no heed to it."""
    heads = cfg.MODEL.ROI_HEADS
    if heads.SOFT_TARGETS and not heads.DROP_LOSS.ENABLED:
        logger.warning(
            "MODEL.ROI_HEADS.SOFT_TARGETS needs DropLoss: classes and boxes are trained without the labels' scores. Set "
            "MODEL.ROI_HEADS.DROP_LOSS.ENABLED to True."
        )
    if heads.SOFT_TARGETS and cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.NAME != "SoftTargetMaskHead":
        logger.warning(
            "MODEL.ROI_HEADS.SOFT_TARGETS does not reach the mask head %s: masks are trained without the labels' scores. Set "
            "MODEL.ROI_MASK_HEAD.NAME to SoftTargetMaskHead.",
            cfg.MODEL.ROI_MASK_HEAD.NAME,
        )


def _has_test_sets(cfg: CfgNode) -> bool:
    return any(name in cfg.DATASETS.BY_PATH for name in cfg.DATASETS.TEST)


def _register(cfg: CfgNode, eval_only: bool) -> None:
    by_path = cfg.DATASETS.BY_PATH
    register_datasets(by_path, list(cfg.DATASETS.TEST))
    try:
        register_datasets(by_path, [name for name in cfg.DATASETS.TRAIN if name not in cfg.DATASETS.TEST])
    except DatasetFilesError:
        if not eval_only:
            raise
        logger.warning("The training set's files are absent; class counts come from CLUSTERS and SEMANTICS")
    known = set(DatasetCatalog.list())
    wanted = {*cfg.DATASETS.TEST, *(() if eval_only else cfg.DATASETS.TRAIN)}
    unknown = sorted(wanted - known)
    if unknown:
        raise ValueError(
            f"the configuration names {', '.join(unknown)}, which nobody registered; describe it in DATASETS.BY_PATH "
            f"({', '.join(sorted(by_path)) or 'empty'}) or use one of Detectron2's own"
        )


def _set_class_counts(cfg: CfgNode, eval_only: bool) -> None:
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None
    things = metadata.get("thing_classes") if metadata is not None else None
    stuff = metadata.get("stuff_classes") if metadata is not None else None
    if things is None and eval_only:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.CLUSTERS.NUM_CLUSTERS
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = cfg.SEMANTICS.NUM_CLUSTERS + 1
        return
    _require_one_label_space(cfg)
    if things is not None:
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(things)
    if stuff is not None:
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = len(stuff)


def _require_one_label_space(cfg: CfgNode) -> None:
    """Refuses training sets whose classes differ: a head's output can mean one thing only."""
    for key in ("thing_classes", "stuff_classes"):
        names = {name: MetadataCatalog.get(name).get(key) for name in cfg.DATASETS.TRAIN}
        first = names[cfg.DATASETS.TRAIN[0]] if names else None
        other = next((name for name, classes in names.items() if classes != first), None)
        if other is not None:
            raise ValueError(
                f"training sets must share their classes, but {cfg.DATASETS.TRAIN[0]} has {len(first or ())} {key} and {other} "
                f"{len(names[other] or ())}, or in another order; make their labels from one clustering"
            )


def resolve_norms(cfg: CfgNode) -> None:
    """Replaces SyncBN by BN, in place, where one process or a CPU trains."""
    if comm.get_world_size() > 1 and cfg.MODEL.DEVICE != "cpu":
        return
    for key in _NORM_KEYS:
        *parents, leaf = key.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        if node[leaf] == "SyncBN":
            node[leaf] = "BN"
