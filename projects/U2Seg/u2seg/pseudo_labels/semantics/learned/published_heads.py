"""Published heads of STEGO and CAUSE under this project's names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from u2seg.checkpoint import CheckpointError, read_weights
from u2seg.checkpoint.inert_objects import read_with_inert_objects
from u2seg.checkpoint.reading import refuse_non_finite
from u2seg.pseudo_labels.semantics.learned.semantic_head import save_semantic_head

_STEGO_PARTS = {
    "net.cluster1.0": "head.linear",
    "net.cluster2.0": "head.nonlinear.0",
    "net.cluster2.2": "head.nonlinear.2",
}
_CAUSE_BRANCHES = {"f1": "linear", "f2.0": "nonlinear.0", "f2.2": "nonlinear.2"}


@dataclass(frozen=True)
class PublishedHead:
    """A converted head.

    Attributes:
        weights: tensors under this project's names.
        settings: KEY VALUE pairs that the file's shapes imply, for the command line.
        left_out: names of the source that are not needed, sorted.
    """

    weights: dict[str, Tensor]
    settings: list[str]
    left_out: list[str]


def convert_stego(source: str | Path, output: str | Path) -> PublishedHead:
    """Writes a published STEGO checkpoint as ``SEMANTICS.LEARNED.WEIGHTS``.

    No code of the file is run: its settings, objects of OmegaConf, are not looked at. The linear probe, which was trained on labels,
    and the backbone, which is DINO's own, are left out.

    Args:
        source: a ``.ckpt`` of PyTorch Lightning's.
        output: ``.pth`` file to write.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is no STEGO.
    """
    content = read_with_inert_objects(source)
    state = {key: value for key, value in content.get("state_dict", content).items() if isinstance(value, Tensor)}
    refuse_non_finite(state, source)
    wanted = {
        f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _STEGO_PARTS.items() for kind in ("weight", "bias")
    }
    wanted["cluster_probe.clusters"] = "probe.clusters"
    _require(state, wanted, source, "STEGO")
    weights = {ours: state[theirs] for theirs, ours in wanted.items()}
    dim, channels = weights["head.linear.weight"].shape[:2]
    weights["center"] = torch.zeros(channels)
    settings = [
        *("SEMANTICS.PROVIDER", "STEGO", "SEMANTICS.NUM_CLUSTERS", str(len(weights["probe.clusters"]))),
        *("SEMANTICS.STEGO.DIM", str(dim), *_backbone(state, "net.model.", channels)),
    ]
    save_semantic_head(Path(output), weights)
    return PublishedHead(weights, settings, sorted(state.keys() - wanted.keys()))


def convert_cause(
    segment: str | Path, cluster: str | Path, output: str | Path, codebook: str | Path = ""
) -> PublishedHead:
    """Writes CAUSE's published files as one ``SEMANTICS.LEARNED.WEIGHTS``: the averaged head and the cluster probe.

    These heads were trained by code that sends the gradient of a probe on labels into them: they are not label-free.

    Args:
        segment: ``segment_tr.pth`` or ``segment_mlp.pth``.
        cluster: ``cluster_tr.pth`` or ``cluster_mlp.pth`` of the same training.
        output: ``.pth`` file to write.
        codebook: ``modular.npy``, which a TR head asks with; "" takes the codebook of ``cluster``.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: they are not CAUSE's.
    """
    state, clusters = read_weights(segment), read_weights(cluster)
    _require(clusters, ["cluster_probe"], cluster, "CAUSE's clusters")
    averaged = {key.removeprefix("head_ema."): value for key, value in state.items() if key.startswith("head_ema.")}
    if not averaged:
        raise CheckpointError(f"{segment} is no head of CAUSE: expected head_ema.*, got {', '.join(sorted(state)[:3])}")
    is_tr = "query_pos" in averaged
    own = {key.removeprefix("tr."): value for key, value in averaged.items()}
    prefix = "head.branches." if is_tr else "head."
    wanted = {
        f"{theirs}.{kind}": f"{prefix}{ours}.{kind}"
        for theirs, ours in _CAUSE_BRANCHES.items()
        for kind in ("weight", "bias")
    }
    _require(own, wanted, segment, "a head of CAUSE")
    weights = {ours: _as_convolution(own[theirs]) for theirs, ours in wanted.items()}
    dim, channels = weights[f"{prefix}linear.weight"].shape[:2]
    weights["center"] = torch.zeros(channels)
    taken = set(wanted)
    if is_tr:
        words = _codebook(codebook, clusters, cluster, channels)
        weights |= {"head.codebook": words, **_decoder(own, segment)}
        taken |= {key for key in own if f"head.decoder.{key}" in weights} | {"query_pos"}
    weights["probe.clusters"] = clusters["cluster_probe"]
    settings = [
        *("SEMANTICS.PROVIDER", "CAUSE", "SEMANTICS.NUM_CLUSTERS", str(len(weights["probe.clusters"]))),
        *("SEMANTICS.CAUSE.HEAD", "TR" if is_tr else "MLP", "SEMANTICS.CAUSE.DIM", str(dim)),
    ]
    save_semantic_head(Path(output), weights)
    used = {key for key in state if key.startswith("head_ema.")}
    return PublishedHead(weights, settings, sorted((state.keys() - used) | (own.keys() - taken)))


def _decoder(own: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Returns the decoder layer and its query positions under our names."""
    parts = ("self_attn.", "multihead_attn.", "linear1.", "linear2.", "norm1.", "norm2.", "norm3.")
    positions = own["query_pos"].reshape(-1, 1, own["query_pos"].shape[-1])
    side = math.isqrt(len(positions))
    if side * side != len(positions):
        raise CheckpointError(f"{path} has {len(positions)} query positions; expected a square number of them")
    decoder = {f"head.decoder.{key}": value for key, value in own.items() if key.startswith(parts)}
    return {**decoder, "head.query_position": positions, "head.grid": torch.tensor([side, side])}


def _codebook(path: str | Path, clusters: Mapping[str, Tensor], cluster: str | Path, channels: int) -> Tensor:
    """Returns the codebook of a TR head, float32 (K, C)."""
    if not path:
        _require(clusters, ["codebook"], cluster, "CAUSE's clusters with their codebook")
        words, path = clusters["codebook"], cluster
    else:
        try:
            words = torch.from_numpy(np.load(path, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise CheckpointError(f"{path} is no array of numbers: {error}") from error
    if words.ndim != 2 or words.shape[1] != channels:
        raise CheckpointError(f"the codebook of {path} must be (K, {channels}), got {tuple(words.shape)}")
    return words.float()


def _as_convolution(value: Tensor) -> Tensor:
    """Returns the weight of a linear layer as that of a 1 x 1 convolution; others as they are."""
    return value[:, :, None, None] if value.ndim == 2 else value


def _backbone(state: Mapping[str, Tensor], prefix: str, channels: int) -> list[str]:
    """Returns ``FEATURES.VIT.ARCH`` and its value where the file holds a DINO of a known size, else nothing."""
    patches = state.get(f"{prefix}patch_embed.proj.weight")
    size = {384: "s", 768: "b"}.get(channels)
    if patches is None or size is None:
        return []
    return ["FEATURES.VIT.ARCH", f"dino_vit{size}{patches.shape[-1]}"]


def _require(state: Mapping[str, Tensor], names: Mapping | list, path: str | Path, what: str) -> None:
    missing = sorted(name for name in names if name not in state)
    if missing:
        raise CheckpointError(f"{path} is no {what}: {', '.join(missing[:4])} are missing")
