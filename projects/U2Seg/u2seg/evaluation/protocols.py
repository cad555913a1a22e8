"""Protocols: named bundles of rules that say which category each cluster stands for and what an unmatched cluster costs."""

from abc import ABC, abstractmethod

import numpy as np

from u2seg.evaluation.label_map import LabelMap, PixelRows, SemanticMap, head_pixels, panoptic_pixels
from u2seg.evaluation.matching import (
    NO_CATEGORY,
    best_category,
    canonical_clusters,
    hungarian,
    hungarian_then_best,
    in_canonical_order,
    majority_vote,
    pair_counts,
)
from u2seg.evaluation.registry import PROTOCOL_REGISTRY
from u2seg.evaluation.tables import SegmentTables, TableSpace
from u2seg.registry import get_registered


class Protocol(ABC):
    """The rules of one row of the score table.

    Attributes:
        merge_stuff: whether the stuff segments of one category in one picture are one segment.
    """

    merge_stuff = True

    @property
    def name(self) -> str:
        """The name under which it is registered."""
        return type(self).__name__

    @abstractmethod
    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the label map that fits the tables, which may be those of another split than the scored one."""


def build_protocol(name: str) -> Protocol:
    """Returns the protocol of that name.

    Raises:
        KeyError: unknown; the message lists those that are registered.
    """
    return get_registered(PROTOCOL_REGISTRY, name, "protocol (TEST.PROTOCOLS)")()


def register(name: str):
    """Returns a class decorator that registers a protocol under ``name``."""

    def decorate(protocol: type[Protocol]) -> type[Protocol]:
        protocol.name = name
        PROTOCOL_REGISTRY._do_register(name, protocol)
        return protocol

    return decorate


@register("hungarian")
class HungarianProtocol(Protocol):
    """Strict one-to-one matching, things with things and stuff with stuff; an unmatched cluster is wrong.

    * Counts: pixels in common of the predicted panoptic map and the ground truth, over the whole fitting split, crowds and void
      left out. Things and stuff have a matrix each. Without panoptic maps, things are matched on votes: each detection with a
      score of at least 0.5 votes for the object that its box overlaps most, where that is above 0.5 IoU.
    * Matching: the one-to-one assignment with the largest sum; a pair without a common pixel is no match.
    * A cluster that is left over has no category. Its segments keep their pixels. In PQ each is a false positive of the
      category of its kind that the cluster covers most (the one which ``cups`` would give it), unless more than half of it lies
      on void; it can match nothing, so what it covers is missed as well. In AP its detections are false positives of that
      category. In mIoU and pixel accuracy its pixels are errors.
    * Semantic classes: all categories; prediction: the panoptic map, where void is an error.
    * Stuff segments of one category in one picture are one segment.

    Source: none of the papers; it is the plainest honest rule, ours.
    """

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the one-to-one label map."""
        space, order = tables.space, canonical_clusters(tables)
        things, stuff = _counts(tables)
        panoptic = _joint(space, _matched(hungarian, things, stuff, order, space))
        best = _joint(space, _matched(best_category, things, stuff, order, space))
        charged = np.where(panoptic == NO_CATEGORY, best, NO_CATEGORY)
        if "panoptic" in space.tasks:
            semantic = SemanticMap("panoptic", panoptic, _every_category(space), space.category_names)
        else:
            semantic = _head_semantics(tables, hungarian)
        return LabelMap(panoptic, charged, semantic)


@register("cups")
class CupsProtocol(Protocol):
    """One-to-one matching first, then every left-over cluster goes to its best category.

    * Counts and the separation of things and stuff: as ``hungarian``.
    * Matching: one-to-one with the largest sum, then many-to-one for the rest.
    * A cluster without any common pixel has no category: its segments are dropped.
    * Semantic score: a second matching of the same kind on the panoptic map's pixels, over all categories at once, so that a
      thing cluster may stand for stuff.

    Source: CUPS, CVPR 2025, evaluation protocol (section 4.2 of our reference notes). Differs from it in: PQ is COCO's (crowd and
    void handled), stuff segments of one category are merged, and an assigned pair without a common pixel counts as left over.
    """

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the label map, many-to-one for the left-over clusters."""
        space, order = tables.space, canonical_clusters(tables)
        panoptic = _joint(space, _matched(hungarian_then_best, *_counts(tables), order, space))
        if "panoptic" in space.tasks:
            pixels = panoptic_pixels(tables)
            shape = (space.num_clusters, space.num_categories)
            counts = pair_counts(pixels.predicted, pixels.truth, pixels.pixels, shape)
            labels = in_canonical_order(hungarian_then_best, counts, order)
            semantic = SemanticMap("panoptic", labels, _every_category(space), space.category_names)
        else:
            semantic = _head_semantics(tables, hungarian_then_best)
        return LabelMap(panoptic, _nothing(space), semantic)


# (IoU, score) thresholds by benchmark and number of thing clusters, chosen by the authors on the scored split.
# Source: U2Seg, appendix (u2seg-reference 3.1).
PAPER_THRESHOLDS = {
    "coco": {300: (0.6, 0.3), 800: (0.6, 0.4), 2911: (0.5, 0.3)},
    "uvo": {300: (0.7, 0.1), 800: (0.4, 0.1), 2911: (0.6, 0.1)},
    "voc": {300: (0.8, 0.4), 800: (0.8, 0.2), 2911: (0.5, 0.2)},
}
RELEASE_THRESHOLDS = (0.7, 0.6)
SEMANTIC_VOTE_IOU = 0.15  # of a cluster and a category in one picture, in the release; the paper names none


@register("u2seg_paper")
class U2SegPaperProtocol(Protocol):
    """U2Seg's majority vote with the paper's thresholds.

    * Things: every detection whose score reaches the threshold gives one vote to the category of the object that its box
      overlaps most, if that IoU exceeds the threshold; crowds get no vote. A cluster takes the category with most votes; many
      clusters may share one. Thresholds: :data:`PAPER_THRESHOLDS`, by benchmark (the data set's name begins with ``voc`` or
      ``uvo``, else COCO's) and by the listed K that is nearest.
    * Stuff: the semantic head's class gives a picture's vote to every stuff category with which it has a pixel IoU above 0.15.
    * A thing cluster without votes: its detections are dropped, its segments are void (no false positive, the ground truth is
      missed). A stuff cluster without votes: its segments are void; its pixels are errors in mIoU and pixel accuracy.
    * Semantic classes: "things" and the stuff categories (the supercategories, on COCO); prediction: the semantic head.
    * Stuff segments of one category in one picture are one segment.

    Source: U2Seg, CVPR 2024, appendix B and tables A2 to A4. Differs from the release in: best object instead of every object
    above the threshold, no crowd votes, stuff merged, unmatched pixels wrong instead of left out.
    """

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the majority-vote label map."""
        space = tables.space
        min_iou, min_score = paper_thresholds(space)
        things = majority_vote(instance_votes(tables, min_score, min_iou))
        head = majority_vote(semantic_votes(tables, SEMANTIC_VOTE_IOU))
        return LabelMap(_joint(space, (things, head)), _nothing(space), _stuff_semantics(space, head))


def paper_thresholds(space: TableSpace) -> tuple[float, float]:
    """Returns the (IoU, score) thresholds that U2Seg's paper uses for a data set and number of clusters."""
    benchmark = next((name for name in ("uvo", "voc") if space.dataset.lower().startswith(name)), "coco")
    by_count = PAPER_THRESHOLDS[benchmark]
    return by_count[min(by_count, key=lambda count: abs(count - space.num_things))]


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


def semantic_votes(tables: SegmentTables, min_iou: float) -> np.ndarray:
    """Returns votes, int64 (S, stuff categories): in each picture, of a head's class for every category that it covers well.

    Args:
        tables: any.
        min_iou: the IoU of the class's and the category's pixels in the picture must exceed it. The class's pixels on
            ground-truth void count.
    """
    space = tables.space
    num_things, num_stuff = space.categories.num_things, space.categories.num_stuff
    pixels = _by_class(head_pixels(tables), np.append(np.arange(space.num_categories), NO_CATEGORY))
    size = space.num_stuff + 2  # predicted -1 is stored first
    predicted_key = pixels.image * size + pixels.predicted + 1
    truth_key = pixels.image * (space.num_categories + 1) + pixels.truth + 1
    predicted_area, truth_area = (np.bincount(key, weights=pixels.pixels) for key in (predicted_key, truth_key))
    union = predicted_area[predicted_key] + truth_area[truth_key] - pixels.pixels
    voting = (pixels.pixels / np.maximum(union, 1) > min_iou) & (pixels.truth >= num_things) & (pixels.predicted > 0)
    clusters, categories = pixels.predicted[voting] - 1, pixels.truth[voting] - num_things
    return pair_counts(clusters, categories, np.ones(len(clusters)), (space.num_stuff, num_stuff))


def _votes_of(tables: SegmentTables, rows: np.ndarray) -> np.ndarray:
    clusters = tables.detections["label"][rows["detection"]]
    categories = tables.objects["label"][rows["object"]]
    shape = (tables.space.num_things, tables.space.categories.num_things)
    return pair_counts(clusters, categories, np.ones(len(rows)), shape)


def _by_class(pixels: PixelRows, truth_class: np.ndarray) -> PixelRows:
    """Returns the rows with the true label sent through ``truth_class`` (its last entry is for void), equal rows summed."""
    truth = truth_class[pixels.truth].astype(np.int64)
    table = np.stack([pixels.image, truth, pixels.predicted.astype(np.int64)], axis=1)
    distinct, inverse = np.unique(table, axis=0, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=pixels.pixels, minlength=len(distinct)).astype(np.int64)
    return PixelRows(distinct[:, 0], distinct[:, 1], distinct[:, 2], sums)


def _counts(tables: SegmentTables) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts on which things and stuff are matched, int64 (K, thing categories) and (S, stuff categories)."""
    space = tables.space
    if "panoptic" not in space.tasks:
        return instance_votes(tables, 0.5, 0.5), _head_counts(tables)[1:, space.categories.num_things :]
    overlaps = tables.overlaps[(tables.overlaps["truth"] >= 0) & (tables.overlaps["predicted"] >= 0)]
    overlaps = overlaps[~tables.truth["crowd"][overlaps["truth"]]]
    counts = pair_counts(
        tables.predicted["label"][overlaps["predicted"]],
        tables.truth["label"][overlaps["truth"]],
        overlaps["pixels"],
        (space.num_clusters, space.num_categories),
    )
    return counts[: space.num_things, : space.categories.num_things], counts[
        space.num_things :, space.categories.num_things :
    ]


def _head_counts(tables: SegmentTables) -> np.ndarray:
    """Returns the pixels of each class of the semantic head on each category, int64 (S + 1, joint categories)."""
    pixels = head_pixels(tables)
    return pair_counts(
        pixels.predicted, pixels.truth, pixels.pixels, (tables.space.num_stuff + 1, tables.space.num_categories)
    )


def _matched(
    match, things: np.ndarray, stuff: np.ndarray, order: np.ndarray, space: TableSpace
) -> tuple[np.ndarray, np.ndarray]:
    is_thing = order < space.num_things
    return (
        in_canonical_order(match, things, order[is_thing]),
        in_canonical_order(match, stuff, order[~is_thing] - space.num_things),
    )


def _joint(space: TableSpace, maps: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns the joint label map of a map of things and one of stuff, each in its own numbering."""
    things, stuff = maps
    return np.concatenate([things, np.where(stuff >= 0, stuff + space.categories.num_things, NO_CATEGORY)])


def _nothing(space: TableSpace) -> np.ndarray:
    return np.full(space.num_clusters, NO_CATEGORY, np.int64)


def _every_category(space: TableSpace) -> np.ndarray:
    return np.arange(space.num_categories)


def _stuff_semantics(space: TableSpace, stuff: np.ndarray) -> SemanticMap:
    """Returns the scoring of the semantic head on "things" and the stuff categories, "things" being matched by definition."""
    labels = np.concatenate([[0], np.where(stuff >= 0, stuff + 1, NO_CATEGORY)])
    things = np.zeros(space.categories.num_things, np.int64)
    truth = np.concatenate([things, np.arange(1, space.categories.num_stuff + 1)])
    return SemanticMap("head", labels, truth, ("things", *space.categories.stuff_names))


def _head_semantics(tables: SegmentTables, match) -> SemanticMap | None:
    """Returns the scoring of the semantic head on all categories, its classes 0..S matched by ``match``."""
    space = tables.space
    if "semantic" not in space.tasks:
        return None
    return SemanticMap("head", match(_head_counts(tables)), _every_category(space), space.category_names)
