"""Objectness without learning: how much a region looks like a whole object."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from u2seg.pseudo_labels.masks.hierarchy.region_graph import RegionGraph

# Chosen on 20 of COCO's training photos by class-agnostic AR10 and AR100 of the ranked regions: 7.2 and 17.1 without stability,
# 7.4 and 16.8 with it, AR1 0.3 and 1.1. Half or twice another exponent costs up to 3 points of AR10 and 2 of AR100.
_AREA_EXPONENT = 0.25
_COMPACTNESS_EXPONENT = 0.5
_STABILITY_EXPONENT = 0.15
# Sky, ground and walls are large and leave the image; a small thing at its border is cut off by it as well.
_BACKGROUND_AREA = 0.05  # share of the image from which a region can be background
_ALIKE = 0.9  # intersection over union from which two candidates are nearly the same


@dataclass(frozen=True)
class OutlineCues:
    """What the outlines of N candidates tell; float64 (N,) each.

    Attributes:
        area: share of the image, 0..1.
        border_strength: mean contour strength along the border, without the image's own, at least 0.
        image_border: share of the border that is the image's, 0..1.
        compactness: area of the candidate by that of a disc with as long a border, about 0..1.
    """

    area: np.ndarray
    border_strength: np.ndarray
    image_border: np.ndarray
    compactness: np.ndarray


def outline_cues(graph: RegionGraph, members: np.ndarray) -> OutlineCues:
    """Returns what the outlines of candidates tell.

    Args:
        graph: superpixels, S of them.
        members: bool (N, S), no row empty.
    """
    weights = members.astype(np.float32)
    areas = weights @ graph.areas
    length = _outline_sums(graph, weights, graph.lengths)
    strength = _outline_sums(graph, weights, graph.strengths)
    image_length = weights @ graph.on_border.sum(axis=1)
    around = np.maximum(length + image_length, 1)
    return OutlineCues(
        area=areas / graph.areas.sum(),
        border_strength=strength / np.maximum(length, 1),
        image_border=image_length / around,
        compactness=4 * np.pi * areas / around**2,
    )


def _outline_sums(graph: RegionGraph, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the sum of a border quantity along the outline of each candidate, float64 (N,).

    Args:
        graph: superpixels, S of them.
        weights: float32 (N, S), members as 0 and 1.
        values: float64 (E,), of each border between superpixels.
    """
    links = _links(graph, values)
    twice_inside = np.einsum("ns,sn->n", weights, links @ weights.T).astype(np.float64)
    total = weights @ np.asarray(links.sum(axis=1)).ravel()
    # Rounding may leave a little where the whole image is one candidate.
    return np.maximum(total - twice_inside, 0)


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
    """Returns the objectness of candidates, float64 (N,), at least 0, higher is better.

    A strong border, a large area, a short border for the area and little contact with the image's border speak for an object. What
    is left out did not help on the photos that the exponents were chosen on: contrast of color and texture, strength inside,
    share of the box, distance from the center.
    """
    return (
        cues.border_strength
        * cues.area**_AREA_EXPONENT
        * (1 - cues.image_border)
        * np.minimum(cues.compactness, 1) ** _COMPACTNESS_EXPONENT
    )


def stability(ious: np.ndarray) -> np.ndarray:
    """Returns the factor by which candidates gain from others that are nearly the same, float64 (N,), at least 1.

    A region that several hierarchies find, or one hierarchy over several merges, is more likely to be whole.

    Args:
        ious: float (N, N), intersection over union of each candidate with each.
    """
    return (ious > _ALIKE).sum(axis=1).astype(np.float64) ** _STABILITY_EXPONENT


def is_background(cues: OutlineCues, max_image_border: float) -> np.ndarray:
    """Returns which candidates are more likely sky, ground or wall than a thing, bool (N,): large ones that leave the image.

    Args:
        cues: of the candidates.
        max_image_border: share, 0..1, of the outline that may be the image's border; 1: no candidate is background.
    """
    return (cues.image_border > max_image_border) & (cues.area >= _BACKGROUND_AREA)
