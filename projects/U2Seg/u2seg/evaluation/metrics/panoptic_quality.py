"""Panoptic quality from segment tables, by the rules of COCO's panopticapi.

Source: Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4; crowd and void as panopticapi's ``evaluation.py`` has them:
only ground-truth void leaves the union; a prediction more than half on void, or on void and the crowd of its category, is no
false positive; a crowd segment is neither matched nor missed.
"""

from dataclasses import dataclass

import numpy as np

from u2seg.evaluation.tables.segment_tables import SegmentTables

MIN_IOU = 0.5  # a match must exceed it


@dataclass(frozen=True)
class PanopticMatches:
    """What each image adds to PQ; every row is one segment or one pair of segments.

    Attributes:
        num_things: thing categories; joint labels from here on are stuff.
        num_categories: all categories.
        pair_image, pair_label, pair_iou: true positives.
        missed_image, missed_label: false negatives.
        false_image, false_label: false positives.
    """

    num_things: int
    num_categories: int
    pair_image: np.ndarray
    pair_label: np.ndarray
    pair_iou: np.ndarray
    missed_image: np.ndarray
    missed_label: np.ndarray
    false_image: np.ndarray
    false_label: np.ndarray


@dataclass(frozen=True)
class PanopticQuality:
    """PQ, SQ and RQ of each category, float64 (categories,), range 0..1; NaN for a category that occurs nowhere."""

    pq: np.ndarray
    sq: np.ndarray
    rq: np.ndarray
    num_things: int

    def summary(self) -> dict[str, float]:
        """Returns the means over all categories, things and stuff, 0..100; a group in which no category occurs is left out."""
        groups = {"": slice(None), "_th": slice(0, self.num_things), "_st": slice(self.num_things, None)}
        summary: dict[str, float] = {}
        for suffix, group in groups.items():
            if np.isfinite(self.pq[group]).any():
                summary |= {f"{name}{suffix}": 100 * _mean(values[group]) for name, values in self._named().items()}
        return summary

    def _named(self) -> dict[str, np.ndarray]:
        return {"PQ": self.pq, "SQ": self.sq, "RQ": self.rq}


def match_segments(
    tables: SegmentTables, category_of_cluster: np.ndarray, error_category: np.ndarray, *, merge_stuff: bool
) -> PanopticMatches:
    """Returns what matches, what was missed and what is false in every image.

    Args:
        tables: any.
        category_of_cluster: int (K + S,), joint category label of each joint cluster label, -1 for none.
        error_category: int (K + S,), for clusters without a category: the category in which their segments are false positives, -1
            for none. They never match.
        merge_stuff: whether the stuff segments of one category in one image are one segment, in ground truth and prediction.
    """
    num_things = tables.space.categories.num_things
    label = category_of_cluster[tables.predicted["label"]]
    predicted = _Segments.of(tables.predicted["image"], label, tables.predicted["area"])
    gt = _Segments.of(tables.gt["image"], tables.gt["label"], tables.gt["area"])
    crowd = tables.gt["crowd"]
    if merge_stuff:
        predicted = predicted.merged(label >= num_things)
        gt = gt.merged((gt.label >= num_things) & ~crowd)
        crowd = crowd[gt.first]
    error_categories = np.where(
        predicted.label < 0, error_category[tables.predicted["label"]][predicted.first], predicted.label
    )

    overlaps = tables.overlaps[tables.overlaps["predicted"] >= 0]
    on_gt = overlaps["gt"] >= 0
    void = np.bincount(
        predicted.place[overlaps["predicted"][~on_gt]],
        weights=overlaps["pixels"][~on_gt],
        minlength=len(predicted.label),
    )
    pair_gt, pair_predicted, pixels = _merged_pairs(
        gt.place[overlaps["gt"][on_gt]],
        predicted.place[overlaps["predicted"][on_gt]],
        overlaps["pixels"][on_gt],
    )
    same = (gt.label[pair_gt] == predicted.label[pair_predicted]) & ~crowd[pair_gt]
    union = predicted.area[pair_predicted] + gt.area[pair_gt] - pixels - void[pair_predicted]
    iou = np.divide(pixels, union, out=np.zeros(len(pixels)), where=same & (union > 0))
    hit = iou > MIN_IOU
    missed = ~crowd
    missed[pair_gt[hit]] = False
    false = error_categories >= 0
    false[pair_predicted[hit]] = False
    ignored = void + _crowd_pixels(gt, crowd, error_categories, pair_gt, pair_predicted, pixels)
    false &= ~(ignored / np.maximum(predicted.area, 1) > 0.5)
    return PanopticMatches(
        num_things,
        tables.space.num_categories,
        gt.image[pair_gt[hit]],
        gt.label[pair_gt[hit]],
        iou[hit],
        gt.image[missed],
        gt.label[missed],
        predicted.image[false],
        error_categories[false],
    )


def match_segments_ignoring_void(tables: SegmentTables, category_of_cluster: np.ndarray) -> PanopticMatches:
    """Returns what matches, what was missed and what is false when void pixels of either map are no errors.

    Void pixels, of the ground truth or of the prediction, leave the unions; a segment of either map that lies more than half on
    void of the other is neither missed nor false. Crowds are segments like others. The stuff of one category in one image is one
    segment.

    Args:
        tables: any.
        category_of_cluster: int (K + S,), joint category label of each joint cluster label; a cluster with -1 is void.

    Source: torchmetrics' ``PanopticQuality`` with one void label for both maps, as CUPS uses it.
    """
    num_things = tables.space.categories.num_things
    label = category_of_cluster[tables.predicted["label"]]
    predicted = _Segments.of(tables.predicted["image"], label, tables.predicted["area"]).merged(label >= num_things)
    shown = np.append(label >= 0, False)[tables.overlaps["predicted"]]
    on_gt = tables.overlaps["gt"] >= 0
    rows, pixels = tables.overlaps, tables.overlaps["pixels"]
    area = np.bincount(rows["gt"][on_gt], weights=pixels[on_gt], minlength=len(tables.gt)).astype(np.int64)
    gt = _Segments.of(tables.gt["image"], tables.gt["label"], area).merged(tables.gt["label"] >= num_things)

    def void_pixels(segments: _Segments, column: str, chosen: np.ndarray) -> np.ndarray:
        places = segments.place[rows[column][chosen]]
        return np.bincount(places, weights=pixels[chosen], minlength=len(segments.label)).astype(np.int64)

    unlabeled = void_pixels(predicted, "predicted", shown & ~on_gt)
    unpredicted = void_pixels(gt, "gt", on_gt & ~shown)
    both = on_gt & shown
    pair_gt, pair_predicted, common = _merged_pairs(
        gt.place[rows["gt"][both]], predicted.place[rows["predicted"][both]], pixels[both]
    )
    same = gt.label[pair_gt] == predicted.label[pair_predicted]
    predicted_area, gt_area = predicted.area - unlabeled, gt.area - unpredicted
    union = predicted_area[pair_predicted] + gt_area[pair_gt] - common
    iou = np.where(same, common / np.maximum(union, 1), 0.0)
    hit = iou > MIN_IOU
    missed = (gt.area > 0) & (unpredicted <= 0.5 * gt.area)
    missed[pair_gt[hit]] = False
    false = (predicted.label >= 0) & (unlabeled <= 0.5 * predicted.area)
    false[pair_predicted[hit]] = False
    return PanopticMatches(
        num_things=num_things,
        num_categories=tables.space.num_categories,
        pair_image=gt.image[pair_gt[hit]],
        pair_label=gt.label[pair_gt[hit]],
        pair_iou=iou[hit],
        missed_image=gt.image[missed],
        missed_label=gt.label[missed],
        false_image=predicted.image[false],
        false_label=predicted.label[false],
    )


def panoptic_quality(matches: PanopticMatches, image_weights: np.ndarray | None = None) -> PanopticQuality:
    """Returns PQ, SQ and RQ of each category.

    Args:
        matches: of all images.
        image_weights: float (images,), how often each image counts (bootstrap); None counts each once.
    """

    def total(label: np.ndarray, image: np.ndarray, values: np.ndarray | float = 1.0) -> np.ndarray:
        weights = np.broadcast_to(values, label.shape)
        if image_weights is not None:
            weights = weights * image_weights[image]
        return np.bincount(label, weights=weights, minlength=matches.num_categories)

    hits = total(matches.pair_label, matches.pair_image)
    iou = total(matches.pair_label, matches.pair_image, matches.pair_iou)
    missed = total(matches.missed_label, matches.missed_image)
    false = total(matches.false_label, matches.false_image)
    size = hits + 0.5 * false + 0.5 * missed
    occurs = size > 0
    nothing = np.full(len(size), np.nan)
    sq = np.divide(iou, hits, out=np.where(occurs, 0.0, np.nan), where=hits > 0)
    return PanopticQuality(
        np.divide(iou, size, out=nothing.copy(), where=occurs),
        sq,
        np.divide(hits, size, out=nothing.copy(), where=occurs),
        matches.num_things,
    )


@dataclass(frozen=True)
class _Segments:
    """Segments after merging: ``place`` sends a row of the table to its segment, ``first`` a segment to its first row."""

    image: np.ndarray
    label: np.ndarray
    area: np.ndarray
    place: np.ndarray
    first: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, label: np.ndarray, area: np.ndarray) -> "_Segments":
        rows = np.arange(len(image))
        return cls(image, label, area, rows, rows)

    def merged(self, mergeable: np.ndarray) -> "_Segments":
        """Returns the segments, those with equal image and label among the ``mergeable`` being one."""
        label = self.label.astype(np.int64)
        own = np.arange(len(label)) + (1 << 62)  # above every (image, label) key
        key = np.where(mergeable, self.image.astype(np.int64) * (1 << 20) + label, own)
        _, first, place = np.unique(key, return_index=True, return_inverse=True)
        # Keep the order of the rows: which crowd is the last one of its image depends on it.
        order = np.argsort(first, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        first, place = first[order], rank[place.ravel()]
        area = np.bincount(place, weights=self.area, minlength=len(first)).astype(np.int64)
        return _Segments(self.image[first], self.label[first], area, place, first)


def _merged_pairs(
    first: np.ndarray, second: np.ndarray, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys, inverse = np.unique(first.astype(np.int64) << 32 | second, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=pixels, minlength=len(keys)).astype(np.int64)
    return keys >> 32, keys & 0xFFFFFFFF, sums


def _crowd_pixels(
    gt: _Segments,
    crowd: np.ndarray,
    error_categories: np.ndarray,
    pair_gt: np.ndarray,
    pair_predicted: np.ndarray,
    pixels: np.ndarray,
) -> np.ndarray:
    """Returns the pixels that each prediction shares with the crowd of its category; the last one listed, as panopticapi takes it."""
    rows = np.flatnonzero(crowd)
    key = gt.image[rows].astype(np.int64) * (1 << 20) + gt.label[rows]
    _, from_end = np.unique(key[::-1], return_index=True)
    last = np.zeros(len(crowd), bool)
    last[rows[len(rows) - 1 - from_end]] = True
    on_crowd = last[pair_gt] & (gt.label[pair_gt] == error_categories[pair_predicted])
    return np.bincount(pair_predicted[on_crowd], weights=pixels[on_crowd], minlength=len(error_categories))


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values))
