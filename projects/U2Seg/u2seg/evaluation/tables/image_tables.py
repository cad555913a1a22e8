"""From the maps and masks of one image to its segment tables."""

from dataclasses import dataclass, field

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from u2seg.evaluation.tables.segment_tables import (
    DETECTIONS,
    GT,
    IMAGES,
    IOUS,
    OBJECTS,
    OVERLAPS,
    PIXELS,
    PREDICTED,
    VOID,
    SegmentTables,
    TableSpace,
    empty_tables,
)
from u2seg.structures import mask_overlaps, segment_values
from u2seg.structures.mask_boxes import mask_box_xywh


@dataclass(frozen=True)
class MapSegment:
    """One segment of a panoptic map.

    Attributes:
        id: its value in the map, above 0.
        label: joint cluster or category label.
        score: confidence, 0..1.
        crowd: whether it stands for a group that the annotators did not separate.
        area: in pixels, as the annotation file has it; None counts the map's.
    """

    id: int
    label: int
    score: float = 1.0
    crowd: bool = False
    area: int | None = None


@dataclass(frozen=True)
class Regions:
    """Detections or ground-truth instances of one image, best or first annotated first.

    Attributes:
        labels: int (N,), thing cluster or thing category.
        boxes_xywh: float (N, 4), pixels.
        masks: bool (N, height, width), or None where there are only boxes.
        scores: float (N,), detections only.
        crowds: bool (N,), ground truth only.
        areas: float (N,), ground truth only: as the annotation file has them.
    """

    labels: np.ndarray
    boxes_xywh: np.ndarray
    masks: np.ndarray | None = None
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    crowds: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    areas: np.ndarray = field(default_factory=lambda: np.zeros(0))


def image_tables(space: TableSpace, image_id: int, size: tuple[int, int], **blocks: np.ndarray) -> SegmentTables:
    """Returns the tables of one image.

    Args:
        space: what the labels mean.
        image_id: of the image, unique in the dataset.
        size: (height, width) in pixels.
        **blocks: what the functions below return; absent blocks are empty.
    """
    images = np.array([(image_id, *size)], IMAGES)
    tables = empty_tables(space)
    return SegmentTables(space, **{**_blocks(tables), "images": images, **blocks})


def panoptic_blocks(
    gt_map: np.ndarray, gt: list[MapSegment], predicted_map: np.ndarray, predicted: list[MapSegment]
) -> dict[str, np.ndarray]:
    """Returns the blocks ``gt``, ``predicted`` and ``overlaps`` of one image.

    Args:
        gt_map: int (height, width), ids of ground-truth segments, 0 void.
        gt: its segments.
        predicted_map: int (height, width), ids of predicted segments, 0 void.
        predicted: its segments. Those without a pixel are left out.

    Raises:
        ValueError: the maps differ in size, the predicted map holds an id that ``predicted`` does not list, or the ground truth
            lists a segment that has no pixel.
    """
    if gt_map.shape != predicted_map.shape:
        raise ValueError(
            f"the predicted map must have the ground truth's size {gt_map.shape}, got {predicted_map.shape}"
        )
    gt_ids, predicted_ids, pixels = count_pairs(gt_map, predicted_map)
    areas = _totals(predicted_ids, pixels)
    unknown = set(areas) - {segment.id for segment in predicted} - {0}
    if unknown:
        raise ValueError(
            f"the predicted map holds segment ids that its list lacks: {sorted(unknown)[:10]}; 0 stands for no segment"
        )
    gt_areas = _totals(gt_ids, pixels)
    absent = [segment.id for segment in gt if segment.id not in gt_areas]
    if absent:
        raise ValueError(
            f"the ground truth lists segment ids that its map lacks: {absent[:10]}; do the PNG and the JSON belong together?"
        )
    predicted = [segment for segment in predicted if segment.id in areas]
    gt_rows = [(0, s.label, gt_areas[s.id] if s.area is None else s.area, s.crowd) for s in gt]
    predicted_rows = [(0, s.label, areas[s.id], s.score) for s in predicted]
    overlaps = np.zeros(len(pixels), OVERLAPS)
    overlaps["gt"] = _places(gt_ids, [segment.id for segment in gt])
    overlaps["predicted"] = _places(predicted_ids, [segment.id for segment in predicted])
    overlaps["pixels"] = pixels
    listed = (overlaps["gt"] >= 0) | (gt_ids == 0)
    both_void = (overlaps["gt"] < 0) & (overlaps["predicted"] < 0)
    return {
        "gt": np.array(gt_rows, GT),
        "predicted": np.array(predicted_rows, PREDICTED),
        "overlaps": overlaps[listed & ~both_void],
    }


def _check_mask_sizes(detections: Regions, objects: Regions) -> None:
    if detections.masks is None or objects.masks is None:
        return
    if detections.masks.shape[1:] != objects.masks.shape[1:]:
        raise ValueError(
            f"detected masks must have the ground truth's size {objects.masks.shape[1:]}, got {detections.masks.shape[1:]}"
        )


def instance_blocks(detections: Regions, objects: Regions) -> dict[str, np.ndarray]:
    """Returns the blocks ``detections``, ``objects`` and ``ious`` of one image.

    Raises:
        ValueError: masks of different sizes.
    """
    _check_mask_sizes(detections, objects)
    detection_rows = np.zeros(len(detections.labels), DETECTIONS)
    detection_rows["label"], detection_rows["score"] = detections.labels, detections.scores
    detection_rows["box_xywh"] = detections.boxes_xywh.reshape(-1, 4)
    detection_rows["mask_area"] = -1.0
    object_rows = np.zeros(len(objects.labels), OBJECTS)
    object_rows["label"], object_rows["crowd"], object_rows["area"] = objects.labels, objects.crowds, objects.areas
    object_rows["box_xywh"] = objects.boxes_xywh.reshape(-1, 4)
    box_ious = box_iou(detections.boxes_xywh, objects.boxes_xywh, objects.crowds)
    mask_ious = np.zeros_like(box_ious)
    if detections.masks is not None and objects.masks is not None:
        mask_ious, detection_rows["mask_area"] = crowd_mask_iou(detections.masks, objects.masks, objects.crowds)
    first, second = np.nonzero((box_ious > 0) | (mask_ious > 0))
    rows = np.zeros(len(first), IOUS)
    rows["detection"], rows["object"] = first, second
    rows["box"], rows["mask"] = box_ious[first, second], mask_ious[first, second]
    return {"detections": detection_rows, "objects": object_rows, "ious": rows}


def head_blocks(gt_map: np.ndarray, labels: dict[int, int], head_labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the block ``head_pixels`` of one image.

    Args:
        gt_map: int (height, width), ids of segments or of classes.
        labels: id -> joint category label; other ids are void.
        head_labels: int (height, width), the semantic head's classes, 0 "thing", 1..S; -1 where it predicts nothing.

    Raises:
        ValueError: the maps differ in size.
    """
    if gt_map.shape != head_labels.shape:
        raise ValueError(
            f"the semantic prediction must have the ground truth's size {gt_map.shape}, got {head_labels.shape}"
        )
    ids, predicted, pixels = count_pairs(gt_map, head_labels.astype(np.int32) + 1)
    gt = np.array([labels.get(int(identifier), VOID) for identifier in ids], np.int64)
    keys, pixels = _sums((gt + 1) << 32 | predicted, pixels)
    rows = np.zeros(len(keys), PIXELS)
    rows["gt"], rows["predicted"], rows["pixels"] = (keys >> 32) - 1, (keys & 0xFFFFFFFF) - 1, pixels
    return {"head_pixels": rows}


def boundary_rows(gt_labels: np.ndarray, predicted_labels: np.ndarray, ratio: float) -> np.ndarray:
    """Returns rows of type :data:`PIXELS` that count pairs of labels near borders; -1 stands for "away from every border".

    A pixel is near a border when a pixel of another label, or the image's edge, is at most ``ratio`` of the diagonal away
    (in the larger of the two coordinates). The borders are those of the maps as they are, before clusters or categories are
    merged: see docs/evaluation.md. Void ground truth is left out.

    Args:
        gt_labels: int (height, width), -1 void.
        predicted_labels: int (height, width), -1 where nothing is predicted, which is a label like others.
        ratio: above 0.

    Source: Cheng et al., Boundary IoU, CVPR 2021, equation 4.
    """
    predicted_labels = predicted_labels.astype(np.int32)  # unsigned types have no -1
    distance = max(1, round(ratio * float(np.hypot(*gt_labels.shape))))
    gt = np.where(near_border(gt_labels, distance), gt_labels, VOID)
    predicted = np.where(near_border(predicted_labels, distance), predicted_labels, VOID)
    scored = gt_labels != VOID
    first, second, pixels = count_pairs(gt[scored] + 1, predicted[scored] + 1)
    rows = np.zeros(len(pixels), PIXELS)
    rows["gt"], rows["predicted"], rows["pixels"] = first - 1, second - 1, pixels
    return rows[(rows["gt"] != VOID) | (rows["predicted"] != VOID)]


def near_border(labels: np.ndarray, distance: int) -> np.ndarray:
    """Returns where the square of 2 ``distance`` + 1 pixels around a pixel holds another label or leaves the image.

    Args:
        labels: int (height, width), -1..65534.
        distance: at least 1, pixels.
    """
    shifted = (labels + 1).astype(np.uint16)
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    near = cv2.dilate(shifted, kernel) != cv2.erode(shifted, kernel)
    near[:distance] = near[-distance:] = True
    near[:, :distance] = near[:, -distance:] = True
    return near


def label_map_of(segment_map: np.ndarray, segments: list[MapSegment]) -> np.ndarray:
    """Returns the joint label of every pixel, int32, shaped as ``segment_map``; -1 where no listed segment is."""
    return segment_values(segment_map, {segment.id: segment.label for segment in segments}, VOID)


def regions_of_map(segment_map: np.ndarray, segments: list[MapSegment]) -> Regions:
    """Returns the segments of a map as masks with their boxes; segments without a pixel are left out."""
    masks = [segment_map == segment.id for segment in segments]
    kept = [(segment, mask) for segment, mask in zip(segments, masks) if mask.any()]
    boxes = np.array([mask_box_xywh(mask) for _, mask in kept], np.float64).reshape(-1, 4)
    return Regions(
        labels=np.array([segment.label for segment, _ in kept], np.int64),
        boxes_xywh=boxes,
        masks=np.array([mask for _, mask in kept], bool).reshape(-1, *segment_map.shape),
        scores=np.array([segment.score for segment, _ in kept], np.float64),
        crowds=np.array([segment.crowd for segment, _ in kept], bool),
        areas=np.array([mask.sum() if s.area is None else s.area for s, mask in kept], np.float64),
    )


def count_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct pairs of values at equal places, and how often each occurs: three int64 arrays, pairs ascending.

    Works on runs of equal pairs, of which an image has about a thirtieth of its pixels.

    Args:
        first: int, any shape, values in 0..2^31-1.
        second: int, the same shape and range.
    """
    first, second = np.ravel(first), np.ravel(second)
    if not first.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    changes = np.flatnonzero((first[1:] != first[:-1]) | (second[1:] != second[:-1])) + 1
    starts = np.concatenate([[0], changes])
    lengths = np.diff(np.append(starts, first.size))
    keys, pixels = _sums(first[starts].astype(np.int64) << 32 | second[starts].astype(np.int64), lengths)
    return keys >> 32, keys & 0xFFFFFFFF, pixels


def box_iou(boxes_xywh: np.ndarray, gt_xywh: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of boxes as pycocotools computes it, float64 (N, M); with a crowd, over the first box."""
    if not len(boxes_xywh) or not len(gt_xywh):
        return np.zeros((len(boxes_xywh), len(gt_xywh)))
    first, second = np.asarray(boxes_xywh, np.float64), np.asarray(gt_xywh, np.float64)
    return np.asarray(mask_utils.iou(first, second, crowds.astype(np.uint8).tolist()))


def crowd_mask_iou(masks: np.ndarray, gt: np.ndarray, crowds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the intersection over union of masks, float64 (N, M), and the area of the first, int64 (N,).

    Equal to pycocotools' on run lengths, since both divide exact counts; with a crowd the union is the first mask alone.

    Args:
        masks: bool (N, height, width).
        gt: bool (M, height, width).
        crowds: bool (M,).
    """
    overlaps, areas, gt_areas = mask_overlaps(masks, gt)
    unions = np.where(crowds, areas[:, None], areas[:, None] + gt_areas - overlaps)
    return np.where(overlaps > 0, overlaps / np.maximum(unions, 1), 0.0), areas


def _sums(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distinct, inverse = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(inverse.ravel(), weights=values, minlength=len(distinct)).astype(np.int64)


def _totals(keys: np.ndarray, values: np.ndarray) -> dict[int, int]:
    distinct, sums = _sums(keys, values)
    return dict(zip(distinct.tolist(), sums.tolist()))


def _places(ids: np.ndarray, listed: list[int]) -> np.ndarray:
    """Returns where each of ``ids`` stands in ``listed``, int64; -1 where it does not."""
    place = {identifier: index for index, identifier in enumerate(listed)}
    return np.array([place.get(int(identifier), -1) for identifier in ids], np.int64)


def _blocks(tables: SegmentTables) -> dict[str, np.ndarray]:
    return {name: value for name, value in vars(tables).items() if name != "space"}
