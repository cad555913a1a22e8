"""The counts on which protocols match, and the label maps made of them."""

import numpy as np

from u2seg.evaluation.matching.assignment import NO_CATEGORY, Matcher, best_category, in_canonical_order, pair_counts
from u2seg.evaluation.matching.label_map import SemanticMap, head_pixels, panoptic_pixels
from u2seg.evaluation.matching.protocols.votes import instance_votes
from u2seg.evaluation.tables.segment_tables import SegmentTables, TableSpace


def kind_counts(tables: SegmentTables) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts on which things and stuff are matched, int64 (K, thing categories) and (S, stuff categories)."""
    space = tables.space
    if "panoptic" not in space.tasks:
        return instance_votes(tables, 0.5, 0.5), head_counts(tables)[1:, space.categories.num_things :]
    counts = single_counts(tables)
    return counts[: space.num_things, : space.categories.num_things], counts[
        space.num_things :, space.categories.num_things :
    ]


def single_counts(tables: SegmentTables) -> np.ndarray:
    """Returns the pixels of each joint cluster on each joint category, crowds left out, int64 (K + S, categories)."""
    overlaps = tables.overlaps[(tables.overlaps["gt"] >= 0) & (tables.overlaps["predicted"] >= 0)]
    overlaps = overlaps[~tables.gt["crowd"][overlaps["gt"]]]
    return pair_counts(
        tables.predicted["label"][overlaps["predicted"]],
        tables.gt["label"][overlaps["gt"]],
        overlaps["pixels"],
        (tables.space.num_clusters, tables.space.num_categories),
    )


def error_categories(tables: SegmentTables, panoptic: np.ndarray) -> np.ndarray:
    """Returns, for each joint cluster without a category, the joint category in which it is a false positive; -1 for the others.

    It is the category of its kind that the cluster covers most; for a thing cluster that no panoptic map shows, the one that its
    detections overlap most often; else the category of any kind that it covers most; -1 where it covers nothing at all.
    """
    space = tables.space
    things, stuff = kind_counts(tables)
    choices = [
        joint_map(space, (best_category(things), best_category(stuff))),
        joint_map(space, (best_category(instance_votes(tables, 0.0, 0.0)), np.full(space.num_stuff, NO_CATEGORY))),
        best_category(single_counts(tables)),
    ]
    charged = no_category(space)
    for choice in choices:
        charged = np.where(charged == NO_CATEGORY, choice, charged)
    return np.where(panoptic == NO_CATEGORY, charged, NO_CATEGORY)


def panoptic_counts(tables: SegmentTables) -> np.ndarray:
    """Returns the pixels of each joint cluster on each joint category, crowds included, int64 (K + S, categories)."""
    pixels = panoptic_pixels(tables)
    return pair_counts(
        pixels.predicted, pixels.gt, pixels.pixels, (tables.space.num_clusters, tables.space.num_categories)
    )


def head_counts(tables: SegmentTables) -> np.ndarray:
    """Returns the pixels of each class of the semantic head on each category, int64 (S + 1, joint categories)."""
    pixels = head_pixels(tables)
    return pair_counts(
        pixels.predicted, pixels.gt, pixels.pixels, (tables.space.num_stuff + 1, tables.space.num_categories)
    )


def matched_by_kind(
    match: Matcher, things: np.ndarray, stuff: np.ndarray, order: np.ndarray, space: TableSpace
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``match`` of things and of stuff, each in its own numbering, computed in a canonical order of joint clusters."""
    is_thing = order < space.num_things
    return (
        in_canonical_order(match, things, order[is_thing]),
        in_canonical_order(match, stuff, order[~is_thing] - space.num_things),
    )


def joint_map(space: TableSpace, maps: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns the joint label map of a map of things and one of stuff, each in its own numbering."""
    things, stuff = maps
    return np.concatenate([things, np.where(stuff >= 0, stuff + space.categories.num_things, NO_CATEGORY)])


def no_category(space: TableSpace) -> np.ndarray:
    """Returns -1 for every joint cluster, int64 (K + S,)."""
    return np.full(space.num_clusters, NO_CATEGORY, np.int64)


def every_category(space: TableSpace) -> np.ndarray:
    """Returns 0, 1, 2, ... for the joint categories: all of them as they are."""
    return np.arange(space.num_categories)


def head_order(order: np.ndarray, space: TableSpace) -> np.ndarray:
    """Returns the classes of the semantic head, "thing" first, int64 (S + 1,), in a canonical order of joint clusters."""
    return np.append(0, order[order >= space.num_things] - space.num_things + 1)


def head_semantics(tables: SegmentTables, match: Matcher) -> SemanticMap | None:
    """Returns the scoring of the semantic head on all categories, its classes 0..S matched by ``match``."""
    space = tables.space
    if "semantic" not in space.tasks:
        return None
    return SemanticMap("head", match(head_counts(tables)), every_category(space), space.category_names)
