"""Average precision and recall from intersections over union, equal to pycocotools' arrays to the last bit.

Source: COCO's ``COCOeval`` (pycocotools), whose rules these are: detections of one image and category are taken by falling
score, each takes the free object with the largest IoU at or above the threshold (the last of equals, objects that count before
those that do not); crowds may be taken again and again and make a detection count for nothing, as does an object or an unmatched
detection outside the area range. Written here on columns: all images advance together, one detection of each at a time.
"""

from dataclasses import dataclass

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREA_RANGES = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}  # pixels
MAX_DETECTIONS = (1, 10, 100)  # of one image and category
_AREA_LIMITS = np.array(list(AREA_RANGES.values()), np.float64)


@dataclass(frozen=True)
class InstanceRows:
    """Detections, objects and their IoUs as columns.

    Attributes:
        detection_image, detection_label, detection_score, detection_area: (D,). Label -1 takes no part.
        detection_can_match: bool (D,); False for those that are false positives whatever they cover.
        object_image, object_label, object_area, object_crowd: (G,), in the annotation file's order within an image.
        pair_detection, pair_object, pair_iou: (P,), the pairs whose IoU is above 0.
        num_images: images; ``*_image`` are indices 0..num_images-1.
        num_labels: categories.
    """

    detection_image: np.ndarray
    detection_label: np.ndarray
    detection_score: np.ndarray
    detection_area: np.ndarray
    detection_can_match: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    object_area: np.ndarray
    object_crowd: np.ndarray
    pair_detection: np.ndarray
    pair_object: np.ndarray
    pair_iou: np.ndarray
    num_images: int
    num_labels: int


@dataclass(frozen=True)
class DetectionMatches:
    """Which detections match, by category and falling score; computed once, accumulated as often as wanted.

    Attributes:
        image, label, rank: int (D,), image, category, and 0-based rank among the detections of its image and category.
        matched, ignored: bool (areas, thresholds, D'), for the D' detections listed in ``rows`` only; all others are unmatched.
        rows: int (D',), ascending indices into the D detections.
        outside: bool (areas, D): whether the detection's area is outside the range.
        object_image, object_label: int (G,).
        object_ignored: bool (areas, G).
        max_detections: ascending.
        num_labels: categories.
    """

    image: np.ndarray
    label: np.ndarray
    rank: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    rows: np.ndarray
    outside: np.ndarray
    object_image: np.ndarray
    object_label: np.ndarray
    object_ignored: np.ndarray
    max_detections: tuple[int, ...]
    num_labels: int


@dataclass(frozen=True)
class PrecisionRecall:
    """pycocotools' arrays; -1 where a category has no object.

    Attributes:
        precision: float64 (thresholds, recalls, categories, areas, max detections).
        recall: float64 (thresholds, categories, areas, max detections).
        max_detections: what the last axis stands for.
    """

    precision: np.ndarray
    recall: np.ndarray
    max_detections: tuple[int, ...]

    def summary(self) -> dict[str, float]:
        """Returns AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl, 0..100; what no object defines is left out."""
        last = len(self.max_detections) - 1
        values = {
            "AP": self.precision[:, :, :, 0, last],
            "AP50": self.precision[0, :, :, 0, last],
            "AP75": self.precision[5, :, :, 0, last],
        }
        ranges = list(enumerate(AREA_RANGES))[1 : self.recall.shape[2]]
        values |= {f"AP{name}": self.precision[:, :, :, area, last] for area, name in ranges}
        values |= {f"AR{count}": self.recall[:, :, 0, index] for index, count in enumerate(self.max_detections)}
        values |= {f"AR{name}": self.recall[:, :, area, last] for area, name in ranges}
        return {name: 100 * float(v[v > -1].mean()) for name, v in values.items() if (v > -1).any()}

    def per_category_ap(self) -> np.ndarray:
        """Returns AP of each category over all thresholds, areas and the most detections, 0..1; NaN without objects."""
        precision = self.precision[:, :, :, 0, -1]
        return np.where(precision[0, 0] > -1, precision.mean(axis=(0, 1)), np.nan)


def match_detections(rows: InstanceRows, max_detections: tuple[int, ...] = MAX_DETECTIONS) -> DetectionMatches:
    """Returns which detections match which objects, for every threshold and area range.

    Args:
        rows: any.
        max_detections: ascending; those ranked beyond the last in their image and category are left out.
    """
    order, rank = _ranked(rows, max_detections[-1])
    place = np.full(len(rows.detection_label), -1, np.int64)
    place[order] = np.arange(len(order))
    label, image = rows.detection_label[order], rows.detection_image[order]
    object_ignored = rows.object_crowd | _outside(rows.object_area)
    pairs = _candidate_pairs(rows, place)
    matched, ignored, listed = _match_greedily(rows, pairs, place, image, label, object_ignored)
    return DetectionMatches(
        image=image,
        label=label,
        rank=rank,
        matched=matched,
        ignored=ignored,
        rows=listed,
        outside=_outside(rows.detection_area[order]),
        object_image=rows.object_image,
        object_label=rows.object_label,
        object_ignored=object_ignored,
        max_detections=max_detections,
        num_labels=rows.num_labels,
    )


def accumulate(
    matches: DetectionMatches,
    image_weights: np.ndarray | None = None,
    *,
    areas: tuple[str, ...] = tuple(AREA_RANGES),
    summary_only: bool = False,
) -> PrecisionRecall:
    """Returns precision and recall of every category, area range and number of detections.

    Args:
        matches: of all images.
        image_weights: float (images,), how often each image counts (bootstrap); None counts each once.
        areas: the first so many keys of :data:`AREA_RANGES`.
        summary_only: leaves -1 where :meth:`PrecisionRecall.summary` does not look: precision for fewer than the most detections,
            and both for area ranges with them.
    """
    num_areas, num_max = len(areas), len(matches.max_detections)
    shape = (len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), matches.num_labels, num_areas, num_max)
    precision, recall = np.full(shape, -1.0), np.full((shape[0], *shape[2:]), -1.0)
    object_weight = 1.0 if image_weights is None else image_weights[matches.object_image]
    detection_weight = np.ones(len(matches.image)) if image_weights is None else image_weights[matches.image]
    counts = np.array(
        [
            np.bincount(matches.object_label, weights=~ignored * object_weight, minlength=matches.num_labels)
            for ignored in matches.object_ignored[:num_areas]
        ]
    )
    starts = np.searchsorted(matches.label, np.arange(matches.num_labels + 1))
    row_starts = np.searchsorted(matches.rows, starts)
    for label in np.flatnonzero(counts.any(axis=0)):
        span = slice(starts[label], starts[label + 1])
        row_span = slice(row_starts[label], row_starts[label + 1])
        for most, limit in enumerate(matches.max_detections):
            kept = matches.rank[span] < limit
            partly = summary_only and most < num_max - 1
            for area in np.flatnonzero(counts[: 1 if partly else None, label]).tolist():
                curve = _Curve.of(matches, span, row_span, kept, area, detection_weight)
                recall[:, label, area, most] = curve.recalls(counts[area, label])
                if not partly:
                    precision[:, :, label, area, most] = curve.precisions(counts[area, label])
    return PrecisionRecall(precision, recall, matches.max_detections)


@dataclass(frozen=True)
class _Curve:
    """Precision and recall of one category, area range and number of detections.

    Only matched detections are looked at one by one: between two of them precision falls, so that neither the highest precision
    beyond a recall nor the first place that reaches it lies there.
    """

    candidate_false: np.ndarray  # running weight of detections that are false unless matched
    position: np.ndarray  # of the listed detections among the category's
    listed_false: np.ndarray  # weight that each listed detection adds to candidate_false
    weight: np.ndarray  # of each listed detection
    matched: np.ndarray  # bool (thresholds, listed)
    ignored: np.ndarray  # bool (thresholds, listed)

    @classmethod
    def of(
        cls, matches: DetectionMatches, span: slice, row_span: slice, kept: np.ndarray, area: int, weight: np.ndarray
    ) -> "_Curve":
        counted = kept & ~matches.outside[area, span]
        position = matches.rows[row_span] - span.start
        use = kept[position]
        position = position[use]
        weight = weight[span]
        return cls(
            np.cumsum(counted * weight),
            position,
            (counted * weight)[position],
            weight[position],
            matches.matched[area][:, row_span][:, use],
            matches.ignored[area][:, row_span][:, use],
        )

    def recalls(self, num_objects: float) -> np.ndarray:
        """Returns the recall that all detections reach, (thresholds,)."""
        return (self._true() * self.weight).sum(axis=1) / num_objects

    def precisions(self, num_objects: float) -> np.ndarray:
        """Returns the highest precision at or beyond each recall, (thresholds, recalls)."""
        precision = np.zeros((len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS)))
        if not len(self.position):
            return precision
        true = self._true()
        hits = np.cumsum(true * self.weight, axis=1)
        false = self.candidate_false[self.position] - np.cumsum(self.matched * self.listed_false, axis=1)
        at_hits = np.where(true, hits / (false + hits + np.spacing(1)), 0.0)
        best_beyond = np.maximum.accumulate(at_hits[:, ::-1], axis=1)[:, ::-1]
        for t, reached in enumerate(hits / num_objects):
            first = np.searchsorted(reached, RECALL_THRESHOLDS, side="left")
            inside = first < len(reached)
            precision[t, inside] = best_beyond[t, first[inside]]
        return precision

    def _true(self) -> np.ndarray:
        return self.matched & ~self.ignored & (self.weight > 0)


def _ranked(rows: InstanceRows, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the detections that take part, by category and falling score, and each one's rank in its image and category."""
    index = np.flatnonzero(rows.detection_label >= 0)
    image, label, score = rows.detection_image[index], rows.detection_label[index], rows.detection_score[index]
    by_cell = np.lexsort((-score, image, label))
    index, image, label = index[by_cell], image[by_cell], label[by_cell]
    new_cell = np.ones(len(index), bool)
    new_cell[1:] = (image[1:] != image[:-1]) | (label[1:] != label[:-1])
    starts = np.flatnonzero(new_cell)
    rank = np.arange(len(index)) - np.repeat(starts, np.diff(np.append(starts, len(index))))
    kept = rank < most
    index, rank, label = index[kept], rank[kept], label[kept]
    by_score = np.lexsort((-rows.detection_score[index], label))  # stable: equals stay by image, then rank
    return index[by_score], rank[by_score]


def _candidate_pairs(rows: InstanceRows, place: np.ndarray) -> np.ndarray:
    """Returns the pairs that can match at some threshold, by detection and object."""
    detection, target = rows.pair_detection, rows.pair_object
    kept = (rows.pair_iou >= IOU_THRESHOLDS[0]) & (place[detection] >= 0)
    kept &= rows.detection_label[detection] == rows.object_label[target]
    # One that cannot match may still lie in a crowd, which makes it count for nothing.
    kept &= rows.detection_can_match[detection] | rows.object_crowd[target]
    pairs = np.flatnonzero(kept)
    return pairs[np.lexsort((target[pairs], place[detection[pairs]]))]


def _match_greedily(
    rows: InstanceRows,
    pairs: np.ndarray,
    place: np.ndarray,
    image: np.ndarray,
    label: np.ndarray,
    object_ignored: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ``matched`` and ``ignored``, bool (areas, thresholds, listed), and the listed detections, ascending."""
    pair_place = place[rows.pair_detection[pairs]]
    listed, listed_of_pair = np.unique(pair_place, return_inverse=True)
    num_areas, num_thresholds = len(object_ignored), len(IOU_THRESHOLDS)
    matched = np.zeros((num_areas, num_thresholds, len(listed)), bool)
    ignored = np.zeros_like(matched)
    taken = np.zeros((num_areas, num_thresholds, len(rows.object_label)), bool)
    turn = _turns(image[listed], label[listed])[listed_of_pair.ravel()] if len(listed) else np.zeros(0, int)
    by_turn = np.argsort(turn, kind="stable")
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[None, :, None]
    bounds = np.searchsorted(turn[by_turn], np.arange(turn.max(initial=-1) + 2))
    for begin, end in zip(bounds[:-1], bounds[1:]):
        now = by_turn[begin:end]
        target, iou, detection = rows.pair_object[pairs[now]], rows.pair_iou[pairs[now]], listed_of_pair.ravel()[now]
        starts = np.flatnonzero(np.append(True, detection[1:] != detection[:-1]))
        eligible = (~taken[:, :, target] | rows.object_crowd[target]) & (iou >= limits)
        counts_not = object_ignored[:, None, target]
        choice = _largest(eligible & ~counts_not, iou, starts)
        choice = np.where(choice >= 0, choice, _largest(eligible & counts_not, iou, starts))
        area, threshold, column = np.nonzero(choice >= 0)
        chosen = target[choice[area, threshold, column]]
        which = detection[starts][column]
        matched[area, threshold, which] = True
        ignored[area, threshold, which] = object_ignored[area, chosen]
        taken[area, threshold, chosen] = True
    return matched, ignored, listed


def _turns(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns each detection's place in the queue of its image and category; the detections come in queue order."""
    key = image.astype(np.int64) << 32 | label
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    turn = np.empty(len(key), np.int64)
    turn[order] = np.arange(len(key)) - np.repeat(starts, np.diff(np.append(starts, len(key))))
    return turn


def _largest(eligible: np.ndarray, iou: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns the row with the largest IoU of each detection, (areas, thresholds, detections), the last of equals; -1 for none."""
    value = np.where(eligible, iou, -1.0)
    best = np.maximum.reduceat(value, starts, axis=2)
    at_best = eligible & (value == np.repeat(best, np.diff(np.append(starts, len(iou))), axis=2))
    return np.maximum.reduceat(np.where(at_best, np.arange(len(iou)), -1), starts, axis=2)


def _outside(area: np.ndarray) -> np.ndarray:
    return (area < _AREA_LIMITS[:, :1]) | (area > _AREA_LIMITS[:, 1:])
