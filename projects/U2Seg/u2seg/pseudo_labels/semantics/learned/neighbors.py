"""Nearest neighbors among pooled features: which crops resemble which."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from u2seg.utils.files import atomic_path
from u2seg.utils.kmeans import faiss_module

NEIGHBORS = "neighbors.npy"  # the file, int32 (N, k), in which the semantic stage keeps them
MEANS = "crop_means.npy"  # and that of the crops' mean features, float32 (N, C)


def nearest_neighbors(vectors: np.ndarray, count: int, block: int = 65536) -> np.ndarray:
    """Returns the ``count`` vectors of the largest inner product with each vector, the largest first, itself left out.

    FAISS compares exactly and block by block: beside the vectors and its own copy of them it needs no memory that grows with N.

    Args:
        vectors: float32 (N, C), of length one for cosines.
        count: k; fewer are returned where there are not so many others.
        block: vectors that are looked up at once.

    Returns:
        int32 (N, min(k, N - 1)).

    Raises:
        ValueError: fewer than two vectors.
    """
    if len(vectors) < 2:
        raise ValueError(f"nearest neighbors need at least 2 crops, got {len(vectors)}; give more images")
    count = min(count, len(vectors) - 1)
    vectors = np.ascontiguousarray(vectors, np.float32)
    index = faiss_module().IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    found = np.empty((len(vectors), count), np.int32)
    for start in range(0, len(vectors), block):
        rows = np.arange(start, min(start + block, len(vectors)))
        _, nearest = index.search(vectors[rows], count + 1)
        # Among equal vectors the crop itself may stand anywhere, or be missing: then the last one goes.
        is_self = nearest == rows[:, None]
        is_self[~is_self.any(axis=1), -1] = True
        found[rows] = nearest[~is_self].reshape(len(rows), count)
    return found


def kept_array(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Returns the array in a file, which is computed and written, whole or not at all, where there is none."""
    if not path.is_file():
        found = compute()
        with atomic_path(path) as temporary:
            np.save(temporary, found)
    return np.load(path, mmap_mode="r")
