"""U2Seg's majority votes: as the paper has them, as the released code has them, and with the released code's two faults."""

import numpy as np

from u2seg.evaluation.matching.assignment import NO_CATEGORY, best_category
from u2seg.evaluation.matching.label_map import LabelMap, SemanticMap
from u2seg.evaluation.matching.protocols.base import Protocol
from u2seg.evaluation.matching.protocols.counts import joint_map, no_category
from u2seg.evaluation.matching.protocols.votes import every_object_votes, instance_votes, semantic_votes
from u2seg.evaluation.registries import PROTOCOL_REGISTRY
from u2seg.evaluation.tables.segment_tables import SegmentTables, TableSpace

# (IoU, score) thresholds by benchmark and number of thing clusters, chosen by the authors on the scored split.
# Source: U2Seg, CVPR 2024, appendix, table A2.
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
        things = best_category(instance_votes(tables, min_score, min_iou))
        head = best_category(semantic_votes(tables, SEMANTIC_VOTE_IOU))
        return LabelMap(joint_map(space, (things, head)), no_category(space), _stuff_semantics(space, head))


class _ReleaseRules(Protocol):
    """What both forms of U2Seg's released rules share."""

    merge_stuff = False

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the majority-vote label map."""
        space = tables.space
        min_iou, min_score = RELEASE_THRESHOLDS
        things = best_category(every_object_votes(tables, min_score, min_iou))
        head = best_category(semantic_votes(tables, SEMANTIC_VOTE_IOU))
        return LabelMap(joint_map(space, (things, head)), no_category(space), self._semantic(space, head))

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

    Source: the authors' repository (u2seg/U2Seg) at 8e9c709, ``coco_evaluation.py``, ``sem_seg_evaluation.py``.
    """


@PROTOCOL_REGISTRY.register("u2seg_release_faults")
class U2SegFaultyReleaseProtocol(_ReleaseRules):
    """U2Seg's released code with its two faults in the semantic score, to reproduce its numbers; the row's name says so.

    * Aliasing: labels are rewritten in place, one cluster after the other, so that a label just written is rewritten again when
      the cluster of that number has its turn. What is scored is a composition of the fitted map with itself.
    * Vanishing: pixels of clusters that end without a category are left out of the score instead of counted wrong.

    All else as ``u2seg_release``. Never compare this row with others.

    Source: the authors' repository at 8e9c709, ``sem_seg_evaluation.py``.
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


def paper_thresholds(space: TableSpace) -> tuple[float, float]:
    """Returns the (IoU, score) thresholds that U2Seg's paper uses for a dataset and number of clusters."""
    benchmark = next((name for name in ("uvo", "voc") if space.dataset.lower().startswith(name)), "coco")
    by_count = PAPER_THRESHOLDS[benchmark]
    return by_count[min(by_count, key=lambda count: abs(count - space.num_things))]


def _stuff_semantics(space: TableSpace, stuff: np.ndarray) -> SemanticMap:
    """Returns the scoring of the semantic head on "things" and the stuff categories, "things" being matched by definition."""
    labels = np.concatenate([[0], np.where(stuff >= 0, stuff + 1, NO_CATEGORY)])
    things = np.zeros(space.categories.num_things, np.int64)
    gt = np.concatenate([things, np.arange(1, space.categories.num_stuff + 1)])
    return SemanticMap("head", labels, gt, ("things", *space.categories.stuff_names))
