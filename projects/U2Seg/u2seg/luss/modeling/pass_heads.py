"""The heads of PASS: projections, prototypes with their queue, pixel predictor, pixel attention."""

import logging
import math

import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from detectron2.utils import comm
from torch import Tensor, nn

from u2seg.luss.modeling.pass_losses import code_cross_entropy, code_entropy, gather_rows, sinkhorn_codes

logger = logging.getLogger(__name__)

PREDICTION_VIEWS = 2  # the crops that give codes; all crops predict them


class ProjectionHead(nn.Module):
    """Feature map -> unit vector: global average, linear, norm, ReLU, linear, norm without scale, L2.

    Source: LUSS, released model; SwAV's projection head with a last normalization added.
    """

    def __init__(self, in_channels: int, hidden_dim: int, out_dim: int, norm: str):
        super().__init__()
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.hidden_norm = _norm(norm, hidden_dim)
        self.out = nn.Linear(hidden_dim, out_dim)
        self.out_norm = _norm(norm, out_dim, affine=False)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Returns float32 (B, D), rows of length 1, for a feature map (B, C, h, w)."""
        return self.project(feature_map.mean(dim=(2, 3)))

    def project(self, vectors: Tensor) -> Tensor:
        """Returns float32 (B, D), rows of length 1, for pooled features (B, C)."""
        # The norm layers of Detectron2 are two-dimensional: (B, C) becomes (B, C, 1, 1).
        hidden = F.relu(self.hidden_norm(self.hidden(vectors)[..., None, None]))[..., 0, 0]
        return F.normalize(self.out_norm(self.out(hidden)[..., None, None])[..., 0, 0].float(), dim=1)


class DenseMLP(nn.Sequential):
    """1x1 convolutions with norm and ReLU between them; the last norm has no scale. (B, C, h, w) -> (B, dims[-1], h, w).

    Source: LUSS, released model: the shallow branch (C, hidden, hidden, C) and the pixel projector (C, hidden, hidden, D).
    """

    def __init__(self, dims: list[int], norm: str):
        layers: list[nn.Module] = []
        for index, (in_dim, out_dim) in enumerate(zip(dims, dims[1:])):
            last = index == len(dims) - 2
            layers += [nn.Conv2d(in_dim, out_dim, 1, bias=False), _norm(norm, out_dim, affine=not last)]
            if not last:
                layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class PixelPredictor(nn.Sequential):
    """Two 1x1 convolutions, norm and ReLU between them: predicts the other crop's point from this one's."""

    def __init__(self, dim: int, norm: str):
        super().__init__(
            nn.Conv2d(dim, dim, 1, bias=False), _norm(norm, dim), nn.ReLU(inplace=True), nn.Conv2d(dim, dim, 1)
        )


class PixelAttention(nn.Module):
    """Attention in (0, 1), one map a channel: sigmoid(conv, norm, ReLU, conv, norm + bias).

    Source: LUSS, pixel attention (section "fine-tuning", released model).
    """

    def __init__(self, channels: int, norm: str):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False),
            _norm(norm, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 1, bias=False),
            _norm(norm, channels),
        )
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Returns the attention (B, C, h, w) for features (B, C, h, w) that are L2-normalized at each point."""
        return torch.sigmoid(self.layers(features) + self.bias)


class SwappedPrediction(nn.Module):
    """Prototypes, their codes and the swapped-prediction loss, with a queue of past embeddings for stable codes.

    The queue holds the embeddings of all processes, so one checkpoint restores it. Each process balances its codes together with
    its share of the queue; the sums are global.

    Source: SwAV, sections 3.1 and 3.2.
    """

    def __init__(
        self,
        *,
        num_prototypes: int,
        feat_dim: int,
        temperature: float,
        sinkhorn_eps: float,
        sinkhorn_iters: int,
        queue_length: int,
        queue_start_iter: int,
        freeze_prototypes_iters: int,
    ):
        """Makes the head from the settings of ``MODEL.PASS``.

        Raises:
            ValueError: ``queue_length`` does not divide by the number of processes.
        """
        super().__init__()
        if queue_length % comm.get_world_size():
            raise ValueError(
                f"MODEL.PASS.QUEUE_LENGTH must be a multiple of the number of processes ({comm.get_world_size()}), "
                f"got {queue_length}"
            )
        self.temperature = temperature
        self.sinkhorn_eps = sinkhorn_eps
        self.sinkhorn_iters = sinkhorn_iters
        self.queue_length = queue_length
        self.queue_start_iter = queue_start_iter
        self.freeze_prototypes_iters = freeze_prototypes_iters
        self.prototypes = nn.Parameter(F.normalize(torch.randn(num_prototypes, feat_dim), dim=1))
        self.register_buffer("queue", torch.zeros(PREDICTION_VIEWS, queue_length, feat_dim))
        self.register_buffer("num_queued", torch.zeros((), dtype=torch.long))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.long))

    @property
    def num_prototypes(self) -> int:
        """K."""
        return len(self.prototypes)

    @torch.no_grad()
    def normalize_prototypes(self) -> None:
        """Gives every prototype length 1, in place; called before each training forward."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))

    def forward(self, embeddings: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Returns the loss (scalar, nats) and the codes of the first two views, each float32 (B, K).

        Args:
            embeddings: one (B, D) for each view of the B images, rows of length 1; the first two give the codes.
        """
        prototypes = self._trainable_prototypes()
        scores = [F.linear(view, prototypes) for view in embeddings]
        codes = [self._codes(scores[view], view) for view in range(PREDICTION_VIEWS)]
        losses = [
            code_cross_entropy(codes[view], scores[other], self.temperature)
            for view in range(PREDICTION_VIEWS)
            for other in range(len(scores))
            if other != view
        ]
        self._enqueue(embeddings)
        self.iteration += 1
        return torch.stack(losses).mean(), codes

    def predict(self, codes: list[Tensor], embeddings: list[Tensor]) -> Tensor:
        """Returns the loss of predicting each view's code from the other view's embedding; no gradient to the prototypes.

        Source: LUSS, deep-to-shallow alignment.
        """
        prototypes = self.prototypes.detach()
        pairs = [(codes[0], embeddings[1]), (codes[1], embeddings[0])]
        return torch.stack(
            [code_cross_entropy(code, F.linear(view, prototypes), self.temperature) for code, view in pairs]
        ).mean()

    def _trainable_prototypes(self) -> Tensor:
        if int(self.iteration) >= self.freeze_prototypes_iters:
            return self.prototypes
        # A zero gradient rather than none: DistributedDataParallel waits for every parameter's.
        return self.prototypes.detach() + 0 * self.prototypes

    @torch.no_grad()
    def _codes(self, scores: Tensor, view: int) -> Tensor:
        count = len(scores)
        if self.queue_length and int(self.num_queued) >= self.queue_length:
            share = self.queue[view, comm.get_rank() :: comm.get_world_size()]
            scores = torch.cat([F.linear(share, self.prototypes), scores.float()])
        return sinkhorn_codes(scores, self.sinkhorn_eps, self.sinkhorn_iters)[-count:]

    @torch.no_grad()
    def _enqueue(self, embeddings: list[Tensor]) -> None:
        if not self.queue_length or int(self.iteration) < self.queue_start_iter:
            return
        for view in range(PREDICTION_VIEWS):
            rows = gather_rows(embeddings[view].float())
            self.queue[view] = torch.cat([rows, self.queue[view]])[: self.queue_length]
        self.num_queued += len(rows)


class CollapseMonitor:
    """Warns, once in a while, when the codes say nothing: swapped prediction stuck at ln K and codes that are uniform."""

    SHARE_OF_LN_K = 0.98

    def __init__(self, num_prototypes: int, patience: int, momentum: float = 0.95):
        """Monitors running means; warns every ``patience`` iterations at most. ``patience`` 0 never warns."""
        self.ln_k = math.log(num_prototypes)
        self.patience = patience
        self.momentum = momentum
        self.loss: float | None = None
        self.entropy: float | None = None
        self.stuck = 0

    def update(self, loss: float, entropy: float) -> bool:
        """Returns whether a warning was given, after taking one iteration's loss and code entropy (nats)."""
        keep = self.momentum if self.loss is not None else 0.0
        self.loss = keep * (self.loss or 0.0) + (1 - keep) * loss
        self.entropy = keep * (self.entropy or 0.0) + (1 - keep) * entropy
        threshold = self.SHARE_OF_LN_K * self.ln_k
        self.stuck = self.stuck + 1 if self.loss > threshold and self.entropy > threshold else 0
        if not self.patience or self.stuck < self.patience:
            return False
        self.stuck = 0
        logger.warning(
            "PASS has collapsed or does not learn: for %d iterations the swapped-prediction loss (%.3f) and the entropy of the "
            "codes (%.3f) have been above %.0f %% of ln K = %.3f. Remedies, in this order: a smaller MODEL.PASS.SINKHORN_EPS "
            "(0.03), prototypes frozen for longer (MODEL.PASS.FREEZE_PROTOTYPES_ITERS), SOLVER.OPTIMIZER LARC with a larger "
            "SOLVER.BASE_LR, a larger batch or queue. A falling pixel-to-pixel loss proves nothing here.",
            self.patience,
            self.loss,
            self.entropy,
            100 * self.SHARE_OF_LN_K,
            self.ln_k,
        )
        return True


def swap_diagnostics(codes: list[Tensor], embeddings: list[Tensor]) -> dict[str, float]:
    """Returns what to monitor beside the losses: ``code_entropy`` (nats) and ``view_retrieval`` (0..1).

    ``view_retrieval`` is the share of images whose nearest neighbor among the batch's second views is their own: label-free.
    """
    with torch.no_grad():
        similarity = embeddings[0] @ embeddings[1].T
        own = torch.arange(len(similarity), device=similarity.device)
        return {
            "code_entropy": float(code_entropy(torch.cat(codes))),
            "view_retrieval": float((similarity.argmax(dim=1) == own).float().mean()),
        }


def _norm(name: str, channels: int, affine: bool = True) -> nn.Module:
    """Returns Detectron2's norm layer ``name``; without scale and shift on request."""
    norm = get_norm(name, channels)
    if not affine and isinstance(norm, nn.modules.batchnorm._BatchNorm):
        # Not every norm class takes ``affine``; fixing both parameters at their start is the same function.
        norm.weight.requires_grad_(False)
        norm.bias.requires_grad_(False)
    return norm
