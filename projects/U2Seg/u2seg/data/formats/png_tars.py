"""Label PNGs in tar shards, in WebDataset's convention: ``KEY.panoptic.png`` and ``KEY.stuff.png`` for each image."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from u2seg.utils.files import atomic_path


class PngTarWriter:
    """Adds PNGs to a tar; equal PNGs in equal order give equal bytes."""

    def __init__(self, archive: tarfile.TarFile):
        """Makes a writer for a tar that is open for writing."""
        self._archive = archive

    def add(self, name: str, pixels: np.ndarray) -> tuple[int, int]:
        """Adds an image as PNG under a name; returns the number of its first byte in the tar, and its size in bytes."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        info = tarfile.TarInfo(name)
        info.size = buffer.tell()
        buffer.seek(0)
        self._archive.addfile(info, buffer)
        padded = -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return self._archive.offset - padded, info.size


@contextmanager
def write_png_tar(path: str | Path) -> Iterator[PngTarWriter]:
    """Yields a writer of a tar that appears, whole, when the block ends without an error."""
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as archive:
        yield PngTarWriter(archive)
