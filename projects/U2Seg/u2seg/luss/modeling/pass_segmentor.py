"""LUSS's segmentation models: the one-layer head, the unsupervised clusterer, distance matching; argmax at native size."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.meta_arch.semantic_seg import SemanticSegmentor
from torch import Tensor, nn

from u2seg.luss.modeling.knn import knn_vote
from u2seg.luss.modeling.pass_meta_arch import UPSAMPLING, PASSPixelAttention, normalize_pixels
from u2seg.utils.kmeans import CENTROIDS


def resize_argmax(logits: Tensor, size: tuple[int, int], max_elements: int) -> Tensor:
    """Returns the argmax of bilinearly enlarged logits without ever holding them all, int64 (height, width).

    Equal to ``interpolate(logits, size, mode="bilinear", align_corners=False).argmax(0)`` but for ties of rounding: 920 classes at
    1000 x 1333 pixels are 4.9 GB at once.

    Args:
        logits: float (C, h, w).
        size: (height, width).
        max_elements: logits held at once; a row at least.

    Source: LUSS scores at native size; its released code lowers the resolution of large images instead.
    """
    height, width = size
    channels, rows, _ = logits.shape
    logits = logits.float()
    position = ((torch.arange(height, device=logits.device) + 0.5) * (rows / height) - 0.5).clamp_min(0)
    above = position.floor().long().clamp_max(rows - 1)
    below = (above + 1).clamp_max(rows - 1)
    share = (position - above)[:, None]
    step = max(1, max_elements // (channels * width))
    labels = []
    for start in range(0, height, step):
        part = slice(start, start + step)
        lines = logits[:, above[part]] * (1 - share[part]) + logits[:, below[part]] * share[part]
        labels.append(F.interpolate(lines, size=width, mode="linear", align_corners=False).argmax(dim=0))
    return torch.cat(labels)


@SEM_SEG_HEADS_REGISTRY.register()
class PixelLinearHead(nn.Module):
    """One 1x1 convolution on one backbone output; targets are shrunk before the loss.

    Source: LUSS, fine-tuning; ImageNetSegModel, semi-supervised protocol.
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        in_channels: int,
        num_classes: int,
        ignore_value: int,
        loss_weight: float,
        target_stride: int,
    ):
        """Makes the head from the settings of ``MODEL.SEM_SEG_HEAD``; ``num_classes`` counts "other"."""
        super().__init__()
        self.in_feature = in_feature
        self.ignore_value = ignore_value
        self.loss_weight = loss_weight
        self.target_stride = target_stride
        self.predictor = nn.Conv2d(in_channels, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.01)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Returns the constructor's arguments.

        Raises:
            ValueError: ``IN_FEATURES`` does not name one output of the backbone.
        """
        head = cfg.MODEL.SEM_SEG_HEAD
        names = list(head.IN_FEATURES)
        if len(names) != 1 or names[0] not in input_shape:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES of PixelLinearHead must be one of {sorted(input_shape)}, got {names}"
            )
        return {
            "in_feature": names[0],
            "in_channels": input_shape[names[0]].channels,
            "num_classes": head.NUM_CLASSES,
            "ignore_value": head.IGNORE_VALUE,
            "loss_weight": head.LOSS_WEIGHT,
            "target_stride": head.TARGET_STRIDE,
        }

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Returns (None, losses) in training, else logits (B, C, h, w) at the feature's stride and no losses.

        Args:
            features: of the backbone.
            targets: int64 (B, H, W) in training.
        """
        logits = self.predictor(features[self.in_feature])
        if not self.training:
            return logits, {}
        assert targets is not None, "training needs targets"
        size = tuple(side // self.target_stride for side in targets.shape[-2:])
        # Nearest neighbor through float32, which holds every 16-bit id exactly; integers are not supported.
        small = F.interpolate(targets[:, None].float(), size=size, mode="nearest")[:, 0].long()
        logits = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        # A batch without any target must give 0, not 0 / 0.
        loss = F.cross_entropy(logits, small, ignore_index=self.ignore_value, reduction="sum")
        loss = loss / (small != self.ignore_value).sum().clamp_min(1)
        return None, {"loss_sem_seg": self.loss_weight * loss}


@META_ARCH_REGISTRY.register()
class LussSegmentor(SemanticSegmentor):
    """Detectron2's semantic segmentor, whose inference gives label maps at native size instead of all logits."""

    @configurable
    def __init__(self, *, max_elements: int, **kwargs: Any):
        """Makes the model from ``SemanticSegmentor``'s arguments and ``TEST.LUSS.MAX_ELEMENTS``."""
        super().__init__(**kwargs)
        self.max_elements = max_elements

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {**super().from_config(cfg), "max_elements": cfg.TEST.LUSS.MAX_ELEMENTS}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Returns losses in training, else for each image ``sem_seg_labels``: int64 (height, width), 0 is "other"."""
        if self.training:
            return super().forward(batched_inputs)
        results = []
        for one in batched_inputs:  # images of any size, none of them padded
            pixels = one["image"].to(self.device)[None]
            logits, _ = self.sem_seg_head(self.backbone(normalize_pixels(self, pixels)))
            results.append({"sem_seg_labels": resize_argmax(logits[0], native_size(one), self.max_elements)})
        return results


@META_ARCH_REGISTRY.register()
class PASSPixelClusterer(PASSPixelAttention):
    """Labels every pixel with the nearest image-level cluster, "other" where attention is low: PASS's pseudo-labels. No training.

    Source: LUSS, pixel-label generation.
    """

    @configurable
    def __init__(self, *, centroids: np.ndarray, threshold: float, **kwargs: Any):
        """Adds to `PASSPixelAttention`'s arguments centroids, float (K, C), and the attention below which a pixel is "other"."""
        super().__init__(**kwargs)
        self.threshold = threshold
        self.register_buffer("centroids", F.normalize(torch.as_tensor(centroids, dtype=torch.float32), dim=1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments; the centroids are read from ``LUSS.CENTROIDS``.

        Raises:
            FileNotFoundError: no centroids.
        """
        if not Path(cfg.LUSS.CENTROIDS).is_file():
            raise FileNotFoundError(
                f"LUSS.CENTROIDS must be the {CENTROIDS} that `u2seg luss run --stages clusters` wrote, got {cfg.LUSS.CENTROIDS!r}"
            )
        return {**super().from_config(cfg), "centroids": np.load(cfg.LUSS.CENTROIDS), "threshold": cfg.LUSS.THRESHOLD}

    def coarse_labels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cluster ids from 1, int64 (B, h, w), and attention, float32 (B, h, w), at a quarter of the backbone's stride.

        Args:
            pixels: (B, 3, H, W), RGB, 0..255.
        """
        features, attention = self.attended_features(pixels)
        similarity = torch.einsum("bchw,kc->bkhw", F.normalize(features, dim=1), self.centroids)
        return similarity.argmax(dim=1) + 1, attention.mean(dim=1)

    # The base class trains and returns losses; this class only infers.
    def forward(self, batched_inputs: list[dict]) -> list[dict]:  # type: ignore[override]
        """Returns for each image ``sem_seg_labels`` and ``clusters`` (int64) and ``attention`` (float32), (height, width) each.

        ``sem_seg_labels`` are the clusters after ``LUSS.THRESHOLD``; the evaluator sweeps over all thresholds.
        """
        results = []
        for one in batched_inputs:
            clusters, attention = self.coarse_labels(one["image"].to(self.centroids.device)[None])
            size = native_size(one)
            clusters = F.interpolate(clusters[:, None].float(), size=size, mode="nearest")[0, 0].long()
            attention = F.interpolate(attention[:, None], size=size, mode="bilinear", align_corners=False)[0, 0]
            labels = torch.where(attention < self.threshold, torch.zeros_like(clusters), clusters)
            results.append({"sem_seg_labels": labels, "clusters": clusters, "attention": attention})
        return results


@META_ARCH_REGISTRY.register()
class DistanceMatcher(nn.Module):
    """Labels every pixel by its nearest neighbors among labeled embeddings: no training at all.

    Source: LUSS, distance matching protocol.
    """

    takes_part_of_checkpoint = True  # of pretraining, whose heads are not needed

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        deep_feature: str,
        bank_features: np.ndarray,
        bank_labels: np.ndarray,
        num_ids: int,
        neighbors: int,
        temperature: float,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """Makes the model from a pretrained backbone and the bank.

        Args:
            backbone: gives ``deep_feature``.
            deep_feature: name of the output.
            bank_features: float (M, C), rows of length 1.
            bank_labels: int (M,), 0..num_ids-1.
            num_ids: C + 1.
            neighbors: k.
            temperature: of the vote: a neighbor of cosine s weighs exp(s / temperature).
            pixel_mean: of each RGB channel, 0..255.
            pixel_std: likewise.
        """
        super().__init__()
        self.backbone = backbone
        self.deep_feature = deep_feature
        self.num_ids = num_ids
        self.neighbors = neighbors
        self.temperature = temperature
        self.register_buffer("bank_features", torch.as_tensor(bank_features, dtype=torch.float32), False)
        self.register_buffer("bank_labels", torch.as_tensor(bank_labels, dtype=torch.long), False)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments; the bank is read from ``LUSS.BANK`` where one is named, and empty otherwise."""
        bank = np.load(cfg.LUSS.BANK) if cfg.LUSS.BANK else {"features": np.zeros((0, 1)), "labels": np.zeros(0)}
        return {
            "backbone": build_backbone(cfg),
            "deep_feature": cfg.MODEL.PASS.DEEP_FEATURE,
            "bank_features": bank["features"],
            "bank_labels": bank["labels"],
            "num_ids": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "neighbors": cfg.TEST.LUSS.KNN_K,
            "temperature": cfg.TEST.LUSS.KNN_TEMPERATURE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def dense_features(self, pixels: Tensor) -> Tensor:
        """Returns features (B, C, h, w) at a quarter of the backbone's stride, for pixels (B, 3, H, W), RGB, 0..255."""
        deep = self.backbone(normalize_pixels(self, pixels))[self.deep_feature].float()
        return F.interpolate(deep, scale_factor=UPSAMPLING, mode="bilinear", align_corners=False)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Returns for each image ``sem_seg_labels``: int64 (height, width), class ids.

        Raises:
            RuntimeError: the bank is empty.
        """
        if not len(self.bank_labels):
            raise RuntimeError("the bank of labeled embeddings is empty: set LUSS.BANK to what `u2seg luss bank` wrote")
        results = []
        for one in batched_inputs:
            features = self.dense_features(one["image"].to(self.pixel_mean.device)[None])[0]
            labels = knn_vote(
                F.normalize(features.flatten(1).T, dim=1),
                self.bank_features,
                self.bank_labels,
                num_ids=self.num_ids,
                neighbors=self.neighbors,
                temperature=self.temperature,
            ).view(1, 1, *features.shape[1:])
            results.append(
                {"sem_seg_labels": F.interpolate(labels.float(), size=native_size(one), mode="nearest")[0, 0].long()}
            )
        return results


def native_size(sample: dict) -> tuple[int, int]:
    """Returns (height, width) at which a sample's result is wanted."""
    return sample.get("height", sample["image"].shape[1]), sample.get("width", sample["image"].shape[2])
