"""How much masks overlap: exact counts of pixels, and intersection over union."""

import numpy as np


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the intersection over union of two masks, bool of one shape, range 0..1; 0 where both are empty.

    >>> mask_iou(np.array([[True, True]]), np.array([[True, False]]))
    0.5
    """
    return float(pairwise_mask_iou(first[None], second[None])[0, 0])


def pairwise_mask_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each mask with each of the others, float64 (N, M); 0 where both are empty.

    Args:
        first: bool (N, height, width).
        second: bool (M, height, width).
    """
    overlaps, areas, others = mask_overlaps(first, second)
    unions = areas[:, None] + others - overlaps
    return np.where(overlaps > 0, overlaps / np.maximum(unions, 1), 0.0)


def mask_overlaps(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels that masks share, int64 (N, M), and the areas of both, int64 (N,) and (M,).

    Args:
        first: bool (N, height, width).
        second: bool (M, height, width).
    """
    first, second = _packed(first), _packed(second)
    overlaps = np.zeros((len(first), len(second)), np.int64)
    for column, bits in enumerate(second):
        held = np.flatnonzero(bits)
        # Only the rows of the image that the mask reaches.
        if len(held):
            span = slice(held[0], held[-1] + 1)
            overlaps[:, column] = _popcounts(first[:, span] & bits[span])
    return overlaps, _popcounts(first), _popcounts(second)


def _packed(masks: np.ndarray) -> np.ndarray:
    """Returns masks as rows of 64-bit words, zero-padded."""
    packed = np.packbits(masks.reshape(len(masks), int(np.prod(masks.shape[1:]))), axis=1)
    missing = -packed.shape[1] % 8
    return (np.pad(packed, ((0, 0), (0, missing))) if missing else packed).view(np.uint64)


_BITS_OF_BYTE = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def _popcounts(words: np.ndarray) -> np.ndarray:
    """Returns the set bits of each row, int64."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words).sum(axis=1, dtype=np.int64)
    return _BITS_OF_BYTE[np.ascontiguousarray(words).view(np.uint8)].sum(axis=1, dtype=np.int64)
