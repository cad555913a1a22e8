"""PASS's two training stages as meta-architectures: representation learning and pixel attention."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from u2seg.luss.modeling.pass_heads import (
    PREDICTION_VIEWS,
    CollapseMonitor,
    DenseMLP,
    PixelAttention,
    PixelPredictor,
    ProjectionHead,
    SwappedPrediction,
    swap_diagnostics,
)
from u2seg.luss.modeling.pass_losses import pixel_agreement_loss, sample_points

UPSAMPLING = 4  # layer-4 features are enlarged so much before attention [LUSS, released model]


@dataclass(frozen=True)
class PASSSettings:
    """What both training stages of PASS need to know.

    Attributes:
        deep_feature: name of the backbone's output that swapped prediction, pixels and attention use.
        hidden_dim: of every MLP.
        feat_dim: D, of the embeddings.
        norm: Detectron2's name of the norm layers in the heads.
        collapse_patience: iterations at ln K before a warning; 0 for none.
        pixel_mean: of each RGB channel, 0..255.
        pixel_std: likewise.
    """

    deep_feature: str
    hidden_dim: int
    feat_dim: int
    norm: str
    collapse_patience: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "PASSSettings":
        """Returns the settings of ``MODEL.PASS``, with the norm of ``MODEL.RESNETS``."""
        settings = cfg.MODEL.PASS
        return cls(
            deep_feature=settings.DEEP_FEATURE,
            hidden_dim=settings.HIDDEN_DIM,
            feat_dim=settings.FEAT_DIM,
            norm=cfg.MODEL.RESNETS.NORM,
            collapse_patience=settings.COLLAPSE_PATIENCE,
            pixel_mean=tuple(cfg.MODEL.PIXEL_MEAN),
            pixel_std=tuple(cfg.MODEL.PIXEL_STD),
        )


@dataclass(frozen=True)
class AlignmentSettings:
    """What pretraining aligns besides the views of an image.

    Attributes:
        shallow_features: names of the backbone's outputs that learn to predict the deep codes.
        loss_weights: one for swapped prediction, then one for each shallow feature; divided by their sum.
        pixel_weight: of the pixel-to-pixel loss; 0 leaves its heads out.
        pixel_padding: see `sample_points`.
    """

    shallow_features: tuple[str, ...]
    loss_weights: tuple[float, ...]
    pixel_weight: float
    pixel_padding: str

    def __post_init__(self) -> None:
        if len(self.loss_weights) != 1 + len(self.shallow_features) or sum(self.loss_weights) <= 0:
            raise ValueError(
                f"MODEL.PASS.LOSS_WEIGHTS must be one weight for the deep loss and one for each of the shallow features "
                f"{list(self.shallow_features)}, positive in sum; got {list(self.loss_weights)}"
            )


@META_ARCH_REGISTRY.register()
class PASSPretrainer(nn.Module):
    """Learns a backbone from images alone: swapped prediction, deep-to-shallow and pixel-to-pixel alignment.

    Source: LUSS, section "PASS: representation learning".
    """

    @configurable
    def __init__(
        self, *, backbone: Backbone, swapped: SwappedPrediction, settings: PASSSettings, alignment: AlignmentSettings
    ):
        """Makes the model from the backbone, the prototypes and their loss, and the settings of ``MODEL.PASS``.

        Raises:
            ValueError: a feature that the backbone does not give.
        """
        super().__init__()
        deep, hidden_dim, norm = settings.deep_feature, settings.hidden_dim, settings.norm
        _check_features(backbone, [deep, *alignment.shallow_features])
        channels = {name: shape.channels for name, shape in backbone.output_shape().items()}
        self.backbone = backbone
        self.deep_feature = deep
        self.shallow_features = list(alignment.shallow_features)
        self.loss_weights = [weight / sum(alignment.loss_weights) for weight in alignment.loss_weights]
        self.pixel_weight = alignment.pixel_weight
        self.pixel_padding = alignment.pixel_padding
        self.projector = ProjectionHead(channels[deep], hidden_dim, settings.feat_dim, norm)
        self.swapped = swapped
        self.shallow_mlps = nn.ModuleDict(
            {
                name: DenseMLP([channels[name], hidden_dim, hidden_dim, channels[name]], norm)
                for name in self.shallow_features
            }
        )
        self.shallow_projectors = nn.ModuleDict(
            {
                name: ProjectionHead(channels[name], hidden_dim, settings.feat_dim, norm)
                for name in self.shallow_features
            }
        )
        if self.pixel_weight:
            self.pixel_projector = DenseMLP([channels[deep], hidden_dim, hidden_dim, settings.feat_dim], norm)
            self.pixel_predictor = PixelPredictor(settings.feat_dim, norm)
        self.monitor = CollapseMonitor(swapped.num_prototypes, settings.collapse_patience)
        _register_pixel_statistics(self, settings)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {
            "backbone": build_backbone(cfg),
            "swapped": build_swapped_prediction(cfg),
            "settings": PASSSettings.of_config(cfg),
            "alignment": AlignmentSettings(
                shallow_features=tuple(cfg.MODEL.PASS.SHALLOW_STAGES),
                loss_weights=tuple(cfg.MODEL.PASS.LOSS_WEIGHTS),
                pixel_weight=cfg.MODEL.PASS.P2P_WEIGHT,
                pixel_padding=cfg.MODEL.PASS.P2P_PADDING,
            ),
        }

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Returns the losses ``loss_i2i``, ``loss_d2s_*`` and ``loss_p2p``, whose sum is what the paper minimizes.

        Args:
            batched_inputs: what the mapper ``MultiCropMapper`` gives: ``views``, ``overlap_grids`` and ``overlaps``.

        Raises:
            RuntimeError: called for inference, which pretraining has not.
        """
        _require_training(self)
        self.swapped.normalize_prototypes()
        views = stack_views(batched_inputs, self.device)
        maps = self._feature_maps(views)
        embeddings = embed_views([view[self.deep_feature] for view in maps], self.projector.project)
        loss, codes = self.swapped(embeddings)
        losses = {"loss_i2i": self.loss_weights[0] * loss}
        for name, weight in zip(self.shallow_features, self.loss_weights[1:]):
            losses[f"loss_d2s_{name}"] = weight * self._shallow_loss(name, maps, codes)
        if self.pixel_weight:
            losses["loss_p2p"] = self.pixel_weight * self._pixel_loss(maps, batched_inputs)
        report_swapped(self.monitor, loss, codes, embeddings)
        return losses

    def image_features(self, pixels: Tensor) -> Tensor:
        """Returns the deep feature of whole images, averaged over each, float32 (B, C), rows of length 1.

        Args:
            pixels: (B, 3, H, W), RGB, 0..255.
        """
        deep = self.backbone(normalize_pixels(self, pixels))[self.deep_feature]
        return F.normalize(deep.float().mean(dim=(2, 3)), dim=1)

    def _feature_maps(self, views: list[Tensor]) -> list[dict[str, Tensor]]:
        """Returns the backbone's outputs for each view; views of one size go through it together."""
        return run_by_size(views, lambda pixels: self.backbone(normalize_pixels(self, pixels)))

    def _shallow_loss(self, name: str, maps: list[dict[str, Tensor]], codes: list[Tensor]) -> Tensor:
        shallow = torch.cat([view[name] for view in maps[:PREDICTION_VIEWS]])
        embeddings = self.shallow_projectors[name](self.shallow_mlps[name](shallow))
        return self.swapped.predict(codes, list(embeddings.chunk(PREDICTION_VIEWS)))

    def _pixel_loss(self, maps: list[dict[str, Tensor]], batched_inputs: list[dict]) -> Tensor:
        deep = torch.cat([view[self.deep_feature] for view in maps[:PREDICTION_VIEWS]])
        grids = torch.stack([x["overlap_grids"] for x in batched_inputs], dim=1).to(self.device)  # (2, B, G, G, 2)
        valid = torch.tensor([bool(x["overlaps"]) for x in batched_inputs], device=self.device)
        points = sample_points(
            self.pixel_projector(deep), grids.flatten(0, 1), valid.repeat(PREDICTION_VIEWS), self.pixel_padding
        )
        first, second = points.chunk(PREDICTION_VIEWS)
        predicted_first, predicted_second = self.pixel_predictor(points).chunk(PREDICTION_VIEWS)
        return 0.5 * (
            pixel_agreement_loss(predicted_first, second, valid) + pixel_agreement_loss(predicted_second, first, valid)
        )


@META_ARCH_REGISTRY.register()
class PASSPixelAttention(nn.Module):
    """Learns which pixels matter: attention and prototypes on top of a pretrained backbone and projection that stay as they are.

    The frozen parts run in eval mode, so that their batch-norm statistics stay too; ``FROZEN_NORM_MOVES`` lets
    those of the backbone and the projection move, as in the reference.

    Source: LUSS, section "PASS: pixel attention".
    """

    @configurable
    def __init__(
        self, *, backbone: Backbone, swapped: SwappedPrediction, settings: PASSSettings, frozen_norm_moves: bool
    ):
        """Makes the model from the pretrained backbone and the settings of ``MODEL.PASS``.

        Args:
            backbone: pretrained; it is frozen here, and so is the projection.
            swapped: prototypes and their loss.
            settings: as in pretraining.
            frozen_norm_moves: whether batch-norm statistics of the frozen parts follow the data, as in the reference.
        """
        super().__init__()
        _check_features(backbone, [settings.deep_feature])
        channels = backbone.output_shape()[settings.deep_feature].channels
        self.backbone = backbone.requires_grad_(False)
        self.deep_feature = settings.deep_feature
        projector = ProjectionHead(channels, settings.hidden_dim, settings.feat_dim, settings.norm)
        self.projector = projector.requires_grad_(False)
        self.attention = PixelAttention(channels, settings.norm)
        self.swapped = swapped
        self.frozen_norm_moves = frozen_norm_moves
        self.monitor = CollapseMonitor(swapped.num_prototypes, settings.collapse_patience)
        _register_pixel_statistics(self, settings)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {
            "backbone": build_backbone(cfg),
            "swapped": build_swapped_prediction(cfg),
            "settings": PASSSettings.of_config(cfg),
            "frozen_norm_moves": cfg.MODEL.PASS.PIXEL_ATTENTION.FROZEN_NORM_MOVES,
        }

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return self.pixel_mean.device

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a checkpoint of this stage, or of pretraining: then its queue and its iterations do not belong here."""
        if not any(name.startswith("attention.") for name in state_dict):
            left = ("swapped.queue", "swapped.num_queued", "swapped.iteration")
            state_dict = {name: value for name, value in state_dict.items() if name not in left}
        return super().load_state_dict(state_dict, strict, assign)

    def train(self, mode: bool = True) -> "PASSPixelAttention":
        """Sets training mode, but for the frozen parts (unless their norms may move)."""
        super().train(mode)
        if not self.frozen_norm_moves:
            self.backbone.eval()
            self.projector.eval()
        return self

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """Returns the loss ``loss_i2i``.

        Args:
            batched_inputs: what the mapper ``MultiCropMapper`` gives.

        Raises:
            RuntimeError: called for inference; `attended_features` gives what clustering needs.
        """
        _require_training(self)
        self.swapped.normalize_prototypes()
        views = stack_views(batched_inputs, self.device)
        embeddings = run_by_size(views, self._embed)
        loss, codes = self.swapped(embeddings)
        report_swapped(self.monitor, loss, codes, embeddings)
        return {"loss_i2i": loss}

    def _embed(self, pixels: Tensor) -> list[Tensor]:
        _, normalized, attention = self._attend(pixels)
        # Training weighs the normalized features, clustering the raw ones: the reference's behavior, kept.
        return self.projector.project((normalized * attention).mean(dim=(2, 3)))

    def attended_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features and attention of whole images, both (B, C, h, w) at a quarter of the backbone's stride.

        Args:
            pixels: float32 (B, 3, H, W), RGB, 0..255.
        """
        features, _, attention = self._attend(pixels)
        return features, attention

    def _attend(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            deep = self.backbone(normalize_pixels(self, pixels))[self.deep_feature]
            features = F.interpolate(deep.float(), scale_factor=UPSAMPLING, mode="bilinear", align_corners=False)
            normalized = F.normalize(features, dim=1)
        return features, normalized, self.attention(normalized)


def build_swapped_prediction(cfg: CfgNode) -> SwappedPrediction:
    """Returns the prototypes and loss that ``cfg.MODEL.PASS`` describes."""
    settings = cfg.MODEL.PASS
    return SwappedPrediction(
        num_prototypes=settings.NUM_PROTOTYPES,
        feat_dim=settings.FEAT_DIM,
        temperature=settings.TEMPERATURE,
        sinkhorn_eps=settings.SINKHORN_EPS,
        sinkhorn_iters=settings.SINKHORN_ITERS,
        queue_length=settings.QUEUE_LENGTH,
        queue_start_iter=settings.QUEUE_START_ITER,
        freeze_prototypes_iters=settings.FREEZE_PROTOTYPES_ITERS,
    )


def stack_views(batched_inputs: list[dict], device: torch.device) -> list[Tensor]:
    """Returns one (B, 3, h, w) uint8 or float batch for each view, on ``device``."""
    return [torch.stack(views).to(device) for views in zip(*(x["views"] for x in batched_inputs))]


def normalize_pixels(model: nn.Module, pixels: Tensor) -> Tensor:
    """Returns ``pixels`` (0..255, RGB) minus the model's mean over its standard deviation, float32."""
    return (pixels.float() - model.pixel_mean) / model.pixel_std


def embed_views(maps: list[Tensor], project: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Returns the embedding (B, D) of each view's feature map, all views through the head in one batch."""
    pooled = torch.cat([view.mean(dim=(2, 3)) for view in maps])
    return list(project(pooled).chunk(len(maps)))


def run_by_size(views: list[Tensor], function: Callable) -> list:
    """Returns ``function``'s results for each view, after running consecutive views of one size as one batch.

    ``function`` takes (N, 3, h, w) and returns a tensor of N rows or a dict of such tensors.
    """
    results = []
    start = 0
    while start < len(views):
        end = start + 1
        while end < len(views) and views[end].shape == views[start].shape:
            end += 1
        count = end - start
        output = function(torch.cat(views[start:end]))
        if isinstance(output, dict):
            chunks = {name: value.chunk(count) for name, value in output.items()}
            results += [{name: chunks[name][index] for name in chunks} for index in range(count)]
        else:
            results += output.chunk(count)
        start = end
    return results


def report_swapped(monitor: CollapseMonitor, loss: Tensor, codes: list[Tensor], embeddings: list[Tensor]) -> None:
    """Writes the loss in units of ln K, code entropy and view retrieval to the event storage, and warns of a collapse."""
    monitored = swap_diagnostics(codes, embeddings)
    monitor.update(float(loss.detach()), monitored["code_entropy"])
    if has_event_storage():
        storage = get_event_storage()
        storage.put_scalar("pass/i2i_over_ln_k", float(loss.detach()) / monitor.ln_k)
        for name, value in monitored.items():
            storage.put_scalar(f"pass/{name}", value)


def _register_pixel_statistics(model: nn.Module, settings: PASSSettings) -> None:
    model.register_buffer("pixel_mean", torch.tensor(settings.pixel_mean).view(-1, 1, 1), False)
    model.register_buffer("pixel_std", torch.tensor(settings.pixel_std).view(-1, 1, 1), False)


def _check_features(backbone: Backbone, names: list[str]) -> None:
    missing = [name for name in names if name not in backbone.output_shape()]
    if missing:
        raise ValueError(
            f"the backbone gives {sorted(backbone.output_shape())}, PASS needs {missing} too: "
            f"add them to MODEL.RESNETS.OUT_FEATURES"
        )


def _require_training(model: nn.Module) -> None:
    if not model.training:
        raise RuntimeError(
            f"{type(model).__name__} only trains; its backbone is used through FEATURES.NAME ResNetFeatures, u2seg.luss, "
            "or another model's MODEL.WEIGHTS. Leave DATASETS.TEST empty."
        )
