import numpy as np
from u2seg.structures import mask_iou, mask_overlaps, pairwise_mask_iou


def test_iou_of_two_masks():
    a, b = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    assert mask_iou(a, b) == 0
    a[:, :2], b[:, 1:3] = True, True  # 8 and 8, 4 in common
    assert mask_iou(a, b) == 4 / 12
    assert mask_iou(a, a) == 1


def test_pairs_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    first, second = rng.random((5, 9, 15)) < 0.4, rng.random((3, 9, 15)) < 0.5
    first[2], second[1] = False, False
    overlaps, areas, others = mask_overlaps(first, second)
    ious = pairwise_mask_iou(first, second)
    assert (ious.shape, areas.dtype) == ((5, 3), np.int64)
    for i, a in enumerate(first):
        assert areas[i] == a.sum()
        for j, b in enumerate(second):
            assert overlaps[i, j] == (a & b).sum() and others[j] == b.sum()
            assert ious[i, j] == ((a & b).sum() / (a | b).sum() if (a | b).any() else 0)


def test_no_masks_have_no_pairs():
    masks = np.ones((2, 6, 7), bool)
    assert pairwise_mask_iou(masks[:0], masks).shape == (0, 2)
    assert pairwise_mask_iou(masks, masks[:0]).shape == (2, 0)
