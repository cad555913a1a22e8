"""STEGO's semantic protocol."""

import numpy as np

from u2seg.data.datasets.coco_supercategories import semantic_groups
from u2seg.evaluation.matching.assignment import (
    NO_CATEGORY,
    canonical_clusters,
    hungarian,
    in_canonical_order,
    pair_counts,
)
from u2seg.evaluation.matching.label_map import LabelMap, SemanticMap, head_pixels
from u2seg.evaluation.matching.protocols.base import Protocol
from u2seg.evaluation.matching.protocols.counts import head_order, no_category
from u2seg.evaluation.registries import PROTOCOL_REGISTRY
from u2seg.evaluation.tables.segment_tables import SegmentTables


@PROTOCOL_REGISTRY.register("stego")
class StegoProtocol(Protocol):
    """STEGO's semantic score: one global confusion matrix, one Hungarian matching; semantic scores only.

    * Prediction: the semantic head, every class of it being a cluster, "thing" too.
    * Classes: COCO's 27 (12 groups of things, 15 of stuff) where the categories are COCO's; else all categories of the dataset.
    * Matching: one-to-one on pixels, over the whole fitting split; a cluster that is left over is wrong everywhere.
    * The literature scores 320 x 320 center crops of a curated list; dataset ``cocostuff27_val`` holds those, any other dataset
      is scored on whole images.

    Source: STEGO, ICLR 2022; PiCIE, CVPR 2021.
    """

    scores_segments = False

    def fit(self, tables: SegmentTables) -> LabelMap:
        """Returns the matching of the semantic head's classes with the coarse classes."""
        space = tables.space
        gt, names = semantic_groups(space.categories)
        lookup = np.array([*gt, NO_CATEGORY], np.int64)
        pixels = head_pixels(tables)
        counts = pair_counts(pixels.predicted, lookup[pixels.gt], pixels.pixels, (space.num_stuff + 1, len(names)))
        labels = in_canonical_order(hungarian, counts, head_order(canonical_clusters(tables), space))
        nothing = no_category(space)
        return LabelMap(nothing, nothing, SemanticMap("head", labels, lookup[:-1], names))
