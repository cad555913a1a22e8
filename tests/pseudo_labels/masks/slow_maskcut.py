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


def positive_peak(x):
    """Returns x with the sign that makes its entry of largest magnitude positive: a sign that any solver can give."""
    return x if x[np.abs(x).argmax()] > 0 else -x


def corners(mask):
    return sum(bool(mask[row, column]) for row in (0, -1) for column in (0, -1))


def component(mask, seed):
    labels, _ = label(mask)
    row, column = np.unravel_index(seed, mask.shape)
    return labels == labels[row, column]


def iou(a, b):
    return (a & b).sum() / max(1, (a | b).sum())


def is_tie(x, side, chosen):
    """Returns whether rounding decides: between two peaks, two regions of the side, or the sides of a patch at the mean."""
    height, limit = np.abs(x - x.mean()), 1e-8 * np.abs(x).max()
    others = side & ~chosen
    return bool(
        abs(x.max() + x.min()) < limit
        or height.min() < limit
        or (others.any() and np.abs(x[chosen].max() - x[others].max()) < limit)
        or (others.any() and np.abs(x[chosen].min() - x[others].min()) < limit)
    )


def strict(features, tau=0.15, eps=1e-5, rounds=3, orient=lambda x: x):
    """Returns the non-empty masks of the published rules, and the smallest gap met, 0 where a tie was.

    Features are (C, rows, columns); ``orient`` chooses each vector's sign.
    """
    shape = features.shape[1:]
    removed, kept, gaps = np.zeros(shape, bool), [], []
    previous = np.zeros(shape, bool)
    for number in range(rounds):
        x, _, gap = second_vector(full_affinity(features.reshape(len(features), -1), tau, eps, removed.ravel()))
        x = orient(x)
        gaps.append(gap)
        b = (x > x.mean()).reshape(shape)
        seed = np.abs(x).argmax()
        if corners(b) >= 3 or not b.ravel()[seed]:
            b, seed = ~b, (-x).argmax()
        else:
            seed = x.argmax()
        mask = component(b, seed)
        if is_tie(x, b.ravel(), mask.ravel()):
            gaps.append(0.0)
        if number > 0 and (iou(mask, previous) > 0.5 or mask.sum() <= 0.01 * mask.size):
            mask = np.zeros(shape, bool)
        previous = mask
        mask = mask & ~removed
        removed |= mask
        if mask.any():
            kept.append(mask)
    return kept, min(gaps)


def canonical(features, tau=0.15, eps=1e-5, rounds=3, sign=1, min_area=0.01, max_live_share=0.95):
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
            side = direction * (x - mean) > 5e-10
            if side.any():
                options.append((corners(side.reshape(shape)), -np.abs(x)[side].max(), direction, side))
        side, direction = min(options, key=lambda option: option[:2])[:1:-1]
        owned = side & ~removed.ravel()
        if not owned.any():
            break
        extreme = (direction * x)[owned].max()
        seed = min(i for i in np.flatnonzero(owned) if abs(direction * x[i] - extreme) < 5e-10)
        mask = component(side.reshape(shape), seed)
        fresh = mask & ~removed
        is_repeat = previous is not None and iou(mask, previous) > 0.5
        is_rest = fresh.sum() > max_live_share * (~removed).sum()
        if not is_repeat and not is_rest and fresh.sum() > min_area * fresh.size and corners(mask) < 3:
            kept.append(fresh)
            previous = mask
        removed |= mask
    return kept, min(gaps)
