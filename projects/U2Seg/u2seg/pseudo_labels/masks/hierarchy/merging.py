"""Greedy merging: the two most alike neighbors become one region, until nothing is left to merge."""

import heapq
from dataclasses import dataclass

import numpy as np

from u2seg.pseudo_labels.masks.hierarchy.region_graph import RegionGraph

CONTOUR_UNIT = 4.0  # mean strength along a border, CIELAB units a pixel, that counts as a cost of 1


@dataclass(frozen=True)
class MergeWeights:
    """What one hierarchy merges by. The cost of merging two neighbors is the weighted sum of the terms, times a factor for size.

    Attributes:
        contour: weight of the mean contour strength along their border, in units of ``CONTOUR_UNIT``.
        lab: weight of the chi-square distance, 0..1, of their CIELAB histograms.
        hsv: the same for hue, saturation and value.
        texture: the same for gradients.
        features: weight of their features' cosine distance, 0..2; features are taken relative to the image's mean.
        size: weight of the share of the image that both cover.
        gap: weight of the share of the image that their common box covers beyond them.
        size_exponent: power of the smaller one's share of the image, by which the sum is multiplied; 0: no factor.
    """

    contour: float
    lab: float
    hsv: float
    texture: float
    features: float
    size: float
    gap: float
    size_exponent: float


@dataclass(frozen=True)
class MergeTree:
    """A binary tree over regions: leaf i is superpixel i, the k-th merge makes node S + k.

    Attributes:
        children: int64 (K, 2), the nodes that each merge joins, the lower one first; K < S.
        costs: float64 (K,), cost of each merge.
    """

    children: np.ndarray
    costs: np.ndarray

    def members(self, num_regions: int) -> np.ndarray:
        """Returns the superpixels of each node, bool (num_regions + K, num_regions)."""
        members = np.zeros((num_regions + len(self.children), num_regions), bool)
        members[np.arange(num_regions), np.arange(num_regions)] = True
        for node, (first, second) in enumerate(self.children, start=num_regions):
            np.logical_or(members[first], members[second], out=members[node])
        return members

    def partition(self, num_regions: int, count: int) -> np.ndarray:
        """Returns the group of each superpixel when only the first merges are made, int64 (num_regions,), groups 0, 1, ... by first member.

        Args:
            num_regions: superpixels, S.
            count: groups that are left, at least 1; of a tree with S superpixels or fewer, each is a group.
        """
        group = np.arange(num_regions + len(self.children))
        made = self.children[: max(0, num_regions - count)]
        # From the last merge to the first, so that a node's group is known before its children's.
        for node, (first, second) in reversed(list(enumerate(made.tolist(), start=num_regions))):
            group[first] = group[second] = group[node]
        _, first_member, position = np.unique(group[:num_regions], return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first_member))[position]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Returns a quantity of each node, float64 (S + K,), from that of the superpixels, float64 (S,)."""
        sums = _grown(values, len(values) + len(self.children))
        for node, (first, second) in enumerate(self.children.tolist(), start=len(values)):
            sums[node] = sums[first] + sums[second]
        return sums


def merge_regions(graph: RegionGraph, weights: MergeWeights) -> MergeTree:
    """Returns the tree of greedy merges: the cheapest pair first, of equal ones that with the lowest ids.

    Args:
        graph: superpixels.
        weights: what the cost is made of.
    """
    state = _Regions(graph, weights)
    children, costs = [], []
    while state.heap:
        cost, first, second = heapq.heappop(state.heap)
        if state.is_alive[first] and state.is_alive[second]:
            children.append((first, second))
            costs.append(cost)
            state.join(first, second)
    return MergeTree(np.asarray(children, np.int64).reshape(-1, 2), np.asarray(costs, np.float64))


class _Regions:
    """The regions while they are merged; rows of all arrays are nodes of the tree."""

    def __init__(self, graph: RegionGraph, weights: MergeWeights):
        self.weights = weights
        self.next = count = graph.num_regions
        nodes = 2 * count - 1
        self.total = float(graph.areas.sum())
        self.areas = _grown(graph.areas, nodes)
        self.boxes = _grown(graph.boxes, nodes)
        self.histograms = [
            (weight, _grown(graph.histograms[name], nodes))
            for name, weight in (("lab", weights.lab), ("hsv", weights.hsv), ("texture", weights.texture))
            if weight
        ]
        self.features = None
        if weights.features and graph.features.shape[1]:
            mean = graph.features.sum(axis=0) / self.total
            self.features = _grown(graph.features - graph.areas[:, None] * mean, nodes)
        self.is_alive = bytearray(nodes)
        self.is_alive[:count] = b"\x01" * count
        # Of each region: neighbor -> (border length, summed strength).
        self.neighbors: list[dict[int, tuple[float, float]]] = [{} for _ in range(nodes)]
        borders = zip(graph.pairs.tolist(), graph.lengths.tolist(), graph.strengths.tolist())
        for (first, second), length, strength in borders:
            self.neighbors[first][second] = self.neighbors[second][first] = (length, strength)
        self.heap: list[tuple[float, int, int]] = []
        if len(graph.pairs):
            first, second = graph.pairs.T
            found = self._costs(first, second, graph.lengths, graph.strengths)
            self.heap = list(zip(found.tolist(), first.tolist(), second.tolist()))
            heapq.heapify(self.heap)

    def join(self, first: int, second: int) -> None:
        """Makes one region of two neighbors and puts the costs of its own merges on the heap."""
        node, self.next = self.next, self.next + 1
        self.is_alive[first] = self.is_alive[second] = 0
        self.is_alive[node] = 1
        for values in (self.areas, *(histograms for _, histograms in self.histograms)):
            values[node] = values[first] + values[second]
        if self.features is not None:
            self.features[node] = self.features[first] + self.features[second]
        self.boxes[node, :2] = np.minimum(self.boxes[first, :2], self.boxes[second, :2])
        self.boxes[node, 2:] = np.maximum(self.boxes[first, 2:], self.boxes[second, 2:])
        around = self._common_neighbors(first, second)
        self.neighbors[node] = around
        for other, border in around.items():
            its = self.neighbors[other]
            its.pop(first, None)
            its.pop(second, None)
            its[node] = border
        if around:
            others = np.fromiter(around, np.int64, len(around))
            lengths, strengths = np.array(list(around.values())).T
            costs = self._costs(node, others, lengths, strengths)
            for cost, other in zip(costs.tolist(), around):
                heapq.heappush(self.heap, (cost, other, node))

    def _common_neighbors(self, first: int, second: int) -> dict[int, tuple[float, float]]:
        around, more = self.neighbors[first], self.neighbors[second]
        del around[second], more[first]
        for other, (length, strength) in more.items():
            known = around.get(other)
            around[other] = (known[0] + length, known[1] + strength) if known else (length, strength)
        self.neighbors[first] = self.neighbors[second] = {}
        return around

    def _costs(
        self, one: np.ndarray | int, others: np.ndarray, lengths: np.ndarray, strengths: np.ndarray
    ) -> np.ndarray:
        """Returns the cost of merging ``one`` (or each of them) with each of ``others``, float64 (N,)."""
        weights = self.weights
        own, area = self.areas[one], self.areas[others]
        cost = weights.contour * strengths / (lengths * CONTOUR_UNIT)
        own_column = self.areas[one, None] if isinstance(one, np.ndarray) else own
        for weight, histograms in self.histograms:
            cost += weight * chi_square(histograms[one] / own_column, histograms[others] / area[:, None])
        if self.features is not None:
            cost += weights.features * _cosine_distance(self.features[one], self.features[others])
        cost += weights.size * (own + area) / self.total
        top_left = np.minimum(self.boxes[one, ..., :2], self.boxes[others, :2])
        bottom_right = np.maximum(self.boxes[one, ..., 2:], self.boxes[others, 2:])
        cost += weights.gap * ((bottom_right - top_left).prod(axis=1) - own - area) / self.total
        if weights.size_exponent:
            cost *= (np.minimum(own, area) / self.total) ** weights.size_exponent
        return cost


def _grown(values: np.ndarray, rows: int) -> np.ndarray:
    grown = np.zeros((rows, *values.shape[1:]))
    grown[: len(values)] = values
    return grown


def chi_square(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns half the chi-square distance of histograms along the last axis: 0..1 where they sum to 1."""
    difference = first - second
    return 0.5 * (difference * difference / (first + second + 1e-12)).sum(axis=-1)


def _cosine_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return 1 - (first * second).sum(axis=-1) / np.maximum(norms, 1e-12)
