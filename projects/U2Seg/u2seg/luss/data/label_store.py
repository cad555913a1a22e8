"""LUSS's pseudo-labels on disk: a coarse cluster map and attention for each image; the threshold is applied when they are read.

A directory of ``shard-*.npz`` files, each holding ``clusters-<i>`` (uint16 (h, w), ids from 1) and ``attention-<i>`` (float16 (h, w), 0..1)
for image number i of ``index.json``: some kilobytes an image, whatever its size. The threshold can be changed without inference.
"""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from u2seg.utils.files import atomic_path, read_json
from u2seg.utils.manifest import shard_path

INDEX = "index.json"


def write_label_shard(path: str | Path, entries: dict[int, tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes one shard, whole or not at all.

    Args:
        path: of the ``.npz`` file.
        entries: image number -> cluster map (int (h, w), 1..65535) and attention (float (h, w), 0..1).
    """
    arrays: dict[str, Any] = {}
    for number, (clusters, attention) in entries.items():
        arrays[f"clusters-{number}"] = clusters.astype(np.uint16)
        arrays[f"attention-{number}"] = attention.astype(np.float16)
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)
    _opened.cache_clear()  # an archive that is open may be the one that was replaced


def count_labels(path: str | Path) -> int:
    """Returns how many images a shard holds labels of; 0 where there is no such file.

    An image that could not be read has none; it may have been put back since.
    """
    if not Path(path).is_file():
        return 0
    with np.load(path) as shard:
        return sum(key.startswith("clusters-") for key in shard.files)


class LabelStore:
    """Reads a directory of pseudo-labels; images are found by number."""

    def __init__(self, root: str | Path):
        """Opens the directory.

        Raises:
            FileNotFoundError: it holds no finished pseudo-labels.
        """
        self.root = Path(root)
        if not (self.root / INDEX).is_file():
            raise FileNotFoundError(
                f"{self.root} holds no LUSS pseudo-labels (no {INDEX}); make them with `u2seg luss run` first"
            )
        index = read_json(self.root / INDEX)
        self.file_names: list[str] = index["file_names"]
        self.num_clusters: int = index["num_clusters"]
        self.shard_size: int = index["shard_size"]

    def __len__(self) -> int:
        return len(self.file_names)

    def numbers(self) -> Iterator[int]:
        """Yields the numbers of the images that have labels; those that could not be read have none."""
        for shard in range(-(-len(self) // self.shard_size)):
            for key in self._shard(shard).files:
                if key.startswith("clusters-"):
                    yield int(key.split("-")[1])

    def load(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the coarse cluster map, int64 (h, w), and attention, float32 (h, w), of an image."""
        shard = self._shard(number // self.shard_size)
        return shard[f"clusters-{number}"].astype(np.int64), shard[f"attention-{number}"].astype(np.float32)

    def labels(self, number: int, size: tuple[int, int], threshold: float) -> np.ndarray:
        """Returns the label map of an image at ``size`` (height, width): int64, cluster ids from 1, 0 where attention is low."""
        return threshold_labels(*self.load(number), size, threshold)

    def _shard(self, number: int) -> np.lib.npyio.NpzFile:
        return _opened(shard_path(self.root, number, ".npz"), os.getpid())


def threshold_labels(
    clusters: np.ndarray, attention: np.ndarray, size: tuple[int, int], threshold: float
) -> np.ndarray:
    """Returns the label map of an image, int64 (height, width): 0 where the attention is below the threshold.

    Args:
        clusters: int (h, w), enlarged by nearest neighbor.
        attention: float (h, w), enlarged bilinearly.
        size: (height, width).
        threshold: 0..1; 0 gives no "other" at all.

    Source: LUSS, released code, pseudo-labels from pixel attention.
    """
    return np.where(enlarge_attention(attention, size) < threshold, 0, enlarge_clusters(clusters, size))


def enlarge_clusters(clusters: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a coarse map at ``size`` (height, width) by nearest neighbor, as ``torch.nn.functional.interpolate`` does it."""
    rows = np.minimum(np.arange(size[0]) * clusters.shape[0] // size[0], clusters.shape[0] - 1)
    columns = np.minimum(np.arange(size[1]) * clusters.shape[1] // size[1], clusters.shape[1] - 1)
    return clusters[rows[:, None], columns[None]]


def enlarge_attention(attention: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns coarse attention at ``size`` (height, width), bilinear with pixel centers aligned, float32."""
    return cv2.resize(attention.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


@lru_cache(maxsize=8)
def _opened(path: Path, process: int) -> np.lib.npyio.NpzFile:
    # An opened archive reads its table of contents once, and each image's arrays when asked for. Each process opens its own:
    # a forked worker would share the position in the file with the process that opened it.
    return np.load(path)
