"""Semantic clusters of regions, on images whose regions are known."""

import numpy as np
import pytest
from label_stages import make_semantics
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.data.formats.semantic_shards import iter_semantic_maps
from u2seg.pseudo_labels.masks import make_masks
from u2seg.pseudo_labels.masks.hierarchy.merging import MergeTree
from u2seg.pseudo_labels.semantics.region_kmeans import RegionWeights, divide_image
from u2seg.utils.manifest import StageMismatchError

SKY, GRASS, WALL = (120, 160, 230), (40, 130, 40), (190, 150, 110)


def halves(upper, lower, horizon):
    """A 64 x 96 image whose two parts meet along a slope; returns it and where the lower part is."""
    rows, columns = np.mgrid[:64, :96]
    is_lower = rows > horizon + columns / 8
    image = np.where(is_lower[..., None], lower, upper)
    return (image + np.random.default_rng(0).integers(-2, 3, image.shape)).clip(0, 255).astype(np.uint8), is_lower


@pytest.mark.parametrize(
    ("count", "groups"),
    [(9, [0, 1, 2, 3, 4]), (4, [0, 1, 2, 1, 3]), (3, [0, 1, 2, 1, 2]), (2, [0, 1, 0, 1, 0]), (1, [0, 0, 0, 0, 0])],
)
def test_a_partition_undoes_the_last_merges(count, groups):
    tree = MergeTree(np.array([[1, 3], [2, 4], [0, 6], [5, 7]]), np.arange(4.0))
    assert tree.partition(5, count).tolist() == groups


def test_two_parts_are_two_regions_with_the_descriptors_that_they_should_have():
    image, is_lower = halves(SKY, GRASS, 28)
    features = np.zeros((2, 8, 12), np.float32)
    features[0] = 3.0
    regions = divide_image(image, features, 2, RegionWeights(color=2.0, texture=0.5, height=1.0, feature=1.0))
    assert (regions.labels == is_lower).mean() > 0.99
    assert regions.vectors.shape[0] == 2 and regions.vectors.dtype == np.float32
    *histograms, height, first, second = regions.vectors.T
    heights = [np.nonzero(part)[0].mean() + 0.5 for part in (~is_lower, is_lower)]
    np.testing.assert_allclose(64 * height, heights, atol=0.5)
    np.testing.assert_allclose([first, second], [[1, 1], [0, 0]], atol=1e-6)
    # Color: three histograms that add up to 1 before the root; texture the same, and at most 1 (orientations of weak gradients).
    color, texture = np.array(histograms)[:48], np.array(histograms)[48:]
    np.testing.assert_allclose(np.square(color).sum(0), 4.0, rtol=1e-5)
    assert (np.square(texture).sum(0) <= 0.25 + 1e-6).all()
    assert np.linalg.norm(color[:, 0] - color[:, 1]) > 1

    one = divide_image(image, features, 1, RegionWeights(1.0, 1.0, 1.0, 1.0))
    assert (one.labels == 0).all() and one.vectors[0, -3] == pytest.approx(0.5)


def test_a_patch_has_the_descriptor_of_the_region_at_its_center():
    image, is_lower = halves(SKY, GRASS, 28)
    regions = divide_image(image, np.ones((1, 8, 12), np.float32), 2, RegionWeights(1.0, 0.0, 0.0, 0.0))
    on_patches = regions.on_patches(8, 12)
    assert on_patches.shape == (regions.vectors.shape[1], 8, 12)
    expected = regions.vectors[regions.labels[4::8, 4::8]].transpose(2, 0, 1)
    np.testing.assert_array_equal(on_patches, expected)


@pytest.fixture
def photos(tmp_path):
    """Three images of two parts each, of three looks in all."""
    for name, looks in {"a": (SKY, GRASS), "b": (WALL, GRASS), "c": (SKY, WALL)}.items():
        Image.fromarray(halves(*looks, 28)[0]).save(tmp_path / f"{name}.png")
    return tmp_path


def test_maps_follow_contours_and_parts_of_one_look_get_one_cluster(photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    options = (
        "FEATURES.IMAGE_SIZE (64,96) SEMANTICS.PROVIDER RegionKMeans SEMANTICS.NUM_CLUSTERS 3 MASKS.NUM_WORKERS 0 "
        "MASKS.GENERATOR WholeImage MASKS.REFINEMENT none SEMANTICS.REGIONS.MAX_REGIONS 2 SEMANTICS.REGIONS.HEIGHT_WEIGHT 0.1"
    )
    cfg = setup_cfg("quick_schedules/scenes.yaml", options.split())
    masks = make_masks(cfg, photos, output / "masks")
    semantics = make_semantics(cfg, photos, masks, output / "semantics")
    (maps,) = iter_semantic_maps(semantics)
    sky, grass, wall = (maps[name][y, 48] for name, y in (("a.png", 4), ("a.png", 60), ("b.png", 4)))
    assert {sky, grass, wall} == {0, 1, 2}
    is_lower = halves(SKY, GRASS, 28)[1]
    for name, upper, lower in (("a", sky, grass), ("b", wall, grass), ("c", sky, wall)):
        assert maps[f"{name}.png"].dtype == np.uint8
        assert (maps[f"{name}.png"] == np.where(is_lower, lower, upper)).mean() > 0.99

    # New images can be labeled with the same centroids; other regions need other labels, other providers do not.
    again = cfg.clone()
    again.SEMANTICS.CENTROIDS = str(semantics / "centroids.npy")
    (repeated,) = iter_semantic_maps(make_semantics(again, photos, masks, output / "again"))
    assert all(np.array_equal(maps[name], repeated[name]) for name in maps)
    cfg.SEMANTICS.REGIONS.MAX_REGIONS = 3
    with pytest.raises(StageMismatchError, match="regions"):
        make_semantics(cfg, photos, masks, output / "semantics")
    cfg.SEMANTICS.PROVIDER = "PatchKMeans"
    make_semantics(cfg, photos, masks, output / "patches")
    cfg.SEMANTICS.REGIONS.MAX_REGIONS = 2
    make_semantics(cfg, photos, masks, output / "patches")
