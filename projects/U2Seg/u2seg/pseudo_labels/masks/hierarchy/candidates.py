"""Candidates: the regions of several hierarchies, each once, with their holes filled."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from u2seg.pseudo_labels.masks.hierarchy.merging import MergeTree
from u2seg.pseudo_labels.masks.hierarchy.region_graph import RegionGraph


def pool_candidates(graph: RegionGraph, trees: Sequence[MergeTree], min_area: float, max_area: float) -> np.ndarray:
    """Returns the regions of several trees, each once, bool (N, S).

    Args:
        graph: superpixels, S of them.
        trees: of the same superpixels.
        min_area: share of the image, 0..1, at or below which a region is no candidate.
        max_area: share of the image, 0..1, above which a region is no candidate.
    """
    total = graph.areas.sum()
    found = []
    for tree in trees:
        shares = tree.sums(graph.areas) / total
        found.append(tree.members(graph.num_regions)[(shares > min_area) & (shares <= max_area)])
    return distinct(np.concatenate(found))


def distinct(members: np.ndarray) -> np.ndarray:
    """Returns the different rows of bool (N, S), in the order in which they first occur."""
    if not len(members):
        return members
    packed = np.packbits(members, axis=1)
    _, first = np.unique(packed.view(np.dtype((np.void, packed.shape[1]))).ravel(), return_index=True)
    return members[np.sort(first)]


def fill_member_holes(graph: RegionGraph, members: np.ndarray) -> np.ndarray:
    """Returns candidates with the superpixels added that they cut off from the image's border, bool (N, S).

    Args:
        graph: superpixels, S of them.
        members: bool (N, S).
    """
    first, second = graph.pairs.T
    count = graph.num_regions
    links = sparse.coo_matrix((np.ones(len(first), np.float32), (first, second)), shape=(count, count)).tocsr()
    links = links + links.T
    outside = ~members.T
    reached = outside & (graph.on_border.sum(axis=1) > 0)[:, None]
    growing = np.arange(members.shape[0])
    while len(growing):
        before = reached[:, growing]
        after = ((links @ before.astype(np.float32)) > 0) & outside[:, growing] | before
        reached[:, growing] = after
        growing = growing[(after != before).any(axis=0)]
    return ~reached.T
