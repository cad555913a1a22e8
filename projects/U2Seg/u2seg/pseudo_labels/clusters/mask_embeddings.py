"""One vector a mask, behind one registry: pooled patch features, the paper's masked crops, and a baseline that looks at nothing."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from pycocotools import mask as mask_utils

from u2seg.features import build_feature_extractor, feature_settings, stack_on
from u2seg.structures.mask_boxes import mask_box
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import atomic_path, list_digest
from u2seg.utils.image_io import ImageReadError, ImageSource, read_listed_image
from u2seg.utils.manifest import settings_key
from u2seg.utils.registry import NamedRegistry

Embedding = Callable[[list[ImageMasks]], np.ndarray]
_VECTORS = ".vectors"  # begins the names of the files that hold vectors until the stage is finished

MASK_EMBEDDING_REGISTRY = NamedRegistry("MASK_EMBEDDING")
MASK_EMBEDDING_REGISTRY.__doc__ = """
Ways to turn masks into vectors. Called as NAME(cfg, images, output) -> function from a list of ImageMasks to float32 (N, C), the
masks of all records one after another. The rows of an image that cannot be read any more are NaN.
"""


@MASK_EMBEDDING_REGISTRY.register()
def mask_pooled(cfg: CfgNode, images: ImageSource, output: Path) -> Embedding:
    """Returns the patch features pooled over each mask, as the mask stage stored them: no second forward pass."""

    def embed(records: list[ImageMasks]) -> np.ndarray:
        filled = [record.embeddings for record in records if len(record.rle_counts)]
        return np.concatenate(filled).astype(np.float32) if filled else np.zeros((0, 1), np.float32)

    return embed


@MASK_EMBEDDING_REGISTRY.register()
def random_vectors(cfg: CfgNode, images: ImageSource, output: Path) -> Embedding:
    """Returns noise: the baseline "random clusters". Each image's noise depends on its id and ``CLUSTERS.SEED`` alone."""

    def embed(records: list[ImageMasks]) -> np.ndarray:
        rows = [
            np.random.default_rng([cfg.CLUSTERS.SEED, record.image_id]).normal(size=(len(record.rle_counts), 8))
            for record in records
        ]
        return np.concatenate(rows).astype(np.float32) if rows else np.zeros((0, 8), np.float32)

    return embed


@MASK_EMBEDDING_REGISTRY.register()
def masked_crop(cfg: CfgNode, images: ImageSource, output: Path) -> Embedding:
    """Returns the whole-image embedding (a ViT's CLS token) of each mask's crop, everything around the mask removed white.

    Source: U2Seg, section 3.2 and figure 3. Differs from the release in padding the crop to a square instead of cutting its ends
    off; the network sees ``FEATURES.IMAGE_SIZE`` either way.
    """
    extractor = build_feature_extractor(cfg)

    @torch.no_grad()
    def embed(records: list[ImageMasks]) -> np.ndarray:
        crops: list[torch.Tensor] = []
        vectors = [np.zeros((0, extractor.num_channels), np.float32)]

        def flush() -> None:
            if crops:
                device = next(extractor.parameters(), torch.zeros(0)).device
                vectors.append(extractor.embed(stack_on(crops, device)).float().cpu().numpy())
                if np.isnan(vectors[-1]).any():
                    raise ValueError(f"the features that {cfg.FEATURES.NAME} gives hold NaN; its weights are broken")
                crops.clear()

        for record in records:
            if not record.rle_counts:
                continue
            try:
                image_rgb = read_listed_image(images, record.file_name, (record.height, record.width))
            except ImageReadError:  # the stage reads it again for the reason
                flush()
                vectors.append(np.full((len(record.rle_counts), extractor.num_channels), np.nan, np.float32))
                continue
            for rle in record.rles():
                crops.append(extractor.preprocess(crop_on_white(image_rgb, mask_utils.decode(rle).astype(bool))))
                if len(crops) == cfg.FEATURES.BATCH_SIZE:
                    flush()
        flush()
        return np.concatenate([part for part in vectors if len(part)] or vectors)

    return _cached(embed, output, settings_key(feature_settings(cfg)))


def _cached(embed: Embedding, output: Path, network: str) -> Embedding:
    """Returns ``embed`` with its results kept on disk: the vectors are needed twice, and a killed run should not lose them.

    Args:
        embed: what computes them.
        output: directory of the stage.
        network: what tells the network from others.
    """

    def cached(records: list[ImageMasks]) -> np.ndarray:
        keys = [f"{record.file_name}\t{[counts.hex() for counts in record.rle_counts]}" for record in records]
        path = output / f"{_VECTORS}-{network}-{list_digest(keys)}.npy"
        with contextlib.suppress(FileNotFoundError):
            return np.load(path)
        vectors = embed(records)
        # An image that is repaired is to be read again.
        if not np.isnan(vectors).any():
            with atomic_path(path) as temporary:
                np.save(temporary, vectors)
        return vectors

    return cached


def remove_cached_vectors(output: Path) -> None:
    """Deletes the vectors that embeddings kept in the cluster stage's directory."""
    for path in output.glob(f"{_VECTORS}-*.npy"):
        path.unlink(missing_ok=True)


def crop_on_white(image_rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the mask's bounding box, cut out on white and padded to a square with white, uint8 (side, side, 3).

    Args:
        image_rgb: uint8 (H, W, 3).
        mask: bool (H, W), not empty.
    """
    left, top, right, bottom = mask_box(mask)
    box = np.s_[top:bottom, left:right]
    crop = np.where(mask[box][..., None], image_rgb[box], 255).astype(np.uint8)
    height, width = crop.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = crop
    return square
