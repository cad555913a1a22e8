import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from scipy import ndimage
from u2seg.config import add_u2seg_config
from u2seg.pseudo_labels.masks import DenseCRF, build_mask_refinement, guided_filter_masks
from u2seg.pseudo_labels.masks.refinement import fill_holes, resize_mask, upsample_nearest, without_overlaps


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.FEATURES.DEVICE = "cpu"
    return cfg


def two_halves(height=40, width=64, edge=30):
    image = np.full((height, width, 3), 30, np.uint8)
    image[:, edge:] = (220, 200, 40)
    return image


@pytest.mark.parametrize("name", ["dense_crf", "dense_crf_on_crops", "guided_filter"])
def test_refinement_moves_a_border_to_the_edge(cfg, name):
    cfg.MASKS.REFINEMENT = name
    mask = np.zeros((1, 40, 64), bool)
    mask[0, :, 26:] = True  # four pixels too far
    refined = build_mask_refinement(cfg)(two_halves(), mask)
    assert refined.dtype == bool
    assert refined.shape == (1, 40, 64)
    assert not refined[0, :, :29].any()
    assert refined[0, :, 31:].all()


@pytest.mark.parametrize("name", ["dense_crf", "dense_crf_on_crops", "guided_filter", "none"])
def test_no_masks_stay_no_masks(cfg, name):
    cfg.MASKS.REFINEMENT = name
    assert build_mask_refinement(cfg)(two_halves(), np.zeros((0, 40, 64), bool)).shape == (0, 40, 64)


def test_none_leaves_masks_alone(cfg):
    cfg.MASKS.REFINEMENT = "none"
    masks = np.random.default_rng(0).random((2, 40, 64)) < 0.5
    assert np.array_equal(build_mask_refinement(cfg)(two_halves(), masks), masks)


def test_crf_settings_come_from_the_configuration(cfg):
    mask = np.zeros((1, 40, 64), bool)
    mask[0, :, 26:] = True
    cfg.MASKS.CRF.BILATERAL_COMPAT = 0.0
    cfg.MASKS.CRF.GAUSSIAN_COMPAT = 0.0
    assert np.array_equal(build_mask_refinement(cfg)(two_halves(), mask), mask)  # the unary alone


def test_the_crf_on_crops_sees_a_third_more_on_every_side(cfg):
    cfg.MASKS.REFINEMENT = "dense_crf_on_crops"
    refine = build_mask_refinement(cfg)
    image = np.full((40, 64, 3), 30, np.uint8)
    image[8:30, 22:44] = (220, 200, 40)
    mask = np.zeros((1, 40, 64), bool)
    mask[0, 10:28, 24:42] = True  # the crop is rows 4..33 and columns 18..47
    expected = DenseCRF(np.ascontiguousarray(image[4:34, 18:48])).foreground(
        torch.from_numpy(2.0 * mask[:, 4:34, 18:48] - 1).float()
    )
    expected = fill_holes(expected[0].numpy() > 0.5)
    refined = refine(image, mask)
    assert np.array_equal(refined[0, 4:34, 18:48], expected)
    assert refined.sum() == expected.sum()
    assert refined.sum() > mask.sum()


def test_the_crf_on_crops_leaves_a_mask_that_it_would_spoil(cfg):
    cfg.MASKS.REFINEMENT = "dense_crf_on_crops"
    image = np.full((40, 64, 3), 90, np.uint8)
    speck = np.zeros((1, 40, 64), bool)
    speck[0, 20, 30:32] = True
    refined = build_mask_refinement(cfg)(image, speck)
    assert np.array_equal(refined, speck)
    # A box IoU that nothing reaches leaves every mask.
    cfg.MASKS.CRF.MIN_BOX_IOU = 1.0
    mask = np.zeros((1, 40, 64), bool)
    mask[0, :, 26:] = True
    assert np.array_equal(build_mask_refinement(cfg)(two_halves(), mask), mask)


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
def test_filled_holes_equal_scipys(share):
    for seed in range(20):
        mask = np.random.default_rng(seed).random((9, 14)) < share
        filled = fill_holes(mask)
        assert filled.dtype == bool
        assert np.array_equal(filled, ndimage.binary_fill_holes(mask))


def test_unknown_refinement_has_a_clear_error(cfg):
    cfg.MASKS.REFINEMENT = "dense_crv"
    with pytest.raises(
        ValueError,
        match="Unknown MASKS.REFINEMENT 'dense_crv'; registered: dense_crf, dense_crf_on_crops, guided_filter, none",
    ):
        build_mask_refinement(cfg)


def test_guided_filter_equals_a_local_regression():
    # The definition, written out: in every window the mask is fitted by a linear function of the colors (ridge eps); a pixel gets
    # the mean of the fits of the windows that hold it.
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (11, 14, 3), dtype=np.uint8)
    mask = rng.random((1, 11, 14)) < 0.5
    radius, eps = 2, 0.01
    padded = np.pad(image / 255, ((4, 4), (4, 4), (0, 0)), mode="symmetric")
    target = np.pad(mask[0].astype(float), 4, mode="symmetric")
    fits = {}
    for y in range(2, 17):
        for x in range(2, 20):
            colors = padded[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
            values = target[y - 2 : y + 3, x - 2 : x + 3].ravel()
            centered = colors - colors.mean(0)
            slope = np.linalg.solve(
                centered.T @ centered / 25 + eps * np.eye(3), centered.T @ (values - values.mean()) / 25
            )
            fits[y, x] = np.r_[slope, values.mean() - slope @ colors.mean(0)]
    expected = np.zeros((11, 14))
    for y in range(11):
        for x in range(14):
            window = np.mean([fits[y + 4 + dy, x + 4 + dx] for dy in range(-2, 3) for dx in range(-2, 3)], axis=0)
            expected[y, x] = window[:3] @ padded[y + 4, x + 4] + window[3]
    inner = (slice(4, -4), slice(4, -4))  # at the border the fits themselves are reflected, not the image
    clear = np.abs(expected - 0.5) > 1e-3
    got = guided_filter_masks(image, mask, radius, eps)[0]
    assert np.array_equal((got & clear)[inner], ((expected > 0.5) & clear)[inner])


def test_upsampling_repeats_patches():
    masks = np.array([[[True, False, True], [False, False, True]]])
    big = upsample_nearest(masks, (4, 9))
    assert big.shape == (1, 4, 9)
    assert np.array_equal(big[0, ::2, ::3], masks[0])
    assert big.sum() == 6 * masks.sum()
    with pytest.raises(ValueError, match=r"multiple of the patch grid \(2, 3\), got \(5, 9\)"):
        upsample_nearest(masks, (5, 9))


def test_holes_are_filled_and_bays_are_not():
    mask = np.ones((5, 7), bool)
    mask[2, 2] = False
    mask[0, 5] = False  # open to the outside
    filled = fill_holes(mask)
    assert filled[2, 2]
    assert not filled[0, 5]


@pytest.mark.parametrize("size", [(60, 40), (7, 91), (1, 1), (20, 30)])
def test_resizing_keeps_the_place(size):
    mask = np.zeros((20, 30), bool)
    mask[:, 15:] = True
    resized = resize_mask(mask, size)
    assert resized.shape == size
    if size[1] > 1:
        assert not resized[:, : int(0.45 * size[1])].any()
        assert resized[:, int(0.55 * size[1]) + 1 :].all()


def test_the_smaller_mask_wins_an_overlap():
    large, small, apart = np.zeros((6, 9), bool), np.zeros((6, 9), bool), np.zeros((6, 9), bool)
    large[:, :6] = True
    small[2:4, 2:4] = True
    apart[:, 8] = True
    result = without_overlaps([large, small, apart])
    assert np.array_equal(result[0], large & ~small)
    assert np.array_equal(result[1], small)
    assert np.array_equal(result[2], apart)
    assert [mask.sum() for mask in without_overlaps([small, small])] == [4, 0]
    assert without_overlaps([]) == []
