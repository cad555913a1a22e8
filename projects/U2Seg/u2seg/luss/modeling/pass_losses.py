"""The mathematics of PASS's pretraining: balanced codes, swapped prediction, pixel-to-pixel agreement. Pure functions."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def sinkhorn_codes(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Returns soft codes that use all prototypes equally over the batch, float32 (B, K), each row summing to 1.

    The batch is the union of all processes' rows when ``torch.distributed`` runs: the sums over rows are global, so that the
    codes equal those that one process would give for the whole batch.

    Args:
        scores: (B, K), cosine of every embedding and prototype.
        epsilon: entropy of the codes; larger is softer.
        iterations: of the alternating normalization, at least 1.

    Source: SwAV (Caron et al., NeurIPS 2020), equation 3 and appendix A.
    """
    if iterations < 1:
        raise ValueError(f"the number of Sinkhorn iterations must be at least 1, got {iterations}")
    with torch.no_grad():
        scores = scores.float()
        largest = scores.max()
        _all_reduce(largest, dist.ReduceOp.MAX if _distributed() else None)
        codes = torch.exp((scores - largest) / epsilon)  # the shift cancels below; it keeps exp() finite
        rows = torch.tensor(float(len(codes)), device=codes.device)
        _all_reduce(rows)
        for _ in range(iterations):
            column_mass = codes.sum(dim=0)
            _all_reduce(column_mass)
            # A prototype that underflows everywhere would divide 0 by 0.
            codes = codes / (column_mass * codes.shape[1]).clamp_min(torch.finfo(torch.float32).tiny)
            codes = codes / (codes.sum(dim=1, keepdim=True) * rows).clamp_min(torch.finfo(torch.float32).tiny)
        return codes * rows


def code_cross_entropy(codes: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Returns the mean cross entropy between codes and the softmax of ``scores / temperature``, a scalar in nats.

    Args:
        codes: (B, K), rows sum to 1.
        scores: (B, K), cosine of embeddings and prototypes.
        temperature: of the softmax.

    Source: SwAV, equation 2.
    """
    return -(codes * F.log_softmax(scores.float() / temperature, dim=1)).sum(dim=1).mean()


def code_entropy(codes: Tensor) -> Tensor:
    """Returns the mean entropy of the rows of ``codes`` (B, K), a scalar in nats, 0..ln K; ln K means that codes say nothing."""
    return torch.special.entr(codes.float()).sum(dim=1).mean()


def sample_points(feature_map: Tensor, grid: Tensor, valid: Tensor, padding: str) -> Tensor:
    """Returns features at given points, float32 (B, C, G, G), zero for pairs of crops that share no point of the image.

    Args:
        feature_map: (B, C, h, w) of one crop.
        grid: (B, G, G, 2), x and y of the points in the crop, -1 and 1 at the crop's edges.
        valid: bool (B,), whether the two crops overlap.
        padding: "border" or "zeros": what lies beyond the centers of the outermost cells. The reference uses zeros, which
            scales points near the crop's edge towards zero; the border continues the outermost cell.

    Source: LUSS (Gao et al., TPAMI 2022), pixel-to-pixel alignment.
    """
    sampled = F.grid_sample(
        feature_map.float(), grid.float(), mode="bilinear", padding_mode=padding, align_corners=False
    )
    return sampled * valid.to(sampled.dtype)[:, None, None, None]


def pixel_agreement_loss(predictions: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Returns minus the mean cosine of predictions and targets over all points, a scalar in -1..1; no gradient to ``targets``.

    Pairs of crops without overlap count as 0 in the mean, as in the reference.

    Args:
        predictions: (B, C, G, G) of one crop.
        targets: (B, C, G, G) of the other, at the same points of the image.
        valid: bool (B,), whether the two crops overlap.

    Source: LUSS, non-contrastive pixel-to-pixel loss, after SimSiam (Chen & He, CVPR 2021), equation 2.
    """
    cosine = F.cosine_similarity(predictions.float(), targets.detach().float(), dim=1)
    return -(cosine * valid.to(cosine.dtype)[:, None, None]).mean()


def gather_rows(rows: Tensor) -> Tensor:
    """Returns the rows (B, D) of all processes, (processes * B, D), without gradient, in the order that one process would have.

    The loader deals a batch out in turn: row i of process r is row ``i * processes + r``. B must be the same everywhere.
    """
    if not _distributed():
        return rows.detach()
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.detach().contiguous())
    return torch.stack(gathered, dim=1).flatten(0, 1)


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_reduce(value: Tensor, operation: dist.ReduceOp | None = None) -> None:
    if _distributed():
        dist.all_reduce(value, op=operation or dist.ReduceOp.SUM)
