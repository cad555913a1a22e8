"""Class-agnostic masks of one image in memory: features, cuts, refinement, run lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from pycocotools import mask as mask_utils
from torch import Tensor

from u2seg.features import FeatureExtractor, build_voting_extractor, stack_on
from u2seg.pseudo_labels.masks.interfaces import (
    MaskGenerator,
    MaskRefinement,
    PatchMasks,
    build_mask_generator,
    build_mask_refinement,
)
from u2seg.pseudo_labels.masks.refinement import fill_holes, resize_mask, upsample_nearest, without_overlaps
from u2seg.structures import ImageMasks, mask_iou


@dataclass(frozen=True)
class PreparedImage:
    """An image at the size at which features are computed.

    Attributes:
        size: (height, width) of the image as it came, in pixels.
        resized_rgb: uint8 (rows * patch size, columns * patch size, 3).
        pixels: float32 (3, rows * patch size, columns * patch size), range 0..1, the extractor's input.
    """

    size: tuple[int, int]
    resized_rgb: np.ndarray
    pixels: Tensor


@dataclass(frozen=True)
class CoarseMasks:
    """What the feature extractor and the mask generator give for one image.

    Attributes:
        size: (height, width) of the image as it came, in pixels.
        resized_rgb: uint8 (rows * patch size, columns * patch size, 3), the image at the size at which it was cut.
        found: masks on the patch grid, or on the pixels of ``resized_rgb``.
        features: float32 (C, rows, columns), patch features.
    """

    size: tuple[int, int]
    resized_rgb: np.ndarray
    found: PatchMasks
    features: np.ndarray


class AutomaticMaskGenerator:
    """Finds the class-agnostic masks of an image: build once, call :meth:`generate` on each image.

        generator = AutomaticMaskGenerator(cfg)
        masks = generator.generate(image_rgb)

    :meth:`generate` is :meth:`cut` and :meth:`refine` after :func:`prepare_image`. The mask stage calls these three by
    themselves: it prepares in worker processes, cuts in batches and refines in threads.
    """

    @configurable
    def __init__(
        self,
        *,
        extractor: FeatureExtractor,
        generator: MaskGenerator,
        refinement: MaskRefinement,
        min_refined_iou: float,
        allow_overlaps: bool,
        score_times_iou: bool = True,
    ):
        """Takes its parts; ``AutomaticMaskGenerator(cfg)`` builds them from ``FEATURES`` and ``MASKS``.

        Args:
            extractor: image to patch features.
            generator: patch features to masks on the patch grid.
            refinement: enlarged masks to masks that follow the image.
            min_refined_iou: IoU of a mask before and after refinement, 0..1, below which it is dropped.
            allow_overlaps: whether masks may overlap; else a smaller one takes its pixels from a larger one.
            score_times_iou: whether the generator's score is multiplied by the IoU of a mask before and after refinement.
        """
        self.extractor = extractor
        self.generator = generator
        self.refinement = refinement
        self.min_refined_iou = min_refined_iou
        self.allow_overlaps = allow_overlaps
        self.score_times_iou = score_times_iou

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {
            "extractor": build_voting_extractor(cfg),
            "generator": build_mask_generator(cfg),
            "refinement": build_mask_refinement(cfg),
            "min_refined_iou": cfg.MASKS.MIN_REFINED_IOU,
            "allow_overlaps": cfg.MASKS.ALLOW_OVERLAPS,
            "score_times_iou": cfg.MASKS.SCORE_TIMES_IOU,
        }

    def generate(self, image_rgb: np.ndarray) -> list[dict]:
        """Returns the masks of an image, best first; they overlap only where ``MASKS.ALLOW_OVERLAPS`` lets them.

        Args:
            image_rgb: uint8 (height, width, 3), RGB.

        Returns:
            One dict a mask:

            * ``segmentation``: COCO's compressed RLE at the image's size, ready for JSON and ``pycocotools.mask.decode``;
            * ``bbox``: [x, y, width, height] in pixels;
            * ``area``: in pixels;
            * ``score``: confidence, 0..1;
            * ``cut_value``: normalized-cut value that gave the mask, lower is cleaner; None where the generator has none;
            * ``refined_iou``: IoU of the mask before and after refinement, 0..1.

        Raises:
            ValueError: ``image_rgb`` is not uint8 (height, width, 3).
        """
        (coarse,) = self.cut([prepare_image(self.extractor, image_rgb)])
        return _annotations(self.refine(coarse))

    def cut(self, images: Sequence[PreparedImage]) -> list[CoarseMasks]:
        """Returns the coarse masks of a batch of images, which the extractor sees together."""
        device = next(iter(self.extractor.state_dict().values()), torch.empty(0)).device
        with torch.inference_mode():
            views = self.extractor.views(stack_on([image.pixels for image in images], device))
            features, found = views[0], self.generator.from_views(views, [image.resized_rgb for image in images])
        parts = zip(images, found, features.float().cpu().numpy(), strict=True)
        return [CoarseMasks(image.size, image.resized_rgb, masks, its_features) for image, masks, its_features in parts]

    def refine(self, coarse: CoarseMasks) -> ImageMasks:
        """Returns the masks at the image's own size, best first, without those that refinement changes too much.

        The record's ``image_id`` and ``file_name`` are left to the caller.
        """
        enlarged = upsample_nearest(coarse.found.masks, coarse.resized_rgb.shape[:2])
        refined = [fill_holes(mask) for mask in self.refinement(coarse.resized_rgb, enlarged)]
        ious = np.asarray([mask_iou(before, after) for before, after in zip(enlarged, refined)], np.float32)
        scores = (coarse.found.scores * (ious if self.score_times_iou else 1)).astype(np.float32)
        kept = [index for index in np.argsort(-scores, kind="stable") if ious[index] >= self.min_refined_iou]
        masks = [resize_mask(refined[index], coarse.size) for index in kept]
        if not self.allow_overlaps:
            masks = without_overlaps(masks)
        present = [position for position, mask in enumerate(masks) if mask.any()]
        kept = [kept[position] for position in present]
        embeddings = [_pool(coarse.features, refined[index]) for index in kept]
        return ImageMasks(
            image_id=0,
            file_name="",
            height=coarse.size[0],
            width=coarse.size[1],
            rle_counts=tuple(mask_utils.encode(np.asfortranarray(masks[p].view(np.uint8)))["counts"] for p in present),
            scores=scores[kept],
            cut_values=coarse.found.cut_values[kept].astype(np.float32),
            refined_ious=ious[kept],
            embeddings=np.stack(embeddings) if embeddings else np.zeros((0, 0), np.float32),
        )


def prepare_image(extractor: FeatureExtractor, image_rgb: np.ndarray) -> PreparedImage:
    """Returns an image resized for ``extractor``.

    Args:
        extractor: whose ``preprocess`` resizes.
        image_rgb: uint8 (height, width, 3), RGB.

    Raises:
        ValueError: ``image_rgb`` is something else.
    """
    if (
        not isinstance(image_rgb, np.ndarray)
        or image_rgb.dtype != np.uint8
        or image_rgb.ndim != 3
        or image_rgb.shape[2] != 3
        or not image_rgb.size
    ):
        got = f"{image_rgb.dtype} {image_rgb.shape}" if isinstance(image_rgb, np.ndarray) else type(image_rgb).__name__
        raise ValueError(
            f"image_rgb must be a numpy array, uint8 of shape (height, width, 3), got {got}; "
            "u2seg.read_image_rgb gives one from a file"
        )
    pixels = extractor.preprocess(image_rgb)
    resized_rgb = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return PreparedImage(image_rgb.shape[:2], resized_rgb, pixels)


def _annotations(masks: ImageMasks) -> list[dict]:
    rles = masks.rles()
    return [
        {
            "segmentation": {**rle, "counts": rle["counts"].decode("ascii")},
            "bbox": mask_utils.toBbox(rle).tolist(),
            "area": int(mask_utils.area(rle)),
            "score": float(masks.scores[index]),
            # JSON has no NaN.
            "cut_value": None if np.isnan(masks.cut_values[index]) else float(masks.cut_values[index]),
            "refined_iou": float(masks.refined_ious[index]),
        }
        for index, rle in enumerate(rles)
    ]


def _pool(features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the mean feature over a mask, float32 (C,), each patch weighted by the share of it that the mask covers.

    Args:
        features: float32 (C, rows, columns).
        mask: bool (height, width), multiples of (rows, columns), not empty.
    """
    _, rows, columns = features.shape
    height, width = mask.shape
    weights = mask.reshape(rows, height // rows, columns, width // columns).mean(axis=(1, 3)).astype(np.float32)
    return np.einsum("crk,rk->c", features, weights / weights.sum())
