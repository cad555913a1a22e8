"""Other people's weights: the authors' DINO ResNet-50, the published U2Seg and CutLER models, anything Detectron2 wrote."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from u2seg.stages import atomic_path

# Buffers that follow from the configuration, not from training: old checkpoints hold them, new ones do not, or the other way round.
_NOT_LEARNED = ("pixel_mean", "pixel_std", "num_batches_tracked")
_NOT_LEARNED_PARTS = ("anchor_generator.",)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit; the message says what was expected, what came, and what to do."""


def read_weights(path: str) -> dict[str, Tensor]:
    """Returns the model's tensors in a checkpoint, by name.

    Nothing but tensors, arrays and plain values is unpickled, so that a file from a stranger cannot run code.

    Args:
        path: ``.pth`` as Detectron2 saves it (``{"model": ...}``) or a bare state dict; ``.pkl`` of Detectron2's model zoo format;
            a file or anything that Detectron2's ``PathManager`` reads.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it holds no weights, or more than weights.
    """
    local = Path(PathManager.get_local_path(path))
    if not local.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content = _unpickle_arrays(local) if local.suffix == ".pkl" else _load_tensors(local)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is no checkpoint that can be read safely: {reason}") from error
    weights = content.get("model", content) if isinstance(content, Mapping) else {}
    tensors = {
        key.removeprefix("module."): torch.as_tensor(value)
        for key, value in weights.items()
        if isinstance(value, (Tensor, np.ndarray))
    }
    if not tensors:
        raise CheckpointError(f"{path} holds no weights; expected a state dict, or one under the key 'model'")
    return tensors


def load_weights(model: nn.Module, cfg, path: str) -> None:
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
    from u2seg.engine.setup import check_class_counts  # loads the whole of Detectron2

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


def take_class_counts(cfg, path: str) -> dict[str, int]:
    """Sets the cluster counts of a configuration to those of a checkpoint, in place; returns what the checkpoint implies.

    For a model whose training labels are not at hand: the published ones, for example. ``CLUSTERS.NUM_CLUSTERS`` and
    ``SEMANTICS.NUM_CLUSTERS`` are set, from which :func:`u2seg.engine.complete_config` takes the heads' sizes.

    Returns:
        ``{"MODEL.ROI_HEADS.NUM_CLASSES": K, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": S + 1}``, without the heads that are absent.

    Raises:
        CheckpointError: the checkpoint has neither head.
    """
    from u2seg.engine.setup import checkpoint_class_counts

    counts = checkpoint_class_counts(_shapes(read_weights(path)))
    if not counts:
        raise CheckpointError(f"{path} has neither a box head nor a semantic head: it is no trained segmenter")
    if "MODEL.ROI_HEADS.NUM_CLASSES" in counts:
        cfg.CLUSTERS.NUM_CLUSTERS = counts["MODEL.ROI_HEADS.NUM_CLASSES"]
    if "MODEL.SEM_SEG_HEAD.NUM_CLASSES" in counts:
        cfg.SEMANTICS.NUM_CLUSTERS = counts["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] - 1
    return counts


def convert_torchvision_resnet(source: str, output: str | Path, author: str = "DINO") -> int:
    """Writes a torchvision ResNet's weights as Detectron2's model zoo format has them, and returns how many tensors.

    The result is for ``MODEL.WEIGHTS`` of a configuration with ``RESNETS.STRIDE_IN_1X1: False`` and RGB input normalised as
    torchvision's. A classification layer is left out.

    Args:
        source: the authors' file, for example DINO's ``dino_resnet50_pretrain.pth``.
        output: ``.pkl`` file to write.
        author: kept in the file, shown by Detectron2 when it loads it.

    Raises:
        CheckpointError: the file holds no torchvision ResNet.
    """
    if Path(output).suffix != ".pkl":
        raise CheckpointError(f"the output must end in .pkl, by which Detectron2 knows the format; got {output}")
    weights = torchvision_to_detectron2(read_weights(source), source)
    content = {
        "model": {key: value.numpy() for key, value in weights.items()},
        "__author__": author,
        "matching_heuristics": True,  # Detectron2 then finds the names below backbone.bottom_up
    }
    with atomic_path(output) as temporary, temporary.open("wb") as file:
        pickle.dump(content, file)
    return len(weights)


def torchvision_to_detectron2(state_dict: Mapping[str, Tensor], source: str = "the state dict") -> dict[str, Tensor]:
    """Returns a torchvision ResNet's tensors under Detectron2's names, the classification layer left out.

    ``conv1`` -> ``stem.conv1``, ``layer1.0.conv2`` -> ``res2.0.conv2``, ``layer1.0.bn2`` -> ``res2.0.conv2.norm``,
    ``layer1.0.downsample.0`` -> ``res2.0.shortcut``, ``layer1.0.downsample.1`` -> ``res2.0.shortcut.norm``.

    Raises:
        CheckpointError: a name is none of a ResNet's, or the stem or a stage is missing.
    """
    renamed, strange = {}, []
    for key, value in state_dict.items():
        parts = key.removeprefix("backbone.").split(".")
        if parts[0] in ("fc", "head") or parts[-1] == "num_batches_tracked":
            continue
        prefix, layer = _stage_of(parts)
        name = _layer_name(layer)
        if prefix is None or name is None:
            strange.append(key)
        else:
            renamed[f"{prefix}.{name}.{parts[-1]}"] = value
    missing = [
        name for name in ("stem.", "res2.", "res3.", "res4.", "res5.") if not any(k.startswith(name) for k in renamed)
    ]
    if strange or missing:
        raise CheckpointError(
            f"{source} is no torchvision ResNet: expected conv1, bn1, layer1.0.conv1 ... layer4.*; "
            f"not understood: {', '.join(strange[:4]) or 'nothing'}; missing after renaming: {', '.join(missing) or 'nothing'}"
        )
    return renamed


def _stage_of(parts: list[str]) -> tuple[str | None, list[str]]:
    """Splits a torchvision name into Detectron2's stage ("stem", "res2.0") and the layer's own name."""
    if parts[0] in ("conv1", "bn1") and len(parts) == 2:
        return "stem", parts[:1]
    if parts[0] in ("layer1", "layer2", "layer3", "layer4") and len(parts) >= 4 and parts[1].isdigit():
        return f"res{int(parts[0][-1]) + 1}.{parts[1]}", parts[2:-1]
    return None, []


def _layer_name(layer: list[str]) -> str | None:
    if layer in (["conv1"], ["conv2"], ["conv3"]):
        return layer[0]
    if layer in (["bn1"], ["bn2"], ["bn3"]):
        return f"conv{layer[0][-1]}.norm"
    return {("downsample", "0"): "shortcut", ("downsample", "1"): "shortcut.norm"}.get(tuple(layer))


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}


def _has_heads(weights: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("roi_heads.") for key in weights)


def _is_learned(key: str) -> bool:
    return not key.endswith(_NOT_LEARNED) and not any(part in key for part in _NOT_LEARNED_PARTS)


def _misfit(path: str, cfg, missing: list[str], wrong: list[str], surplus: list[str]) -> str:
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


def _load_tensors(path: Path):
    """Reads a .pth file of tensors, arrays and plain values: what trainers leave beside the weights holds NumPy's numbers."""
    if not hasattr(torch.serialization, "safe_globals"):  # PyTorch before 2.5 reads tensors alone
        return torch.load(path, "cpu", weights_only=True)
    allowed = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?"))]
    module = getattr(np, "_core", None) or np.core
    allowed += [module.multiarray.scalar, module.multiarray._reconstruct]
    # NumPy 1 wrote the same functions under another name, which those who saved with it left in their files.
    named = [(function, f"numpy.core.multiarray.{function.__name__}") for function in allowed[-2:]]
    with torch.serialization.safe_globals([*allowed, *named]):
        return torch.load(path, "cpu", weights_only=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain values, and refuses everything else."""

    _ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }

    def find_class(self, module, name):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only arrays and plain values are read")
        return super().find_class(module, name)


def _unpickle_arrays(path: Path):
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()
