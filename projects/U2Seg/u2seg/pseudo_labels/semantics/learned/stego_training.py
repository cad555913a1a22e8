"""STEGO's training on the crops of a directory of images."""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from u2seg.pseudo_labels.semantics.learned.cluster_probe import ClusterProbe
from u2seg.pseudo_labels.semantics.learned.code_heads import CodeHead
from u2seg.pseudo_labels.semantics.learned.crops import CropFeatures, batch_numbers
from u2seg.pseudo_labels.semantics.learned.head_training import HeadSchedule, train_head
from u2seg.pseudo_labels.semantics.learned.losses.stego_loss import CorrelationWeights, stego_losses
from u2seg.pseudo_labels.semantics.learned.neighbors import MEANS, NEIGHBORS, kept_array, nearest_neighbors
from u2seg.pseudo_labels.semantics.learned.semantic_head import SemanticHead
from u2seg.utils.kmeans import l2_normalize

logger = logging.getLogger(__name__)


class StegoObjective(nn.Module):
    """The losses of head and cluster probe on a batch of features and of one neighbor's features each."""

    def __init__(
        self, model: SemanticHead, weights: CorrelationWeights, *, side: int, num_negatives: int, dropout: float
    ):
        """Takes what is trained and the settings of ``SEMANTICS.STEGO``.

        Args:
            model: head and probe.
            weights: of the three terms.
            side: sampling points a side.
            num_negatives: permutations of the batch.
            dropout: share of the channels that the features lose before they are compared.
        """
        super().__init__()
        self.model = model
        self._weights = weights
        self._side = side
        self._num_negatives = num_negatives
        self._dropout = dropout

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Returns ``loss_self``, ``loss_neighbor``, ``loss_negative`` and ``loss_cluster``.

        Args:
            batch: features of crops and of a neighbor of each, both float32 (B, C, rows, columns), the center subtracted.
        """
        images, neighbors = (
            (F.dropout2d(features, self._dropout, self.training), self.model.head(features)) for features in batch
        )
        losses = stego_losses(images, neighbors, self._weights, side=self._side, num_negatives=self._num_negatives)
        return {**losses, "loss_cluster": self.model.probe.loss(images[1])}


def train_stego(cfg: CfgNode, features: CropFeatures, output: Path) -> SemanticHead:
    """Returns a trained head with its cluster probe; no label is read anywhere.

    Args:
        cfg: reads ``SEMANTICS``.
        features: of the training crops.
        output: directory for the neighbors and the checkpoints.
    """
    settings, learned, seed = cfg.SEMANTICS.STEGO, cfg.SEMANTICS.LEARNED, cfg.SEMANTICS.SEED

    def find_neighbors() -> np.ndarray:
        # Without a name for the difference it is gone when the search begins, which holds two copies of the vectors itself.
        vectors = l2_normalize(kept_array(output / MEANS, features.means) - features.center.numpy())
        return nearest_neighbors(vectors, settings.NUM_NEIGHBORS)

    neighbors = kept_array(output / NEIGHBORS, find_neighbors)

    def batch_of(iteration: int) -> tuple[Tensor, Tensor]:
        numbers = batch_numbers(iteration, len(features), learned.BATCH_SIZE, seed)
        rng = np.random.default_rng([seed, iteration, 1])
        drawn = neighbors[numbers, rng.integers(0, neighbors.shape[1], len(numbers))]
        return features(numbers), features(drawn)

    _warn_of_collapse(mean_correlation(batch_of(0)[0]), settings.NEGATIVE_SHIFT)
    torch.manual_seed(seed)  # the random weights
    model = SemanticHead(
        CodeHead(features.shape[0], settings.DIM, nn.Dropout2d(settings.DROPOUT)),
        ClusterProbe(cfg.SEMANTICS.NUM_CLUSTERS, settings.DIM, settings.LOGIT_SCALE),
        features.center,
    ).to(features.device)
    objective = StegoObjective(
        model,
        CorrelationWeights(
            settings.SELF_WEIGHT,
            settings.NEIGHBOR_WEIGHT,
            settings.NEGATIVE_WEIGHT,
            settings.SELF_SHIFT,
            settings.NEIGHBOR_SHIFT,
            settings.NEGATIVE_SHIFT,
        ),
        side=settings.NUM_POINTS,
        num_negatives=settings.NUM_NEGATIVES,
        dropout=settings.DROPOUT,
    )
    optimizer = torch.optim.Adam(
        [
            {"params": model.head.parameters(), "lr": settings.BASE_LR},
            {"params": model.probe.parameters(), "lr": settings.PROBE_LR},
        ]
    )
    schedule = HeadSchedule("STEGO", settings.MAX_ITER, learned.CHECKPOINT_PERIOD, seed)
    train_head(objective, optimizer, batch_of, output / "head", schedule)
    return model


@torch.no_grad()
def mean_correlation(features: Tensor) -> float:
    """Returns the mean cosine of the patches of one crop with those of another, over all pairs of different crops.

    Args:
        features: float32 (B, C, rows, columns), B at least 2.
    """
    means = F.normalize(features, dim=1).mean(dim=(2, 3))
    count = len(means)
    return float((means.sum(dim=0).square().sum() - means.square().sum()) / (count * (count - 1)))


def _warn_of_collapse(correlation: float, negative_shift: float) -> None:
    if correlation > negative_shift:
        logger.warning(
            f"The features of any two crops have a mean cosine of {correlation:.2f}, above SEMANTICS.STEGO.NEGATIVE_SHIFT "
            f"{negative_shift:g}: all codes will attract each other, and one cluster will be left. The published shifts belong to "
            "DINO's tokens; set SEMANTICS.LEARNED.CENTER, or choose larger shifts for these features."
        )
