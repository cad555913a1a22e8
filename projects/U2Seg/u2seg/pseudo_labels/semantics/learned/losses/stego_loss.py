"""STEGO's loss: codes shall agree where features agree more than usual.

Source: Hamilton et al., Unsupervised Semantic Segmentation by Distilling Feature Correspondences, ICLR 2022, section 3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CorrelationWeights:
    """Weight and shift of each of the three terms.

    Attributes:
        self_weight: of an image with itself.
        neighbor_weight: of an image with one of its nearest neighbors.
        negative_weight: of an image with others of the batch, a mean over all draws.
        self_shift: b, feature correlation above which codes attract each other, and below which they repel.
        neighbor_shift: likewise.
        negative_shift: likewise.
    """

    self_weight: float
    neighbor_weight: float
    negative_weight: float
    self_shift: float
    neighbor_shift: float
    negative_shift: float


def random_points(count: int, side: int, device: torch.device) -> Tensor:
    """Returns uniform sampling points, float32 (count, side, side, 2) in -1..1, x before y."""
    return torch.rand((count, side, side, 2), device=device) * 2 - 1


def sample_at(maps: Tensor, points: Tensor) -> Tensor:
    """Returns maps at points, bilinear, float32 (B, C, side, side).

    Args:
        maps: float32 (B, C, rows, columns).
        points: float32 (B, side, side, 2) in -1..1, where -1 and 1 are the centers of the outermost patches; x before y.
    """
    return F.grid_sample(maps, points, mode="bilinear", padding_mode="border", align_corners=True)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Returns the cosine of every place of one map with every place of another, float32 (B, h, w, i, j).

    Args:
        first: float32 (B, C, h, w).
        second: float32 (B, C, i, j).
    """
    return torch.einsum("bchw,bcij->bhwij", F.normalize(first, dim=1), F.normalize(second, dim=1))


@torch.no_grad()
def center_pointwise(features: Tensor) -> Tensor:
    """Returns correlations minus each point's mean over its partners, plus the global mean of all.

    A point that resembles everything would attract everything; after centering it is judged by its own mean.

    Args:
        features: float32 (B, h, w, i, j).

    Source: STEGO, appendix ("spatial centering"); the published code takes the mean over the whole batch.
    """
    centered = features - features.mean(dim=(3, 4), keepdim=True)
    return centered - centered.mean() + features.mean()


def correlation_term(feature_correlation: Tensor, code_correlation: Tensor, shift: float) -> Tensor:
    """Returns the mean of ``-max(C, 0) (F - b)``, a scalar; only the codes get a gradient.

    Args:
        feature_correlation: F, float32 (B, h, w, i, j), not yet centered.
        code_correlation: C, likewise.
        shift: b.

    Source: STEGO, equation 4, with the clamp of C at 0.
    """
    return -(code_correlation.clamp_min(0) * (center_pointwise(feature_correlation) - shift)).mean()


def shifted_permutation(count: int, device: torch.device) -> Tensor:
    """Returns a random permutation of 0..count-1 in which, for two or more, nothing stays where it was, int64 (count,).

    A fixed point i becomes i + 1 modulo count, so that a value may come twice: as STEGO's released code has it.
    """
    permutation = torch.randperm(count, device=device)
    places = torch.arange(count, device=device)
    return torch.where(permutation == places, (permutation + 1) % count, permutation)


def stego_losses(
    images: tuple[Tensor, Tensor],
    neighbors: tuple[Tensor, Tensor],
    weights: CorrelationWeights,
    *,
    side: int,
    num_negatives: int,
) -> dict[str, Tensor]:
    """Returns the three weighted terms: ``loss_self``, ``loss_neighbor``, ``loss_negative``.

    Args:
        images: features float32 (B, C, rows, columns) without gradient, and codes (B, D, rows, columns).
        neighbors: the same of one nearest neighbor of each image.
        weights: of the terms.
        side: points a side; ``side ** 2`` points are compared with as many.
        num_negatives: permutations of the batch over which the last term is averaged.
    """
    features, codes = images
    count, device = len(features), features.device
    points, other_points = (random_points(count, side, device) for _ in range(2))
    own_features, own_codes = sample_at(features, points), sample_at(codes, points)

    def term(others: tuple[Tensor, Tensor], shift: float) -> Tensor:
        other_features, other_codes = (sample_at(maps, other_points) for maps in others)
        return correlation_term(correlation(own_features, other_features), correlation(own_codes, other_codes), shift)

    negatives = []
    for _ in range(num_negatives):
        permutation = shifted_permutation(count, device)
        negatives.append(term((features[permutation], codes[permutation]), weights.negative_shift))
    own = correlation_term(
        correlation(own_features, own_features), correlation(own_codes, own_codes), weights.self_shift
    )
    return {
        "loss_self": weights.self_weight * own,
        "loss_neighbor": weights.neighbor_weight * term(neighbors, weights.neighbor_shift),
        "loss_negative": weights.negative_weight * torch.stack(negatives).mean(),
    }
