"""Several backbones that look at the same images, each at its own size: what VoteCut lets vote."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from u2seg.features.extractor import FeatureExtractor


class SeveralBackbones(FeatureExtractor):
    """A main extractor, which it behaves like, and others that only :meth:`views` asks.

    The others see the main extractor's image, resized once more (bicubic, filtered), so that an image is decoded and resized by LANCZOS
    once. CuVLER resizes the original for each backbone.
    """

    def __init__(self, main: FeatureExtractor, others: Sequence[FeatureExtractor]):
        """Takes the extractors, in eval mode, on one device."""
        super().__init__()
        self.main, self.others = main, nn.ModuleList(others)
        self.patch_size, self.num_channels, self.image_size = main.patch_size, main.num_channels, main.image_size

    def preprocess(self, image_rgb: np.ndarray) -> Tensor:
        """Returns what the main extractor's ``preprocess`` does."""
        return self.main.preprocess(image_rgb)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the main extractor's features; see the base class."""
        return self.main(images)

    def embed(self, images: Tensor) -> Tensor:
        """Returns the main extractor's vectors of whole images."""
        return self.main.embed(images)

    def mean_feature(self, images: Tensor) -> Tensor:
        """Returns the main extractor's mean features."""
        return self.main.mean_feature(images)

    def views(self, images: Tensor) -> list[Tensor]:
        """Returns the main extractor's features, then each other's, float32 (B, Ci, rows i, columns i)."""
        return [self.main(images), *(other(_resized(images, other.image_size)) for other in self.others)]


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
