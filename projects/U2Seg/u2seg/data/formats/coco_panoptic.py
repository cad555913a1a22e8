"""Readers and writers of what COCO's and Detectron2's tools read: panoptic PNG and JSON, instances JSON, stuff PNG."""

from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from u2seg.structures import THING_LABEL, LabelSpace, Segment, semantic_target
from u2seg.structures.mask_boxes import mask_box_xywh
from u2seg.utils.files import atomic_path
from u2seg.utils.image_io import read_stored_array


def write_panoptic_png(path: str | Path, panoptic: np.ndarray) -> None:
    """Writes a map of segment ids, int (H, W) in 0..2^24-1, as COCO's RGB PNG."""
    _save_png(path, panoptic_rgb(panoptic))


def panoptic_rgb(panoptic: np.ndarray) -> np.ndarray:
    """Returns the pixels of COCO's panoptic PNG, uint8 (H, W, 3), for segment ids, int (H, W) in 0..2^24-1: id = R + 256 G + 65536 B."""
    if panoptic.min(initial=0) < 0 or panoptic.max(initial=0) >= 1 << 24:
        raise ValueError(f"segment ids must lie in 0..{(1 << 24) - 1}, got {panoptic.min()}..{panoptic.max()}")
    ids = panoptic.astype(np.uint32)
    return np.stack([ids & 255, (ids >> 8) & 255, ids >> 16], axis=2).astype(np.uint8)


def read_panoptic_png(path: str | Path) -> np.ndarray:
    """Returns the segment ids, int32 (H, W), of a COCO panoptic PNG.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not an RGB PNG, or a damaged one.
    """
    pixels = read_stored_array(path)
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
        raise ValueError(
            f"{path} must be an RGB panoptic PNG (id = R + 256 G + 65536 B), got {pixels.dtype} of shape {pixels.shape}"
        )
    rgb = pixels[..., :3].astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def write_stuff_png(path: str | Path, panoptic: np.ndarray, segments: list[Segment], space: LabelSpace) -> None:
    """Writes the semantic target; see :func:`stuff_pixels`."""
    _save_png(path, stuff_pixels(panoptic, segments, space))


def stuff_pixels(panoptic: np.ndarray, segments: list[Segment], space: LabelSpace) -> np.ndarray:
    """Returns the semantic target of a panoptic map, uint8 (H, W): 0 for things, 1..S for stuff, 255 for void."""
    targets = {s.segment_id: THING_LABEL if s.is_thing else space.stuff_target(s.cluster) for s in segments}
    return semantic_target(panoptic, targets)


def panoptic_annotation(
    image_id: int, png_name: str, panoptic: np.ndarray, segments: list[Segment], space: LabelSpace
) -> dict:
    """Returns the annotation of one image for a COCO panoptic JSON."""
    boxes = _boxes_xywh(panoptic)
    return {
        "image_id": image_id,
        "file_name": png_name,
        "segments_info": [
            {
                "id": segment.segment_id,
                "category_id": _dataset_id(segment, space),
                "iscrowd": 0,
                "area": segment.area,
                "bbox": boxes[segment.segment_id],
            }
            for segment in segments
        ],
    }


def instance_annotations(
    image_id: int, panoptic: np.ndarray, segments: list[Segment], scores: np.ndarray, space: LabelSpace
) -> list[dict]:
    """Returns the COCO instance annotations of one image's things, as they are visible in the panoptic map: without overlaps.

    The ``id`` of an annotation is left to the writer of the whole file. ``score`` (0..1) is the mask's confidence; COCO's tools
    pass over it.
    """
    return [
        _instance(image_id, panoptic == segment.segment_id, segment.cluster, scores[segment.source], space)
        for segment in segments
        if segment.is_thing
    ]


def whole_instance_annotations(
    image_id: int, masks: np.ndarray, clusters: np.ndarray, scores: np.ndarray, space: LabelSpace
) -> list[dict]:
    """Returns the COCO instance annotations of one image's masks as they are; they may overlap, and hide one another.

    ``id`` and ``score`` as in :func:`instance_annotations`.

    Args:
        image_id: of the image.
        masks: bool (N, H, W); an empty one gets no annotation.
        clusters: int (N,), 0-based thing clusters.
        scores: float (N,), 0..1.
        space: the classes.
    """
    return [
        _instance(image_id, mask, int(cluster), score, space)
        for mask, cluster, score in zip(masks, clusters, scores, strict=True)
        if mask.any()
    ]


def _instance(image_id: int, mask: np.ndarray, cluster: int, score: float, space: LabelSpace) -> dict:
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {
        "image_id": image_id,
        "category_id": space.thing_dataset_id(cluster),
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": int(mask.sum()),
        "bbox": [float(value) for value in mask_utils.toBbox(rle)],
        "iscrowd": 0,
        "score": round(float(score), 6),
    }


def _dataset_id(segment: Segment, space: LabelSpace) -> int:
    return (space.thing_dataset_id if segment.is_thing else space.stuff_dataset_id)(segment.cluster)


def _boxes_xywh(panoptic: np.ndarray) -> dict[int, list[int]]:
    return {segment: mask_box_xywh(panoptic == segment) for segment in np.unique(panoptic).tolist()}


def _save_png(path: str | Path, pixels: np.ndarray) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
