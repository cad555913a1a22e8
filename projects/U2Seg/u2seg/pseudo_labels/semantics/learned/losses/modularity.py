"""Modularity of a soft clustering of tokens: what CAUSE's codebook and its cluster probe maximize.

Source: Kim et al., Causal Unsupervised Semantic Segmentation (arXiv 2310.07379), section 3.2; Newman, Modularity and community
structure in networks, PNAS 2006.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.1  # of the tanh, CAUSE's


@torch.no_grad()
def affinity(tokens: Tensor) -> Tensor:
    """Returns the graph of each image's tokens: cosine, at least 0, no loops; float32 (B, N, N).

    Args:
        tokens: float32 (B, N, C).
    """
    unit = F.normalize(tokens, dim=2)
    graph = (unit @ unit.transpose(1, 2)).clamp_min(0)
    return graph - torch.diag_embed(graph.diagonal(dim1=1, dim2=2))


@torch.no_grad()
def modularity_matrix(graph: Tensor) -> Tensor:
    """Returns what each edge weighs beyond chance, over the weight of all edges: ``(A - d d^T / e) / e``, float32 (B, N, N).

    Args:
        graph: A, float32 (B, N, N), symmetric, at least 0; d its row sums, e its sum. A graph without edges gives zeros.
    """
    degrees = graph.sum(dim=2)
    total = degrees.sum(dim=1)[:, None, None].clamp_min(1e-12)
    return (graph - degrees[:, :, None] * degrees[:, None, :] / total) / total


def modularity_loss(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Returns minus the mean modularity of the tokens' soft clustering, a scalar; only the codebook gets a gradient.

    Two tokens are together as far as some codeword holds both: ``max_k tanh(C_ik C_jk / 0.1)``, with C the cosine of token and
    codeword, at least 0. Since tanh rises, the codeword of the largest product is found first, without gradient, and the tanh taken
    of that product alone: N x N numbers are kept for the gradient, not N x N x K.

    Args:
        tokens: float32 (B, N, C).
        codebook: float32 (K, C).
    """
    tokens = tokens.detach()
    weights = modularity_matrix(affinity(tokens))
    membership = (F.normalize(tokens, dim=2) @ F.normalize(codebook, dim=1).T).clamp_min(0)
    losses = []
    for one, weight in zip(membership, weights):
        shared = shared_codeword(one.detach())
        together = torch.tanh(one.gather(1, shared) * one.gather(1, shared.T).T / TEMPERATURE)
        losses.append(-(weight * together).sum())
    return torch.stack(losses).mean()


@torch.no_grad()
def shared_codeword(membership: Tensor, max_values: int = 1 << 24) -> Tensor:
    """Returns the codeword k with the largest ``C_ik C_jk`` for each pair of tokens, int64 (N, N), symmetric.

    Args:
        membership: C, float32 (N, K), at least 0.
        max_values: products that are held at once.
    """
    count, num_codewords = membership.shape
    rows = max(1, max_values // (count * num_codewords))
    return torch.cat([(some[:, None] * membership).argmax(dim=2) for some in membership.split(rows)])


def nearest_codeword(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Returns the codeword of the largest cosine, int64 (..., N).

    Args:
        tokens: float32 (..., N, C).
        codebook: float32 (K, C).
    """
    return (F.normalize(tokens, dim=-1) @ F.normalize(codebook, dim=1).T).argmax(dim=-1)
