"""What LUSS's metrics need to know of one image: a few rows of pixel counts. Everything is computed from those afterwards."""

import cv2
import numpy as np

from u2seg.luss.data.id_maps import LUSS_IGNORE

MAX_ID = 0xFFFE  # largest predicted id: maps are 16 bit wide, and one value is needed for "no id"
NO_ID = MAX_ID + 1
OTHER = 0  # id of pixels that belong to no class; a real class in the metrics

# One row for each combination that occurs in an image. ``predicted`` is -1 for ids out of range; ``level`` is the last
# threshold of a sweep at which the pixel keeps its prediction, -1 if none.
COUNTS = np.dtype(
    [
        ("image", np.int32),
        ("predicted", np.int32),
        ("predicted_boundary", bool),
        ("gt", np.int32),
        ("gt_boundary", bool),
        ("pixels", np.int64),
    ]
)
SWEEP_COUNTS = np.dtype(
    [("image", np.int32), ("predicted", np.int32), ("gt", np.int32), ("level", np.int16), ("pixels", np.int64)]
)


def boundary_width(height: int, width: int, ratio: float) -> int:
    """Returns how many pixels deep a boundary is: ``ratio`` of the diagonal, rounded, at least 1.

    Source: LUSS's released evaluation; ratio 0.03 (Boundary IoU and Detectron2 use 0.02).
    """
    return max(1, round(ratio * float(np.sqrt(height**2 + width**2))))


def boundary_mask(labels: np.ndarray, width: int) -> np.ndarray:
    """Returns which pixels lie within ``width`` of another label or of the image's edge, bool (H, W).

    Equal to eroding each label's mask ``width`` times by 3x3 and taking what is lost, in one pass for all labels.

    Args:
        labels: int (H, W), ids in 0..65535.
        width: pixels, at least 1.
    """
    values = np.ascontiguousarray(labels, np.uint16)
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    # OpenCV's default border leaves what is beyond the edge out of the minimum and the maximum.
    inside = cv2.erode(values, kernel) == cv2.dilate(values, kernel)
    inside[:width] = inside[-width:] = False
    inside[:, :width] = inside[:, -width:] = False
    return ~inside


def count_image(image: int, predicted: np.ndarray, gt: np.ndarray, boundary_ratio: float) -> np.ndarray:
    """Returns the counts of one image.

    Args:
        image: its number, for the rows.
        predicted: int (H, W), cluster ids from 1, 0 for "other"; those below 0 or above ``MAX_ID`` count as no prediction.
        gt: int (H, W), class ids, 0 for "other", 1000 for pixels to leave out.
        boundary_ratio: see `boundary_width`.

    Returns:
        structured array of ``COUNTS``, one row for each combination that occurs.
    """
    _check_shapes(predicted, gt)
    width = boundary_width(gt.shape[0], gt.shape[1], boundary_ratio)
    clean = np.where((predicted >= 0) & (predicted <= MAX_ID), predicted, NO_ID)
    keep = gt != LUSS_IGNORE
    predicted_ids, predicted_index = _compact(clean[keep])
    gt_ids, gt_index = _compact(gt[keep])
    # An id that is out of range is a label of its own for the boundary of its neighbors, as any other.
    key = (predicted_index * 2 + boundary_mask(clean, width)[keep]) * len(gt_ids) + gt_index
    key = key * 2 + boundary_mask(gt, width)[keep]
    shape = (len(predicted_ids), 2, len(gt_ids), 2)
    table = np.bincount(key, minlength=int(np.prod(shape))).reshape(shape)
    p, pb, t, tb = np.nonzero(table)
    rows = np.empty(len(p), COUNTS)
    rows["image"] = image
    rows["predicted"] = np.where(predicted_ids[p] == NO_ID, -1, predicted_ids[p])
    rows["predicted_boundary"] = pb
    rows["gt"] = gt_ids[t]
    rows["gt_boundary"] = tb
    rows["pixels"] = table[p, pb, t, tb]
    return rows


def count_sweep(
    image: int, clusters: np.ndarray, attention: np.ndarray, gt: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """Returns the counts of one image for a whole sweep of thresholds.

    Args:
        image: its number, for the rows.
        clusters: int (H, W), cluster ids from 1, before any threshold.
        attention: float (H, W); a pixel is "other" where it is below the threshold.
        gt: int (H, W), as in `count_image`.
        thresholds: float (T,), ascending.

    Returns:
        structured array of ``SWEEP_COUNTS``.
    """
    _check_shapes(clusters, gt)
    _check_shapes(attention, gt)
    keep = gt != LUSS_IGNORE
    clean = np.where((clusters >= 0) & (clusters <= MAX_ID), clusters, NO_ID)[keep]
    # The number of thresholds that a pixel reaches; it keeps its cluster at thresholds 0 .. that number - 1.
    reached = np.searchsorted(thresholds, attention[keep], side="right")
    cluster_ids, cluster_index = _compact(clean)
    gt_ids, gt_index = _compact(gt[keep])
    key = (cluster_index * len(gt_ids) + gt_index) * (len(thresholds) + 1) + reached
    shape = (len(cluster_ids), len(gt_ids), len(thresholds) + 1)
    table = np.bincount(key, minlength=int(np.prod(shape))).reshape(shape)
    p, t, level = np.nonzero(table)
    rows = np.empty(len(p), SWEEP_COUNTS)
    rows["image"] = image
    rows["predicted"] = np.where(cluster_ids[p] == NO_ID, -1, cluster_ids[p])
    rows["gt"] = gt_ids[t]
    rows["level"] = level - 1
    rows["pixels"] = table[p, t, level]
    return rows


def _compact(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the values that occur in ``values`` (0 or above), ascending, and the index of each among them."""
    occurrences = np.bincount(values.ravel())
    present = np.flatnonzero(occurrences)
    lookup = np.zeros(len(occurrences), np.int64)
    lookup[present] = np.arange(len(present))
    return present, lookup[values]


def _check_shapes(predicted: np.ndarray, gt: np.ndarray) -> None:
    if predicted.shape != gt.shape:
        raise ValueError(
            f"predictions must have the ground truth's (height, width) {gt.shape}, got {predicted.shape}: score at native size"
        )
