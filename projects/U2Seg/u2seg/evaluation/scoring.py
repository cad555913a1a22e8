"""Scores of segment tables: settings and tables in, scores of every task under every protocol out."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from torchvision.ops import nms

from u2seg.config import add_u2seg_config
from u2seg.data.datasets.coco_supercategories import stuff_supercategories
from u2seg.evaluation.matching.assignment import NO_CATEGORY
from u2seg.evaluation.matching.label_map import (
    BOUNDARY_SOURCES,
    PIXEL_SOURCES,
    LabelMap,
    PixelRows,
    SemanticMap,
    load_label_map,
)
from u2seg.evaluation.matching.protocols import Protocol, build_protocol
from u2seg.evaluation.metrics.average_precision import (
    MAX_DETECTIONS,
    DetectionMatches,
    InstanceRows,
    PrecisionRecall,
    accumulate,
    match_detections,
)
from u2seg.evaluation.metrics.panoptic_quality import PanopticMatches, panoptic_quality
from u2seg.evaluation.metrics.semantic_scores import SemanticScores, boundary_iou, confusion_matrix, semantic_scores
from u2seg.evaluation.tables.segment_tables import (
    SegmentTables,
    TableSpace,
    empty_tables,
    load_tables,
    with_stuff_groups,
)

CLASS_AGNOSTIC = "class_agnostic"  # the row of scores that need no protocol
KINDS = ("box", "mask")


# Detectron2's names of the tasks.
TASK_OF_KIND = {"box": "bbox", "mask": "segm"}
TASKS = ("panoptic_seg", *TASK_OF_KIND.values(), "sem_seg")
Scores = dict[str, dict[str, dict[str, float]]]
"""Task -> protocol -> metric -> 0..100."""


@dataclass(frozen=True)
class ScoreSettings:
    """What is scored and how; :meth:`of_config` reads it from the keys below ``TEST``, which document each.

    Attributes:
        protocols: names in PROTOCOL_REGISTRY.
        fit_on: file of tables on which label maps are fitted; empty for the scored ones, as the literature does.
        label_map: file of a saved label map; each protocol then only lends its scoring rules.
        stuff_supercategories: whether COCO's stuff is scored as its 15 supercategories.
        nms_across_clusters: box IoU of the suppression across clusters of one category; 0 for none.
        bootstrap: resamples of the images; 0 for none.
        max_detections: numbers of detections of an image and category for AR, ascending; AP uses the last.
    """

    protocols: tuple[str, ...]
    fit_on: str | Path = ""
    label_map: str | Path = ""
    stuff_supercategories: bool = True
    nms_across_clusters: float = 0.0
    bootstrap: int = 0
    max_detections: tuple[int, ...] = MAX_DETECTIONS

    def __post_init__(self) -> None:
        if self.fit_on and self.label_map:
            raise ValueError(
                f"either label maps are fitted on {self.fit_on} or the saved one of {self.label_map} is used, not both; leave one "
                "of fit_on (TEST.LABEL_MAP.FIT_ON, --fit-on) and label_map (TEST.LABEL_MAP.FILE, --label-map) empty"
            )
        if not 0 <= self.nms_across_clusters <= 1:
            raise ValueError(
                "nms_across_clusters (TEST.NMS_ACROSS_CLUSTERS) must be an IoU in 0..1, 0 for none, got "
                f"{self.nms_across_clusters}"
            )
        if self.bootstrap < 0 or self.bootstrap != int(self.bootstrap):
            raise ValueError(
                f"bootstrap (TEST.BOOTSTRAP) must be a number of resamples, 0 for none, got {self.bootstrap}"
            )

    def row_name(self, protocol: str) -> str:
        """Returns the name of a protocol's row of scores: it names the saved label map where one is used."""
        return f"{protocol} (map {Path(self.label_map).name})" if self.label_map else protocol

    @classmethod
    def of_config(cls, cfg: CfgNode | None = None) -> "ScoreSettings":
        """Returns the settings of a configuration, or the defaults; ``fit_on`` as the configuration names it."""
        if cfg is None:
            cfg = get_cfg()
            add_u2seg_config(cfg)
        return cls(
            protocols=tuple(cfg.TEST.PROTOCOLS),
            fit_on=cfg.TEST.LABEL_MAP.FIT_ON,
            label_map=cfg.TEST.LABEL_MAP.FILE,
            stuff_supercategories=cfg.TEST.STUFF_SUPERCATEGORIES,
            nms_across_clusters=cfg.TEST.NMS_ACROSS_CLUSTERS,
            bootstrap=cfg.TEST.BOOTSTRAP,
            # LVIS: 300
            max_detections=tuple(sorted({*MAX_DETECTIONS, max(MAX_DETECTIONS[-1], cfg.TEST.DETECTIONS_PER_IMAGE)})),
        )


@dataclass(frozen=True)
class Evaluation:
    """The scores of one dataset.

    Attributes:
        space: what was scored; its categories are grouped if the settings asked for it.
        results: ``panoptic_seg``, ``bbox``, ``segm`` and ``sem_seg`` -> row -> metric -> 0..100. A row is a protocol, or the
            :meth:`ScoreSettings.row_name` of one with a saved label map.
        label_maps: protocol -> what it fitted; empty where a saved label map was used.
        notes: protocol -> counts of clusters and segments, for the record beside the scores.
        per_category: row -> category -> metric -> 0..100.
        intervals: as ``results``, with [low, high] of 95 % intervals over the images, the label maps held fixed; empty without
            bootstrap.
    """

    space: TableSpace
    results: Scores
    label_maps: dict[str, LabelMap] = field(default_factory=dict)
    notes: dict[str, dict] = field(default_factory=dict)
    per_category: dict[str, dict] = field(default_factory=dict)
    intervals: dict[str, dict] = field(default_factory=dict)


def evaluate_tables(tables: SegmentTables, settings: ScoreSettings) -> Evaluation:
    """Returns the scores of tables under each protocol of the settings.

    Raises:
        UnknownNameError: an unknown protocol.
        ValueError: the tables or the label map on which to fit belong to other clusters or categories, or there is no image.
    """
    if not len(tables.images):
        raise ValueError(f"the tables of {tables.space.dataset!r} hold no image; there is nothing to score")
    tables = _grouped(tables, settings)
    fit_on = _fitting_tables(tables, settings)
    given = saved_label_map(settings, tables.space) if settings.label_map else None
    evaluation = Evaluation(tables.space, {task: {} for task in TASKS})
    scored = {}
    for name in settings.protocols:
        protocol = build_protocol(name)
        label_map = given or protocol.fit(fit_on)
        row = settings.row_name(name)
        scored[row] = _matched(tables, label_map, protocol, settings)
        if given is None:
            evaluation.label_maps[name] = label_map
        evaluation.notes[name] = cluster_counts(tables, label_map)
        evaluation.per_category[row] = scored[row].per_category(tables.space)
    scored[CLASS_AGNOSTIC] = _Matched(instance=_class_agnostic(tables, settings))
    for name, matched in scored.items():
        _fill(evaluation.results, name, matched.scores())
    if settings.bootstrap:
        samples = [_resampled(scored, weights) for weights in _resamples(len(tables.images), settings.bootstrap)]
        evaluation.intervals.update(_intervals(samples, evaluation.results))
    return evaluation


def detectron2_results(results: Scores, protocol: str) -> dict[str, dict[str, float]]:
    """Returns scores in the form of Detectron2's evaluators: task -> metric -> 0..100.

    A task's own key (``panoptic_seg``, ``bbox``, ``segm``, ``sem_seg``) holds one protocol's scores, so that
    ``TEST.EXPECTED_RESULTS`` and TensorBoard read as everywhere else; ``bbox/cups`` those of another one.

    Args:
        results: as in :class:`Evaluation`.
        protocol: the one whose scores get the task's own key.
    """
    return {
        task if name == protocol else f"{task}/{name}": row
        for task, rows in results.items()
        for name, row in rows.items()
    }


def cluster_counts(tables: SegmentTables, label_map: LabelMap) -> dict[str, int]:
    """Returns how many clusters and segments occur, and how many of them have no category."""
    used = np.unique(tables.predicted["label"])
    unmatched = label_map.panoptic < 0
    return {
        "segments": len(tables.predicted),
        "unmatched_segments": int(unmatched[tables.predicted["label"]].sum()),
        "clusters_in_use": len(used),
        "unmatched_clusters_in_use": int(unmatched[used].sum()),
        "unmatched_clusters": int(unmatched.sum()),
        "clusters": len(unmatched),
    }


def instance_rows(
    tables: SegmentTables,
    kind: str,
    labels: np.ndarray,
    can_match: np.ndarray,
    object_labels: np.ndarray,
    num_labels: int,
) -> InstanceRows:
    """Returns the columns for AP of ``kind`` "box" or "mask", with detections and objects labeled as given."""
    boxes = tables.detections["box_xywh"]
    area = {"box": boxes[:, 2] * boxes[:, 3], "mask": tables.detections["mask_area"]}[kind]
    overlapping = tables.ious[tables.ious[kind] > 0]
    return InstanceRows(
        detection_image=tables.detections["image"],
        detection_label=labels,
        detection_score=tables.detections["score"],
        detection_area=area,
        detection_can_match=can_match,
        object_image=tables.objects["image"],
        object_label=object_labels,
        object_area=tables.objects["area"],
        object_crowd=tables.objects["crowd"],
        pair_detection=overlapping["detection"],
        pair_object=overlapping["object"],
        pair_iou=overlapping[kind],
        num_images=len(tables.images),
        num_labels=num_labels,
    )


def suppress_across_clusters(tables: SegmentTables, labels: np.ndarray, max_iou: float) -> np.ndarray:
    """Returns the labels of the detections, -1 for those that non-maximum suppression within an image and label removes.

    A detector suppresses within each of its classes; clusters that stand for one category leave duplicates.

    Args:
        tables: any.
        labels: int (detections,), -1 takes no part.
        max_iou: box IoU above which the lower-scored one goes.
    """
    kept = np.full(len(labels), NO_CATEGORY, np.int64)
    boxes = tables.detections["box_xywh"].copy()
    boxes[:, 2:] += boxes[:, :2]
    span = boxes.max(initial=0) + 1
    boxes += (labels * span)[:, None]  # boxes of different labels never meet
    starts = np.searchsorted(tables.detections["image"], np.arange(len(tables.images) + 1))
    for begin, end in zip(starts[:-1], starts[1:]):
        rows = begin + np.flatnonzero(labels[begin:end] >= 0)
        scores = torch.from_numpy(tables.detections["score"][rows].copy())
        rows = rows[nms(torch.from_numpy(boxes[rows]), scores, max_iou).numpy()]
        kept[rows] = labels[rows]
    return kept


def semantic_confusion(rows: PixelRows, semantic: SemanticMap, image_weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the confusion of the semantic classes, float64 (classes + 1, classes); the last row is "none"."""
    # The last entry of each look-up serves label -1.
    gt = np.append(semantic.gt, NO_CATEGORY)[rows.gt]
    predicted = np.append(semantic.labels, NO_CATEGORY)[rows.predicted]
    weights = None if image_weights is None else image_weights[rows.image]
    confusion = confusion_matrix(predicted, gt, rows.pixels, len(semantic.names), weights)
    if semantic.unmatched_vanish:
        confusion[-1] = 0
    return confusion


@dataclass(frozen=True)
class _Matched:
    """What one row of the table is computed from: everything is matched, only sums over images are left to take."""

    panoptic: PanopticMatches | None = None
    # Image of each predicted segment, and whether it has no category.
    unmatched_segments: tuple[np.ndarray, np.ndarray] | None = None
    instance: dict[str, DetectionMatches] = field(default_factory=dict)
    semantic: SemanticMap | None = None
    pixels: PixelRows | None = None
    boundary: PixelRows | None = None

    @cached_property
    def _curves(self) -> dict[str, PrecisionRecall]:
        return {kind: accumulate(matches, summary_only=True) for kind, matches in self.instance.items()}

    def _resampled_curves(self, weights: np.ndarray) -> dict[str, PrecisionRecall]:
        """Returns the curves with images weighted, without the area ranges, which would take most of the time."""
        return {
            kind: accumulate(matches, weights, areas=("all",), summary_only=True)
            for kind, matches in self.instance.items()
        }

    def scores(self, weights: np.ndarray | None = None) -> dict[str, dict[str, float]]:
        """Returns task -> metric -> 0..100; ``weights`` (images,) say how often each counts, and leave out S, M and L."""
        panoptic: dict[str, float] = {}
        semantic: dict[str, float] = {}
        instances: dict[str, dict[str, float]] = {}
        if self.panoptic is not None:
            panoptic = panoptic_quality(self.panoptic, weights).summary()
        if self.unmatched_segments is not None:
            image, unmatched = self.unmatched_segments
            if len(image):
                share = np.average(unmatched, weights=None if weights is None else weights[image] + 1e-300)
                panoptic["unmatched_segments"] = 100 * float(share)
        for kind, curves in (self._curves if weights is None else self._resampled_curves(weights)).items():
            instances[TASK_OF_KIND[kind]] = curves.summary()
        if self.pixels is not None and self.semantic is not None:
            semantic = _semantic_scores(self.pixels, self.semantic, weights).summary()
            if self.boundary is not None and semantic:
                semantic["boundary_IoU"] = 100 * boundary_iou(*_boundary_sums(self.boundary, self.semantic, weights))
        return {"panoptic_seg": panoptic, **instances, "sem_seg": semantic}

    def per_category(self, space: TableSpace) -> dict[str, dict[str, float]]:
        """Returns category -> metric -> 0..100; what no ground truth defines is left out."""
        rows: dict[str, dict[str, float]] = {}

        def add(names: tuple[str, ...], metric: str, values: np.ndarray) -> None:
            for name, value in zip(names, values):
                if np.isfinite(value):
                    rows.setdefault(name, {})[metric] = 100 * float(value)

        if self.panoptic is not None:
            quality = panoptic_quality(self.panoptic)
            for metric, values in (("PQ", quality.pq), ("SQ", quality.sq), ("RQ", quality.rq)):
                add(space.category_names, metric, values)
        for kind, curves in self._curves.items():
            add(space.categories.thing_names, f"{TASK_OF_KIND[kind]}_AP", curves.per_category_ap())
        if self.pixels is not None and self.semantic is not None:
            scores = _semantic_scores(self.pixels, self.semantic)
            add(self.semantic.names, "IoU", scores.iou)
            add(self.semantic.names, "ACC", scores.accuracy)
        return rows


def _semantic_scores(rows: PixelRows, semantic: SemanticMap, weights: np.ndarray | None = None) -> SemanticScores:
    every = np.ones(len(semantic.names), bool) if semantic.absent_classes_count else None
    return semantic_scores(semantic_confusion(rows, semantic, weights), every)


def _boundary_sums(
    rows: PixelRows, semantic: SemanticMap, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns boundary pixels of each class: of both maps, of the ground truth, of the prediction; float64 (classes,) each."""
    gt = np.append(semantic.gt, NO_CATEGORY)[rows.gt]
    predicted = np.append(semantic.labels, NO_CATEGORY)[rows.predicted]
    pixels = rows.pixels * (1.0 if weights is None else weights[rows.image])
    total = partial(np.bincount, minlength=len(semantic.names))
    both = (gt >= 0) & (gt == predicted)
    return (
        total(gt[both], weights=pixels[both]),
        total(gt[gt >= 0], weights=pixels[gt >= 0]),
        total(predicted[predicted >= 0], weights=pixels[predicted >= 0]),
    )


def _matched(tables: SegmentTables, label_map: LabelMap, protocol: Protocol, settings: ScoreSettings) -> _Matched:
    tasks, semantic = set(tables.space.tasks), label_map.semantic
    panoptic = unmatched = pixels = boundary = None
    if protocol.scores_segments and "panoptic" in tasks:
        panoptic = protocol.match_segments(tables, label_map)
        unmatched = tables.predicted["image"], label_map.panoptic[tables.predicted["label"]] < 0
    if semantic is not None and {"panoptic": "panoptic", "head": "semantic"}[semantic.source] in tasks:
        pixels = PIXEL_SOURCES[semantic.source](tables)
        boundary = BOUNDARY_SOURCES[semantic.source](tables) if "boundary" in tasks else None
    instance = _class_aware(tables, label_map, settings) if protocol.scores_segments else {}
    return _Matched(panoptic, unmatched, instance, semantic, pixels, boundary)


def _class_aware(tables: SegmentTables, label_map: LabelMap, settings: ScoreSettings) -> dict[str, DetectionMatches]:
    labels = label_map.panoptic[tables.detections["label"]]
    can_match = labels >= 0
    error_categories = label_map.error_category[tables.detections["label"]]
    error_categories[error_categories >= tables.space.categories.num_things] = (
        NO_CATEGORY  # boxes of stuff are not scored
    )
    labels = np.where(can_match, labels, error_categories)
    if settings.nms_across_clusters:
        labels = suppress_across_clusters(tables, labels, settings.nms_across_clusters)
    count = tables.space.categories.num_things
    return {
        kind: match_detections(
            instance_rows(tables, kind, labels, can_match, tables.objects["label"], count), settings.max_detections
        )
        for kind in KINDS
        if kind in tables.space.tasks
    }


def _class_agnostic(tables: SegmentTables, settings: ScoreSettings) -> dict[str, DetectionMatches]:
    """Returns the matches with every cluster and every category taken as one, as CutLER scores."""
    labels, objects = np.zeros(len(tables.detections), np.int64), np.zeros(len(tables.objects), np.int64)
    return {
        kind: match_detections(instance_rows(tables, kind, labels, labels == 0, objects, 1), settings.max_detections)
        for kind in KINDS
        if kind in tables.space.tasks
    }


def saved_label_map(settings: ScoreSettings, space: TableSpace) -> LabelMap:
    """Returns the label map of the settings; ``space`` is of the tables, grouped or not.

    Raises:
        FileNotFoundError: with the path.
        ValueError: it belongs to other clusters or categories.
    """
    return load_label_map(settings.label_map, _grouped(empty_tables(space), settings).space)


def _grouped(tables: SegmentTables, settings: ScoreSettings) -> SegmentTables:
    groups = stuff_supercategories(tables.space.categories) if settings.stuff_supercategories else None
    return with_stuff_groups(tables, groups) if groups else tables


def _fitting_tables(tables: SegmentTables, settings: ScoreSettings) -> SegmentTables:
    if not settings.fit_on:
        return tables
    fit_on = _grouped(load_tables(settings.fit_on), settings)
    scored = tables.record.get("weights_sha256")
    if scored and scored != fit_on.record.get("weights_sha256"):
        raise ValueError(
            f"label maps for {tables.space.dataset!r} cannot be fitted on {settings.fit_on}: it was made with "
            f"{_named_weights(fit_on.record)}, and {_named_weights(tables.record)} are scored here. Score "
            f"{fit_on.space.dataset!r} again with these weights: "
            f"put it before {tables.space.dataset!r} in DATASETS.TEST"
        )
    for what in ("num_things", "num_stuff", "categories"):
        own, other = getattr(tables.space, what), getattr(fit_on.space, what)
        if own != other:
            raise ValueError(
                f"label maps for {tables.space.dataset!r} cannot be fitted on {settings.fit_on} (dataset "
                f"{fit_on.space.dataset!r}): {what} is {own} here and {other} there; both must come from one model and one set of "
                "categories"
            )
    return fit_on


def _named_weights(record: dict) -> str:
    """Returns the weights of a record in words."""
    digest = record.get("weights_sha256")
    return f"{record.get('weights')} (SHA-256 {digest[:12]})" if digest else "unknown weights"


def _fill(results: Scores, name: str, rows: dict[str, dict]) -> None:
    for task, row in rows.items():
        if row:
            results.setdefault(task, {})[name] = row


def _resamples(num_images: int, count: int) -> Iterator[np.ndarray]:
    """Yields ``count`` weights (images,): how often each image is in a sample with replacement; the same at every call."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield np.bincount(generator.integers(0, num_images, num_images), minlength=num_images).astype(np.float64)


def _resampled(scored: dict[str, _Matched], weights: np.ndarray) -> dict[str, dict]:
    return {name: matched.scores(weights) for name, matched in scored.items()}


def _intervals(samples: list[dict], scores: Scores) -> dict[str, dict]:
    """Returns [low, high] for every score: the central 95 % of the resamples, moved so that their mean lies on the score.

    A resample lacks some of the rare categories, which moves every mean over categories; only the spread is of interest.
    """
    intervals: dict[str, dict] = {}
    for task, rows in scores.items():
        for name, row in rows.items():
            for metric, score in row.items():
                values = [v for sample in samples if (v := sample[name][task].get(metric)) is not None]
                if values:
                    low, high = np.percentile(values, [2.5, 97.5]) - np.mean(values) + score
                    bounds = [max(0.0, float(low)), min(100.0, float(high))]
                    intervals.setdefault(task, {}).setdefault(name, {})[metric] = bounds
    return intervals
