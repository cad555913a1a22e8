"""Features without the part that tells where a patch lies, whatever it shows."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from u2seg.features.extractor import FeatureExtractor


class PositionFreeFeatures(FeatureExtractor):
    """Another extractor's features, with the main directions of an all-zero image projected out; each patch has length one.

    An image without content has the same patch everywhere: what its features differ in is position. Nothing is trained.

    Source: INSID3 (visinf/INSID3); it projects out 500 directions, which is everything that a ViT-S has, so that here their number is
    a share of the channels. INSID3 clusters the original features and compares images by these.
    """

    def __init__(self, extractor: FeatureExtractor, share: float):
        """Finds the directions, in one forward pass.

        Args:
            extractor: in eval mode, without gradients.
            share: of the channels, 0..1, rounded; no more directions than patches are found.
        """
        super().__init__()
        self.extractor = extractor
        self.patch_size, self.num_channels = extractor.patch_size, extractor.num_channels
        self.image_size = extractor.image_size
        device = next((one.device for one in [*extractor.parameters(), *extractor.buffers()]), torch.device("cpu"))
        with torch.no_grad():
            empty = extractor(torch.zeros((1, 3, *self.image_size), device=device))[0].flatten(1)
        self.register_buffer("directions", position_directions(empty, round(share * self.num_channels)))

    def preprocess(self, image_rgb: np.ndarray) -> Tensor:
        """Returns what the other extractor's ``preprocess`` does."""
        return self.extractor.preprocess(image_rgb)

    def forward(self, images: Tensor) -> Tensor:
        """Returns float32 (B, C, rows, columns), each patch of length one; see the base class."""
        unit = F.normalize(self.extractor(images), dim=1)
        along = torch.einsum("ck,bchw->bkhw", self.directions, unit)
        return F.normalize(unit - torch.einsum("ck,bkhw->bchw", self.directions, along), dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """Returns the other extractor's vector of an image: a whole image lies nowhere."""
        return self.extractor.embed(images)


def position_directions(features: Tensor, count: int) -> Tensor:
    """Returns the main directions of patches around their mean, float32 (C, at most count), orthonormal.

    Args:
        features: float32 (C, N), of an image without content; each patch is scaled to length one first.
        count: how many; directions along which the patches do not differ are left out.
    """
    unit = F.normalize(features, dim=0)
    directions, spread, _ = torch.linalg.svd(unit - unit.mean(dim=1, keepdim=True), full_matrices=False)
    return directions[:, :count][:, spread[:count] > 1e-6 * len(features)].contiguous()
