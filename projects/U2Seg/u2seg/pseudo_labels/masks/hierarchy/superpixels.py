"""Superpixels: a watershed of the contour strength."""

import cv2
import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

_FLAT = 1e-3  # added to every link: SciPy takes a weight of 0 for no link
_MARKED = 1e-6  # weight of the links between a marker and the root; below all others


def superpixels(strength: np.ndarray, window: int, sigma: float) -> np.ndarray:
    """Returns the superpixels of an image: region ids 0..S-1, int64 (height, width); each region is 4-connected.

    Args:
        strength: float32 (height, width), contour strength.
        window: odd, in pixels; a region grows from each pixel, or flat patch, that is lowest in a square of this side.
        sigma: of the Gaussian smoothing before the lowest pixels are sought, in pixels.
    """
    smooth = cv2.GaussianBlur(strength, (0, 0), sigma)
    lowest = smooth <= cv2.erode(smooth, np.ones((window, window), np.uint8))
    markers, _ = ndimage.label(lowest)
    return watershed(strength, markers)


def watershed(strength: np.ndarray, markers: np.ndarray) -> np.ndarray:
    """Returns the marker that each pixel belongs to, renumbered in the order of their first pixels, int64 (height, width).

    The pixels form a minimum spanning forest with one tree a marker: a pixel joins a marker from which it is reached over the lowest
    contours. A link between two neighbors costs the larger of their strengths.

    Args:
        strength: float32 (height, width), at least 0.
        markers: int (height, width): 1 and above at the markers, 0 elsewhere; at least one marker; each is 4-connected.

    Source: Cousty et al., Watershed cuts: minimum spanning forests and the drop of water principle, PAMI 2009.
    """
    count = strength.size
    index = np.arange(count).reshape(strength.shape)
    first = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    second = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    values = strength.ravel().astype(np.float64)
    weights = np.maximum(values[first], values[second]) + _FLAT
    marked = markers.ravel()
    # Within a marker links are free; all of them hang on one root, at the pixel with which each begins.
    inside = (marked[first] > 0) & (marked[first] == marked[second])
    weights[inside] = _MARKED
    seeds = np.flatnonzero(marked)
    starts = seeds[np.unique(marked[seeds], return_index=True)[1]]
    rows = np.concatenate([first, starts])
    columns = np.concatenate([second, np.full(len(starts), count)])
    data = np.concatenate([weights, np.full(len(starts), _MARKED)])
    links = sparse.coo_matrix((data, (rows, columns)), shape=(count + 1, count + 1)).tocsr()
    tree = csgraph.minimum_spanning_tree(links).tocoo()
    kept = (tree.row != count) & (tree.col != count)
    forest = sparse.coo_matrix((tree.data[kept], (tree.row[kept], tree.col[kept])), shape=(count, count))
    _, labels = csgraph.connected_components(forest, directed=False)
    return labels.reshape(strength.shape).astype(np.int64)
