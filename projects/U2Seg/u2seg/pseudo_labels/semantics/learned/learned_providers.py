"""The providers "STEGO" and "CAUSE": trained on the images that they label."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

from u2seg.data.formats.mask_shards import iter_shards
from u2seg.features import resolve_device
from u2seg.pseudo_labels.semantics.learned.cause_training import train_cause
from u2seg.pseudo_labels.semantics.learned.crops import CropFeatures, CropSet
from u2seg.pseudo_labels.semantics.learned.neighbors import MEANS, kept_array
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
from u2seg.pseudo_labels.semantics.semantic_providers import SEMANTIC_PROVIDER_REGISTRY
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.image_io import read_listed_image

# Takes configuration, features and output directory; returns a trained head.
Train = Callable[[CfgNode, CropFeatures, Path], SemanticHead]


class LearnedSemantics:
    """A head on frozen features, trained without labels on the images of the mask stage, then applied to each of them."""

    def __init__(self, cfg: CfgNode, images: Path, masks: Path, output: Path, *, provider: str, train: Train):
        """Takes what every provider takes, and how the head is trained.

        Args:
            cfg: reads ``SEMANTICS`` and ``FEATURES``.
            images: the image directory.
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
        readable = [record for record in records if record.error is None]
        if not readable:
            return {}
        if self._clusters is None:
            model = load_semantic_head(self._cfg, self._output / MODEL, self._provider)
            self._clusters = PixelClusters(
                build_head_extractor(self._cfg, self._cfg.SEMANTICS.LEARNED.MAP_SIZE),
                model.to(resolve_device(self._cfg.FEATURES.DEVICE)),
                PixelSettings.of_config(self._cfg),
            )
        images_rgb = [
            read_listed_image(self._images, record.file_name, (record.height, record.width)) for record in readable
        ]
        found = self._clusters(images_rgb)
        return {
            record.file_name: scores.argmax(dim=0).to(torch.uint8).cpu().numpy()
            for record, scores in zip(readable, found)
        }

    def _trained(self) -> SemanticHead:
        learned = self._cfg.SEMANTICS.LEARNED
        records = [record for records in iter_shards(self._masks) for record in records if record.error is None]
        features = CropFeatures(
            CropSet(self._images, records, learned.CROP_RATIO),
            build_head_extractor(self._cfg, learned.TRAIN_SIZE),
            batch_size=learned.BATCH_SIZE,
            cache_mib=learned.CACHE_MIB,
            num_threads=learned.NUM_THREADS,
        )
        if learned.CENTER:
            features.center = torch.from_numpy(kept_array(self._output / MEANS, features.means).mean(axis=0))
        return self._train(self._cfg, features, self._output)


@SEMANTIC_PROVIDER_REGISTRY.register("STEGO")
def build_stego(cfg: CfgNode, images: Path, masks: Path, output: Path) -> LearnedSemantics:
    """Returns STEGO's head, which agrees where features agree; see ``SEMANTICS.STEGO``."""
    return LearnedSemantics(cfg, images, masks, output, provider="STEGO", train=train_stego)


@SEMANTIC_PROVIDER_REGISTRY.register("CAUSE")
def build_cause(cfg: CfgNode, images: Path, masks: Path, output: Path) -> LearnedSemantics:
    """Returns CAUSE's head, trained without its published code's leak of labels; see ``SEMANTICS.CAUSE``."""
    return LearnedSemantics(cfg, images, masks, output, provider="CAUSE", train=train_cause)
