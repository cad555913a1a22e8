"""Gaussian filtering of values at scattered points of a d-dimensional feature space, on a permutohedral lattice, in torch.

Source: Adams, Baek and Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics 2010.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class PermutohedralLattice:
    """A lattice built for one set of points; it filters any number of value columns at those points.

    Building is the search for each point's simplex and for each vertex's neighbours; filtering is three kinds of sparse sums:
    splat (points to vertices), blur (along each of the d + 1 axes) and slice (vertices to points).

    Attributes:
        num_points: N.
        num_dims: d.
        num_vertices: M, lattice vertices that some point touches.
        device: where the lattice lies.
    """

    def __init__(self, features: Tensor):
        """Builds the lattice.

        Args:
            features: float32 (N, d), the points' positions in units of the Gaussian's standard deviation.

        Raises:
            ValueError: the points spread so far that lattice keys do not fit 63 bits.
        """
        self.num_points, self.num_dims = features.shape
        self.device = features.device
        quotients, ranks, self._weights = _simplices(features.T.contiguous())
        keys, strides = _vertex_keys(quotients, ranks)
        order, starts, unique, vertex_of = _group(keys.flatten())
        self.num_vertices = len(unique)
        self._vertices = vertex_of.view(self.num_dims + 1, -1).T.contiguous()  # (N, d + 1)
        self._splat_points = (order % self.num_points).to(torch.int32)
        # One vertex more, which no point touches: the zero that a missing neighbour holds.
        self._splat_starts = torch.cat([starts, starts.new_full((1,), len(order))]).to(torch.int32)
        self._splat_weights = self._weights.flatten().index_select(0, order)
        # On the way back, a factor by which the filter keeps its height in any dimension (its authors' choice).
        self._weights = self._weights.T.contiguous() / (1 + 2.0**-self.num_dims)  # (N, d + 1)
        self._neighbours = _neighbours(unique, strides, self.num_dims)
        # The axes' kernel: 1/2, 1, 1/2 (Adams et al., section 3.2); rows as embedding_bag wants them.
        self._blur_weights = features.new_tensor([1.0, 0.5, 0.5]).expand(self.num_vertices + 1, 3).contiguous()

    def filter(self, values: Tensor) -> Tensor:
        """Returns the values filtered by a Gaussian of standard deviation 1, float32 (N, C); not normalised.

        Args:
            values: float32 (N, C). Multiples of 4 columns are fastest on CPUs.
        """
        splatted = F.embedding_bag(
            self._splat_points, values, self._splat_starts, mode="sum", per_sample_weights=self._splat_weights
        )
        for neighbours in self._neighbours:
            splatted = F.embedding_bag(neighbours, splatted, mode="sum", per_sample_weights=self._blur_weights)
        return F.embedding_bag(self._vertices, splatted, mode="sum", per_sample_weights=self._weights)

    def scale_points(self, factors: Tensor) -> None:
        """Turns the filter K into diag(factors) K diag(factors), in place.

        Args:
            factors: float32 (N,).
        """
        self._splat_weights *= factors.index_select(0, self._splat_points)
        self._weights *= factors[:, None]


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the enclosing simplex of each point.

    Args:
        features: float32 (d, N).

    Returns:
        quotients: int32 (d + 1, N), the simplex's remainder-0 vertex divided by d + 1.
        ranks: int8 (d + 1, N), each coordinate's place, 0 first, in descending order of its distance from that vertex.
        weights: float32 (d + 1, N), barycentric weight of the vertices of remainder 0..d.

    Source: Adams et al., section 3.1.
    """
    d, num_points = features.shape
    # Onto the hyperplane of zero coordinate sum in d + 1 dimensions, scaled so that the blur has standard deviation 1.
    index = torch.arange(d, dtype=torch.float32, device=features.device)
    scaled = features * ((d + 1) * math.sqrt(2 / 3) / torch.sqrt((index + 1) * (index + 2)))[:, None]
    elevated = features.new_zeros((d + 1, num_points))
    elevated[:d] = scaled.flip(0).cumsum(0).flip(0)
    elevated[1:] -= (index + 1)[:, None] * scaled

    quotients = torch.round(elevated / (d + 1))
    excess = quotients.sum(0).to(torch.int8)
    distance = elevated - quotients * (d + 1)
    ranks = excess.expand(d + 1, num_points).clone()
    for first in range(d):
        for second in range(first + 1, d + 1):
            is_nearer = (distance[first] < distance[second]).to(torch.int8)
            ranks[first] += is_nearer
            ranks[second] += 1 - is_nearer
    # Rounding each coordinate alone may leave the hyperplane; the coordinates rounded furthest are moved back.
    correction = (ranks < 0).to(torch.int8) - (ranks > d).to(torch.int8)
    ranks += (d + 1) * correction
    quotients += correction

    distance = (elevated - quotients * (d + 1)) / (d + 1)
    ordered = torch.empty_like(distance).scatter_(0, ranks.to(torch.int64), distance).flip(0)  # by rank d .. 0
    weights = torch.empty_like(distance)
    weights[0] = 1 + ordered[0] - ordered[d]
    weights[1:] = ordered[1:] - ordered[:-1]
    return quotients.to(torch.int32), ranks, weights


def _vertex_keys(quotients: Tensor, ranks: Tensor) -> tuple[Tensor, list[int]]:
    """Returns one integer for each vertex of each simplex, int64 (d + 1, N), and the strides of its d coordinates.

    All coordinates of a vertex of remainder r leave r when divided by d + 1. So its key is (d + 1) q + r, where q
    packs the first d quotients (the last one follows from the others).
    """
    d = len(quotients) - 1
    # Vertices lie at most one below a quotient, and their neighbours one further out on either side.
    lowest = quotients[:d].amin(dim=1).to(torch.int64) - 2
    extents = (quotients[:d].amax(dim=1).to(torch.int64) + 2 - lowest + 1).tolist()
    strides = [math.prod(extents[axis + 1 :]) for axis in range(d)]
    if math.prod(extents) * (d + 1) >= 2**63:
        raise ValueError(
            f"features span {math.prod(extents):.1e} lattice cells, more than 63-bit keys can number; "
            "divide them by a larger standard deviation"
        )
    columns = torch.tensor(strides, dtype=torch.int64, device=quotients.device)[:, None]
    packed = ((quotients[:d] - lowest[:, None]) * columns).sum(0)
    # Vertex k of the simplex is one quotient lower in the coordinates of rank above d - k.
    by_rank = packed.new_zeros((d + 1, len(packed)))
    by_rank.scatter_(0, ranks.to(torch.int64), torch.cat([columns, columns.new_zeros(1, 1)]).expand(d + 1, len(packed)))
    keys = torch.empty_like(by_rank)
    for remainder in range(d + 1):
        if remainder:
            packed = packed - by_rank[d + 1 - remainder]
        keys[remainder] = packed * (d + 1) + remainder
    return keys, strides


def _group(keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Groups equal keys.

    Args:
        keys: int64 (K,), not negative.

    Returns:
        order: int64 (K,), positions sorted by key, then by position.
        starts: int64 (M,), where in ``order`` each distinct key's positions begin.
        unique: int64 (M,), the distinct keys, ascending.
        group_of: int32 (K,), index into ``unique`` of each position.
    """
    position_bits = max(1, (len(keys) - 1).bit_length())
    if int(keys.max()).bit_length() + position_bits <= 63:
        # One sort of key and position together; NumPy's is several times faster than torch's on a CPU.
        packed = (keys << position_bits) | torch.arange(len(keys), device=keys.device)
        packed = torch.from_numpy(np.sort(packed.numpy())) if keys.device.type == "cpu" else packed.sort().values
        order = packed & ((1 << position_bits) - 1)
        ordered = packed >> position_bits
    else:
        ordered, order = keys.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=is_first[1:])
    starts = torch.nonzero(is_first).flatten()
    group_of = torch.empty(len(keys), dtype=torch.int32, device=keys.device)
    group_of.scatter_(0, order, is_first.cumsum(0, dtype=torch.int32) - 1)
    return order, starts, ordered[starts], group_of


def _neighbours(unique: Tensor, strides: list[int], d: int) -> list[Tensor]:
    """Returns, for each of the d + 1 axes, int32 (M + 1, 3): a vertex and its two neighbours, M where there is none.

    A step along an axis adds 1 to every coordinate but the axis' own, which loses d. The other neighbour is the step's inverse.
    """
    count = len(unique)
    index = _HashIndex(unique)
    itself = torch.arange(count + 1, dtype=torch.int32, device=unique.device)
    wraps = unique % (d + 1) == d  # the step takes remainder d to 0, and all quotients up by one
    neighbours = []
    for stride in [*strides, 0]:
        below = 1 - (d + 1) * stride
        above = -d + (d + 1) * (sum(strides) - stride)
        after = torch.full_like(itself, count)
        after[:count] = index.find(unique + torch.where(wraps, above, below))
        before = torch.full_like(itself, count)
        before.scatter_(0, after.to(torch.int64), itself)
        before[count] = count  # where all those without a neighbour have written
        neighbours.append(torch.stack([itself, after, before], dim=1))
    return neighbours


class _HashIndex:
    """Finds the positions of keys in a list of distinct keys; several times faster than a binary search."""

    _MULTIPLIERS = (-7046029254386353131, -4265267296055464877, -7723592293110705685, 6364136223846793005)  # odd, int64
    _UNSETTLED = -1

    def __init__(self, keys: Tensor):
        """Builds tables, each of which holds the keys that found their slot taken in the one before."""
        self._keys = torch.cat([keys, keys.new_full((1,), -1)])  # row M: no key
        self._count = len(keys)
        self._tables: list[tuple[int, int, Tensor]] = []
        left = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        while len(left):
            multiplier = self._MULTIPLIERS[len(self._tables) % len(self._MULTIPLIERS)]
            bits = (4 * len(left)).bit_length()
            table = torch.full((1 << bits,), self._count, dtype=torch.int32, device=keys.device)
            slots = _slots(keys.index_select(0, left), multiplier, bits)
            table.scatter_(0, slots, left)
            self._tables.append((multiplier, bits, table))
            left = left[table.index_select(0, slots) != left]

    def find(self, queries: Tensor) -> Tensor:
        """Returns int32 (K,), the positions of the queries among the keys, or the number of keys where there is none."""
        found = self._look_up(queries, *self._tables[0])
        for table in self._tables[1:]:
            unsettled = torch.nonzero(found == self._UNSETTLED).flatten()
            found[unsettled] = self._look_up(queries.index_select(0, unsettled), *table)
        return found.masked_fill_(found == self._UNSETTLED, self._count)

    def _look_up(self, queries: Tensor, multiplier: int, bits: int, table: Tensor) -> Tensor:
        candidates = table.index_select(0, _slots(queries, multiplier, bits))
        # An empty slot proves that there is no such key; another key in it leaves that to the next table.
        is_settled = (candidates == self._count) | (self._keys.index_select(0, candidates) == queries)
        return torch.where(is_settled, candidates, self._UNSETTLED)


def _slots(keys: Tensor, multiplier: int, bits: int) -> Tensor:
    # The high bits of a product with an odd constant; the shift is arithmetic, hence the mask.
    return ((keys * multiplier) >> (64 - bits)) & ((1 << bits) - 1)
