"""A trained head as a Detectron2 model, for evaluation: ``u2seg train --eval-only`` scores it like any other."""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from u2seg.features import FeatureExtractor
from u2seg.pseudo_labels.semantics.learned.semantic_head import (
    PixelClusters,
    PixelSettings,
    SemanticHead,
    build_head_extractor,
    load_semantic_head,
)


@META_ARCH_REGISTRY.register()
class SemanticHeadSegmenter(nn.Module):
    """STEGO's or CAUSE's head on its frozen features; gives ``sem_seg``, with channel 0 ("thing") never the largest.

    Its state is the head's alone, so that ``MODEL.WEIGHTS`` is the file that the semantic stage leaves.
    """

    @configurable
    def __init__(self, *, extractor: FeatureExtractor, model: SemanticHead, settings: PixelSettings, bgr: bool):
        """Takes the parts.

        Args:
            extractor: frozen.
            model: head and probe.
            settings: mirror and CRF.
            bgr: whether images come as BGR.
        """
        super().__init__()
        self.head, self.probe, self.center = model.head, model.probe, model.center
        # Not parts of this module, whose state is the head's.
        self._parts = (extractor, model)
        self._settings = settings
        self._bgr = bgr

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments; the head has the sizes of ``MODEL.WEIGHTS``."""
        if cfg.SEMANTICS.PROVIDER not in ("STEGO", "CAUSE"):
            raise ValueError(
                f"SemanticHeadSegmenter is a head of SEMANTICS.PROVIDER STEGO or CAUSE, got {cfg.SEMANTICS.PROVIDER!r}"
            )
        other = cfg.clone()
        other.defrost()
        other.FEATURES.DEVICE = cfg.MODEL.DEVICE
        return {
            "extractor": build_head_extractor(other, cfg.SEMANTICS.LEARNED.MAP_SIZE),
            "model": load_semantic_head(cfg, cfg.MODEL.WEIGHTS, cfg.SEMANTICS.PROVIDER),
            "settings": PixelSettings.of_config(cfg),
            "bgr": cfg.INPUT.FORMAT == "BGR",
        }

    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Tensor]]:
        """Returns ``{"sem_seg": float32 (K + 1, height, width)}`` for each input: log-probabilities, channel 0 minus infinity.

        Args:
            batched_inputs: dicts with ``image`` (uint8 (3, H, W)), ``height`` and ``width``.

        Raises:
            RuntimeError: called in training mode; the semantic stage trains these heads.
        """
        if self.training:
            raise RuntimeError(
                "SemanticHeadSegmenter is trained by `u2seg labels --stages masks,semantics`; use --eval-only"
            )
        clusters = PixelClusters(*self._parts, self._settings)
        images = [self._rgb(one["image"]) for one in batched_inputs]
        found = []
        for one, scores in zip(batched_inputs, clusters(images)):
            size = (one.get("height", scores.shape[1]), one.get("width", scores.shape[2]))
            if tuple(scores.shape[1:]) != size:
                scores = nn.functional.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
            nothing = scores.new_full((1, *size), float("-inf"))
            found.append({"sem_seg": torch.cat([nothing, scores])})
        return found

    def _rgb(self, image: Tensor) -> np.ndarray:
        pixels = image.permute(1, 2, 0).to(torch.uint8).cpu().numpy()
        return np.ascontiguousarray(pixels[:, :, ::-1] if self._bgr else pixels)
