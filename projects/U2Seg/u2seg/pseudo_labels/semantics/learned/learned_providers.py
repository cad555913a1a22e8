"""The providers "STEGO" and "CAUSE": trained on the images that they label."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

from u2seg.data.formats.mask_shards import ListedImage, iter_readable_images
from u2seg.features import resolve_device
from u2seg.pseudo_labels.lost_images import unreadable_reason
from u2seg.pseudo_labels.semantics.learned.cause_training import train_cause
from u2seg.pseudo_labels.semantics.learned.crops import CropFeatures, CropSet
from u2seg.pseudo_labels.semantics.learned.neighbors import MEANS, NEIGHBORS, kept_array
from u2seg.pseudo_labels.semantics.learned.semantic_head import (
    MODEL,
    PixelClusters,
    PixelSettings,
    SemanticHead,
    build_head_extractor,
    load_semantic_head,
    save_semantic_head,
)
from u2seg.pseudo_labels.semantics.learned.stego_training import train_stego
from u2seg.pseudo_labels.semantics.semantic_providers import SEMANTIC_PROVIDER_REGISTRY, still_readable
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import read_json
from u2seg.utils.image_io import ImageReadError, ImageSource
from u2seg.utils.manifest import MANIFEST, reads
from u2seg.utils.progress import Progress

# Takes configuration, features and output directory; returns a trained head.
Train = Callable[[CfgNode, CropFeatures, Path], SemanticHead]
READABLE = "readable.npy"  # int64: which of the images that were chosen for it a head was trained on


class LearnedSemantics:
    """A head on frozen features, trained without labels on images of the mask stage, then applied to each of them.

    Of more images than ``SEMANTICS.LEARNED.MAX_IMAGES`` a seeded sample is trained on: what is held in memory grows with their number.
    """

    def __init__(self, cfg: CfgNode, images: ImageSource, masks: Path, output: Path, *, provider: str, train: Train):
        """Takes what every provider takes, and how the head is trained.

        Args:
            cfg: reads ``SEMANTICS`` and ``FEATURES``.
            images: the images.
            masks: directory of the mask stage, which lists the images.
            output: where the head, the neighbors and the checkpoints are kept.
            provider: "STEGO" or "CAUSE".
            train: trains the head.
        """
        self._cfg = cfg
        self._images, self._masks, self._output = images, masks, output
        self._provider = provider
        self._train = train
        self._clusters: PixelClusters | None = None

    def fit(self) -> None:
        """Trains the head, or takes over ``SEMANTICS.LEARNED.WEIGHTS``, unless it is there already."""
        path = self._output / MODEL
        if path.is_file():
            return
        given = self._cfg.SEMANTICS.LEARNED.WEIGHTS
        if given:
            model = load_semantic_head(self._cfg, given, self._provider)
        else:
            model = self._trained()
        save_semantic_head(path, model.state_dict())

    def label(self, records: list[ImageMasks]) -> dict[str, np.ndarray]:
        """Returns the map of each readable image; see the registry."""
        readable = list(still_readable(self._images, (record for record in records if record.error is None)))
        if not readable:
            return {}
        if self._clusters is None:
            model = load_semantic_head(self._cfg, self._output / MODEL, self._provider)
            self._clusters = PixelClusters(
                build_head_extractor(self._cfg, self._cfg.SEMANTICS.LEARNED.MAP_SIZE),
                model.to(resolve_device(self._cfg.FEATURES.DEVICE)),
                PixelSettings.of_config(self._cfg),
            )
        found = self._clusters([image_rgb for _, image_rgb in readable])
        return {
            record.file_name: scores.argmax(dim=0).to(torch.uint8).cpu().numpy()
            for (record, _), scores in zip(readable, found)
        }

    def _trained(self) -> SemanticHead:
        learned = self._cfg.SEMANTICS.LEARNED
        records = self._training_images()
        # Kept in a file, so that a training that is resumed numbers its crops alike.
        kept = kept_array(self._output / READABLE, lambda: self._find_readable(records))
        features = CropFeatures(
            CropSet(self._images, [records[index] for index in kept], learned.CROP_RATIO),
            build_head_extractor(self._cfg, learned.TRAIN_SIZE),
            batch_size=learned.BATCH_SIZE,
            cache_mib=learned.CACHE_MIB,
            num_threads=learned.NUM_THREADS,
        )
        if learned.CENTER:
            features.center = torch.from_numpy(kept_array(self._output / MEANS, features.means).mean(axis=0))
        head = self._train(self._cfg, features, self._output)
        features.warn_of_lost_images()
        return head

    def _training_images(self) -> list[ListedImage]:
        """Returns the images that the mask stage could read, or a sample of them, in order."""
        counts = read_json(self._masks / MANIFEST)["counts"]
        count, limit = counts["images"] - counts["failures"], self._cfg.SEMANTICS.LEARNED.MAX_IMAGES
        images = iter_readable_images(self._masks)
        if count <= limit:
            return list(images)
        rng = np.random.default_rng([self._cfg.SEMANTICS.SEED, 2])
        chosen = np.zeros(count, bool)
        chosen[rng.choice(count, limit, replace=False)] = True
        return list(compress(images, chosen))

    def _find_readable(self, records: list[ListedImage]) -> np.ndarray:
        """Returns which images can still be read, int64 (N,), ascending.

        Raises:
            ImageReadError: none of them.
        """
        found = np.zeros(len(records), bool)
        with (
            ThreadPoolExecutor(self._cfg.SEMANTICS.LEARNED.NUM_THREADS) as pool,
            Progress(len(records), "checking images", transient=True) as bar,
        ):
            reasons = pool.map(lambda image: unreadable_reason(self._images, image.file_name, image[1:]), records)
            for index, reason in enumerate(reasons):
                found[index] = reason is None
                bar.update()
        if not found.any():
            raise ImageReadError(
                f"none of the {len(records)} images that the mask stage read can be read now: {self._provider} has nothing to learn "
                f"from. Put the images back; the first is {records[0].file_name if records else 'missing'}"
            )
        return np.flatnonzero(found)


def remove_trained_head(directory: Path) -> None:
    """Deletes what a learned provider left in a semantic stage's directory, so that it learns anew; none of it need be there."""
    for name in (MODEL, READABLE, MEANS, NEIGHBORS):
        (directory / name).unlink(missing_ok=True)
    for name in ("codebook", "head", "probe"):  # the checkpoints of the trainings
        shutil.rmtree(directory / name, ignore_errors=True)


@SEMANTIC_PROVIDER_REGISTRY.register("STEGO")
@reads("SEMANTICS.LEARNED", "SEMANTICS.STEGO")
def build_stego(cfg: CfgNode, images: ImageSource, masks: Path, output: Path) -> LearnedSemantics:
    """Returns STEGO's head, which agrees where features agree; see ``SEMANTICS.STEGO``."""
    return LearnedSemantics(cfg, images, masks, output, provider="STEGO", train=train_stego)


@SEMANTIC_PROVIDER_REGISTRY.register("CAUSE")
@reads("SEMANTICS.LEARNED", "SEMANTICS.CAUSE")
def build_cause(cfg: CfgNode, images: ImageSource, masks: Path, output: Path) -> LearnedSemantics:
    """Returns CAUSE's head, trained without its published code's leak of labels; see ``SEMANTICS.CAUSE``."""
    return LearnedSemantics(cfg, images, masks, output, provider="CAUSE", train=train_cause)
