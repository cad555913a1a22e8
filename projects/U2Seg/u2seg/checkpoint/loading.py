"""Other people's weights: the authors' DINO ResNet-50, the published U2Seg and CutLER models, anything Detectron2 wrote."""

from collections.abc import Mapping

from detectron2.config import CfgNode
from torch import Tensor, nn

from u2seg.checkpoint.reading import CheckpointError, read_weights

# Buffers that follow from the configuration, not from training: old checkpoints hold them, new ones do not, or the other way round.
_NOT_LEARNED = ("pixel_mean", "pixel_std", "num_batches_tracked")
_NOT_LEARNED_PARTS = ("anchor_generator.",)


def load_weights(model: nn.Module, cfg: CfgNode, path: str) -> None:
    """Loads a trained model's weights for inference, in place: all of them or an error.

    Args:
        model: built from ``cfg``.
        cfg: complete, see :func:`u2seg.engine.complete_config`.
        path: see :func:`read_weights`.

    Raises:
        FileNotFoundError, CheckpointError: see :func:`read_weights`.
        ValueError: the heads predict other numbers of classes than ``cfg`` asks for; the message says what to set.
        CheckpointError: weights are missing or have other shapes for another reason.
    """
    weights = read_weights(path)
    check_class_counts(cfg, _shapes(weights), path)
    own = model.state_dict()
    if _has_heads(own) and not _has_heads(weights):
        raise CheckpointError(
            f"{path} has no heads: it is a backbone to start a training from. Set MODEL.WEIGHTS to a trained model"
        )
    missing = [key for key in own if key not in weights and _is_learned(key)]
    wrong = [
        f"{key}: {tuple(weights[key].shape)} there, {tuple(own[key].shape)} here"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    # A model may be made of a part of another, as distance matching is of a pretrained network.
    partial = getattr(model, "takes_part_of_checkpoint", False)
    surplus = [] if partial else [key for key in weights if key not in own and _is_learned(key)]
    if missing or wrong or surplus:
        raise CheckpointError(_misfit(path, cfg, missing, wrong, surplus))
    model.load_state_dict({key: value for key, value in weights.items() if key in own}, strict=False)


def take_class_counts(cfg: CfgNode, path: str) -> dict[str, int]:
    """Sets the cluster counts of a configuration to those of a checkpoint, in place; returns what the checkpoint implies.

    For a model whose training labels are not at hand: the published ones, for example. ``CLUSTERS.NUM_CLUSTERS`` and
    ``SEMANTICS.NUM_CLUSTERS`` are set, from which :func:`u2seg.engine.complete_config` takes the heads' sizes.

    Returns:
        ``{"MODEL.ROI_HEADS.NUM_CLASSES": K, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": S + 1}``, without the heads that are absent.

    Raises:
        CheckpointError: the checkpoint has neither head.
    """
    counts = checkpoint_class_counts(_shapes(read_weights(path)))
    if not counts:
        raise CheckpointError(f"{path} has neither a box head nor a semantic head: it is no trained segmenter")
    if "MODEL.ROI_HEADS.NUM_CLASSES" in counts:
        cfg.CLUSTERS.NUM_CLUSTERS = counts["MODEL.ROI_HEADS.NUM_CLASSES"]
    if "MODEL.SEM_SEG_HEAD.NUM_CLASSES" in counts:
        cfg.SEMANTICS.NUM_CLUSTERS = counts["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] - 1
    return counts


def check_class_counts(cfg: CfgNode, shapes: dict[str, tuple[int, ...]], path: str) -> None:
    """Refuses a checkpoint whose heads predict other numbers of classes than the configuration.

    Args:
        cfg: completed.
        shapes: shape of each tensor in the checkpoint, by name.
        path: the checkpoint, for the message.

    Raises:
        ValueError: they differ; the message says what to set.
    """
    found = checkpoint_class_counts(shapes)
    wanted = {"MODEL.ROI_HEADS.NUM_CLASSES": cfg.MODEL.ROI_HEADS.NUM_CLASSES}
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        wanted["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    wrong = [
        f"{key}: {found[key]} there, {count} here" for key, count in wanted.items() if found.get(key, count) != count
    ]
    if wrong:
        raise ValueError(
            f"{path} was trained for other numbers of classes than the configuration asks for ({'; '.join(wrong)}). Evaluate with "
            "the configuration and labels that it was trained with; where those labels are absent, set CLUSTERS.NUM_CLUSTERS to "
            f"{found.get('MODEL.ROI_HEADS.NUM_CLASSES', 'K')} and SEMANTICS.NUM_CLUSTERS to "
            f"{found.get('MODEL.SEM_SEG_HEAD.NUM_CLASSES', 28) - 1}."
        )


def checkpoint_class_counts(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the class counts that a checkpoint's tensors imply, by configuration key; keys of absent heads are left out."""
    counts = {}
    for name in ("roi_heads.box_predictor.0.cls_score.bias", "roi_heads.box_predictor.cls_score.bias"):
        if name in shapes:
            counts["MODEL.ROI_HEADS.NUM_CLASSES"] = shapes[name][0] - 1  # the last one is background
    if "sem_seg_head.predictor.bias" in shapes:
        counts["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = shapes["sem_seg_head.predictor.bias"][0]
    return counts


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}


def _has_heads(weights: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("roi_heads.") for key in weights)


def _is_learned(key: str) -> bool:
    return not key.endswith(_NOT_LEARNED) and not any(part in key for part in _NOT_LEARNED_PARTS)


def _misfit(path: str, cfg: CfgNode, missing: list[str], wrong: list[str], surplus: list[str]) -> str:
    architecture = cfg.MODEL.META_ARCHITECTURE
    lines = [f"{path} does not fit the model of the configuration (MODEL.META_ARCHITECTURE {architecture}):"]
    for what, names in (("missing there", missing), ("of another shape", wrong), ("not in our model", surplus)):
        if names:
            lines.append(f"  {len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    if missing and all(key.startswith("sem_seg_head.") for key in missing) and not wrong:
        lines.append("It has no semantic head, as CutLER's: set MODEL.META_ARCHITECTURE to GeneralizedRCNN.")
    elif surplus and all(key.startswith("sem_seg_head.") for key in surplus) and not wrong:
        lines.append("It has a semantic head: set MODEL.META_ARCHITECTURE to PanopticFPN.")
    else:
        lines.append("Use the configuration that it was trained with.")
    return "\n".join(lines)
