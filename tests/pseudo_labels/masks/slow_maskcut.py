"""MaskCut written slowly and obviously, from the paper's rules: one image, dense matrices, SciPy's solver, loops."""

import numpy as np
from scipy.linalg import eigh
from scipy.ndimage import label


def full_affinity(features, tau, eps, removed):
    """Returns A, float64 (n, n), and the binary graph; features (C, n), removed bool (n,)."""
    unit = features.astype(np.float32) / np.maximum(np.linalg.norm(features, axis=0), 1e-12).astype(np.float32)
    unit = np.where(removed, 0, unit)
    similarity = unit.T @ unit
    similarity = np.tril(similarity) + np.tril(similarity, -1).T
    return np.where(similarity > tau, 1.0, eps)


def second_vector(affinity):
    """Returns (x, lambda, gap to the next lambda)."""
    degrees = np.diag(affinity.sum(1))
    values, vectors = eigh(degrees - affinity, degrees, subset_by_index=[1, 2])
    return vectors[:, 0], values[0], values[1] - values[0]


def corners(mask):
    return sum(bool(mask[row, column]) for row in (0, -1) for column in (0, -1))


def component(mask, seed):
    labels, _ = label(mask)
    row, column = np.unravel_index(seed, mask.shape)
    return labels == labels[row, column]


def iou(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


def strict(features, tau=0.15, eps=1e-5, rounds=3):
    """Returns the non-empty masks of the published rules; features (C, rows, columns)."""
    shape = features.shape[1:]
    removed, kept, gaps = np.zeros(shape, bool), [], []
    previous = np.zeros(shape, bool)
    for number in range(rounds):
        x, _, gap = second_vector(full_affinity(features.reshape(len(features), -1), tau, eps, removed.ravel()))
        gaps.append(gap)
        b = (x > x.mean()).reshape(shape)
        seed = np.abs(x).argmax()
        if corners(b) >= 3 or not b.ravel()[seed]:
            b, seed = ~b, (-x).argmax()
        else:
            seed = x.argmax()
        mask = component(b, seed)
        if number > 0 and (iou(mask, previous) > 0.5 or mask.sum() <= 0.01 * mask.size):
            mask = np.zeros(shape, bool)
        previous = mask
        mask = mask & ~removed
        removed |= mask
        if mask.any():
            kept.append(mask)
    return kept, min(gaps)


def canonical(features, tau=0.15, eps=1e-5, rounds=3, sign=1, min_area=0.01):
    """Returns the masks of the default rules and the smallest gap met; ``sign`` multiplies every eigenvector."""
    shape = features.shape[1:]
    removed, kept, gaps = np.zeros(shape, bool), [], []
    previous = None
    for _ in range(rounds):
        if removed.sum() >= removed.size - 1:
            break
        x, value, gap = second_vector(full_affinity(features.reshape(len(features), -1), tau, eps, removed.ravel()))
        gaps.append(gap)
        if value > 1 - 1e-9:
            break
        x = np.round(sign * x / np.abs(x).max(), 9)
        mean = np.round(x.mean(), 9)
        options = []
        for direction in (1, -1):
            side = (direction * (x - mean) > 5e-10).reshape(shape)
            owned = side.ravel() & ~removed.ravel()
            if owned.any():
                extreme = (direction * x)[owned].max()
                seed = min(i for i in np.flatnonzero(owned) if abs(direction * x[i] - extreme) < 5e-10)
                options.append(((corners(side), -np.abs(x)[owned].max(), seed), component(side, seed)))
        if not options:
            break
        mask = min(options, key=lambda option: option[0])[1]
        fresh = mask & ~removed
        is_repeat = previous is not None and iou(mask, previous) > 0.5
        if not is_repeat and fresh.sum() > min_area * fresh.size and corners(mask) < 3:
            kept.append(fresh)
            previous = mask
        removed |= mask
    return kept, min(gaps)
