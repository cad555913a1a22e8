from dataclasses import astuple, replace

import numpy as np
import pytest
import slow_merging
import torch
from scipy import ndimage
from u2seg.config import setup_cfg
from u2seg.pseudo_labels.masks import AutomaticMaskGenerator, RegionHierarchy, build_mask_generator
from u2seg.pseudo_labels.masks.hierarchy.candidates import distinct, fill_member_holes, pool_candidates
from u2seg.pseudo_labels.masks.hierarchy.contours import contour_strength, lab_image
from u2seg.pseudo_labels.masks.hierarchy.merging import CONTOUR_UNIT, MergeTree, MergeWeights, merge_regions
from u2seg.pseudo_labels.masks.hierarchy.objectness import OutlineCues, is_background, outline_cues, overlaps, stability
from u2seg.pseudo_labels.masks.hierarchy.region_graph import build_region_graph, soft_histograms
from u2seg.pseudo_labels.masks.hierarchy.region_hierarchy import RegionHierarchySettings
from u2seg.pseudo_labels.masks.hierarchy.superpixels import superpixels, watershed

CONTOUR_ONLY = MergeWeights(
    contour=1.0, lab=0.0, hsv=0.0, texture=0.0, features=0.0, size=0.0, gap=0.0, size_exponent=0.0
)
SETTINGS = RegionHierarchySettings(
    sigmas=(1.0,),
    window=9,
    merges=(CONTOUR_ONLY,),
    min_area=0.0,
    max_area=0.9,
    max_iou=0.75,
    max_shared=1.0,
    max_image_border=1.0,
    min_score=0.0,
    max_masks=100,
)


def graph_of(labels, strength=None, image_rgb=None, features=None):
    height, width = labels.shape
    image_rgb = np.zeros((height, width, 3), np.uint8) if image_rgb is None else image_rgb
    strength = np.ones((height, width), np.float32) if strength is None else strength
    features = np.zeros((0, 1, 1)) if features is None else features
    return build_region_graph(image_rgb, lab_image(image_rgb), strength, labels, features)


def squares(*boxes, size=(64, 96)):
    """A gray image with squares: (top, left, bottom, right, rgb), the later ones in front."""
    image_rgb = np.full((*size, 3), 90, np.uint8)
    for top, left, bottom, right, rgb in boxes:
        image_rgb[top:bottom, left:right] = rgb
    return image_rgb


def find(image_rgb, settings=SETTINGS):
    (found,) = RegionHierarchy(settings)(torch.zeros(1, 1, 1, 1), [image_rgb])
    return found


def iou(mask, box):
    top, left, bottom, right = box
    expected = np.zeros_like(mask)
    expected[top:bottom, left:right] = True
    return (mask & expected).sum() / (mask | expected).sum()


# --- contours and superpixels


def test_contours_stand_at_edges_of_color_and_nowhere_else():
    image_rgb = squares((0, 48, 64, 96, (90, 90, 200)))
    strength = contour_strength(lab_image(image_rgb), (1.0, 2.0))
    assert set(strength.argmax(axis=1)) <= {47, 48}
    assert (strength[:, :30] < 1e-3).all() and strength.min() >= 0


def test_the_watershed_joins_each_pixel_to_a_marker_over_the_lowest_pass():
    rng = np.random.default_rng(0)
    for _ in range(20):
        strength = rng.random((7, 9)).astype(np.float32)
        markers = np.zeros((7, 9), int)
        markers.ravel()[rng.choice(63, 4, replace=False)] = [1, 2, 3, 4]
        labels = watershed(strength, markers)
        # Flooding: the pass from a marker to a pixel is the lowest level at which both are in one component.
        passes = np.full((5, 7, 9), np.inf)
        for level in sorted({float(value) for value in strength.ravel()}, reverse=True):
            parts, _ = ndimage.label(strength <= level)
            for marker in range(1, 5):
                own = parts[markers == marker][0]
                passes[marker][(parts == own) & (parts > 0)] = level
        marker_of = {labels[markers == marker][0]: marker for marker in range(1, 5)}
        assert len(marker_of) == 4 and set(np.unique(labels)) == set(marker_of)
        own = np.take_along_axis(passes, np.vectorize(marker_of.get)(labels)[None], axis=0)[0]
        assert np.array_equal(own, passes.min(axis=0))


def test_superpixels_are_connected_numbered_from_zero_and_end_at_edges():
    rng = np.random.default_rng(1)
    image_rgb = squares((16, 20, 50, 60, (200, 60, 60)))
    noisy = np.clip(image_rgb + rng.normal(0, 4, image_rgb.shape), 0, 255).astype(np.uint8)
    labels = superpixels(contour_strength(lab_image(noisy), (1.0,)), window=9, sigma=1.0)
    assert set(np.unique(labels)) == set(range(labels.max() + 1)) and labels.max() > 10
    assert all(ndimage.label(labels == region)[1] == 1 for region in range(labels.max() + 1))
    inside = np.zeros(labels.shape, bool)
    inside[16:50, 20:60] = True
    shares = np.bincount(labels.ravel(), inside.ravel()) / np.bincount(labels.ravel())
    assert (np.minimum(shares, 1 - shares) < 0.25).all()


# --- the region graph


def test_the_graph_of_a_map_counted_by_hand():
    labels = np.array([[0, 0, 1], [0, 2, 1], [2, 2, 1]])
    strength = np.arange(9, dtype=np.float32).reshape(3, 3)
    features = np.array([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]])
    graph = graph_of(labels, strength, features=features)
    assert graph.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert graph.lengths.tolist() == [1, 3, 2]
    assert graph.strengths.tolist() == [2, 4 + 4 + 6, 5 + 8]
    assert graph.areas.tolist() == [3, 3, 3]
    assert graph.boxes.tolist() == [[0, 0, 2, 2], [0, 2, 3, 3], [1, 0, 3, 2]]
    assert graph.on_border.tolist() == [[2, 0, 2, 0], [1, 1, 0, 3], [0, 2, 1, 0]]
    assert graph.features.tolist() == [[7], [18], [20]]
    assert np.allclose([graph.histograms[name].sum(axis=1) for name in ("lab", "hsv")], 3)


def test_a_histogram_shares_a_value_between_the_two_nearest_bins():
    values = np.array([[0.25, 5.0], [-1.0, 1.0]])
    labels = np.array([[0, 0], [1, 1]])
    assert soft_histograms(values, labels, 2, (0.0, 1.0), 3).tolist() == [[0.5, 0.5, 1], [1, 0, 1]]


def test_features_of_patches_are_summed_over_pixels():
    labels = np.array([[0, 0, 0, 1], [0, 0, 0, 1]])
    features = np.array([[[1.0, 10.0]]])  # patches of 2 x 2 pixels
    assert graph_of(labels, features=features).features.tolist() == [[4 + 20], [20]]


# --- merging


@pytest.mark.parametrize("exponent", [0.0, 0.4])
def test_merging_equals_a_slow_restatement(exponent):
    rng = np.random.default_rng(2)
    for _ in range(3):
        image_rgb = rng.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        strength = rng.random((8, 9)).astype(np.float32)
        labels = watershed(strength, (np.arange(72).reshape(8, 9) % 8 == 0) * (1 + np.arange(72).reshape(8, 9)))
        graph = graph_of(labels, strength, image_rgb, rng.normal(size=(3, 4, 3)))
        weights = MergeWeights(*rng.random(7), exponent)
        tree = merge_regions(graph, weights)
        slow = slow_merging.merge_slowly(labels, strength, graph.histograms, graph.features, weights, CONTOUR_UNIT)
        assert tree.children.tolist() == [[first, second] for first, second, _ in slow]
        assert np.allclose(tree.costs, [cost for *_, cost in slow], rtol=1e-6)
        assert len(tree.children) == graph.num_regions - 1


def test_equal_costs_are_merged_from_the_lowest_ids_on():
    graph = graph_of(np.arange(4)[None].repeat(2, axis=0))
    tree = merge_regions(graph, CONTOUR_ONLY)
    assert tree.children.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert tree.members(4)[4:].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert tree.sums(np.array([1.0, 2.0, 4.0, 8.0])).tolist() == [1, 2, 4, 8, 3, 12, 15]


def test_one_region_is_merged_with_nothing():
    tree = merge_regions(graph_of(np.zeros((1, 1), np.int64)), CONTOUR_ONLY)
    assert tree.children.shape == (0, 2) and tree.members(1).tolist() == [[True]]


# --- candidates and cues


def test_candidates_are_distinct_and_of_the_sizes_asked_for():
    graph = graph_of(np.array([[0, 0, 1, 2]]))
    trees = [MergeTree(np.array(pairs), np.zeros(2)) for pairs in ([[0, 1], [2, 3]], [[1, 2], [0, 3]])]
    members = pool_candidates(graph, trees, 0.25, 0.75)
    assert members.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert distinct(members[[2, 0, 2]]).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert distinct(np.zeros((0, 3), bool)).shape == (0, 3)


def test_holes_are_what_a_candidate_cuts_off_from_the_border():
    labels = np.arange(25).reshape(5, 5)
    ring = np.zeros((5, 5), bool)
    ring[1:4, 1:4] = True
    ring[2, 2] = False
    corner = np.zeros((5, 5), bool)
    corner[[0, 1], [1, 0]] = True  # encloses a corner, which lies on the border
    filled = fill_member_holes(graph_of(labels), np.stack([ring.ravel(), corner.ravel()]))
    assert filled[0].reshape(5, 5).tolist() == ndimage.binary_fill_holes(ring).tolist()
    assert (filled[1] == corner.ravel()).all()


def test_cues_counted_by_hand():
    labels = np.array([[0, 0, 1], [0, 2, 1], [2, 2, 1]])
    graph = graph_of(labels, np.arange(9, dtype=np.float32).reshape(3, 3))
    cues = outline_cues(graph, np.array([[True, True, False], [False, False, True]]))
    assert np.allclose(cues.area, [6 / 9, 3 / 9])
    assert np.allclose(cues.border_strength, [(14 + 13) / 5, (14 + 13) / 5])
    assert np.allclose(cues.image_border, [9 / 14, 3 / 8])
    assert np.allclose(cues.compactness, [4 * np.pi * 6 / 14**2, 4 * np.pi * 3 / 8**2])
    assert np.allclose(overlaps(np.array([[1, 1, 0], [0, 1, 0]], bool), graph.areas), [[1, 0.5], [0.5, 1]])


def test_a_region_that_is_found_again_gains():
    ious = np.array([[1.0, 0.95, 0.4], [0.95, 1.0, 0.5], [0.4, 0.5, 1.0]])
    factors = stability(ious)
    assert factors[0] == factors[1] > factors[2] == 1


# --- the generator


def test_two_flat_regions_give_their_masks():
    found = find(squares((0, 40, 64, 96, (200, 60, 60))))
    assert max(iou(mask, (0, 0, 64, 40)) for mask in found.masks) > 0.97
    assert max(iou(mask, (0, 40, 64, 96)) for mask in found.masks) > 0.97


def test_nested_squares_are_both_found_best_first():
    boxes = (8, 10, 56, 70), (20, 24, 44, 50)
    image_rgb = squares((*boxes[0], (200, 60, 60)), (*boxes[1], (60, 60, 200)))
    found = find(image_rgb)
    # Rounded corners cost the smaller one a tenth.
    assert all(max(iou(mask, box) for mask in found.masks) > 0.85 for box in boxes)
    assert (np.diff(found.scores) <= 0).all() and found.scores.min() >= 0 and found.scores.max() <= 1
    assert np.isnan(found.cut_values).all() and found.masks.shape == (len(found.scores), 64, 96)


def test_labels_hold_the_best_masks_that_share_nothing():
    image_rgb = squares((8, 10, 56, 70, (200, 60, 60)), (20, 24, 44, 50, (60, 60, 200)))
    nested, disjoint = (find(image_rgb, replace(SETTINGS, max_shared=share)) for share in (1.0, 0.0))
    assert nested.masks.sum(axis=0).max() > 1 and disjoint.masks.sum(axis=0).max() == 1
    assert np.array_equal(nested.masks[0], disjoint.masks[0])


def test_a_large_region_that_leaves_the_image_is_background():
    # A band of sky over a gray ground, with a red square; the sky's outline is 96 + 2 * 24 pixels of the image's border, and 96 others.
    image_rgb = squares((0, 0, 24, 96, (120, 160, 230)), (36, 40, 52, 60, (200, 60, 60)))
    every = find(image_rgb, replace(SETTINGS, max_shared=0.0))
    things = find(image_rgb, replace(SETTINGS, max_shared=0.0, max_image_border=0.5))
    assert max(iou(mask, (0, 0, 24, 96)) for mask in every.masks) > 0.9
    assert max(iou(mask, (36, 40, 52, 60)) for mask in things.masks) > 0.8
    # Neither the sky nor a piece of it is a mask.
    assert not things.masks[:, :20].any()
    # Below a twentieth of the image it would be a thing that the border cuts off.
    area, border = np.array([0.06, 0.04, 0.06]), np.array([0.6, 0.6, 0.5])
    cues = OutlineCues(area, np.ones(3), border, compactness=np.ones(3))
    assert is_background(cues, 0.5).tolist() == [True, False, False]
    assert not is_background(replace(cues, image_border=np.ones(3)), 1.0).any()


def test_limits_hold():
    image_rgb = squares((8, 10, 56, 70, (200, 60, 60)), (20, 24, 44, 50, (60, 60, 200)))
    every = find(image_rgb)
    assert len(find(image_rgb, replace(SETTINGS, max_masks=1)).masks) == 1
    least = every.scores[0] - 1e-6
    assert len(find(image_rgb, replace(SETTINGS, min_score=least)).masks) == 1
    sized = find(image_rgb, replace(SETTINGS, min_area=0.05, max_area=0.2))
    assert len(sized.masks) and ((sized.masks.mean(axis=(1, 2)) > 0.05) & (sized.masks.mean(axis=(1, 2)) < 0.2)).all()


def test_features_tell_apart_what_looks_alike():
    features = torch.zeros(1, 2, 8, 12)
    features[0, 0, :, :6], features[0, 1, :, 6:] = 1, 1
    rng = np.random.default_rng(3)
    image_rgb = rng.integers(80, 100, (64, 96, 3), dtype=np.uint8)
    settings = replace(SETTINGS, merges=(replace(CONTOUR_ONLY, features=50.0),))
    (found,) = RegionHierarchy(settings)(features, [image_rgb])
    # Superpixels know nothing of features, and some lie across the middle.
    assert max(iou(mask, (0, 0, 64, 48)) for mask in found.masks) > 0.85


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 400), (2, 2), (40, 40)])
@pytest.mark.parametrize("kind", ["constant", "gray", "noise"])
def test_odd_images_give_masks_or_none(size, kind):
    rng = np.random.default_rng(4)
    image_rgb = {
        "constant": np.full((*size, 3), 7, np.uint8),
        "gray": rng.integers(0, 256, (*size, 1), dtype=np.uint8).repeat(3, axis=2),
        "noise": rng.integers(0, 256, (*size, 3), dtype=np.uint8),
    }[kind]
    found = find(image_rgb)
    assert found.masks.dtype == bool and found.masks.shape == (len(found.scores), *size)
    assert np.isfinite(found.scores).all() and found.masks.any(axis=(1, 2)).all()
    assert kind != "constant" or len(found.masks) == 0


def test_the_same_image_gives_the_same_masks_alone_and_in_a_batch():
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(2)]
    generator = RegionHierarchy(SETTINGS)
    together = generator(torch.zeros(2, 1, 1, 1), images)
    for found, image_rgb in zip(together, images):
        again = find(image_rgb)
        assert np.array_equal(found.masks, again.masks) and np.array_equal(found.scores, again.scores)


def test_pixels_must_be_there():
    with pytest.raises(ValueError, match="needs the pixels of each image, got 0 images for 2 feature maps"):
        RegionHierarchy(SETTINGS)(torch.zeros(2, 1, 1, 1))


def test_the_configuration_builds_it_and_refuses_columns_of_other_lengths():
    cfg = setup_cfg("Base-U2Seg.yaml", ["MASKS.GENERATOR", "RegionHierarchy"])
    merges = build_mask_generator(cfg).settings.merges
    assert len(merges) == len(cfg.MASKS.HIERARCHY.LAB_WEIGHTS)
    assert astuple(merges[0])[:2] == (cfg.MASKS.HIERARCHY.CONTOUR_WEIGHTS[0], cfg.MASKS.HIERARCHY.LAB_WEIGHTS[0])
    cfg.MASKS.HIERARCHY.LAB_WEIGHTS = (1.0,)
    with pytest.raises(ValueError, match="as many values each"):
        build_mask_generator(cfg)
    with pytest.raises(ValueError, match="must have a value each, got 0 and 1"):
        replace(SETTINGS, sigmas=())


def test_the_whole_generator_gives_masks_at_the_size_of_the_image():
    overrides = ["FEATURES.NAME", "RawPixels", "FEATURES.IMAGE_SIZE", "(64, 96)", "MASKS.REFINEMENT", "none"]
    cfg = setup_cfg("Base-U2Seg.yaml", ["MASKS.GENERATOR", "RegionHierarchy", *overrides])
    image_rgb = squares((16, 20, 100, 120, (200, 60, 60)), size=(128, 192))
    masks = AutomaticMaskGenerator(cfg).generate(image_rgb)
    assert masks[0]["segmentation"]["size"] == [128, 192]
    assert np.allclose(masks[0]["bbox"], [20, 16, 100, 84], atol=2)
