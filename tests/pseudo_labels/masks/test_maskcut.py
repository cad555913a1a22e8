import numpy as np
import pytest
import slow_maskcut
import torch
from detectron2.config import get_cfg
from synthetic_images import synthetic_photo
from u2seg.config import add_u2seg_config, setup_cfg
from u2seg.pseudo_labels.masks import MaskCut, StrictMaskCut, build_mask_generator
from u2seg.pseudo_labels.masks.maskcut import MaskCutRules, MaskCutSettings, scipy_second_eigenvector, select_object

SETTINGS = {
    "center_features": False,
    "tau": 0.15,
    "eps": 1e-5,
    "rounds": 3,
    "min_area": 0.01,
    "max_corners": 3,
    "max_previous_iou": 0.5,
}


def mask_cut(**changes):
    rules = changes.pop("rules", MaskCutRules())
    return MaskCut(MaskCutSettings(**{**SETTINGS, **changes}), rules)


def strict_mask_cut(solver=None, **changes):
    return StrictMaskCut(MaskCutSettings(**{**SETTINGS, **changes}), solver)


def planted_image(seed, rows=12, columns=15, channels=10):
    """Features (channels, rows, columns) of one to four rectangles, some of equal feature, on a ground, with noise."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(5, channels))
    groups = np.zeros((rows, columns), int)
    for _ in range(rng.integers(1, 5)):
        height, width = rng.integers(2, 7, 2)
        top, left = rng.integers(0, rows - height), rng.integers(0, columns - width)
        groups[top : top + height, left : left + width] = rng.integers(1, 5)
    features = centers[groups] + rng.choice([0.0, 0.3, 0.7]) * rng.normal(size=(rows, columns, channels))
    return features.transpose(2, 0, 1).astype(np.float32)


def assert_same_masks(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected):
        assert np.array_equal(one, other)


def compare(run, reference, seeds):
    """Compares masks image by image where the reference's vectors are well defined; returns how many were compared."""
    compared = 0
    for seed in seeds:
        features = planted_image(seed)
        expected, gap = reference(features)
        if gap > 1e-3:
            compared += 1
            assert_same_masks(run(torch.from_numpy(features)[None])[0].masks, expected)
    return compared


def test_strict_mode_equals_the_published_rules():
    assert compare(strict_mask_cut(), slow_maskcut.strict, range(260)) >= 150


def random_image(seed, rows=12, columns=15):
    """Smoothed noise, (6, rows, columns): no object, islands, and regions of any shape."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 6, rows, columns)).astype(np.float32))
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)[0].numpy()


def oriented_solver(affinity):
    vector, value = scipy_second_eigenvector(affinity)
    return slow_maskcut.positive_peak(vector), value


@pytest.mark.parametrize(("image", "num_seeds"), [(planted_image, 300), (random_image, 60)])
def test_the_published_rules_with_the_fast_solver_equal_the_published_code(image, num_seeds):
    rounds = 5  # more than the published three, so that rejected regions come back
    fast = mask_cut(rules=MaskCutRules.published(), rounds=rounds)
    num_compared = 0
    for seed in range(num_seeds):
        features = image(seed)
        expected, gap = slow_maskcut.strict(features, rounds=rounds, orient=slow_maskcut.positive_peak)
        if gap > 1e-3:
            num_compared += 1
            assert_same_masks(fast(torch.from_numpy(features)[None])[0].masks, expected)
    assert num_compared >= 30


def test_strict_mode_with_that_sign_equals_the_fast_solver():
    fast = mask_cut(rules=MaskCutRules.published())
    strict = strict_mask_cut(solver=oriented_solver)
    for seed in range(30):
        image = torch.from_numpy(random_image(seed))[None]
        assert_same_masks(fast(image)[0].masks, strict(image)[0].masks)


def test_default_mode_equals_the_slow_one():
    assert compare(mask_cut(), slow_maskcut.canonical, range(330)) >= 200


def test_the_sign_of_the_eigenvector_does_not_matter():
    for seed in range(60):
        features = planted_image(seed)
        one, gap = slow_maskcut.canonical(features)
        other, _ = slow_maskcut.canonical(features, sign=-1)
        assert_same_masks(one, other)
        vector = np.random.default_rng(seed).normal(size=(12, 15))
        live = np.random.default_rng(seed + 1).random((12, 15)) < 0.8
        assert np.array_equal(select_object(vector, live), select_object(-vector, live))


def test_the_sign_matters_in_strict_mode():
    def flipped(affinity):
        vector, value = scipy_second_eigenvector(affinity)
        return -vector, value

    images = [torch.from_numpy(planted_image(seed))[None] for seed in range(60)]
    plain, turned = strict_mask_cut(), strict_mask_cut(solver=flipped)
    changed = sum(not np.array_equal(plain(image)[0].masks, turned(image)[0].masks) for image in images)
    assert changed > 0, "the defect that the default mode avoids"


def test_islands_hide_the_object_in_strict_mode_alone():
    # A ground (feature 0), a rim that is like the ground and like the object, the object (feature 1), and two islands, of two
    # patches and of one, which are like nothing. Islands are cut off first, for lambda is about n eps / size = 6e-4 and 1.2e-3.
    features = np.zeros((4, 10, 12), np.float32)
    features[0] = 1
    features[1, 2:8, 3:10] = 1
    features[0, 3:7, 4:9] = 0
    for channel, row, columns in ((2, 0, slice(5, 7)), (3, 9, slice(7, 8))):
        features[:, row, columns] = 0
        features[channel, row, columns] = 1
    image = torch.from_numpy(features)[None]
    # At most 2.4 patches are too few. Strict: the first mask has no area limit; the second island is rejected, solved for again,
    # and rejected again.
    assert [mask.sum() for mask in strict_mask_cut(min_area=0.02)(image)[0].masks] == [2]
    # Default: both islands are rejected and removed, so that the third round gets to the object.
    (found,) = mask_cut(min_area=0.02)(image)[0].masks
    assert found[3:7, 4:9].all()
    assert not found[features[0] * (1 - features[1]) > 0].any()


def test_a_repeat_is_rejected_and_then_accepted_in_strict_mode():
    # The solver is told what to say: round 2 repeats round 1's region, is rejected, and round 3 accepts the same region, less what
    # was taken already.
    first, second = np.full((10, 12), -0.1), np.full((10, 12), -0.1)
    first[3:7, 4:8] = 1.0
    second[3:7, 4:10] = 1.0  # 24 patches, 16 of them in the first region: IoU 2/3
    vectors = iter([first, second])
    strict = strict_mask_cut(solver=lambda affinity: (next(vectors).ravel(), 0.1))
    masks = strict(torch.ones(1, 3, 10, 12))[0].masks
    assert [mask.sum() for mask in masks] == [16, 8]
    assert masks[1][3:7, 8:10].all()


def test_all_the_rest_is_no_object():
    # A ground and an object. The object is found; what is cut off next is what was removed, and the ground is not thereby an object.
    features = np.zeros((2, 10, 12), np.float32)
    features[0] = 1
    features[:, 3:7, 4:9] = [[[0]], [[1]]]
    image = torch.from_numpy(features)[None]
    (mask,) = mask_cut(max_corners=5)(image)[0].masks
    assert np.array_equal(mask, features[1] > 0)
    # A region that holds all but one of the patches left, 99 %, is "the rest" as well.
    features[:, 3:7, 4:9] = [[[1]], [[0]]]
    features[:, 0, 0] = [0, 1]
    features[:, 0, 1] = [1, 1]
    image = torch.from_numpy(features)[None]
    shares = [mask.mean() for mask in mask_cut(max_corners=5, min_area=0.0)(image)[0].masks]
    assert all(share < 0.95 for share in shares)


def test_each_rule_does_what_it_says():
    # A plateau of 6 patches of 120 in a corner: one image corner, 5 % of the patches.
    features = np.zeros((2, 10, 12), np.float32)
    features[0] = 1
    features[:, :2, :3] = [[[0]], [[1]]]
    image = torch.from_numpy(features)[None]

    def count(min_area=0.01, max_corners=3, **rules):
        generator = mask_cut(rounds=1, min_area=min_area, max_corners=max_corners, rules=MaskCutRules(**rules))
        return len(generator(image)[0].masks)

    assert count() == 1
    assert count(min_area=0.06) == 0 and count(min_area=0.06, check_first_area=False) == 1
    assert count(max_corners=1) == 0 and count(max_corners=1, reject_corners=False) == 1
    assert count(max_live_share=0.05) == 1 and count(max_live_share=0.04) == 0


def test_rules_come_from_the_configuration():
    cfg = cpu_config()
    assert MaskCutRules.from_config(cfg) == MaskCutRules()
    assert build_mask_generator(cfg).rules == MaskCutRules()
    for name in ("COCO-PanopticSegmentation/u2seg_R50_800.yaml", "ImageNet-InstanceSegmentation/cutler_R50.yaml"):
        assert build_mask_generator(setup_cfg(name)).rules == MaskCutRules.published()


def test_select_object_prefers_the_side_with_fewer_corners():
    vector = np.full((6, 8), -1.0)
    vector[2:4, 3:5] = 0.5  # a weaker peak than the rest's
    expected = vector > 0
    live = np.ones((6, 8), bool)
    assert np.array_equal(select_object(vector, live), expected)
    assert np.array_equal(select_object(-vector, live), expected)


def test_select_object_prefers_the_higher_peak_between_equal_corners():
    vector = np.full((6, 8), -1.0)
    vector[:, 4:] = 1.0
    vector[2, 1] = -1.5
    left = vector < 0
    live = np.ones((6, 8), bool)
    assert np.array_equal(select_object(vector, live), left)
    assert np.array_equal(select_object(-vector, live), left)


def test_select_object_seeds_equal_peaks_at_the_lowest_index():
    vector = np.full((6, 8), -0.2)
    vector[4, 1:3] = 1.0 - 1e-12  # equal to the other region's but for rounding
    vector[1, 5:7] = 1.0 - 3e-12
    live = np.ones((6, 8), bool)
    expected = np.zeros((6, 8), bool)
    expected[1, 5:7] = True
    assert np.array_equal(select_object(vector, live), expected)
    live[1, 5:7] = False  # removed: no seed
    assert select_object(vector, live)[4, 1:3].all()


def test_components_are_four_connected():
    vector = np.full((6, 8), -0.2)
    vector[1, 1], vector[2, 2] = 1.0, 0.9
    assert select_object(vector, np.ones((6, 8), bool)).sum() == 1


def test_select_object_of_nothing():
    assert not select_object(np.zeros((3, 4)), np.ones((3, 4), bool)).any()
    assert not select_object(np.ones((3, 4)), np.ones((3, 4), bool)).any()
    assert not select_object(np.random.default_rng(0).normal(size=(3, 4)), np.zeros((3, 4), bool)).any()


def test_limits():
    features = torch.from_numpy(planted_image(3))[None]
    everything = mask_cut(min_area=0.0, max_corners=5)(features)[0].masks
    areas = [mask.mean() for mask in everything]
    limit = sorted(areas)[0]
    assert all(mask.mean() > limit for mask in mask_cut(min_area=limit, max_corners=5)(features)[0].masks)
    assert all(
        mask.mean() <= limit for mask in mask_cut(min_area=0.0, max_area=limit, max_corners=5)(features)[0].masks
    )
    assert len(mask_cut(rounds=1, min_area=0.0, max_corners=5)(features)[0].masks) == 1


def test_masks_do_not_overlap_and_values_are_in_range():
    for seed in range(20):
        found = mask_cut(rounds=6)(torch.from_numpy(planted_image(seed))[None])[0]
        assert found.masks.sum(axis=0).max(initial=0) <= 1
        assert np.all((found.cut_values >= 0) & (found.cut_values <= 1))
        assert np.array_equal(found.scores, 1 - found.cut_values)


def test_a_batch_equals_its_images():
    images = torch.from_numpy(np.stack([planted_image(seed) for seed in range(8)]))
    generator = mask_cut()
    for index, found in enumerate(generator(images)):
        assert_same_masks(found.masks, generator(images[index : index + 1])[0].masks)


def test_centering_takes_a_common_feature_away():
    features = planted_image(0)
    shifted = torch.from_numpy(features + 100)[None]  # all cosines near 1: one clique
    assert len(mask_cut()(shifted)[0].masks) == 0
    centered = mask_cut(center_features=True)
    assert_same_masks(centered(shifted)[0].masks, centered(torch.from_numpy(features)[None])[0].masks)


def test_wrong_settings_have_clear_errors():
    with pytest.raises(ValueError, match="MASKS.ROUNDS must be at least 1, got 0"):
        mask_cut(rounds=0)
    with pytest.raises(ValueError, match="MASKS.EPS must be above 0 and below 1, got 0"):
        mask_cut(eps=0)
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.MASKS.GENERATOR = "MaskCat"
    with pytest.raises(ValueError, match="Unknown MASKS.GENERATOR 'MaskCat'; registered: .*MaskCut, .*StrictMaskCut"):
        build_mask_generator(cfg)


def cpu_config():
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.FEATURES.DEVICE = "cpu"
    return cfg


def test_images_equal_the_slow_ones():
    from u2seg.features import build_feature_extractor

    cfg = cpu_config()
    cfg.FEATURES.IMAGE_SIZE = (160, 240)  # 20 x 30 patches, so that the dense solver takes a blink
    extractor = build_feature_extractor(cfg)
    num_compared = 0
    for seed in range(6):
        features = extractor(extractor.preprocess(synthetic_photo(seed))[None])
        features = features - features.mean(dim=(2, 3), keepdim=True)
        expected, gap = slow_maskcut.strict(features[0].numpy())
        if gap > 1e-3:
            num_compared += 1
            assert_same_masks(strict_mask_cut()(features)[0].masks, expected)
        expected, gap = slow_maskcut.canonical(features[0].numpy())
        if gap > 1e-3:
            num_compared += 1
            assert_same_masks(mask_cut()(features)[0].masks, expected)
    assert num_compared > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "slow", "make"),
    [
        ("HandmadeDescriptor", slow_maskcut.strict, strict_mask_cut),
        ("TimmViT", slow_maskcut.canonical, mask_cut),
    ],
)
def test_an_image_at_full_size_equals_the_slow_one(name, slow, make, tmp_path):
    import timm
    from u2seg.features import build_feature_extractor

    cfg = cpu_config()
    cfg.FEATURES.NAME = name
    cfg.FEATURES.VIT.ARCH = "dino_vits8"
    cfg.FEATURES.VIT.WEIGHTS = str(tmp_path / "random.pth")
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_small_patch8_224.dino", num_classes=0).state_dict(), cfg.FEATURES.VIT.WEIGHTS)
    extractor = build_feature_extractor(cfg)
    features = extractor(extractor.preprocess(synthetic_photo(0, (480, 480)))[None])
    features = features - features.mean(dim=(2, 3), keepdim=True)
    # Two rounds, the second with removed patches; more would only solve more 3600 x 3600 problems.
    expected, gap = slow(features[0].numpy(), rounds=2)
    assert gap > 1e-3
    assert_same_masks(make(rounds=2)(features)[0].masks, expected)
