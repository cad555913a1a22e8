"""CAUSE's three trainings, without a label: codebook, head, cluster probe.

The published code sends the gradient of its supervised linear probe into the head that it scores; here there is no such probe.

Source: Kim et al., Causal Unsupervised Semantic Segmentation (arXiv 2310.07379), section 3, and the released code.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn

from u2seg.pseudo_labels.semantics.learned.cluster_probe import ClusterProbe
from u2seg.pseudo_labels.semantics.learned.code_heads import CodeHead, ConceptDecoderHead
from u2seg.pseudo_labels.semantics.learned.crops import CropFeatures, batch_numbers, iterations_per_epoch
from u2seg.pseudo_labels.semantics.learned.head_training import HeadSchedule, train_head
from u2seg.pseudo_labels.semantics.learned.losses.concept_contrast import ConceptBank, concept_contrast
from u2seg.pseudo_labels.semantics.learned.losses.modularity import modularity_loss, nearest_codeword
from u2seg.pseudo_labels.semantics.learned.neighbors import kept_array
from u2seg.pseudo_labels.semantics.learned.semantic_head import SemanticHead
from u2seg.utils.kmeans import kmeans, l2_normalize

STARTS = "starts.npy"  # float32 (K, D): where the cluster centers of the third training start
_START_BATCHES = 64  # from whose codes they are found


def train_cause(cfg: CfgNode, features: CropFeatures, output: Path) -> SemanticHead:
    """Returns a trained head with its cluster probe; no label is read anywhere.

    Args:
        cfg: reads ``SEMANTICS``.
        features: of the training crops.
        output: directory for the checkpoints.
    """
    settings, learned, seed = cfg.SEMANTICS.CAUSE, cfg.SEMANTICS.LEARNED, cfg.SEMANTICS.SEED
    per_epoch = iterations_per_epoch(len(features), learned.BATCH_SIZE)

    def batches(step: int) -> Callable[[int], Tensor]:
        return lambda iteration: features(batch_numbers(iteration, len(features), learned.BATCH_SIZE, seed + step))

    torch.manual_seed(seed)  # the random weights of all three
    channels = features.shape[0]
    codebook = Codebook(settings.CODEBOOK_SIZE, channels, settings.CELL).to(features.device)
    train_head(
        codebook,
        torch.optim.Adam(codebook.parameters(), settings.BASE_LR),
        batches(0),
        output / "codebook",
        HeadSchedule("CAUSE codebook", settings.CODEBOOK_EPOCHS * per_epoch, learned.CHECKPOINT_PERIOD, seed),
    )
    words = codebook.words.detach()

    head: nn.Module
    if settings.HEAD == "TR":
        head = ConceptDecoderHead(words, features.shape[1:], settings.DIM, settings.DROPOUT)
    else:
        head = CodeHead(channels, settings.DIM, nn.Dropout(settings.DROPOUT))
    contrast = ConceptObjective(head, words, ContrastSettings.of_config(cfg)).to(features.device)
    train_head(
        contrast,
        torch.optim.Adam(
            [parameter for parameter in contrast.parameters() if parameter.requires_grad],
            settings.BASE_LR,
            weight_decay=settings.WEIGHT_DECAY,
        ),
        batches(1),
        output / "head",
        HeadSchedule(
            "CAUSE head",
            settings.HEAD_EPOCHS * per_epoch,
            learned.CHECKPOINT_PERIOD,
            seed,
            max_norm=settings.MAX_NORM,
        ),
        more_hooks=(_AverageHead(contrast, settings.EMA_DECAY),),
    )

    probe = ClusterProbe(cfg.SEMANTICS.NUM_CLUSTERS, settings.DIM, settings.LOGIT_SCALE)
    objective = ProbeObjective(contrast.average, probe, settings.CELL).to(features.device)
    starts = kept_array(output / "probe" / STARTS, lambda: find_starts(cfg, objective, batches(3), per_epoch))
    probe.clusters.data.copy_(torch.from_numpy(np.array(starts)))
    halving = settings.PROBE_STEP_EPOCHS * per_epoch
    train_head(
        objective,
        torch.optim.Adam(probe.parameters(), settings.BASE_LR),
        batches(2),
        output / "probe",
        HeadSchedule(
            "CAUSE clusters",
            settings.PROBE_EPOCHS * per_epoch,
            learned.CHECKPOINT_PERIOD,
            seed,
            learning_rate=lambda iteration: 0.5 ** (iteration // halving),
        ),
    )
    return SemanticHead(contrast.average, probe, features.center.to(features.device))


class Codebook(nn.Module):
    """The first training: codewords whose soft clustering of each image's tokens has a large modularity.

    Attributes:
        words: float32 (K, C).
    """

    def __init__(self, size: int, num_channels: int, cell: int):
        """Draws the codewords uniformly from -1 / K .. 1 / K; ``cell`` as :func:`draw_cells` takes it."""
        super().__init__()
        self.words = nn.Parameter(torch.empty(size, num_channels).uniform_(-1 / size, 1 / size))
        self._cell = cell

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Returns ``loss_modularity`` for features, float32 (B, C, rows, columns)."""
        return {"loss_modularity": modularity_loss(draw_cells(features, self._cell), self.words)}


@dataclass(frozen=True)
class ContrastSettings:
    """The settings of the second training; see ``SEMANTICS.CAUSE``."""

    dim: int
    projection_dim: int
    cell: int
    temperature: float
    positive: float
    negative: float
    bank_size: int
    bank_share: float

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "ContrastSettings":
        """Returns those of ``cfg.SEMANTICS.CAUSE``."""
        return cls(**{name: cfg.SEMANTICS.CAUSE[name.upper()] for name in cls.__dataclass_fields__})


class ConceptObjective(nn.Module):
    """The second training: codes of tokens that share a concept attract each other.

    Attributes:
        student: the head that learns, with its projection.
        average: the moving average of that head, which is used afterwards.
    """

    def __init__(self, head: nn.Module, codebook: Tensor, settings: ContrastSettings):
        """Takes an untrained head, the codebook of the first training and the settings."""
        super().__init__()
        self.student = head
        self.average = copy.deepcopy(head).requires_grad_(False)
        self.projection = nn.Conv2d(settings.dim, settings.projection_dim, 1)
        self.average_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.register_buffer("codebook", codebook.clone())
        unit = F.normalize(codebook, dim=1)
        self.register_buffer("relation", unit @ unit.T, persistent=False)
        self.bank = (
            ConceptBank(len(codebook), settings.bank_size, settings.projection_dim) if settings.bank_size else None
        )
        self._settings = settings

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Returns ``loss_batch`` and ``loss_bank``, each half its mean; fills the bank.

        Args:
            features: float32 (B, C, rows, columns).
        """
        choice = draw_places(features, self._settings.cell)
        codewords = nearest_codeword(take_places(features, choice), self.codebook).flatten()
        anchors = self._tokens(self.student, self.projection, features, choice)
        with torch.no_grad():
            keys = self._tokens(self.average, self.average_projection, features, choice)
        relation = self.relation[codewords][:, codewords].clone()
        relation.fill_diagonal_(float("nan"))
        in_batch = self._contrast(anchors, keys, relation)
        if self.bank is None:
            return {"loss_batch": in_batch}
        banked, owners = self.bank.contents()
        in_bank = self._contrast(anchors, banked, self.relation[codewords][:, owners])
        entering = torch.rand(len(codewords), device=codewords.device) < self._settings.bank_share
        self.bank.append(codewords[entering], keys[entering])
        return {"loss_batch": in_batch / 2, "loss_bank": in_bank / 2}

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """Moves the averaged head and projection to those that learn by a share of ``1 - decay``."""
        for average, own in ((self.average, self.student), (self.average_projection, self.projection)):
            for slow, fast in zip(average.parameters(), own.parameters()):
                slow.lerp_(fast, 1 - decay)

    def _tokens(self, head: nn.Module, projection: nn.Module, features: Tensor, choice: Tensor) -> Tensor:
        """Returns projected codes of the chosen tokens, float32 (B * tokens, P)."""
        codes = take_places(head(features), choice).flatten(0, 1)
        return projection(codes[:, :, None, None])[:, :, 0, 0]

    def _contrast(self, anchors: Tensor, keys: Tensor, relation: Tensor) -> Tensor:
        settings = self._settings
        return concept_contrast(
            anchors,
            keys,
            relation,
            temperature=settings.temperature,
            positive=settings.positive,
            negative=settings.negative,
        )


class ProbeObjective(nn.Module):
    """The third training: cluster centers whose soft clustering of each image's codes has a large modularity."""

    def __init__(self, head: nn.Module, probe: ClusterProbe, cell: int):
        """Takes the averaged head, which stays as it is, and the probe."""
        super().__init__()
        # Not a part of this module: it does not train here, and its dropout stays off.
        self._head = (head.eval(),)
        self.probe = probe
        self._cell = cell

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Returns ``loss_modularity`` for features, float32 (B, C, rows, columns)."""
        return {"loss_modularity": modularity_loss(self.draw_codes(features), self.probe.clusters)}

    @torch.no_grad()
    def draw_codes(self, features: Tensor) -> Tensor:
        """Returns the code of one random token of each cell, float32 (B, cells, D), of features (B, C, rows, columns)."""
        return draw_cells(self._head[0](features), self._cell)


def find_starts(
    cfg: CfgNode, objective: ProbeObjective, batch_of: Callable[[int], Tensor], per_epoch: int
) -> np.ndarray:
    """Returns where the cluster centers start, float32 (K, D): the k-means centers of a sample of codes of length one.

    The released code starts them at random near zero. A center that is the nearest to no token gets no gradient of the modularity, and
    two that share a concept stay together: of random starts most ended with such clusters and with a smaller modularity than this one.

    Args:
        cfg: reads ``SEMANTICS``.
        objective: of the third training, whose head is trained.
        batch_of: returns the features of an iteration.
        per_epoch: iterations in an epoch; the sample is taken from so many batches at most.
    """
    torch.manual_seed(cfg.SEMANTICS.SEED)  # which tokens are drawn
    drawn = [
        objective.draw_codes(batch_of(number)).flatten(0, 1).cpu() for number in range(min(per_epoch, _START_BATCHES))
    ]
    vectors = l2_normalize(torch.cat(drawn).numpy())
    result = kmeans(
        vectors,
        len(objective.probe.clusters),
        num_iterations=cfg.SEMANTICS.NUM_ITERATIONS,
        num_restarts=cfg.SEMANTICS.NUM_RESTARTS,
        seed=cfg.SEMANTICS.SEED,
    )
    return result.centroids


def draw_places(maps: Tensor, cell: int) -> Tensor:
    """Returns one random place in each cell of each map, int64 (B, cells), as row times columns plus column.

    Rows and columns that fill no cell are left out.

    Args:
        maps: (B, C, rows, columns).
        cell: places a side of a cell; no more than rows or columns are taken.
    """
    rows, columns = maps.shape[2:]
    height, width = min(cell, rows), min(cell, columns)
    tops = torch.arange(rows // height, device=maps.device) * height
    lefts = torch.arange(columns // width, device=maps.device) * width
    shape = (len(maps), len(tops), len(lefts))
    down = torch.randint(height, shape, device=maps.device) + tops[:, None]
    right = torch.randint(width, shape, device=maps.device) + lefts
    return (down * columns + right).flatten(1)


def take_places(maps: Tensor, places: Tensor) -> Tensor:
    """Returns maps (B, C, rows, columns) at places (B, N), float32 (B, N, C)."""
    return maps.flatten(2).transpose(1, 2).gather(1, places[:, :, None].expand(-1, -1, maps.shape[1]))


def draw_cells(maps: Tensor, cell: int) -> Tensor:
    """Returns one random token of each cell of each map, float32 (B, cells, C); see :func:`draw_places`."""
    return take_places(maps, draw_places(maps, cell))


class _AverageHead(HookBase):
    """Updates the averaged head after every step."""

    def __init__(self, objective: ConceptObjective, decay: float):
        self._objective = objective
        self._decay = decay

    def after_step(self) -> None:
        self._objective.update_average(self._decay)
