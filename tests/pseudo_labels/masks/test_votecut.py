import numpy as np
import pytest
import torch
from u2seg.pseudo_labels.masks import VoteCut
from u2seg.pseudo_labels.masks.votecut import VoteCutSettings, group_by_overlap, kmeans_1d

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


def test_wrong_settings_have_clear_errors():
    with pytest.raises(ValueError, match=r"MASKS.VOTE.TAUS must name a threshold .*, got \(\) and \(2, 3\)"):
        VoteCut(VoteCutSettings(**{**SETTINGS, "taus": ()}))
    with pytest.raises(ValueError, match=r"got \(0.15, 0.3\) and \(1,\)"):
        VoteCut(VoteCutSettings(**{**SETTINGS, "num_groups": (1,)}))
