"""The patches on which semantic clusters are found: a seeded sample of each image's, kept in a file beside each shard.

The mask stage takes the sample from its own forward pass when it is told to; else the semantic stage makes a pass of its own.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from pycocotools import mask as mask_utils

from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import atomic_path
from u2seg.utils.manifest import shard_path, stage_settings

# Keys of SEMANTICS on which the sample depends.
_KEYS = ("PATCHES_PER_IMAGE", "MAX_TRAINING_SAMPLES", "SKIP_MASKED", "SEED")
# Share of a patch, 0..1, that a mask may cover before the patch counts as masked.
_MAX_COVERED = 0.05


class PatchSample:
    """Draws an image's patches, and keeps them by shard in the hidden files ``.patches-KEY-*.npy`` of a directory.

    Which patches are drawn depends on the seed and the image's id alone, so that neither the order of the images nor the number of
    workers changes the sample. Of more than ``MAX_TRAINING_SAMPLES`` images only a seeded share is looked at.
    """

    def __init__(self, cfg: CfgNode, masks: Path, num_images: int, directory: Path):
        """Takes where the sample comes from and goes to.

        Args:
            cfg: reads ``SEMANTICS``.
            masks: directory of the mask stage, whose manifest is there already.
            num_images: in the whole plan.
            directory: of the semantic stage.
        """
        settings = cfg.SEMANTICS
        self._seed, self._skip_masked = settings.SEED, settings.SKIP_MASKED
        self._limit = min(settings.PATCHES_PER_IMAGE, -(-settings.MAX_TRAINING_SAMPLES // max(num_images, 1)))
        self._share = min(1.0, settings.MAX_TRAINING_SAMPLES / max(num_images, 1))
        made_by = json.dumps([stage_settings(masks), {key: settings[key] for key in _KEYS}], sort_keys=True)
        self._directory = Path(directory)
        self._prefix = f".patches-{hashlib.sha256(made_by.encode()).hexdigest()[:8]}"

    def takes(self, record: ImageMasks) -> bool:
        """Returns whether patches of an image are drawn."""
        if record.error is not None:
            return False
        return self._share == 1 or np.random.default_rng([self._seed, record.image_id, 1]).random() < self._share

    def draw(self, record: ImageMasks, features: np.ndarray) -> np.ndarray:
        """Returns a few of an image's patches, float32 (n, C), where wanted only those under no mask.

        Args:
            record: of the image.
            features: float32 (C, rows, columns).
        """
        rows, columns = features.shape[1:]
        free = np.ones(rows * columns, bool)
        if self._skip_masked and record.rle_counts:
            covered = mask_utils.decode(mask_utils.merge(record.rles())).astype(np.float32)
            covered = F.adaptive_avg_pool2d(torch.from_numpy(covered)[None], (rows, columns))[0]
            uncovered = covered.numpy().ravel() < _MAX_COVERED
            free = uncovered if uncovered.any() else free
        rng = np.random.default_rng([self._seed, record.image_id])
        candidates = np.flatnonzero(free)
        chosen = rng.choice(candidates, min(len(candidates), self._limit), replace=False)
        return features.reshape(len(features), -1).T[np.sort(chosen)].astype(np.float32)

    def path(self, shard: int) -> Path:
        """Returns where the sample of a shard lies."""
        return shard_path(self._directory, shard, ".npy", self._prefix)

    def write(self, shard: int, drawn: Iterable[np.ndarray]) -> None:
        """Writes the patches of a shard's images, in the images' order."""
        parts = list(drawn)
        with atomic_path(self.path(shard)) as temporary:
            np.save(temporary, np.concatenate(parts) if parts else np.zeros((0, 1), np.float32))

    def read(self, num_shards: int) -> np.ndarray:
        """Returns the patches of all shards, float32 (N, C).

        Raises:
            FileNotFoundError: a shard's sample is not there.
        """
        parts = [np.load(self.path(shard)) for shard in range(num_shards)]
        filled = [part for part in parts if len(part)]
        return np.concatenate(filled) if filled else np.zeros((0, 1), np.float32)


def remove_patch_samples(directory: Path) -> None:
    """Deletes all samples in a semantic stage's directory: the centroids that were found on them are there."""
    for path in directory.glob(".patches-*.npy"):
        path.unlink(missing_ok=True)
