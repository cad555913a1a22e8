"""The plain protocols of clustering: one-to-one, many-to-one, and none at all."""

from functools import partial

import numpy as np

from u2seg.evaluation.matching.assignment import best_category, canonical_clusters, hungarian, in_canonical_order
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
from u2seg.evaluation.registries import PROTOCOL_REGISTRY
from u2seg.evaluation.tables.segment_tables import SegmentTables


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
        things, stuff = kind_counts(tables)
        panoptic = joint_map(space, matched_by_kind(hungarian, things, stuff, order, space))
        if "panoptic" in space.tasks:
            semantic: SemanticMap | None = SemanticMap(
                "panoptic", panoptic, every_category(space), space.category_names
            )
        else:
            semantic = head_semantics(tables, partial(in_canonical_order, hungarian, order=head_order(order, space)))
        return LabelMap(panoptic, error_categories(tables, panoptic), semantic)


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
        things, stuff = kind_counts(tables)
        panoptic = joint_map(space, (best_category(things), best_category(stuff)))
        if "panoptic" in space.tasks:
            labels = best_category(panoptic_counts(tables))
            semantic: SemanticMap | None = SemanticMap("panoptic", labels, every_category(space), space.category_names)
        else:
            semantic = head_semantics(tables, best_category)
        return LabelMap(panoptic, error_categories(tables, panoptic), semantic)


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
        semantic = SemanticMap("panoptic", labels, every_category(space), space.category_names)
        return LabelMap(labels, no_category(space), semantic)
