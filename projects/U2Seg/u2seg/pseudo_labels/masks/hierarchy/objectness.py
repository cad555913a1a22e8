"""Objectness without learning: how much a region looks like a whole object."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from u2seg.pseudo_labels.masks.hierarchy.merging import chi_square
from u2seg.pseudo_labels.masks.hierarchy.region_graph import RegionGraph


@dataclass(frozen=True)
class OutlineCues:
    """What the outlines of N candidates tell; float64 (N,) each.

    Attributes:
        area: share of the image, 0..1.
        border_strength: mean contour strength along the border, without the image's own, at least 0.
        inner_strength: the same of the superpixel borders inside, at least 0.
        image_border: share of the border that is the image's, 0..1.
        compactness: area of the candidate by that of a disc with as long a border, about 0..1.
    """

    area: np.ndarray
    border_strength: np.ndarray
    inner_strength: np.ndarray
    image_border: np.ndarray
    compactness: np.ndarray


@dataclass(frozen=True)
class ContrastCues:
    """How N candidates differ from the superpixels around them: chi-square distances, 0..1; float64 (N,) each.

    Attributes:
        color: of the CIELAB histograms.
        texture: of the texture histograms.
    """

    color: np.ndarray
    texture: np.ndarray


def outline_cues(graph: RegionGraph, members: np.ndarray) -> OutlineCues:
    """Returns what the outlines of candidates tell.

    Args:
        graph: superpixels, S of them.
        members: bool (N, S), no row empty.
    """
    weights = members.astype(np.float32)
    areas = weights @ graph.areas
    length, inner_length = _cut(graph, weights, graph.lengths)
    strength, inner_strength = _cut(graph, weights, graph.strengths)
    image_length = weights @ graph.on_border.sum(axis=1)
    around = np.maximum(length + image_length, 1)
    return OutlineCues(
        area=areas / graph.areas.sum(),
        border_strength=strength / np.maximum(length, 1),
        inner_strength=inner_strength / np.maximum(inner_length, 1),
        image_border=image_length / around,
        compactness=4 * np.pi * areas / around**2,
    )


def contrast_cues(graph: RegionGraph, members: np.ndarray) -> ContrastCues:
    """Returns how candidates differ from what is around them; 0 for one with nothing around it.

    Args:
        graph: superpixels, S of them.
        members: bool (N, S), no row empty.
    """
    weights = members.astype(np.float32)
    touched = (_links(graph, np.ones(len(graph.pairs))) @ weights.T).T > 0
    around = (touched & ~members).astype(np.float32)
    areas, around_areas = weights @ graph.areas, around @ graph.areas
    found = []
    for name in ("lab", "texture"):
        histograms = graph.histograms[name].astype(np.float32)
        inside, outside = weights @ histograms, around @ histograms
        distance = chi_square(inside / areas[:, None], outside / np.maximum(around_areas, 1)[:, None])
        found.append(np.where(around_areas > 0, distance, 0.0))
    return ContrastCues(*found)


def _cut(graph: RegionGraph, weights: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sums of a border quantity along the outline of each candidate, and inside it; float64 (N,) each.

    Args:
        graph: superpixels, S of them.
        weights: float32 (N, S), members as 0 and 1.
        values: float64 (E,), of each border between superpixels.
    """
    links = _links(graph, values)
    twice_inside = np.einsum("ns,sn->n", weights, links @ weights.T).astype(np.float64)
    total = weights @ np.asarray(links.sum(axis=1)).ravel()
    # Rounding may leave a little where the whole image is one candidate.
    return np.maximum(total - twice_inside, 0), twice_inside / 2


def _links(graph: RegionGraph, values: np.ndarray) -> sparse.csr_matrix:
    count = graph.num_regions
    first, second = graph.pairs.T
    one_way = sparse.coo_matrix((values.astype(np.float32), (first, second)), shape=(count, count))
    return (one_way + one_way.T).tocsr()


def overlaps(members: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each candidate with each, float32 (N, N).

    Args:
        members: bool (N, S), no row empty.
        areas: float64 (S,), of the superpixels, in pixels.
    """
    weights = members.astype(np.float32)
    shared = weights @ (weights * areas.astype(np.float32)).T
    own = np.diag(shared)
    return shared / (own[:, None] + own - shared)


def objectness(cues: OutlineCues) -> np.ndarray:
    """Returns the objectness of candidates, float64 (N,), range 0..1, higher is better."""
    product = cues.border_strength * cues.area**0.25 * (1 - cues.image_border) * np.minimum(cues.compactness, 1) ** 0.5
    return product / (product + 1)
