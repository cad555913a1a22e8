"""CUPS's protocol: ours, which scores as COCO does, and one that equals the released code."""

from dataclasses import replace
from functools import partial

import numpy as np

from u2seg.evaluation.matching.assignment import (
    NO_CATEGORY,
    canonical_clusters,
    hungarian_then_best,
    in_canonical_order,
    largest_sum_pairs,
)
from u2seg.evaluation.matching.label_map import LabelMap, SemanticMap
from u2seg.evaluation.matching.protocols.base import Protocol
from u2seg.evaluation.matching.protocols.counts import (
    error_categories,
    every_category,
    head_order,
    head_semantics,
    joint_map,
    kind_counts,
    matched_by_kind,
    no_category,
    panoptic_counts,
)
from u2seg.evaluation.metrics.panoptic_quality import PanopticMatches, match_segments_ignoring_void
from u2seg.evaluation.registries import PROTOCOL_REGISTRY
from u2seg.evaluation.tables.segment_tables import SegmentTables


@PROTOCOL_REGISTRY.register("cups")
class CupsProtocol(Protocol):
    """One-to-one matching first, then every left-over cluster goes to its best category.

    * Counts and the separation of things and stuff: as ``hungarian``.
    * Matching: one-to-one with the largest sum, then many-to-one for the rest.
    * A cluster without any common pixel of its kind has no category; it costs what it costs in ``hungarian``.
    * Semantic score: a second matching of the same kind on the panoptic map's pixels, over all categories at once, so that a
      thing cluster may stand for stuff.

    Source: CUPS, CVPR 2025, evaluation protocol. Differs from its released code, which ``cups_release`` equals, in:

    * A pair that was assigned without a common pixel counts as left over. There it is kept.
    * Pixels that the prediction leaves void are errors. There they are left out of PQ, mIoU and accuracy, which raises all three.
    * mIoU is taken over the categories that occur in the ground truth. There a category that is only predicted counts as 0.
    * Crowds are neither matched nor missed. There they are segments like others.
    * Of matchings with equal sums the choice depends on what the clusters cover. There it depends on their numbers.
    """

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the label map, many-to-one for the left-over clusters."""
        space, order = tables.space, canonical_clusters(tables)
        panoptic = joint_map(space, matched_by_kind(hungarian_then_best, *kind_counts(tables), order, space))
        if "panoptic" in space.tasks:
            labels = in_canonical_order(hungarian_then_best, panoptic_counts(tables), order)
            semantic: SemanticMap | None = SemanticMap("panoptic", labels, every_category(space), space.category_names)
        else:
            match = partial(in_canonical_order, hungarian_then_best, order=head_order(order, space))
            semantic = head_semantics(tables, match)
        return LabelMap(panoptic, error_categories(tables, panoptic), semantic)


@PROTOCOL_REGISTRY.register("cups_release")
class CupsReleaseProtocol(Protocol):
    """CUPS's evaluation as its released code computes it, for comparison with its published numbers.

    * Counts: as ``cups``, but with the pixels of crowds.
    * Matching: one-to-one with the largest sum, where pairs without a common pixel are kept; each left-over cluster goes to the
      category with most of its pixels, the first of its kind where it has none. So every cluster has a category.
    * PQ, SQ, RQ: torchmetrics' rules. Pixels that the prediction leaves void are taken out of the unions, and a ground-truth segment
      that lies more than half on them is not missed. Pixels that are void in the ground truth are treated likewise. Crowds are
      segments like others. Stuff of one category in one image is one segment. The mean is over the categories that occur in the
      ground truth or in the prediction.
    * mIoU and pixel accuracy: a second matching of the same kind over all categories at once. Pixels without a prediction are left
      out; a category that is only predicted has IoU 0 and counts.
    * AP and AR (CUPS reports none): detections under the same label map.
    * Ties go by the clusters' numbers, so that renaming clusters may change a score.

    Leaving pixels out raises a score without a better prediction: compare this row only with numbers of CUPS's own code.

    Source: CUPS, CVPR 2025, released code (visinf/cups, ``cups/metrics/panoptic_quality.py`` at d6c1e3f, on torchmetrics'
    ``PanopticQuality``). Its mask of classes that a dataset lacks (Waymo) is not reproduced.
    """

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the label map, in which every cluster has a category if its kind has any."""
        space = tables.space
        if "panoptic" in space.tasks:
            counts, kinds = panoptic_counts(tables), space.categories.num_things
            things, stuff = counts[: space.num_things, :kinds], counts[space.num_things :, kinds:]
            labels = assigned_then_best(counts)
            semantic: SemanticMap | None = SemanticMap("panoptic", labels, every_category(space), space.category_names)
        else:
            things, stuff = kind_counts(tables)
            semantic = head_semantics(tables, assigned_then_best)
        panoptic = joint_map(space, (assigned_then_best(things), assigned_then_best(stuff)))
        if semantic is not None:
            semantic = replace(semantic, unmatched_vanish=True, absent_classes_count=True)
        return LabelMap(panoptic, no_category(space), semantic)

    def match_segments(self, tables: SegmentTables, label_map: LabelMap) -> PanopticMatches:
        """Returns what torchmetrics' PQ counts."""
        return match_segments_ignoring_void(tables, label_map.panoptic)


def assigned_then_best(counts: np.ndarray) -> np.ndarray:
    """Returns the category of each cluster, int64 (clusters,): an assignment with the largest sum, the rest by largest count.

    Unlike :func:`u2seg.evaluation.matching.assignment.hungarian_then_best`, it keeps pairs that have nothing in common and gives
    a cluster without counts the first category; -1 only where there is no category.

    Args:
        counts: (clusters, categories), 0 or above.
    """
    if not counts.shape[1]:
        return np.full(counts.shape[0], NO_CATEGORY, np.int64)
    matched = counts.argmax(axis=1).astype(np.int64)
    rows, columns = largest_sum_pairs(counts)
    matched[rows] = columns
    return matched
