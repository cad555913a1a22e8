"""Protocols: named bundles of rules that say which category each cluster stands for and what an unmatched cluster costs."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from u2seg.data.datasets.coco_supercategories import semantic_groups
from u2seg.evaluation.matching.assignment import (
    NO_CATEGORY,
    best_category,
    canonical_clusters,
    hungarian,
    hungarian_then_best,
    in_canonical_order,
    majority_vote,
    pair_counts,
)
from u2seg.evaluation.matching.label_map import LabelMap, PixelRows, SemanticMap, head_pixels, panoptic_pixels
from u2seg.evaluation.registries import PROTOCOL_REGISTRY
from u2seg.evaluation.tables.segment_tables import SegmentTables, TableSpace
from u2seg.utils.registry import get_registered

# From counts, int (clusters, categories), to the category of each cluster, int64 (clusters,), -1 for none.
Matcher = Callable[[np.ndarray], np.ndarray]


class Protocol(ABC):
    """The rules of one row of the score table.

    Attributes:
        merge_stuff: whether the stuff segments of one category in one image are one segment.
        scores_segments: whether panoptic and instance scores are defined; False for protocols of semantic segmentation alone.
    """

    merge_stuff = True
    scores_segments = True

    @abstractmethod
    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the label map that fits the tables, which may be those of another split than the scored one."""


def build_protocol(name: str) -> Protocol:
    """Returns the protocol of that name.

    Raises:
        KeyError: unknown; the message lists those that are registered.
    """
    return get_registered(PROTOCOL_REGISTRY, name, "protocol (TEST.PROTOCOLS)")()


@PROTOCOL_REGISTRY.register("hungarian")
class HungarianProtocol(Protocol):
    """Strict one-to-one matching, things with things and stuff with stuff; an unmatched cluster is wrong.

    * Counts: pixels in common of the predicted panoptic map and the ground truth, over the whole fitting split, crowds and void
      left out. Things and stuff have a matrix each. Without panoptic maps, things are matched on votes: each detection with a
      score of at least 0.5 votes for the object that its box overlaps most, where that is above 0.5 IoU.
    * Matching: the one-to-one assignment with the largest sum; a pair without a common pixel is no match.
    * A cluster that is left over has no category. Its segments keep their pixels. In PQ each is a false positive of the
      category of its kind that the cluster covers most (the one which ``cups`` would give it; if it covers none of its kind, of
      any category), unless more than half of it lies on void; it can match nothing, so what it covers is missed as well. In AP
      its detections are false positives of that category. In mIoU and pixel accuracy its pixels are errors.
    * Semantic classes: all categories; prediction: the panoptic map, where void is an error.
    * Stuff segments of one category in one image are one segment.

    Source: none of the papers; it is the plainest honest rule, ours.
    """

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the one-to-one label map."""
        space, order = tables.space, canonical_clusters(tables)
        things, stuff = _counts(tables)
        panoptic = _joint(space, _matched(hungarian, things, stuff, order, space))
        if "panoptic" in space.tasks:
            semantic: SemanticMap | None = SemanticMap(
                "panoptic", panoptic, _every_category(space), space.category_names
            )
        else:
            semantic = _head_semantics(tables, hungarian)
        return LabelMap(panoptic, _charged(tables, panoptic), semantic)


@PROTOCOL_REGISTRY.register("cups")
class CupsProtocol(Protocol):
    """One-to-one matching first, then every left-over cluster goes to its best category.

    * Counts and the separation of things and stuff: as ``hungarian``.
    * Matching: one-to-one with the largest sum, then many-to-one for the rest.
    * A cluster without any common pixel of its kind has no category; it costs what it costs in ``hungarian``.
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
            labels = in_canonical_order(hungarian_then_best, _panoptic_counts(tables), order)
            semantic: SemanticMap | None = SemanticMap("panoptic", labels, _every_category(space), space.category_names)
        else:
            semantic = _head_semantics(tables, hungarian_then_best)
        return LabelMap(panoptic, _charged(tables, panoptic), semantic)


# (IoU, score) thresholds by benchmark and number of thing clusters, chosen by the authors on the scored split.
# Source: U2Seg, appendix (u2seg-reference 3.1).
PAPER_THRESHOLDS = {
    "coco": {300: (0.6, 0.3), 800: (0.6, 0.4), 2911: (0.5, 0.3)},
    "uvo": {300: (0.7, 0.1), 800: (0.4, 0.1), 2911: (0.6, 0.1)},
    "voc": {300: (0.8, 0.4), 800: (0.8, 0.2), 2911: (0.5, 0.2)},
}
RELEASE_THRESHOLDS = (0.7, 0.6)
SEMANTIC_VOTE_IOU = 0.15  # of a cluster and a category in one image, in the release; the paper names none


@PROTOCOL_REGISTRY.register("u2seg_paper")
class U2SegPaperProtocol(Protocol):
    """U2Seg's majority vote with the paper's thresholds.

    * Things: every detection whose score reaches the threshold gives one vote to the category of the object that its box
      overlaps most, if that IoU exceeds the threshold; crowds get no vote. A cluster takes the category with most votes; many
      clusters may share one. Thresholds: :data:`PAPER_THRESHOLDS`, by benchmark (the dataset's name begins with ``voc`` or
      ``uvo``, else COCO's) and by the listed K that is nearest.
    * Stuff: the semantic head's class gives an image's vote to every stuff category with which it has a pixel IoU above 0.15.
    * A thing cluster without votes: its detections are dropped, its segments are void (no false positive, the ground truth is
      missed). A stuff cluster without votes: its segments are void; its pixels are errors in mIoU and pixel accuracy.
    * Semantic classes: "things" and the stuff categories (the supercategories, on COCO); prediction: the semantic head.
    * Stuff segments of one category in one image are one segment.

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


class _ReleaseRules(Protocol):
    """What both forms of U2Seg's released rules share."""

    merge_stuff = False

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the majority-vote label map."""
        space = tables.space
        min_iou, min_score = RELEASE_THRESHOLDS
        things = majority_vote(every_object_votes(tables, min_score, min_iou))
        head = majority_vote(semantic_votes(tables, SEMANTIC_VOTE_IOU))
        return LabelMap(_joint(space, (things, head)), _nothing(space), self._semantic(space, head))

    def _semantic(self, space: TableSpace, stuff: np.ndarray) -> SemanticMap:
        return _stuff_semantics(space, stuff)


@PROTOCOL_REGISTRY.register("u2seg_release")
class U2SegReleaseProtocol(_ReleaseRules):
    """U2Seg's released code, without its two faults.

    * Things: detections with a score of at least 0.6; each gives one vote to the category of *every* object whose box IoU with
      it exceeds 0.7, crowds included and treated as single objects. Majority, ties to the lowest category.
    * Stuff, unmatched clusters and semantic classes: as ``u2seg_paper``; unmatched pixels are errors.
    * Stuff segments of one category are *not* merged, in ground truth or prediction. (The release's own map files leave several
      segments of one supercategory in an image.)
    * The release scores boxes alone; masks are scored here too.

    Source: the authors' repository at 8e9c709, as u2seg-reference 3.1 to 3.4 describe it.
    """


@PROTOCOL_REGISTRY.register("u2seg_release+faults")
class U2SegFaultyReleaseProtocol(_ReleaseRules):
    """U2Seg's released code with its two faults in the semantic score, to reproduce its numbers; the row's name says so.

    * Aliasing: labels are rewritten in place, one cluster after the other, so that a label just written is rewritten again when
      the cluster of that number has its turn. What is scored is a composition of the fitted map with itself.
    * Vanishing: pixels of clusters that end without a category are left out of the score instead of counted wrong.

    All else as ``u2seg_release``. Never compare this row with others.

    Source: the authors' repository at 8e9c709, ``sem_seg_evaluation.py``; u2seg-reference 3.2, bugs A and B.
    """

    def _semantic(self, space: TableSpace, stuff: np.ndarray) -> SemanticMap:
        clean = _stuff_semantics(space, stuff)
        return SemanticMap(
            clean.source, aliased(clean.labels, len(clean.names)), clean.gt, clean.names, unmatched_vanish=True
        )


def aliased(labels: np.ndarray, none: int) -> np.ndarray:
    """Returns what becomes of each predicted label when a look-up is applied in place, one key after the other, ascending.

    Args:
        labels: int (predicted labels,), the intended class of each, -1 for none.
        none: the number that the release writes for "none"; it is rewritten like any other.
    """
    written = np.where(labels < 0, none, labels)
    current = np.arange(len(labels))
    for key, value in enumerate(written):
        current[current == key] = value
    return np.where(current == none, NO_CATEGORY, current)


@PROTOCOL_REGISTRY.register("stego")
class StegoProtocol(Protocol):
    """STEGO's semantic score: one global confusion matrix, one Hungarian matching; semantic scores only.

    * Prediction: the semantic head, every class of it being a cluster, "thing" too.
    * Classes: COCO's 27 (12 groups of things, 15 of stuff) where the categories are COCO's; else all categories of the dataset.
    * Matching: one-to-one on pixels, over the whole fitting split; a cluster that is left over is wrong everywhere.
    * The literature scores 320 x 320 center crops of a curated list; dataset ``cocostuff27_val`` holds those, any other dataset
      is scored on whole images.

    Source: STEGO, ICLR 2022; PiCIE, CVPR 2021; peers-reference 3.2.
    """

    scores_segments = False

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the matching of the semantic head's classes with the coarse classes."""
        space = tables.space
        gt, names = semantic_groups(space.categories)
        lookup = np.array([*gt, NO_CATEGORY], np.int64)
        pixels = head_pixels(tables)
        counts = pair_counts(pixels.predicted, lookup[pixels.gt], pixels.pixels, (space.num_stuff + 1, len(names)))
        order = canonical_clusters(tables)
        stuff = order[order >= space.num_things] - space.num_things + 1
        labels = in_canonical_order(hungarian, counts, np.append(0, stuff))
        nothing = _nothing(space)
        return LabelMap(nothing, nothing, SemanticMap("head", labels, lookup[:-1], names))


@PROTOCOL_REGISTRY.register("majority")
class MajorityProtocol(Protocol):
    """Every cluster stands for the category that holds most of its pixels; many clusters may share one.

    * Counts and the separation of things and stuff: as ``hungarian``. A cluster without a common pixel has no category; it
      costs what it costs in ``hungarian``.
    * Semantic score: the panoptic map, over all categories at once.
    * It rises with the number of clusters, up to 100 with one cluster a segment: compare only equal numbers of clusters.

    Source: the purity measure of clustering, on pixels.
    """

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the many-to-one label map."""
        space = tables.space
        things, stuff = _counts(tables)
        panoptic = _joint(space, (best_category(things), best_category(stuff)))
        if "panoptic" in space.tasks:
            labels = best_category(_panoptic_counts(tables))
            semantic: SemanticMap | None = SemanticMap("panoptic", labels, _every_category(space), space.category_names)
        else:
            semantic = _head_semantics(tables, best_category)
        return LabelMap(panoptic, _charged(tables, panoptic), semantic)


@PROTOCOL_REGISTRY.register("identity")
class IdentityProtocol(Protocol):
    """Cluster i is category i: for models that were trained on the categories themselves, such as the supervised upper bound.

    Semantic score: the panoptic map, over all categories. Stuff segments of one category are one segment (they are anyway).
    """

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the identity.

        Raises:
            ValueError: the model's class counts are not the categories'.
        """
        space = tables.space
        counts, wanted = (space.num_things, space.num_stuff), (space.categories.num_things, space.categories.num_stuff)
        if counts != wanted:
            raise ValueError(
                f"protocol 'identity' needs a model with the categories' own {wanted[0]} things and {wanted[1]} stuff classes, "
                f"got {counts[0]} and {counts[1]}; its clusters have to be matched, for example by 'hungarian'"
            )
        labels = np.arange(space.num_clusters)
        semantic = SemanticMap("panoptic", labels, _every_category(space), space.category_names)
        return LabelMap(labels, _nothing(space), semantic)


def paper_thresholds(space: TableSpace) -> tuple[float, float]:
    """Returns the (IoU, score) thresholds that U2Seg's paper uses for a dataset and number of clusters."""
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
    pixels = _by_class(head_pixels(tables), np.append(np.arange(space.num_categories), NO_CATEGORY))
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


def _by_class(pixels: PixelRows, gt_class: np.ndarray) -> PixelRows:
    """Returns the rows with the true label sent through ``gt_class`` (its last entry is for void), equal rows summed."""
    gt = gt_class[pixels.gt].astype(np.int64)
    table = np.stack([pixels.image, gt, pixels.predicted.astype(np.int64)], axis=1)
    distinct, inverse = np.unique(table, axis=0, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=pixels.pixels, minlength=len(distinct)).astype(np.int64)
    return PixelRows(distinct[:, 0], distinct[:, 1], distinct[:, 2], sums)


def _counts(tables: SegmentTables) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts on which things and stuff are matched, int64 (K, thing categories) and (S, stuff categories)."""
    space = tables.space
    if "panoptic" not in space.tasks:
        return instance_votes(tables, 0.5, 0.5), _head_counts(tables)[1:, space.categories.num_things :]
    counts = _single_counts(tables)
    return counts[: space.num_things, : space.categories.num_things], counts[
        space.num_things :, space.categories.num_things :
    ]


def _single_counts(tables: SegmentTables) -> np.ndarray:
    """Returns the pixels of each joint cluster on each joint category, crowds left out, int64 (K + S, categories)."""
    overlaps = tables.overlaps[(tables.overlaps["gt"] >= 0) & (tables.overlaps["predicted"] >= 0)]
    overlaps = overlaps[~tables.gt["crowd"][overlaps["gt"]]]
    return pair_counts(
        tables.predicted["label"][overlaps["predicted"]],
        tables.gt["label"][overlaps["gt"]],
        overlaps["pixels"],
        (tables.space.num_clusters, tables.space.num_categories),
    )


def _charged(tables: SegmentTables, panoptic: np.ndarray) -> np.ndarray:
    """Returns, for each joint cluster without a category, the joint category in which it is a false positive; -1 for the others.

    It is the category of its kind that the cluster covers most; for a thing cluster that no panoptic map shows, the one that its
    detections overlap most often; else the category of any kind that it covers most; -1 where it covers nothing at all.
    """
    space = tables.space
    things, stuff = _counts(tables)
    choices = [
        _joint(space, (best_category(things), best_category(stuff))),
        _joint(space, (best_category(instance_votes(tables, 0.0, 0.0)), np.full(space.num_stuff, NO_CATEGORY))),
        best_category(_single_counts(tables)),
    ]
    error_categories = _nothing(space)
    for choice in choices:
        error_categories = np.where(error_categories == NO_CATEGORY, choice, error_categories)
    return np.where(panoptic == NO_CATEGORY, error_categories, NO_CATEGORY)


def _panoptic_counts(tables: SegmentTables) -> np.ndarray:
    """Returns the pixels of each joint cluster on each joint category, crowds included, int64 (K + S, categories)."""
    pixels = panoptic_pixels(tables)
    return pair_counts(
        pixels.predicted, pixels.gt, pixels.pixels, (tables.space.num_clusters, tables.space.num_categories)
    )


def _head_counts(tables: SegmentTables) -> np.ndarray:
    """Returns the pixels of each class of the semantic head on each category, int64 (S + 1, joint categories)."""
    pixels = head_pixels(tables)
    return pair_counts(
        pixels.predicted, pixels.gt, pixels.pixels, (tables.space.num_stuff + 1, tables.space.num_categories)
    )


def _matched(
    match: Matcher, things: np.ndarray, stuff: np.ndarray, order: np.ndarray, space: TableSpace
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
    gt = np.concatenate([things, np.arange(1, space.categories.num_stuff + 1)])
    return SemanticMap("head", labels, gt, ("things", *space.categories.stuff_names))


def _head_semantics(tables: SegmentTables, match: Matcher) -> SemanticMap | None:
    """Returns the scoring of the semantic head on all categories, its classes 0..S matched by ``match``."""
    space = tables.space
    if "semantic" not in space.tasks:
        return None
    return SemanticMap("head", match(_head_counts(tables)), _every_category(space), space.category_names)
