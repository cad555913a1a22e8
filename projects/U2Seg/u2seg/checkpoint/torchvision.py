"""torchvision's ResNets, such as the DINO authors' ResNet-50, under Detectron2's names."""

import pickle
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from u2seg.checkpoint.reading import CheckpointError, read_weights
from u2seg.utils.files import atomic_path, remove_partial_files_beside


def convert_torchvision_resnet(source: str, output: str | Path, author: str = "DINO") -> int:
    """Writes a torchvision ResNet's weights as Detectron2's model zoo format has them, and returns how many tensors.

    The result is for ``MODEL.WEIGHTS`` of a configuration with ``RESNETS.STRIDE_IN_1X1: False`` and RGB input normalized as
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
    remove_partial_files_beside(output)
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
    return {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}.get(".".join(layer))
