from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from u2seg.config import setup_cfg
from u2seg.pseudo_labels.masks import VoteCut
from u2seg.pseudo_labels.masks.ncut import BinaryAffinity
from u2seg.pseudo_labels.masks.votecut import (
    VoteCutRules,
    VoteCutSettings,
    best_groups_1d,
    group_around_pivots,
    group_by_overlap,
    kmeans_1d,
)

SETTINGS = {
    "center_features": False,
    "taus": (0.15, 0.3),
    "num_groups": (2, 3),
    "eps": 1e-5,
    "min_iou": 0.6,
    "min_share": 0.2,
    "max_masks": 10,
    "max_corners": 2,
    "min_area": 0.01,
    "max_area": 1.0,
}


def image_of_an_object(noise=0.0):
    """Features (1, 3, 12, 15): a ground, and an object of 4 x 5 patches behind a rim that resembles both."""
    features = np.random.default_rng(0).normal(0, noise, (3, 12, 15)) if noise else np.zeros((3, 12, 15))
    features[0] += 1
    features[1, 3:9, 4:11] += 1
    features[0, 4:8, 5:10] -= 1
    return torch.from_numpy(features.astype(np.float32))[None]


def test_all_voters_find_the_object():
    (found,) = VoteCut(VoteCutSettings(**SETTINGS))(image_of_an_object())
    best = found.masks[0]
    assert best[4:8, 5:10].all()
    assert not best[:3].any()
    assert found.scores[0] == 1  # two thresholds times two numbers of groups
    assert np.all(np.diff(found.scores) <= 0)
    assert found.masks.sum(axis=0).max() == 1
    assert np.all((found.cut_values >= 0) & (found.cut_values <= 1))


def test_more_masks_than_asked_for_are_dropped_from_the_end():
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 4, 12, 15)).astype(np.float32))
    smooth = torch.nn.functional.avg_pool2d(features, 3, stride=1, padding=1)
    (many,) = VoteCut(VoteCutSettings(**{**SETTINGS, "min_area": 0.0}))(smooth)
    (one,) = VoteCut(VoteCutSettings(**{**SETTINGS, "min_area": 0.0, "max_masks": 1}))(smooth)
    assert len(many.masks) > 1
    assert np.array_equal(one.masks, many.masks[:1])


def test_nothing_to_cut():
    for features in (torch.zeros(1, 3, 6, 7), torch.ones(1, 3, 6, 7)):
        (found,) = VoteCut(VoteCutSettings(**SETTINGS))(features)
        assert found.masks.shape == (0, 6, 7)


def test_groups_by_overlap():
    masks = np.zeros((5, 4, 10), bool)
    masks[0, :, :4] = True  # 16
    masks[1, :, :5] = True  # 20: IoU with 0 is 0.8
    masks[2, :, 1:5] = True  # 16: IoU with 0 is 12 / 20 = 0.6, with 1 is 0.8
    masks[3, :, 6:] = True
    masks[4, :2, 6:] = True  # IoU with 3 is 0.5
    groups = group_by_overlap(masks, 0.6)
    assert [group.tolist() for group in groups] == [[0, 1, 2], [3], [4]]
    assert [group.tolist() for group in group_by_overlap(masks, 0.7)] == [[0, 1, 2], [3], [4]]  # all agree with mask 1
    assert [group.tolist() for group in group_by_overlap(masks, 0.5)] == [[0, 1, 2], [3, 4]]


def test_kmeans_of_clear_groups():
    values = np.array([[0.0, 0.1, 5.0], [5.2, 9.0, 9.1]])
    assert kmeans_1d(values, 3).tolist() == [[0, 0, 1], [1, 2, 2]]
    # Two groups start at 2.3 and 6.8, split at 4.6, settle at 0.05 and 7.1.
    assert kmeans_1d(values, 2).tolist() == [[0, 0, 1], [1, 1, 1]]


def test_kmeans_is_a_fixed_point():
    values = np.random.default_rng(0).normal(size=500) ** 3
    groups = kmeans_1d(values, 3)
    centers = np.array([values[groups == group].mean() for group in range(3)])
    assert np.array_equal(np.abs(values[:, None] - centers).argmin(axis=1), groups)
    assert np.array_equal(2 - kmeans_1d(-values, 3), groups)


def test_kmeans_of_equal_values():
    assert len(set(kmeans_1d(np.ones(7), 3).tolist())) == 1


def squared_error(values, groups):
    return sum(((values[groups == group] - values[groups == group].mean()) ** 2).sum() for group in np.unique(groups))


@given(values=st.lists(st.integers(-20, 20), min_size=1, max_size=14), num_groups=st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_the_best_groups_have_the_least_error_of_all_splits(values, num_groups):
    values = np.asarray(values, float) / 7
    groups = best_groups_1d(values, num_groups)
    distinct = np.unique(values)
    count = min(num_groups, len(distinct))
    errors = [
        squared_error(values, np.searchsorted(np.asarray(bounds), values, side="right"))
        for bounds in combinations(distinct[1:], count - 1)
    ]
    assert squared_error(values, groups) == pytest.approx(min(errors), abs=1e-9)
    assert len(np.unique(groups)) == count
    # Ordered by their values.
    assert np.all(np.diff(groups[np.argsort(values, kind="stable")]) >= 0)


def test_the_best_groups_are_found_where_one_start_fails():
    rng = np.random.default_rng(0)
    # Two groups far below one outlier: equally spaced centers leave the lower two together.
    values = np.concatenate([rng.normal(0, 0.1, 1500), rng.normal(1, 0.1, 1500), [30.0]])
    best = best_groups_1d(values, 3)
    assert [int((best == group).sum()) for group in range(3)] == [1500, 1500, 1]
    assert squared_error(values, best) < 0.5 * squared_error(values, kmeans_1d(values, 3))


def strips(*pairs):
    """Masks of one row: columns first to last, the last one out."""
    masks = np.zeros((len(pairs), 1, 20), bool)
    for mask, (first, last) in zip(masks, pairs):
        mask[0, first:last] = True
    return masks


def test_a_pivot_moves_to_the_middle_of_its_group():
    # Each overlaps its neighbors: IoU 8/10 with the next, 7/11 with the one after that, 6/12 with the third.
    masks = strips((0, 9), (1, 10), (2, 11), (3, 12), (4, 13))
    # Mask 2 overlaps all others above 0.6 and is visited first: one group. Not above 0.7: 1, 2, 3 are its neighbors, all of them
    # overlap two; the first of these is mask 1. Its group 0, 1, 2 has mask 1 in the middle; 3 and 4 are left.
    assert [group.tolist() for group in group_around_pivots(masks, 0.6)] == [[0, 1, 2, 3, 4]]
    assert [group.tolist() for group in group_around_pivots(masks, 0.7)] == [[0, 1, 2], [3, 4]]
    # An IoU of exactly the threshold is no overlap here: 0.8.
    assert [len(group) for group in group_around_pivots(masks, 0.8)] == [1, 1, 1, 1, 1]
    assert [len(group) for group in group_by_overlap(masks, 0.8)] == [3, 2]
    # Nothing overlaps by more than 1, not even a mask itself.
    assert [group.tolist() for group in group_around_pivots(masks, 1.0)] == [[0], [1], [2], [3], [4]]


def slow_pivot_groups(masks, min_iou):
    """The published grouping, with sets."""

    def iou(i, j):
        return (masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum()

    everyone = range(len(masks))
    near = {i: {j for j in everyone if iou(i, j) > min_iou} for i in everyone}
    used, groups = set(), []
    for start in sorted(everyone, key=lambda i: (-len(near[i]), i)):
        if start in used:
            continue
        pivot, members = start, set()
        for _ in range(5):
            members |= near[pivot]
            middle = max(sorted(members), key=lambda i: round(sum(iou(i, j) for j in members), 9))
            if middle == pivot:
                break
            pivot = middle
        if pivot not in used:
            groups.append(sorted(members - used))
            used |= members
    return groups


@pytest.mark.parametrize("seed", range(8))
def test_pivot_groups_equal_the_slow_ones(seed):
    rng = np.random.default_rng(seed)
    first, length = rng.integers(0, 12, 40), rng.integers(3, 9, 40)
    masks = strips(*zip(first, first + length))
    groups = [group.tolist() for group in group_around_pivots(masks, 0.55)]
    assert groups == slow_pivot_groups(masks, 0.55)
    assert len(groups) > 1


def voting(**rules):
    return VoteCut(VoteCutSettings(**{**SETTINGS, "min_area": 0.0, "rules": VoteCutRules(**rules)}))


def test_each_rule_does_what_it_says():
    checkered = np.indices((12, 15)).sum(axis=0) % 2 == 0
    assert len(voting()._parts(checkered)) == 90
    assert voting(max_parts=89)._parts(checkered) == []
    two_parts = np.zeros((12, 15), bool)
    two_parts[0, 0] = two_parts[0, -1] = two_parts[5:8, 3:8] = True
    # The corners of the whole group are counted, or those of each part, of which none owns two.
    assert len(voting()._parts(two_parts)) == 3
    assert voting(count_group_corners=True)._parts(two_parts) == []
    # 3 patches high, but 5 wide.
    wide = voting()._parts(two_parts)[2]
    assert voting(min_side=5)._is_acceptable(wide)
    assert not voting(min_side=6)._is_acceptable(wide)
    assert not voting(min_side=2)._is_acceptable(voting()._parts(two_parts)[0])


def test_scores_and_overlaps_of_a_group():
    masks = np.zeros((3, 4, 6), bool)
    masks[:2, :, :4] = True
    masks[2, :, 3:] = True
    candidates = [(mask, 0.5) for mask in masks]
    found = voting(keep_overlaps=True, score_by_largest=True)._consensus(candidates, (4, 6))
    assert found.masks.sum(axis=0).max() == 2
    assert found.scores.tolist() == [1.0, 0.5]
    found = voting()._consensus(candidates, (4, 6))
    assert found.masks[1].sum() == 8
    assert found.scores.tolist() == [0.5, 0.25]


def test_the_published_rules_find_the_object_and_group_the_unscaled_vector():
    published = VoteCutSettings(**{**SETTINGS, "taus": (0.15,), "min_area": 0.0, "rules": VoteCutRules.published()})
    (found,) = VoteCut(published)(image_of_an_object(noise=0.05))
    assert found.masks[0][4:8, 5:10].all()
    assert not found.masks[0][:3].any()
    assert found.scores.max() == 1
    features = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0))
    affinity = BinaryAffinity(features, 0.15)
    weights = torch.where(torch.stack([affinity.dense(0), affinity.dense(1)]) > 0, 1.0, 1e-5).double()
    torch.testing.assert_close(affinity.degrees(1e-5), weights.sum(dim=2), atol=1e-6, rtol=0)


def test_the_configuration_of_cuvler_has_the_published_rules():
    cfg = setup_cfg("configs/masks/votecut_cuvler.yaml")
    settings = VoteCut.from_config(cfg)["settings"]
    assert settings.rules == VoteCutRules.published()
    assert (settings.taus, settings.num_groups, settings.min_area, settings.max_masks) == ((0.15,), (2, 3), 0.0, 10)


def test_wrong_settings_have_clear_errors():
    with pytest.raises(ValueError, match=r"MASKS.VOTE.TAUS must name a threshold .*, got \(\) and \(2, 3\)"):
        VoteCut(VoteCutSettings(**{**SETTINGS, "taus": ()}))
    with pytest.raises(ValueError, match=r"got \(0.15, 0.3\) and \(1,\)"):
        VoteCut(VoteCutSettings(**{**SETTINGS, "num_groups": (1,)}))
