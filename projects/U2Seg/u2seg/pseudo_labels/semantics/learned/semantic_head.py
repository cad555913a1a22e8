"""A trained head and its clusters: from features to cluster probabilities of pixels, as a model and as a file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from u2seg.checkpoint import CheckpointError, read_weights
from u2seg.checkpoint.checkpointer import require_finite, save_to_disk
from u2seg.features import FeatureExtractor, build_feature_extractor
from u2seg.pseudo_labels.masks.dense_crf import CRFSettings, DenseCRF
from u2seg.pseudo_labels.semantics.learned.cluster_probe import ClusterProbe
from u2seg.pseudo_labels.semantics.learned.code_heads import CodeHead, ConceptDecoderHead
from u2seg.utils.files import atomic_path

MODEL = "model_final.pth"


class SemanticHead(nn.Module):
    """A code head and a cluster probe; nothing of the frozen backbone, which a file of it does not hold either.

    Attributes:
        center: float32 (C,), what is subtracted from features.
    """

    def __init__(self, head: nn.Module, probe: ClusterProbe, center: Tensor):
        """Takes the parts."""
        super().__init__()
        # A parameter, since a model that shares it may be moved to another device: a buffer would be left behind.
        self.center = nn.Parameter(center.detach().clone(), requires_grad=False)
        self.head = head
        self.probe = probe

    @property
    def num_channels(self) -> int:
        """C of the features that the head takes."""
        branches = self.head.branches if isinstance(self.head, ConceptDecoderHead) else self.head
        return branches.linear.in_channels

    def codes(self, features: Tensor) -> Tensor:
        """Returns codes, float32 (B, D, rows, columns), of features (B, C, rows, columns) as an extractor gives them."""
        return self.head(features - self.center[:, None, None])


def save_semantic_head(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a head's state under Detectron2's key, whole or not at all.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    kept = {name: value.detach().cpu() for name, value in weights.items()}
    require_finite(kept, path.name)
    with atomic_path(path) as temporary:
        save_to_disk({"model": kept}, temporary)


def load_semantic_head(cfg: CfgNode, path: str | Path, provider: str) -> SemanticHead:
    """Returns the head of a file of :func:`save_semantic_head`, in eval mode, on the CPU; the file tells its sizes.

    Args:
        cfg: reads ``SEMANTICS``.
        path: the file.
        provider: "STEGO" or "CAUSE".

    Raises:
        CheckpointError: it is no such file, or one of another provider or number of clusters; the message says what to set.
    """
    weights = read_weights(path)
    if "probe.clusters" not in weights:
        raise CheckpointError(
            f"{path} is no trained head of STEGO or CAUSE: expected probe.clusters and head.*, got {', '.join(sorted(weights)[:3])}, "
            "...; a published file needs `u2seg convert` first"
        )
    num_clusters, dim = weights["probe.clusters"].shape
    if num_clusters != cfg.SEMANTICS.NUM_CLUSTERS:
        raise CheckpointError(
            f"{path} has {num_clusters} clusters, SEMANTICS.NUM_CLUSTERS is {cfg.SEMANTICS.NUM_CLUSTERS}; set it to {num_clusters}"
        )
    probe = ClusterProbe(num_clusters, dim, cfg.SEMANTICS[provider].LOGIT_SCALE)
    head = _head_of(weights, path)
    model = SemanticHead(head, probe, torch.zeros(weights["center"].shape if "center" in weights else 0))
    own = model.state_dict()
    wrong = sorted(
        name for name in own.keys() | weights.keys() if own.get(name, _NONE).shape != weights.get(name, _NONE).shape
    )
    if wrong:
        raise CheckpointError(
            f"{path} is no trained head of STEGO or CAUSE: {', '.join(wrong[:4])} are missing, surplus or of another shape"
        )
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


# Of no shape that a weight has.
_NONE = torch.empty(0, 0, 0, 0, 0)


def _head_of(weights: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Returns an untrained head of the sizes that a file's tensors have."""
    prefix = "head." if "head.linear.weight" in weights else "head.branches."
    if f"{prefix}linear.weight" not in weights:
        raise CheckpointError(f"{path} holds clusters, but no head: expected head.linear.weight")
    dim, num_channels = weights[f"{prefix}linear.weight"].shape[:2]
    if prefix == "head.":
        return CodeHead(num_channels, dim, dropout=nn.Identity())
    needed = [f"head.{name}" for name in ("codebook", "grid", "decoder.linear1.weight")]
    absent = [name for name in needed if name not in weights]
    if absent:
        raise CheckpointError(f"{path} holds CAUSE's TR head without {', '.join(absent)}")
    rows, columns = map(int, weights["head.grid"])
    feedforward = len(weights["head.decoder.linear1.weight"])
    return ConceptDecoderHead(weights["head.codebook"], (rows, columns), dim, 0.0, feedforward)


def build_head_extractor(cfg: CfgNode, image_size: tuple[int, int]) -> FeatureExtractor:
    """Returns the extractor of ``FEATURES`` as heads take it: of another image size, a ViT with ``SEMANTICS.LEARNED.FACET``.

    Args:
        cfg: the configuration.
        image_size: (height, width) to which its images are resized.
    """
    other = cfg.clone()
    other.defrost()
    other.FEATURES.IMAGE_SIZE = tuple(image_size)
    if cfg.SEMANTICS.LEARNED.CENTER:
        other.FEATURES.RESNET.CENTER = False
    other.FEATURES.VIT.FACET, other.FEATURES.VIT.BLOCK = cfg.SEMANTICS.LEARNED.FACET, -1
    return build_feature_extractor(other)


@dataclass(frozen=True)
class PixelSettings:
    """How codes become maps.

    Attributes:
        mirror: whether codes are averaged with those of the mirror image.
        crf: of the dense CRF on the probabilities; None: no CRF.
    """

    mirror: bool
    crf: CRFSettings | None

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "PixelSettings":
        """Returns the settings under ``SEMANTICS.LEARNED``."""
        crf = cfg.SEMANTICS.LEARNED.CRF
        values = {key.lower(): value for key, value in crf.items() if key != "ENABLED"}
        return cls(cfg.SEMANTICS.LEARNED.MIRROR, CRFSettings(**values) if crf.ENABLED else None)


class PixelClusters:
    """From images to the cluster probabilities of their pixels."""

    def __init__(self, extractor: FeatureExtractor, model: SemanticHead, settings: PixelSettings):
        """Takes the parts, in eval mode, on one device.

        Args:
            extractor: of the size at which images are looked at.
            model: trained.
            settings: see there.

        Raises:
            ValueError: the head was trained on other features.
        """
        if model.num_channels != extractor.num_channels:
            raise ValueError(
                f"the head was trained on features of {model.num_channels} channels, FEATURES gives {extractor.num_channels}; choose "
                "the extractor that it was trained with"
            )
        self._extractor = extractor
        self._model = model
        self._settings = settings

    @torch.no_grad()
    def __call__(self, images_rgb: list[np.ndarray]) -> Iterator[Tensor]:
        """Yields the log-probabilities of each image, float32 (K, H, W): 27 clusters of 12 megapixels are 1.3 GB.

        Args:
            images_rgb: uint8 (H, W, 3) of any sizes.

        Source: STEGO's released code: mean code of an image and its mirror image, bilinear, log-softmax, CRF.
        """
        for image, code in zip(images_rgb, self.codes(images_rgb)):
            log_probabilities = self._model.probe.log_probabilities(code[None], image.shape[:2])[0]
            if self._settings.crf is not None:
                crf = DenseCRF(image, self._settings.crf, device=str(code.device))
                log_probabilities = crf.marginals(log_probabilities).clamp_min(1e-30).log()
            yield log_probabilities

    @torch.no_grad()
    def codes(self, images_rgb: list[np.ndarray]) -> Tensor:
        """Returns the codes of images, where wanted their mean with the mirror image's, float32 (B, D, rows, columns).

        Args:
            images_rgb: uint8 (H, W, 3) of any sizes.
        """
        device = self._model.probe.clusters.device
        inputs = torch.stack([self._extractor.preprocess(image) for image in images_rgb]).to(device)
        codes = self._model.codes(self._extractor(inputs))
        if self._settings.mirror:
            codes = (codes + self._model.codes(self._extractor(inputs.flip(3))).flip(3)) / 2
        return codes
