"""Published PASS checkpoints under this project's names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from u2seg.checkpoint.checkpointer import save_to_disk
from u2seg.checkpoint.reading import CheckpointError, read_checkpoint, read_weights
from u2seg.checkpoint.torchvision import torchvision_to_detectron2
from u2seg.utils.files import atomic_path, remove_partial_files_beside

_BACKBONE = re.compile(r"(conv1|bn1|layer[1-4])\.")
# Sequential modules of the release and, for each position, what it is here.
_SEQUENCES = {
    "projection_head": {
        "0": "projector.hidden",
        "1": "projector.hidden_norm",
        "3": "projector.out",
        "4": "projector.out_norm",
    },
    "fbg": {"0": "attention.layers.0", "1": "attention.layers.1", "3": "attention.layers.3", "4": "attention.layers.4"},
}


@dataclass(frozen=True)
class Converted:
    """What a conversion gave.

    Attributes:
        weights: tensors under this project's names.
        left_out: names of the source that have no counterpart that is known here, sorted.
    """

    weights: dict[str, Tensor]
    left_out: list[str]


def convert_pass(source: str | Path, output: str | Path) -> Converted:
    """Writes a published PASS checkpoint as ``MODEL.WEIGHTS`` for this project's PASS configurations.

    Args:
        source: ``pass{50,300,919}_{pretrained,pixelatt,finetuning}.pth.tar`` of the LUSSeg/PASS release.
        output: ``.pth`` file to write.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: there is no complete ResNet in it.
    """
    content = read_checkpoint(source)
    converted = pass_to_detectron2(content.get("state_dict", content), str(source))
    remove_partial_files_beside(output)
    with atomic_path(output) as temporary:
        save_to_disk({"model": converted.weights, "__author__": "LUSSeg/PASS"}, temporary)
    return converted


def export_backbone(source: str | Path, output: str | Path) -> int:
    """Writes the backbone of one of our PASS checkpoints for ``MODEL.WEIGHTS`` of any Detectron2 model; returns its tensors' number.

    Detectron2 then finds the names wherever the ResNet lies, below ``backbone.bottom_up`` of an FPN for example. The other model needs
    the same network: depth, ``RESNETS.STRIDE_IN_1X1: False``, ``INPUT.FORMAT: RGB``, ``PIXEL_MEAN`` and ``PIXEL_STD``.

    Args:
        source: a checkpoint of ``PASSPretrainer``.
        output: ``.pth`` file to write.

    Raises:
        FileNotFoundError, CheckpointError: see `u2seg.checkpoint.loading.read_weights`.
        CheckpointError: it holds no backbone.
    """
    prefix = "backbone."
    weights = {
        name[len(prefix) :]: value for name, value in read_weights(str(source)).items() if name.startswith(prefix)
    }
    if not weights:
        raise CheckpointError(f"{source} holds no backbone; expected a checkpoint of PASS's pretraining")
    remove_partial_files_beside(output)
    with atomic_path(output) as temporary:
        save_to_disk({"model": weights, "__author__": "u2seg PASS", "matching_heuristics": True}, temporary)
    return len(weights)


def pass_to_detectron2(state_dict: Mapping[str, Tensor], source: str = "the state dict") -> Converted:
    """Returns a PASS network's tensors under this project's names.

    The backbone is converted completely or not at all. Of the heads, prototypes, projection and pixel attention are converted where
    their names and shapes are those expected, all others are left out and named; no published file was at hand to check the heads
    against.

    Args:
        state_dict: names with or without ``module.``.
        source: for messages.

    Raises:
        CheckpointError: the backbone is incomplete.
    """
    tensors = {name.removeprefix("module."): value for name, value in state_dict.items() if isinstance(value, Tensor)}
    backbone = {name: value for name, value in tensors.items() if _BACKBONE.match(name)}
    if not backbone:
        raise CheckpointError(
            f"{source} holds no ResNet under torchvision's names: {', '.join(sorted(tensors)[:4]) or 'nothing'}"
        )
    weights = {f"backbone.{name}": value for name, value in torchvision_to_detectron2(backbone, source).items()}
    heads = {name: value for name, value in tensors.items() if name not in backbone}
    known = _convert_heads(heads)
    weights.update(dict(known.values()))
    return Converted(weights, sorted(set(heads) - set(known)))


def _convert_heads(heads: dict[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Returns source name -> (own name, tensor) for the heads that are understood."""
    found = {}
    for name, value in heads.items():
        if name == "prototypes.weight":
            found[name] = ("swapped.prototypes", value)
            continue
        head, _, rest = name.partition(".")
        position, _, leaf = rest.partition(".")
        target = _SEQUENCES.get(head, {}).get(position)
        if target is not None and leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            found[name] = (f"{target}.{leaf}", value)
    return _folded(found)


def _folded(found: dict[str, tuple[str, Tensor]]) -> dict[str, tuple[str, Tensor]]:
    """Moves biases of the attention's convolutions, which have none here, into the mean of the norm behind them.

    (x + b - mean) is (x - (mean - b)): exact for inference.
    """
    by_target = {target: name for name, (target, _) in found.items()}
    for conv, norm in (("attention.layers.0", "attention.layers.1"), ("attention.layers.3", "attention.layers.4")):
        bias, mean = by_target.get(f"{conv}.bias"), by_target.get(f"{norm}.running_mean")
        if bias is not None and mean is not None:
            found[mean] = (f"{norm}.running_mean", found[mean][1] - found[bias][1])
            found[bias] = found[mean]  # understood, and nothing of its own
    return found
