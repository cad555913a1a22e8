"""Refinements of coarse masks, and what is done to every mask after them."""

from functools import partial

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from u2seg.features import resolve_device
from u2seg.pseudo_labels.masks.dense_crf import CRFSettings, DenseCRF
from u2seg.pseudo_labels.masks.interfaces import MASK_REFINEMENT_REGISTRY, MaskRefinement
from u2seg.structures.mask_boxes import mask_box
from u2seg.utils.manifest import reads


@MASK_REFINEMENT_REGISTRY.register()
@reads()
def none(cfg: CfgNode) -> MaskRefinement:
    """Returns a refinement that leaves masks as they are."""
    return lambda image_rgb, masks: masks


@MASK_REFINEMENT_REGISTRY.register()
@reads("MASKS.CRF")
def dense_crf(cfg: CfgNode) -> MaskRefinement:
    """Returns ``crf_masks`` with the settings of ``MASKS.CRF``, on ``FEATURES.DEVICE``."""
    return partial(crf_masks, settings=_crf_settings(cfg), device=resolve_device(cfg.FEATURES.DEVICE))


@MASK_REFINEMENT_REGISTRY.register()
@reads("MASKS.CRF")
def dense_crf_on_crops(cfg: CfgNode) -> MaskRefinement:
    """Returns ``crf_masks_on_crops`` with the settings of ``MASKS.CRF``, on ``FEATURES.DEVICE``."""
    return partial(
        crf_masks_on_crops,
        settings=_crf_settings(cfg),
        min_box_iou=cfg.MASKS.CRF.MIN_BOX_IOU,
        device=resolve_device(cfg.FEATURES.DEVICE),
    )


def _crf_settings(cfg: CfgNode) -> CRFSettings:
    crf = cfg.MASKS.CRF
    return CRFSettings(
        gaussian_sxy=crf.GAUSSIAN_SXY,
        gaussian_compat=crf.GAUSSIAN_COMPAT,
        bilateral_sxy=crf.BILATERAL_SXY,
        bilateral_srgb=crf.BILATERAL_SRGB,
        bilateral_compat=crf.BILATERAL_COMPAT,
        num_iterations=crf.NUM_ITERATIONS,
    )


def crf_masks(image_rgb: np.ndarray, masks: np.ndarray, settings: CRFSettings, device: str = "cpu") -> np.ndarray:
    """Returns masks after a dense CRF, bool (N, height, width): pixels more likely foreground than background.

    Args:
        image_rgb: uint8 (height, width, 3).
        masks: bool (N, height, width).
        settings: the CRF's constants.
        device: where to compute.

    Source: CutLER, section 3.1; the unary is a softmax over 0/1 "logits", hence log-odds of -1 and 1.
    """
    if not len(masks):
        return masks
    log_odds = torch.from_numpy(masks).to(device).float().mul_(2).sub_(1)
    with torch.inference_mode():
        return (DenseCRF(image_rgb, settings, device).foreground(log_odds) > 0.5).cpu().numpy()


def crf_masks_on_crops(
    image_rgb: np.ndarray, masks: np.ndarray, settings: CRFSettings, min_box_iou: float, device: str = "cpu"
) -> np.ndarray:
    """Returns masks after a dense CRF around each one, holes filled, bool (N, height, width).

    The CRF sees the mask's box, a third of its width and height added on every side. Where it leaves nothing, or a mask of another
    box, the mask stays as it was.

    Args:
        image_rgb: uint8 (height, width, 3).
        masks: bool (N, height, width), none empty.
        settings: the CRF's constants.
        min_box_iou: IoU, 0..1, of the boxes before and after, below which the mask stays as it was.
        device: where to compute.

    Source: CuVLER, section 3.1, and the rules of its published code.
    """
    refined = masks.copy()
    for mask, result in zip(masks, refined):
        left, top, right, bottom = box = mask_box(mask)
        rows = slice(max(0, top - (bottom - top) // 3), bottom + (bottom - top) // 3)
        columns = slice(max(0, left - (right - left) // 3), right + (right - left) // 3)
        (crop,) = crf_masks(np.ascontiguousarray(image_rgb[rows, columns]), mask[None, rows, columns], settings, device)
        found = np.zeros_like(mask)
        found[rows, columns] = fill_holes(crop)
        if found.any() and _box_iou(box, mask_box(found)) >= min_box_iou:
            result[:] = found
    return refined


def _box_iou(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    """Returns the IoU, 0..1, of two boxes (left, top, right, bottom)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    intersection = max(0, height) * max(0, width)
    areas = ((bottom - top) * (right - left) for left, top, right, bottom in (first, second))
    return intersection / (sum(areas) - intersection)


@MASK_REFINEMENT_REGISTRY.register()
@reads("MASKS.GUIDED_FILTER")
def guided_filter(cfg: CfgNode) -> MaskRefinement:
    """Returns ``guided_filter_masks`` with the settings of ``MASKS.GUIDED_FILTER``: cheap, follows edges nearby."""
    settings = cfg.MASKS.GUIDED_FILTER
    return partial(guided_filter_masks, radius=settings.RADIUS, eps=settings.EPS)


def guided_filter_masks(image_rgb: np.ndarray, masks: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Returns masks filtered with the image as the guide and cut at one half, bool (N, height, width).

    Args:
        image_rgb: uint8 (height, width, 3).
        masks: bool (N, height, width).
        radius: of the square window, in pixels.
        eps: regularization, in squared color units of range 0..1: edges of less contrast are smoothed over.

    Source: He, Sun and Tang, Guided Image Filtering, TPAMI 2013, equations 14 to 16 (color guide).
    """
    if not len(masks):
        return masks
    guide = image_rgb.astype(np.float32) / 255
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, window, borderType=cv2.BORDER_REFLECT)

    guide_mean = mean(guide)
    products = np.einsum("hwi,hwj->hwij", guide, guide).reshape(*guide.shape[:2], 9)
    second = np.concatenate([mean(products[..., start : start + 3]) for start in (0, 3, 6)], axis=-1)
    covariance = second.reshape(*guide.shape, 3) - np.einsum("hwi,hwj->hwij", guide_mean, guide_mean)
    inverse = np.linalg.inv(covariance + eps * np.eye(3, dtype=np.float32))
    refined = np.empty_like(masks)
    for index, mask in enumerate(masks.astype(np.float32)):
        mask_mean = mean(mask)
        cross = mean(guide * mask[..., None]) - guide_mean * mask_mean[..., None]
        slope = np.einsum("hwij,hwj->hwi", inverse, cross)
        offset = mask_mean - np.einsum("hwi,hwi->hw", slope, guide_mean)
        refined[index] = np.einsum("hwi,hwi->hw", mean(slope), guide) + mean(offset) > 0.5
    return refined


def upsample_nearest(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns masks enlarged by nearest neighbor, bool (N, height, width).

    Args:
        masks: bool (N, rows, columns).
        size: (height, width), multiples of (rows, columns).
    """
    rows, columns = masks.shape[1:]
    if size[0] % rows or size[1] % columns:
        raise ValueError(f"size must be a multiple of the patch grid ({rows}, {columns}), got {tuple(size)}")
    return masks.repeat(size[0] // rows, axis=1).repeat(size[1] // columns, axis=2)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Returns a mask, bool (height, width), with the regions that it encloses (4-connected background) filled."""
    # The background around the image is one region with what touches the border; all else is mask or hole.
    background = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, regions = cv2.connectedComponents(background, connectivity=4)
    return regions[1:-1, 1:-1] != regions[0, 0]


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a mask at another size, bool (height, width): bicubic, cut at one half.

    Args:
        mask: bool (rows, columns).
        size: (height, width).
    """
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(resized) > 127


def without_overlaps(masks: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the masks less what smaller ones among them cover, in the same order; some may become empty.

    The small one wins, as in the panoptic merge: where a large mask was grown or its holes were filled, it lies behind.

    Args:
        masks: bool (height, width) each.
    """
    areas = [int(mask.sum()) for mask in masks]
    result = list(masks)
    taken = np.zeros_like(masks[0]) if masks else np.zeros((0, 0), bool)
    for index in sorted(range(len(masks)), key=areas.__getitem__):
        result[index] = masks[index] & ~taken
        taken |= masks[index]
    return result
