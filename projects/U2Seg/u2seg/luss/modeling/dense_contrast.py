"""Dense contrastive pretraining: the same point of an image must look alike in two views, and unlike any other point."""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from u2seg.luss.modeling.pass_heads import DenseMLP, ProjectionHead
from u2seg.luss.modeling.pass_losses import sample_points
from u2seg.luss.modeling.pass_meta_arch import normalize_pixels, run_by_size, stack_views

NUM_VIEWS = 2  # the views whose overlap is known


@META_ARCH_REGISTRY.register()
class DenseContrastPretrainer(nn.Module):
    """Learns a backbone from images alone: contrast of whole views and of single points, with negatives from the batch.

    It has no momentum encoder and no queue, so a step costs one forward pass for each view, and it works with batches of 64. The
    negatives are those of the process's own part of the batch.

    Source: DenseCL (Wang et al., CVPR 2021), equation 3, the sum of a global and a dense InfoNCE loss. Differs from the paper in
    that points correspond by the geometry of the crops (as in PixPro, Xie et al., CVPR 2021), not by the nearest feature, and in
    that the batch takes the place of queue and momentum encoder (as in SimCLR, Chen et al., ICML 2020, equation 1).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        feature: str,
        hidden_dim: int,
        feat_dim: int,
        norm: str,
        temperature: float,
        point_weight: float,
        same_image_negatives: bool,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ):
        """Makes the model from the backbone and the settings of ``MODEL.DENSE_CONTRAST``.

        Args:
            backbone: gives ``feature``.
            feature: name of the backbone's output that is trained.
            hidden_dim: of both heads.
            feat_dim: D, of the embeddings.
            norm: Detectron2's name of the norm layers in the heads.
            temperature: of both losses.
            point_weight: share of the dense loss, 0..1; the global loss has the rest.
            same_image_negatives: whether other points of the same image are negatives too.
            pixel_mean: of each RGB channel, 0..255.
            pixel_std: likewise.

        Raises:
            ValueError: the backbone does not give ``feature``.
        """
        super().__init__()
        if feature not in backbone.output_shape():
            raise ValueError(
                f"MODEL.DENSE_CONTRAST.FEATURE is {feature!r}, the backbone gives {sorted(backbone.output_shape())}: "
                "add it to MODEL.RESNETS.OUT_FEATURES"
            )
        channels = backbone.output_shape()[feature].channels
        self.backbone = backbone
        self.feature = feature
        self.temperature = temperature
        self.point_weight = point_weight
        self.same_image_negatives = same_image_negatives
        self.view_head = ProjectionHead(channels, hidden_dim, feat_dim, norm)
        self.point_head = DenseMLP([channels, hidden_dim, feat_dim], norm)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        settings = cfg.MODEL.DENSE_CONTRAST
        return {
            "backbone": build_backbone(cfg),
            "feature": settings.FEATURE,
            "hidden_dim": settings.HIDDEN_DIM,
            "feat_dim": settings.FEAT_DIM,
            "norm": cfg.MODEL.RESNETS.NORM,
            "temperature": settings.TEMPERATURE,
            "point_weight": settings.POINT_WEIGHT,
            "same_image_negatives": settings.SAME_IMAGE_NEGATIVES,
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
        }

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Returns the losses ``loss_views`` and ``loss_points``, weighted by ``POINT_WEIGHT``.

        Args:
            batched_inputs: what the mapper ``MultiCropMapper`` gives: ``views``, ``overlap_grids`` and ``overlaps``. The first two
                views are used.

        Raises:
            RuntimeError: called for inference, which pretraining has not.
        """
        if not self.training:
            raise RuntimeError(
                "DenseContrastPretrainer only trains; its backbone is used through FEATURES.NAME ResNetFeatures or another "
                "model's MODEL.WEIGHTS. Leave DATASETS.TEST empty."
            )
        views = stack_views(batched_inputs, self.device)[:NUM_VIEWS]
        maps = torch.cat(run_by_size(views, lambda pixels: self.backbone(normalize_pixels(self, pixels))[self.feature]))
        first, second = self.view_head(maps).chunk(NUM_VIEWS)
        losses = {"loss_views": (1 - self.point_weight) * contrast(first, second, self.temperature)}
        if self.point_weight:
            losses["loss_points"] = self.point_weight * self._point_loss(maps, batched_inputs)
        if has_event_storage():
            own = torch.arange(len(first), device=first.device)
            nearest = (first.detach() @ second.detach().T).argmax(dim=1)
            get_event_storage().put_scalar("dense_contrast/view_retrieval", float((nearest == own).float().mean()))
        return losses

    def image_features(self, pixels: Tensor) -> Tensor:
        """Returns the feature of whole images, averaged over each, float32 (B, C), rows of length 1.

        Args:
            pixels: (B, 3, H, W), RGB, 0..255.
        """
        maps = self.backbone(normalize_pixels(self, pixels))[self.feature]
        return F.normalize(maps.float().mean(dim=(2, 3)), dim=1)

    def _point_loss(self, maps: Tensor, batched_inputs: list[dict]) -> Tensor:
        """Returns the dense loss over the images whose two views overlap; 0 where none do."""
        grids = torch.stack([x["overlap_grids"] for x in batched_inputs], dim=1).to(self.device)  # (2, B, G, G, 2)
        valid = torch.tensor([bool(x["overlaps"]) for x in batched_inputs], device=self.device)
        points = sample_points(self.point_head(maps), grids.flatten(0, 1), valid.repeat(NUM_VIEWS), "border")
        rows = F.normalize(points.flatten(2).transpose(1, 2), dim=2)  # (2 B, G * G, D)
        first, second = (view[valid].flatten(0, 1) for view in rows.chunk(NUM_VIEWS))
        if not len(first):
            return rows.sum() * 0
        group = None
        if not self.same_image_negatives:
            group = torch.arange(len(first), device=first.device) // rows.shape[1]
        return contrast(first, second, self.temperature, group)


def contrast(first: Tensor, second: Tensor, temperature: float, group: Tensor | None = None) -> Tensor:
    """Returns the InfoNCE loss between two views, averaged over both directions, a scalar in nats.

    Row i of one view must be recognized among all rows of the other.

    Args:
        first: (N, D), rows of length 1.
        second: (N, D), row i belongs to row i of ``first``.
        temperature: of the softmax.
        group: int64 (N,); rows of one group are not negatives of each other; None: all other rows are negatives.

    Source: van den Oord et al., 2018 (CPC), equation 4; SimCLR, equation 1, without negatives from the own view.
    """
    similarity = first.float() @ second.float().T / temperature
    if group is not None:
        own = torch.eye(len(first), dtype=torch.bool, device=first.device)
        similarity = similarity.masked_fill((group[:, None] == group[None]) & ~own, -torch.inf)
    target = torch.arange(len(first), device=first.device)
    return 0.5 * (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target))
