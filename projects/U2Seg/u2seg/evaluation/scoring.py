"""Scores of segment tables under a protocol: one function for each task, and one for all of them."""

from dataclasses import dataclass, field

import numpy as np

from u2seg.evaluation.average_precision import InstanceRows, accumulate, match_detections
from u2seg.evaluation.label_map import PIXEL_SOURCES, LabelMap, SemanticMap
from u2seg.evaluation.matching import NO_CATEGORY
from u2seg.evaluation.panoptic_quality import match_segments, panoptic_quality
from u2seg.evaluation.protocols import build_protocol
from u2seg.evaluation.semantic_scores import confusion_matrix, semantic_scores
from u2seg.evaluation.tables import SegmentTables

CLASS_AGNOSTIC = "class_agnostic"  # the row of scores that need no protocol


class Scores(dict):
    """A nested dict of scores that Detectron2's own tools can use: they print its rows and look its metrics up by path.

    ``print_csv_format`` formats every value as a number, and ``verify_results`` asks a task for one metric by name; with plain
    nested dicts the first raises and the second finds nothing. Here a row formats as its numbers, and
    ``scores["panoptic"].get("hungarian/PQ")`` is what ``TEST.EXPECTED_RESULTS`` reaches.
    """

    def __format__(self, spec: str) -> str:
        return " ".join(f"{key}={format(value, spec)}" for key, value in self.items())

    def get(self, key, default=None):
        """Returns the value at a key or at a path of keys joined by "/"; ``default`` if there is none."""
        if key in self or not isinstance(key, str) or "/" not in key:
            return super().get(key, default)
        first, rest = key.split("/", 1)
        inner = super().get(first)
        return inner.get(rest, default) if isinstance(inner, Scores) else default


@dataclass(frozen=True)
class Evaluation:
    """The scores of one data set.

    Attributes:
        results: ``panoptic``, ``instance`` and ``semantic`` -> protocol -> metric -> 0..100.
        label_maps: protocol -> what it fitted.
        notes: protocol -> counts of clusters and segments, for the record beside the scores.
    """

    results: Scores
    label_maps: dict[str, LabelMap] = field(default_factory=dict)
    notes: dict[str, dict] = field(default_factory=dict)


def evaluate_tables(
    tables: SegmentTables, protocols: list[str], fit_on: SegmentTables | None = None, given: LabelMap | None = None
) -> Evaluation:
    """Returns the scores of tables under each protocol.

    Args:
        tables: of the scored data set.
        protocols: names in :data:`u2seg.evaluation.PROTOCOL_REGISTRY`.
        fit_on: tables on which the label maps are fitted; None for the scored ones, as the literature does.
        given: a label map to use instead of fitting one; each protocol then only lends its scoring rules.
    """
    results = Scores(panoptic=Scores(), instance=Scores(), semantic=Scores())
    evaluation = Evaluation(results)
    for name in protocols:
        protocol = build_protocol(name)
        label_map = given or protocol.fit(tables if fit_on is None else fit_on)
        scores = score_tables(tables, label_map, merge_stuff=protocol.merge_stuff)
        for task, row in scores.items():
            if row:
                results[task][name] = Scores(row)
        evaluation.label_maps[name] = label_map
        evaluation.notes[name] = cluster_counts(tables, label_map)
    agnostic = score_class_agnostic(tables)
    if agnostic:
        results["instance"][CLASS_AGNOSTIC] = Scores(agnostic)
    return evaluation


def score_tables(
    tables: SegmentTables, label_map: LabelMap, *, merge_stuff: bool = True
) -> dict[str, dict[str, float]]:
    """Returns task -> metric -> 0..100 under a label map; tasks that the tables do not allow are empty."""
    return {
        "panoptic": score_panoptic(tables, label_map, merge_stuff=merge_stuff),
        "instance": score_instances(tables, label_map),
        "semantic": score_semantic(tables, label_map.semantic),
    }


def score_panoptic(tables: SegmentTables, label_map: LabelMap, *, merge_stuff: bool = True) -> dict[str, float]:
    """Returns PQ, SQ, RQ over all categories, things (``_th``) and stuff (``_st``), and the share of unmatched segments."""
    if "panoptic" not in tables.space.tasks:
        return {}
    matches = match_segments(tables, label_map.panoptic, label_map.charged_to, merge_stuff=merge_stuff)
    scores = panoptic_quality(matches).summary()
    if len(tables.predicted):
        scores["unmatched_segments"] = 100 * float(np.mean(label_map.panoptic[tables.predicted["label"]] < 0))
    return scores


def score_instances(tables: SegmentTables, label_map: LabelMap) -> dict[str, float]:
    """Returns COCO's AP and AR for boxes (``box_``) and masks (``mask_``), detections carrying the category of their cluster."""
    labels = label_map.panoptic[tables.detections["label"]]
    charged = label_map.charged_to[tables.detections["label"]]
    can_match = labels >= 0
    return _instance_scores(
        tables,
        np.where(can_match, labels, charged),
        can_match,
        tables.objects["label"],
        tables.space.categories.num_things,
    )


def score_class_agnostic(tables: SegmentTables) -> dict[str, float]:
    """Returns COCO's AP and AR with every cluster and every category taken as one, as CutLER scores."""
    everything = np.zeros(len(tables.detections), np.int64)
    return _instance_scores(
        tables, everything, np.ones(len(everything), bool), np.zeros(len(tables.objects), np.int64), 1
    )


def score_semantic(tables: SegmentTables, semantic: SemanticMap | None) -> dict[str, float]:
    """Returns mIoU, fwIoU, mean and total pixel accuracy."""
    if semantic is None or not {"panoptic", "semantic"} & set(tables.space.tasks):
        return {}
    return semantic_scores(semantic_confusion(tables, semantic)).summary()


def semantic_confusion(
    tables: SegmentTables, semantic: SemanticMap, image_weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns the confusion of the semantic classes, float64 (classes + 1, classes); the last row is "none"."""
    rows = PIXEL_SOURCES[semantic.source](tables)
    # The last entry of each look-up serves label -1.
    truth = np.append(semantic.truth, NO_CATEGORY)[rows.truth]
    predicted = np.append(semantic.labels, NO_CATEGORY)[rows.predicted]
    weights = None if image_weights is None else image_weights[rows.image]
    confusion = confusion_matrix(predicted, truth, rows.pixels, len(semantic.names), weights)
    if semantic.unmatched_vanish:
        confusion[-1] = 0
    return confusion


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
    """Returns the columns for AP of ``kind`` "box" or "mask", with detections and objects labelled as given."""
    boxes = tables.detections["box_xywh"]
    area = {"box": boxes[:, 2] * boxes[:, 3], "mask": tables.detections["mask_area"]}[kind]
    overlapping = tables.ious[tables.ious[kind] > 0]
    return InstanceRows(
        tables.detections["image"],
        labels,
        tables.detections["score"],
        area,
        can_match,
        tables.objects["image"],
        object_labels,
        tables.objects["area"],
        tables.objects["crowd"],
        overlapping["detection"],
        overlapping["object"],
        overlapping[kind],
        len(tables.images),
        num_labels,
    )


def _instance_scores(tables: SegmentTables, labels, can_match, object_labels, num_labels: int) -> dict[str, float]:
    scores = {}
    for kind in ("box", "mask"):
        if kind in tables.space.tasks:
            rows = instance_rows(tables, kind, labels, can_match, object_labels, num_labels)
            summary = accumulate(match_detections(rows)).summary()
            scores |= {f"{kind}_{name}": value for name, value in summary.items()}
    return scores
