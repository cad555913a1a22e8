"""CAUSE's contrastive loss between tokens of one concept, and the bank of keys that earlier batches left.

Source: Kim et al., Causal Unsupervised Semantic Segmentation (arXiv 2310.07379), section 3.3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def concept_contrast(
    anchors: Tensor,
    keys: Tensor,
    relation: Tensor,
    *,
    temperature: float,
    positive: float,
    negative: float,
) -> Tensor:
    """Returns the mean over all positive pairs of ``-s + log(sum of exp(s') over the anchor's positives and negatives)``.

    Args:
        anchors: float32 (M, P), with gradient.
        keys: float32 (L, P), without.
        relation: cosine of the pair's codewords, float32 (M, L); NaN for a pair that does not count, such as a token with itself.
        temperature: s is the cosine of anchor and key over this.
        positive: a pair whose codewords have a larger cosine is positive.
        negative: one whose codewords have a smaller one is negative; those between count for nothing.

    Returns:
        A scalar; 0 where no pair is positive (the published code gives NaN there).
    """
    similarity = F.normalize(anchors, dim=1) @ F.normalize(keys.detach(), dim=1).T / temperature
    is_positive, is_negative = relation > positive, relation < negative  # both false for NaN
    counted = similarity.masked_fill(~(is_positive | is_negative), float("-inf"))
    has_positive = is_positive.any(dim=1)
    if not has_positive.any():
        return similarity.sum() * 0
    normalizers = torch.logsumexp(counted[has_positive], dim=1, keepdim=True)
    return (normalizers - similarity[has_positive])[is_positive[has_positive]].mean()


class ConceptBank(nn.Module):
    """The latest keys of each codeword, first in first out.

    Attributes:
        keys: float32 (K, size, P).
        filled: int64 (K,), how many of each codeword's places hold a key.
        position: int64 (K,), the place that the next key takes.
    """

    def __init__(self, num_codewords: int, size: int, dim: int):
        """Makes an empty bank; ``num_codewords * size * dim`` floats are held."""
        super().__init__()
        self.register_buffer("keys", torch.zeros(num_codewords, size, dim))
        self.register_buffer("filled", torch.zeros(num_codewords, dtype=torch.int64))
        self.register_buffer("position", torch.zeros(num_codewords, dtype=torch.int64))

    @torch.no_grad()
    def append(self, codewords: Tensor, keys: Tensor) -> None:
        """Adds keys in their order; of one codeword the oldest give way.

        Args:
            codewords: int64 (M,).
            keys: float32 (M, P).
        """
        num_codewords, size, _ = self.keys.shape
        order = torch.argsort(codewords, stable=True)
        codewords, keys = codewords[order], keys[order]
        counts = torch.bincount(codewords, minlength=num_codewords)
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(codewords), device=codewords.device) - starts[codewords]
        kept = rank >= counts[codewords] - size
        places = (self.position[codewords] + rank) % size
        self.keys[codewords[kept], places[kept]] = keys[kept].detach().to(self.keys.dtype)
        self.position.add_(counts).remainder_(size)
        self.filled.add_(counts).clamp_(max=size)

    def contents(self) -> tuple[Tensor, Tensor]:
        """Returns the keys, float32 (L, P), and the codeword of each, int64 (L,), by codeword and place."""
        places = torch.arange(self.keys.shape[1], device=self.keys.device)
        codewords, held = torch.nonzero(places < self.filled[:, None], as_tuple=True)
        return self.keys[codewords, held], codewords
