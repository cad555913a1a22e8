"""Gaussian filtering of values at scattered points of a d-dimensional feature space, on a permutohedral lattice, in torch.

Source: Adams, Baek and Davis, Fast High-Dimensional Filtering Using the Permutohedral Lattice, Eurographics 2010.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

COLUMNS = 4  # values are filtered in blocks of so many columns, and one of 1 or 2
_NUMBERS = {1: torch.float32, 2: torch.complex64, COLUMNS: torch.complex128}  # as large as a row of a block


class PermutohedralLattice:
    """A lattice built for one set of points; it filters any number of value columns at those points.

    Building is the search for each point's simplex and for each vertex's neighbors; filtering is three kinds of sparse sums:
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
            ValueError: the points spread so far that lattice keys do not fit 62 bits.
        """
        self.num_points, self.num_dims = features.shape
        self.device = features.device
        quotients, places, weights = _simplices(features.T.contiguous())
        keys, strides = _vertex_keys(quotients, places)
        points, starts, unique, vertices = _group(keys)
        self.num_vertices = len(starts)
        # Each vertex's points, ordered by vertex: what splatting sums. One vertex more, which no point touches, is the zero that a
        # missing neighbor holds.
        self._splat_points = torch.cat([row.to(torch.int32) for row in points])
        self._splat_starts = torch.cat([starts, starts.new_full((1,), keys.numel())]).to(torch.int32)
        self._splat_weights = torch.cat([own.index_select(0, row) for own, row in zip(weights, points)])
        # Each point's vertices, ordered by point: what slicing sums, times a factor by which the filter keeps its height in any
        # dimension (its authors' choice).
        self._slice_vertices = vertices.T.flatten()
        self._slice_starts = torch.arange(0, keys.numel(), self.num_dims + 1, dtype=torch.int32, device=self.device)
        self._slice_weights = weights.div_(1 + 2.0**-self.num_dims).T.flatten()
        self._neighbors = _neighbors(unique, starts // self.num_points, strides)

    @torch.no_grad()
    def filter(self, values: Tensor) -> Tensor:
        """Returns the values filtered by a Gaussian of standard deviation 1, float32 (N, C); not normalized, without gradient.

        Args:
            values: float32 (N, C). 4 k + 3 columns take as long as 4 k + 4.
        """
        count = values.shape[1]
        if not count:
            return values.clone()
        if padded_columns(count) > count:
            values = F.pad(values, (0, padded_columns(count) - count))
        splatted = _sums_of_rows(values, self._splat_points, self._splat_starts, self._splat_weights)
        blocks = [self._blur(block.contiguous()) for block in splatted.split(COLUMNS, dim=1)]
        blurred = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        return _sums_of_rows(blurred, self._slice_vertices, self._slice_starts, self._slice_weights)[:, :count]

    def _blur(self, vertices: Tensor) -> Tensor:
        """Returns values of vertices, (M + 1, 1, 2 or COLUMNS), blurred along every axis; in place."""
        # The axes' kernel: 1/2, 1, 1/2 (Adams et al., section 3.2). A row is gathered as one number of its size: torch copies rows of
        # a matrix several times more slowly.
        after, before = torch.empty_like(vertices), torch.empty_like(vertices)
        number = _NUMBERS[vertices.shape[1]]
        whole, whole_after, whole_before = (x.view(number).flatten() for x in (vertices, after, before))
        for next_vertices, previous_vertices in self._neighbors:
            torch.index_select(whole, 0, next_vertices, out=whole_after)
            torch.index_select(whole, 0, previous_vertices, out=whole_before)
            vertices.add_(after.add_(before), alpha=0.5)
        return vertices

    def scale(self, before: Tensor, after: Tensor) -> None:
        """Turns the filter K into diag(after) K diag(before), in place.

        Args:
            before: float32 (N,).
            after: float32 (N,).
        """
        self._splat_weights *= before.index_select(0, self._splat_points)
        self._slice_weights.view(self.num_points, -1).mul_(after[:, None])


def padded_columns(count: int) -> int:
    """Returns how many columns are filtered where ``count`` are asked for: one more where that leaves 3 over."""
    return count + (count % COLUMNS == COLUMNS - 1)


def _sums_of_rows(rows: Tensor, indices: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Returns, for each stretch of ``indices`` that begins at ``starts``, the weighted sum of those rows."""
    return F.embedding_bag(indices, rows, starts, mode="sum", per_sample_weights=weights)


def _simplices(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the enclosing simplex of each point.

    Args:
        features: float32 (d, N).

    Returns:
        quotients: int32 (d + 1, N), the simplex's remainder-0 vertex divided by d + 1.
        places: int64 (d + 1, N), rank * N + point: the coordinate's place in a flattened matrix (d + 1, N) whose rows are ordered by
            descending distance from that vertex.
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

    quotients = torch.div(elevated, d + 1).round_()
    excess = quotients.sum(0).to(torch.int8)
    distance = torch.add(elevated, quotients, alpha=-(d + 1))
    # Each coordinate's rank in descending order; of equal ones the first axis comes first.
    ranks = excess + torch.arange(d + 1, dtype=torch.int8, device=features.device)[:, None]
    for first in range(d):
        for second in range(first + 1, d + 1):
            is_nearer = torch.lt(distance[first], distance[second]).view(torch.int8)
            ranks[first] += is_nearer
            ranks[second] -= is_nearer
    # Rounding each coordinate alone may leave the hyperplane; the coordinates rounded furthest are moved back.
    correction = (ranks < 0).view(torch.int8) - (ranks > d).view(torch.int8)
    ranks += (d + 1) * correction
    quotients += correction

    distance = torch.add(elevated, quotients, alpha=-(d + 1)).div_(d + 1)
    places = ranks.to(torch.int64).mul_(num_points).add_(torch.arange(num_points, device=features.device))
    ordered = torch.empty_like(distance)
    ordered.view(-1).scatter_(0, places.view(-1), distance.view(-1))
    weights = torch.empty_like(distance)
    weights[0] = 1 + ordered[d] - ordered[0]
    for remainder in range(1, d + 1):
        torch.sub(ordered[d - remainder], ordered[d - remainder + 1], out=weights[remainder])
    return quotients.to(torch.int32), places, weights


def _vertex_keys(quotients: Tensor, places: Tensor) -> tuple[Tensor, "_Strides"]:
    """Returns one integer for each vertex of each simplex, int32 or int64 (d + 1, N) by remainder, and how it is packed.

    All coordinates of a vertex of remainder r leave r when divided by d + 1, and the last coordinate follows from the others: the
    key packs the first d quotients. Vertices of different remainders may have the same key.
    """
    d = len(quotients) - 1
    # Vertices lie at most one below a quotient, and their neighbors one further out on either side.
    lowest = quotients[:d].amin(dim=1).to(torch.int64) - 2
    extents = (quotients[:d].amax(dim=1).to(torch.int64) + 2 - lowest + 1).tolist()
    if math.prod(extents) * (d + 1) >= 2**62:
        raise ValueError(
            f"features span {math.prod(extents):.1e} lattice cells, more than 62-bit keys can number; "
            "divide them by a larger standard deviation"
        )
    strides = [math.prod(extents[axis + 1 :]) for axis in range(d)]
    # Smaller integers where they do: sorting them takes half as long.
    dtype = torch.int32 if math.prod(extents) < 2**31 else torch.int64
    columns = torch.tensor(strides, dtype=dtype, device=quotients.device)[:, None]
    # Vertex k of the simplex is one quotient lower in the coordinates of rank above d - k.
    by_axis = torch.cat([columns, columns.new_zeros(1, 1)]).expand(places.shape)
    by_rank = torch.empty(places.shape, dtype=dtype, device=places.device)
    by_rank.view(-1).scatter_(0, places.view(-1), by_axis.reshape(-1))
    keys = torch.empty_like(by_rank)
    torch.sum((quotients[:d] - lowest[:, None].to(dtype)) * columns, 0, dtype=dtype, out=keys[0])
    for remainder in range(1, d + 1):
        torch.sub(keys[remainder - 1], by_rank[d + 1 - remainder], out=keys[remainder])
    return keys, _Strides(strides, math.prod(extents))


@dataclass(frozen=True)
class _Strides:
    """How quotients are packed into a key.

    Attributes:
        by_axis: what one quotient of each of the first d coordinates adds to a key.
        end: above every key.
    """

    by_axis: list[int]
    end: int


def _group(keys: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Groups the equal keys of each row.

    Args:
        keys: int32 or int64 (R, N), not negative.

    Returns:
        points: R times int64 (N,), the positions in a row sorted by key, then by position.
        starts: int64 (M,), where in ``points``, one after the other, each distinct key's positions begin; keys ascend in each row.
        unique: int64 (M,), the distinct keys of each row.
        group_of: int32 (R, N), index into ``starts`` of each key.
    """
    num_rows, count = keys.shape
    group_of = torch.empty(keys.shape, dtype=torch.int32, device=keys.device)
    points, starts, unique, num_groups = [], [], [], 0
    for number, (row, groups) in enumerate(zip(keys, group_of)):
        # One row at a time: torch sorts a vector of integers by their digits, a matrix by comparing, which takes four times as long.
        ordered, positions = torch.sort(row, stable=True)
        is_first = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[1:], ordered[:-1], out=is_first[1:])
        first = torch.nonzero(is_first).flatten()
        groups.scatter_(0, positions, is_first.cumsum(0, dtype=torch.int32).add_(num_groups - 1))
        points.append(positions)
        starts.append(first + number * count)
        unique.append(ordered.index_select(0, first).to(torch.int64))
        num_groups += len(first)
    return points, torch.cat(starts), torch.cat(unique), group_of


def _neighbors(unique: Tensor, remainders: Tensor, strides: "_Strides") -> list[tuple[Tensor, Tensor]]:
    """Returns, for each of the d + 1 axes, each vertex's next and previous one, int64 (M + 1,); M where there is none.

    A step along an axis adds 1 to every coordinate but the axis' own, which loses d: the remainder goes up by one and the axis'
    quotient down; or remainder d goes to 0 and the other quotients go up. The previous vertex is the step's inverse.

    Args:
        unique: int64 (M,), keys of the vertices, ascending for each remainder.
        remainders: int64 (M,), ascending.
        strides: of the keys.
    """
    count, d = len(unique), len(strides.by_axis)
    numbers = unique + remainders * strides.end
    if 2 * (d + 1) * strides.end < 2**31:
        numbers, unique = numbers.to(torch.int32), unique.to(torch.int32)
    wraps = int(torch.searchsorted(remainders, d))  # from here on the remainder is d
    matches = _matches_by_merging if unique.device.type == "cpu" else _matches_by_search
    neighbors = []
    for stride in [*strides.by_axis, 0]:
        # Ascending: the steps from remainder d, which end at remainder 0, come first.
        wanted = torch.cat([unique[wraps:] + (sum(strides.by_axis) - stride), numbers[:wraps] + (strides.end - stride)])
        after, before = unique.new_full((2, count + 1), count, dtype=torch.int64)
        found, sought = matches(numbers, wanted)
        split = int(torch.searchsorted(sought, count - wraps))
        sought[:split] += wraps
        sought[split:] += wraps - count
        after.scatter_(0, sought, found)
        before.scatter_(0, found, sought)
        neighbors.append((after, before))
    return neighbors


def _matches_by_merging(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the places of the numbers that two vectors have in common, int64, in the first and in the second; on a CPU.

    Args:
        first: integers (M,), ascending, not negative, below half of what their type holds.
        second: likewise, (N,).
    """
    # NumPy's stable sort finds the two ascending stretches and merges them, faster than a search for each number. An odd number is
    # one of the first vector; where the even number before it is one less, both have it.
    merged = torch.cat([first * 2 + 1, second * 2]).numpy()
    merged.sort(kind="stable")
    equal = np.flatnonzero((merged[:-1] ^ 1) == merged[1:])
    places = np.cumsum(merged & 1, dtype=np.int32)[equal].astype(np.int64)
    return torch.from_numpy(places), torch.from_numpy(equal - places)


def _matches_by_search(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what :func:`_matches_by_merging` returns, on any device."""
    places = torch.searchsorted(first, second).clamp_(max=len(first) - 1)
    others = torch.nonzero(first.index_select(0, places) == second).flatten()
    return places.index_select(0, others), others
