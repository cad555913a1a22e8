"""Votes of detections and of the semantic head's classes, from which U2Seg's protocols are fitted."""

import numpy as np

from u2seg.evaluation.matching.assignment import pair_counts
from u2seg.evaluation.matching.label_map import PixelRows, head_pixels
from u2seg.evaluation.tables.segment_tables import SegmentTables


def instance_votes(tables: SegmentTables, min_score: float, min_iou: float) -> np.ndarray:
    """Returns votes, int64 (K, thing categories): one for each detection, to the object that its box overlaps most.

    Args:
        tables: any.
        min_score: detections below it do not vote.
        min_iou: an IoU of boxes must exceed it; crowds get no vote.
    """
    ious = tables.ious
    eligible = (ious["box"] > min_iou) & ~tables.objects["crowd"][ious["object"]]
    eligible &= tables.detections["score"][ious["detection"]] >= min_score
    rows = ious[eligible]
    rows = rows[np.lexsort((rows["object"], -rows["box"], rows["detection"]))]  # of equals the first annotated
    _, first = np.unique(rows["detection"], return_index=True)
    return _votes_of(tables, rows[first])


def every_object_votes(tables: SegmentTables, min_score: float, min_iou: float) -> np.ndarray:
    """Returns votes, int64 (K, thing categories): of each detection for every object, crowds too, that its box overlaps well.

    Args:
        tables: any.
        min_score: detections below it do not vote.
        min_iou: an IoU of boxes must exceed it; a crowd's is taken as if it were a single object.
    """
    detection, target, iou = tables.ious["detection"], tables.ious["object"], tables.ious["box"]
    area = tables.detections["box_xywh"][:, 2:].prod(axis=1)[detection]
    object_area = tables.objects["box_xywh"][:, 2:].prod(axis=1)[target]
    common = iou * area  # a crowd's IoU is over the detection alone
    single = np.divide(common, area + object_area - common, out=np.zeros(len(iou)), where=area > 0)
    iou = np.where(tables.objects["crowd"][target], single, iou)
    return _votes_of(tables, tables.ious[(iou > min_iou) & (tables.detections["score"][detection] >= min_score)])


def semantic_votes(tables: SegmentTables, min_iou: float) -> np.ndarray:
    """Returns votes, int64 (S, stuff categories): in each image, of a head's class for every category that it covers well.

    Args:
        tables: any.
        min_iou: the IoU of the class's and the category's pixels in the image must exceed it. The class's pixels on
            ground-truth void count.
    """
    space = tables.space
    num_things, num_stuff = space.categories.num_things, space.categories.num_stuff
    pixels = _summed(head_pixels(tables))
    size = space.num_stuff + 2  # predicted -1 is stored first
    predicted_key = pixels.image * size + pixels.predicted + 1
    gt_key = pixels.image * (space.num_categories + 1) + pixels.gt + 1
    predicted_area, gt_area = (np.bincount(key, weights=pixels.pixels) for key in (predicted_key, gt_key))
    union = predicted_area[predicted_key] + gt_area[gt_key] - pixels.pixels
    voting = (pixels.pixels / np.maximum(union, 1) > min_iou) & (pixels.gt >= num_things) & (pixels.predicted > 0)
    clusters, categories = pixels.predicted[voting] - 1, pixels.gt[voting] - num_things
    return pair_counts(clusters, categories, np.ones(len(clusters)), (space.num_stuff, num_stuff))


def _votes_of(tables: SegmentTables, rows: np.ndarray) -> np.ndarray:
    clusters = tables.detections["label"][rows["detection"]]
    categories = tables.objects["label"][rows["object"]]
    shape = (tables.space.num_things, tables.space.categories.num_things)
    return pair_counts(clusters, categories, np.ones(len(rows)), shape)


def _summed(pixels: PixelRows) -> PixelRows:
    """Returns the rows with equal ones summed."""
    table = np.stack([pixels.image, pixels.gt, pixels.predicted], axis=1).astype(np.int64)
    distinct, inverse = np.unique(table, axis=0, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=pixels.pixels, minlength=len(distinct)).astype(np.int64)
    return PixelRows(distinct[:, 0], distinct[:, 1], distinct[:, 2], sums)
