"""Masks as COCO's files hold them: polygons or run lengths."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils


def segmentation_rle(segmentation: list | Mapping[str, Any], size: tuple[int, int]) -> dict:
    """Returns the ``segmentation`` of a COCO annotation as pycocotools' compressed RLE (``size``, ``counts``).

    Args:
        segmentation: polygons, of which an object may have several, or run lengths, compressed or not.
        size: (height, width) of the image.
    """
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return mask_utils.frPyObjects(segmentation, *size)
    return dict(segmentation)


def segmentation_mask(segmentation: list | Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Returns the mask of a COCO annotation, uint8 (height, width), 0 or 1; see :func:`segmentation_rle`."""
    return mask_utils.decode(segmentation_rle(segmentation, size))
