"""Maps of 16-bit ids as images, the format of ImageNet-S: id = R + 256 G."""

from pathlib import Path

import numpy as np
from PIL import Image

from u2seg.utils.files import atomic_path
from u2seg.utils.image_io import read_stored_array

LUSS_IGNORE = 1000  # pixels that ImageNet-S leaves out of its scores


def write_id_map(path: str | Path, ids: np.ndarray) -> None:
    """Writes a map of ids, int (H, W) in 0..65535, as an RGB PNG with id = R + 256 G.

    Raises:
        ValueError: not such a map.
    """
    if ids.ndim != 2 or (ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= 0xFFFF):
        span = f"{ids.min()}..{ids.max()}" if ids.size else "none"
        raise ValueError(
            f"an id map must be (height, width) with ids in 0..65535, got shape {ids.shape} with ids {span}"
        )
    wide = ids.astype(np.uint16)
    rgb = np.zeros((*ids.shape, 3), np.uint8)
    rgb[..., 0] = wide & 0xFF
    rgb[..., 1] = wide >> 8
    with atomic_path(path) as temporary:
        Image.fromarray(rgb).save(temporary, format="PNG")


def read_id_map(path: str | Path) -> np.ndarray:
    """Returns the ids of a PNG that was written as R + 256 G, int32 (H, W).

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file is not an RGB image, or uses its blue channel, which these maps do not.
    """
    pixels = read_stored_array(path)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
        raise ValueError(f"{path} must be an RGB id map (id = R + 256 G), got {pixels.dtype} of shape {pixels.shape}")
    rgb = pixels[..., :3].astype(np.int32)  # wider than a byte before 256 G is added
    if rgb[..., 2].any():
        raise ValueError(f"{path} is not an id map of ImageNet-S: its blue channel is not 0 (id = R + 256 G)")
    return rgb[..., 0] + 256 * rgb[..., 1]
