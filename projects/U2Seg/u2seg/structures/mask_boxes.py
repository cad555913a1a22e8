"""The box around a mask."""

import numpy as np


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the tight box around a mask, (left, top, right, bottom) in pixels, the last two exclusive.

    >>> mask_box(np.array([[False, True, True], [False, False, False]]))
    (1, 0, 3, 1)

    Args:
        mask: bool (height, width), not empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_box_xywh(mask: np.ndarray) -> list[int]:
    """Returns the tight box around a mask as COCO has it: [left, top, width, height] in pixels; see :func:`mask_box`."""
    left, top, right, bottom = mask_box(mask)
    return [left, top, right - left, bottom - top]
