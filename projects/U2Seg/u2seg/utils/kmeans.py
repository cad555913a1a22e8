"""Seeded k-means on FAISS, with restarts and no dead clusters."""

import logging
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

logger = logging.getLogger(__name__)

CENTROIDS = "centroids.npy"  # the file, float32 (K, C), in which every stage that clusters keeps its centroids


@dataclass(frozen=True)
class KMeansResult:
    """What k-means found.

    Attributes:
        centroids: float32 (K, C).
        inertia: sum of squared distances of the training vectors to their centroids.
        counts: int64 (K,), training vectors a cluster; none is 0 unless the vectors have fewer than K distinct values.
    """

    centroids: np.ndarray
    inertia: float
    counts: np.ndarray


def kmeans(
    vectors: np.ndarray,
    num_clusters: int,
    *,
    num_iterations: int,
    num_restarts: int,
    seed: int,
    num_candidates: int = 1,
    device: torch.device | None = None,
) -> KMeansResult:
    """Returns the best of several Euclidean k-means runs, each started by k-means++.

    Clusters that end empty are re-seeded: each takes the vector that lies farthest from its own centroid, and the iterations go
    on. The released U2Seg code leaves such clusters dead (58 of 800 on COCO).

    Args:
        vectors: float32 (N, C), finite.
        num_clusters: K.
        num_iterations: most Lloyd iterations of one run; a run stops when no assignment changes.
        num_restarts: runs, with seeds drawn from ``seed``.
        seed: of everything random here.
        num_candidates: vectors drawn for each starting centroid, of which the best is taken; 1: plain k-means++; 0: 2 + ln K.
        device: see :func:`assign`.

    Raises:
        ValueError: fewer than K vectors, or one that is not finite.
        ModuleNotFoundError: no FAISS; the message says which package to install.

    Source: Lloyd's algorithm with Euclidean distance, U2Seg section 3.2 (K-means as in USL).
    """
    vectors = _checked_vectors(vectors)
    if len(vectors) < num_clusters:
        raise ValueError(
            f"k-means needs at least as many vectors as clusters: {num_clusters} clusters were asked for, "
            f"{len(vectors)} vectors came. Ask for fewer clusters or give more images."
        )
    candidates = num_candidates or 2 + int(np.log(num_clusters))
    runs = [
        _run(vectors, num_clusters, num_iterations, np.random.default_rng([seed, restart]), candidates, device)
        for restart in range(max(1, num_restarts))
    ]
    return min(runs, key=lambda run: run.inertia)


def assign(
    vectors: np.ndarray, centroids: np.ndarray, device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest centroid of each vector and the squared distance to it.

    Args:
        vectors: float32 (N, C).
        centroids: float32 (K, C).
        device: a GPU, on which PyTorch computes them; else FAISS does, on the CPU. The two may differ where two centroids are
            equally near to rounding.

    Returns:
        int64 (N,) in 0..K-1, the lowest index winning a tie; float32 (N,), at least 0.
    """
    if not len(vectors):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    vectors = _checked_vectors(vectors)
    if vectors.shape[1] != centroids.shape[1]:
        raise ValueError(
            f"vectors have {vectors.shape[1]} channels, centroids {centroids.shape[1]}: they come from other features"
        )
    if device is not None and device.type == "cuda":
        return nearest_by_torch(vectors, centroids, device)
    index = faiss_module().IndexFlatL2(vectors.shape[1])
    index.add(np.ascontiguousarray(centroids, np.float32))
    distances, labels = index.search(vectors, 1)
    return labels[:, 0].astype(np.int64), np.maximum(distances[:, 0], 0)


def nearest_by_torch(
    vectors: np.ndarray, centroids: np.ndarray, device: torch.device, block: int = 1 << 16
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what :func:`assign` does, computed by PyTorch on a device, a block of vectors at a time.

    Args:
        vectors: float32 (N, C), N at least 1.
        centroids: float32 (K, C).
        device: that computes.
        block: vectors that are on it at once.
    """
    means = torch.from_numpy(np.ascontiguousarray(centroids, np.float32)).to(device)
    squares = means.square().sum(1)
    found = []
    for start in range(0, len(vectors), block):
        part = torch.from_numpy(vectors[start : start + block]).to(device)
        # |v - c|^2 without |v|^2, which is equal for all centroids of a vector.
        partial, labels = torch.addmm(squares, part, means.T, alpha=-2).min(1)
        found.append((labels, (partial + part.square().sum(1)).clamp_(min=0)))
    labels, distances = (torch.cat(parts).cpu().numpy() for parts in zip(*found))
    return labels.astype(np.int64), distances


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors (N, C) scaled to length one; zero vectors stay zero.

    Example:
        >>> l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
        array([[0.6, 0.8],
               [0. , 0. ]], dtype=float32)
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32, copy=False)


def _run(
    vectors: np.ndarray,
    num_clusters: int,
    num_iterations: int,
    rng: np.random.Generator,
    num_candidates: int,
    device: torch.device | None,
) -> KMeansResult:
    centroids = _plus_plus(vectors, num_clusters, rng, num_candidates)
    labels = np.full(len(vectors), -1)
    for _ in range(max(1, num_iterations)):
        new_labels, distances = assign(vectors, centroids, device)
        counts = np.bincount(new_labels, minlength=num_clusters)
        if np.array_equal(new_labels, labels) and counts.all():
            break
        labels = new_labels
        centroids = _means(vectors, labels, centroids)
        empty = np.flatnonzero(counts == 0)
        if len(empty):
            # The vectors that lie farthest from their centroids found new clusters.
            centroids[empty] = vectors[np.argsort(-distances, kind="stable")[: len(empty)]]
    labels, distances = assign(vectors, centroids, device)
    counts = np.bincount(labels, minlength=num_clusters)
    return KMeansResult(centroids, float(distances.sum(dtype=np.float64)), counts)


def _means(vectors: np.ndarray, labels: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=len(centroids))
    filled = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])[filled]
    sums = np.add.reduceat(vectors[order], starts, axis=0, dtype=np.float64)
    means = centroids.copy()
    means[filled] = sums / counts[filled, None]
    return means


def _plus_plus(vectors: np.ndarray, num_clusters: int, rng: np.random.Generator, num_candidates: int) -> np.ndarray:
    """Returns starting centroids drawn with probability proportional to the squared distance to those drawn before.

    Source: Arthur and Vassilvitskii, k-means++, SODA 2007. Drawn from a sample of 64 vectors a cluster, so that the start costs
    no more than an iteration.
    """
    limit = max(64 * num_clusters, 10_000)
    sample = vectors if len(vectors) <= limit else vectors[np.sort(rng.choice(len(vectors), limit, replace=False))]
    squares = np.einsum("nc,nc->n", sample, sample, dtype=np.float64)
    chosen = [int(rng.integers(len(sample)))]
    nearest = np.full(len(sample), np.inf)
    for _ in range(1, num_clusters):
        last = sample[chosen[-1]]
        nearest = np.minimum(nearest, np.maximum(squares - 2 * (sample @ last) + last @ last, 0))
        nearest[chosen[-1]] = 0
        total = nearest.sum()
        if total > 0:
            drawn = np.searchsorted(np.cumsum(nearest), rng.random(num_candidates) * total).clip(0, len(sample) - 1)
            chosen.append(int(drawn[0] if num_candidates == 1 else _best_candidate(sample, squares, nearest, drawn)))
        else:  # fewer distinct vectors than clusters
            chosen.append(int(rng.integers(len(sample))))
    return sample[chosen].astype(np.float32)


def _best_candidate(sample: np.ndarray, squares: np.ndarray, nearest: np.ndarray, drawn: np.ndarray) -> np.intp:
    """Returns which of the drawn vectors leaves the smallest sum of squared distances as a further centroid.

    Source: Arthur and Vassilvitskii, k-means++, SODA 2007, section 5 (greedy seeding).

    Args:
        sample: float32 (N, C).
        squares: float64 (N,), squared lengths of the vectors.
        nearest: float64 (N,), squared distances to the centroids so far.
        drawn: int (T,), positions of the candidates.
    """
    distances = squares[:, None] - 2 * (sample @ sample[drawn].T) + squares[drawn]
    return drawn[np.minimum(nearest[:, None], np.maximum(distances, 0)).sum(0).argmin()]


def _checked_vectors(vectors: np.ndarray) -> np.ndarray:
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.ndim != 2:
        raise ValueError(f"vectors must have shape (N, C), got {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError("vectors hold NaN or infinity; the features that made them are broken")
    return vectors


def faiss_module() -> ModuleType:
    """Returns FAISS, which is loaded when it is needed.

    Raises:
        ModuleNotFoundError: it is not installed; the message says which package to install.
    """
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "clusters and nearest neighbors need FAISS: pip install faiss-cpu (or faiss-gpu)", name="faiss"
        ) from error
    return faiss
