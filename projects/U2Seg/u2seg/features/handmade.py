"""A patch descriptor made by hand: color and gradient orientations. No weights, no training, no download."""

import math

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from u2seg.features.extractor import FEATURE_EXTRACTOR_REGISTRY, FeatureExtractor
from u2seg.utils.manifest import reads


@FEATURE_EXTRACTOR_REGISTRY.register()
@reads("FEATURES.IMAGE_SIZE", "FEATURES.HANDMADE")
class HandmadeDescriptor(FeatureExtractor):
    """CIELAB color, its local contrast, and a histogram of gradient orientations."""

    NUM_ORIENTATIONS = 4

    @configurable
    def __init__(self, *, image_size: tuple[int, int], patch_size: int, color_weight: float, texture_weight: float):
        """Takes its settings; see ``FEATURES.HANDMADE``."""
        super().__init__()
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = 3 + 1 + self.NUM_ORIENTATIONS
        self.color_weight = color_weight
        self.texture_weight = texture_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {
            "image_size": tuple(cfg.FEATURES.IMAGE_SIZE),
            "patch_size": cfg.FEATURES.HANDMADE.PATCH_SIZE,
            "color_weight": cfg.FEATURES.HANDMADE.COLOR_WEIGHT,
            "texture_weight": cfg.FEATURES.HANDMADE.TEXTURE_WEIGHT,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Returns float32 (B, C, rows, columns); see the base class."""
        lab = rgb_to_lab(images)
        lightness = lab[:, :1] / 100
        dx = F.pad(lightness[..., 2:] - lightness[..., :-2], (1, 1, 0, 0))
        dy = F.pad(lightness[..., 2:, :] - lightness[..., :-2, :], (0, 0, 1, 1))
        magnitude = torch.hypot(dx, dy)
        angle = torch.atan2(dy, dx)  # orientation modulo pi, softly assigned
        centers = torch.arange(self.NUM_ORIENTATIONS, device=images.device) * (math.pi / self.NUM_ORIENTATIONS)
        orientation = magnitude * torch.cos(angle - centers[:, None, None]).square()
        channels = torch.cat(
            [self.color_weight * lab / 100, self.texture_weight * magnitude, self.texture_weight * orientation], dim=1
        )
        pooled = F.avg_pool2d(channels, self.patch_size)
        return F.avg_pool2d(F.pad(pooled, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


@FEATURE_EXTRACTOR_REGISTRY.register()
@reads("FEATURES.IMAGE_SIZE", "FEATURES.RAW_PIXELS")
class RawPixels(FeatureExtractor):
    """The mean color of each patch and nothing else: a baseline."""

    @configurable
    def __init__(self, *, image_size: tuple[int, int], patch_size: int):
        """Takes its settings; see ``FEATURES.RAW_PIXELS``."""
        super().__init__()
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = 3

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {"image_size": tuple(cfg.FEATURES.IMAGE_SIZE), "patch_size": cfg.FEATURES.RAW_PIXELS.PATCH_SIZE}

    def forward(self, images: Tensor) -> Tensor:
        """Returns float32 (B, 3, rows, columns), range 0..1; see the base class."""
        return F.avg_pool2d(images, self.patch_size)


def rgb_to_lab(images: Tensor) -> Tensor:
    """Returns CIELAB (D65): L in 0..100, a and b about -128..127, float32 (B, 3, H, W).

    Args:
        images: sRGB, float32 (B, 3, H, W), range 0..1.
    """
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055).pow(2.4), images / 12.92)
    matrix = images.new_tensor(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    white = images.new_tensor([0.95047, 1.0, 1.08883])
    xyz = torch.einsum("ij,bjhw->bihw", matrix / white[:, None], linear)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-8).pow(1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
