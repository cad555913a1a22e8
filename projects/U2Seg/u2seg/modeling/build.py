"""What a configuration still lacks when it has been read: datasets, class counts, and what the machine decides."""

import logging

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from u2seg.config import check_config
from u2seg.data import DatasetFilesError, register_datasets

logger = logging.getLogger(__name__)

# Where a layer's normalization is written in Detectron2's configuration.
_NORM_KEYS = (
    "MODEL.RESNETS.NORM",
    "MODEL.FPN.NORM",
    "MODEL.SEM_SEG_HEAD.NORM",
    "MODEL.ROI_BOX_HEAD.NORM",
    "MODEL.ROI_MASK_HEAD.NORM",
)


def complete_config(cfg: CfgNode, eval_only: bool = False) -> CfgNode:
    """Returns the configuration, completed in place; it is frozen afterwards if it was before.

    Registers the datasets of ``DATASETS.BY_PATH`` that ``DATASETS.TRAIN`` and ``TEST`` name; takes the class counts of the heads from
    the first training set; replaces SyncBN by BN where one process trains, and
    CUDA by the CPU where there is none.

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
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is cuda and there is none: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    resolve_norms(cfg)
    if not eval_only or _has_test_sets(cfg):
        _register(cfg, eval_only)
    _set_class_counts(cfg, eval_only)
    if frozen:
        cfg.freeze()
    return cfg


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
