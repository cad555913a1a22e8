"""Heads that turn a frozen backbone's features into codes: STEGO's, and CAUSE's two."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from u2seg.pseudo_labels.semantics.learned.losses.modularity import nearest_codeword


class CodeHead(nn.Module):
    """A linear and a nonlinear branch of 1 x 1 convolutions, summed: STEGO's head, and CAUSE's MLP.

    Each branch drops parts of its input on its own while training: STEGO whole channels, CAUSE single values.

    Source: STEGO, section 3.3, and its released code; CAUSE's released code.
    """

    def __init__(self, num_channels: int, dim: int, dropout: nn.Module):
        """Builds both branches.

        Args:
            num_channels: C of the features.
            dim: D of the codes.
            dropout: of the features, called once for each branch.
        """
        super().__init__()
        self.linear = nn.Conv2d(num_channels, dim, 1)
        self.nonlinear = nn.Sequential(
            nn.Conv2d(num_channels, num_channels, 1), nn.ReLU(), nn.Conv2d(num_channels, dim, 1)
        )
        self.dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        """Returns codes, float32 (B, D, rows, columns).

        Args:
            features: float32 (B, C, rows, columns).
        """
        return self.linear(self.dropout(features)) + self.nonlinear(self.dropout(features))


class ConceptDecoderHead(nn.Module):
    """CAUSE's TR head: a decoder layer whose queries are the tokens' nearest codewords, then the two branches.

    Attributes:
        codebook: float32 (K, C), fixed.
        query_position: float32 (rows * columns, 1, C) of the grid that it was trained on; resized for another.
        grid: int64 (2,), rows and columns of that grid; a part of the state, so that a file tells it.
    """

    def __init__(self, codebook: Tensor, grid_size: tuple[int, int], dim: int, dropout: float, feedforward: int = 2048):
        """Builds the layer with one attention head, normalized after each part.

        Args:
            codebook: float32 (K, C), of :func:`u2seg.pseudo_labels.semantics.learned.losses.modularity.modularity_loss`.
            grid_size: (rows, columns) of the training images' features.
            dim: D of the codes.
            dropout: in attention, the feed-forward part and the branches.
            feedforward: hidden width of the feed-forward part.
        """
        super().__init__()
        channels = codebook.shape[1]
        self.register_buffer("codebook", codebook.detach().clone())
        self.register_buffer("grid", torch.tensor(grid_size))
        self.query_position = nn.Parameter(torch.randn(grid_size[0] * grid_size[1], 1, channels))
        self.decoder = ConceptDecoder(channels, feedforward, dropout)
        self.branches = CodeHead(channels, dim, nn.Dropout(dropout))

    def forward(self, features: Tensor) -> Tensor:
        """Returns codes, float32 (B, D, rows, columns).

        Args:
            features: float32 (B, C, rows, columns).
        """
        tokens = features.flatten(2).permute(2, 0, 1)  # (N, B, C)
        queries = self.codebook[nearest_codeword(tokens, self.codebook)]
        refined = tokens + self.decoder(queries, tokens, self._positions(features.shape[2:]))
        return self.branches(refined.permute(1, 2, 0).reshape(features.shape))

    def _positions(self, grid_size: torch.Size) -> Tensor:
        trained = tuple(self.grid.tolist())
        if tuple(grid_size) == trained:
            return self.query_position
        square = self.query_position.permute(1, 2, 0).reshape(1, -1, *trained)
        resized = F.interpolate(square, size=tuple(grid_size), mode="bilinear", align_corners=False)
        return resized.flatten(2).permute(2, 0, 1)


class ConceptDecoder(nn.Module):
    """One transformer decoder layer with a single head: self-attention, cross-attention, feed-forward, each followed by a norm."""

    def __init__(self, channels: int, feedforward: int, dropout: float):
        """Builds the layer; the names of its parts are torch's own."""
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, 1, dropout=dropout)
        self.multihead_attn = nn.MultiheadAttention(channels, 1, dropout=dropout)
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the refined queries, float32 (N, B, C).

        Args:
            queries: float32 (N, B, C).
            tokens: float32 (N, B, C), keys and values of the cross-attention.
            positions: float32 (N, 1, C), added to the queries of both attentions and to the keys of the first.
        """
        placed = queries + positions
        attended = self.self_attn(placed, placed, queries, need_weights=False)[0]
        queries = self.norm1(queries + self.dropout(attended))
        attended = self.multihead_attn(queries + positions, tokens, tokens, need_weights=False)[0]
        queries = self.norm2(queries + self.dropout(attended))
        hidden = self.linear2(self.dropout(F.relu(self.linear1(queries))))
        return self.norm3(queries + self.dropout(hidden))
