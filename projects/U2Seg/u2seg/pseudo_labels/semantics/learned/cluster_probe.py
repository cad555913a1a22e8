"""The cluster probe: k-means by cosine and gradient on codes; it never sees a label."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClusterProbe(nn.Module):
    """Cluster centers on the unit sphere.

    Attributes:
        clusters: float32 (K, D), of any length.
        logit_scale: factor of the cosines before the softmax.
    """

    def __init__(self, num_clusters: int, dim: int, logit_scale: float):
        """Draws the centers from a normal distribution, with torch's generator."""
        super().__init__()
        self.clusters = nn.Parameter(torch.randn(num_clusters, dim))
        self.logit_scale = logit_scale

    def loss(self, codes: Tensor) -> Tensor:
        """Returns minus the mean cosine of each code with its nearest center, a scalar; the codes get no gradient.

        Args:
            codes: float32 (B, D, rows, columns).

        Source: STEGO's released code (the paper calls it cosine minibatch k-means).
        """
        return -self._cosines(codes.detach()).amax(dim=1).mean()

    def log_probabilities(self, codes: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the log-softmax of the scaled cosines of interpolated codes, float32 (B, K, height, width).

        The codes are enlarged before the cosine is taken. Their products with the centers are enlarged instead, which is the same,
        so that not D but K maps are held at full size; their lengths are summed up a few channels at a time.

        Args:
            codes: float32 (B, D, rows, columns).
            size: (height, width), to which they are interpolated bilinearly.
        """
        products = torch.einsum("kd,bdhw->bkhw", F.normalize(self.clusters, dim=1), codes)
        squares = sum(_enlarged(some, size).square().sum(dim=1, keepdim=True) for some in codes.split(8, dim=1))
        cosines = _enlarged(products, size) / torch.as_tensor(squares).sqrt().clamp_min(1e-12)
        return F.log_softmax(self.logit_scale * cosines, dim=1)

    def _cosines(self, codes: Tensor) -> Tensor:
        return torch.einsum("kd,bdhw->bkhw", F.normalize(self.clusters, dim=1), F.normalize(codes, dim=1))


def _enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
