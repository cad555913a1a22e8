"""Semantic providers on small images whose surfaces are known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from label_stages import make_semantics
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.data.formats.semantic_shards import iter_semantic_maps, read_semantic_shard, write_semantic_shard
from u2seg.pseudo_labels.masks import make_masks
from u2seg.pseudo_labels.semantics.semantic_providers import _largest_vote, nearest_centroid_map
from u2seg.utils.manifest import StageMismatchError


@pytest.fixture
def photos(tmp_path):
    """Three images, 32 x 48, upper half of one color, lower half of another, colors shared among them."""
    rng = np.random.default_rng(0)
    colors = {
        "a": ((200, 30, 30), (30, 200, 30)),
        "b": ((30, 200, 30), (30, 30, 200)),
        "c": ((200, 30, 30), (30, 30, 200)),
    }
    for name, (upper, lower) in colors.items():
        image = np.zeros((32, 48, 3), np.int32)
        image[:16], image[16:] = upper, lower
        image += rng.integers(-5, 6, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def cfg():
    options = "FEATURES.IMAGE_SIZE (32,48) FEATURES.HANDMADE.PATCH_SIZE 4 SEMANTICS.NUM_CLUSTERS 3 MASKS.NUM_WORKERS 0"
    return setup_cfg("quick_schedules/scenes.yaml", options.split())


def test_equal_surfaces_get_equal_clusters(photos, cfg, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    masks = make_masks(cfg, photos, output / "masks")
    semantics = make_semantics(cfg, photos, masks, output / "semantics")
    (maps,) = iter_semantic_maps(semantics)
    a, b, c = (maps[f"{name}.png"] for name in "abc")
    assert a.shape == (32, 48) and a.dtype == np.uint8
    red, green, blue = a[2, 5], a[-3, 5], b[-3, 5]
    assert {red, green, blue} == {0, 1, 2}
    assert (b[:12] == green).all() and (c[:12] == red).all() and (c[20:] == blue).all()

    # New images can be labeled with the same centroids.
    cfg.SEMANTICS.CENTROIDS = str(semantics / "centroids.npy")
    again = make_semantics(cfg, photos, masks, output / "again")
    for old, new in zip(iter_semantic_maps(semantics), iter_semantic_maps(again)):
        assert all(np.array_equal(old[name], new[name]) for name in old)
    cfg.SEMANTICS.CENTROIDS = str(output / "missing.npy")
    with pytest.raises(StageMismatchError, match="centroids"):
        make_semantics(cfg, photos, masks, output / "again")


def test_no_third_cluster_appears_between_two():
    # Two patches at 0 and 10, and a centroid at 5, where interpolated features would lie.
    features = torch.tensor([[[0.0, 10.0]]])
    centroids = torch.tensor([[0.0], [10.0], [5.0]])
    semantic = nearest_centroid_map(features, centroids, (1, 8))
    np.testing.assert_array_equal(semantic, [[0, 0, 0, 0, 1, 1, 1, 1]])


def test_a_directory_of_maps_is_taken_as_it_is_and_checked(photos, cfg, tmp_path_factory):
    output = tmp_path_factory.mktemp("out")
    masks = make_masks(cfg, photos, output / "masks")
    cfg.SEMANTICS.PROVIDER, cfg.SEMANTICS.DIRECTORY = "DirectoryOfMaps", str(output / "maps")
    with pytest.raises(FileNotFoundError, match=r"no semantic map for a\.png: expected .*a\.png"):
        make_semantics(cfg, photos, masks, output / "s")
    (output / "maps").mkdir()
    mine = np.full((32, 48), 255, np.uint8)
    mine[5] = 2
    for name in "abc":
        Image.fromarray(mine).save(output / "maps" / f"{name}.png")
    (maps,) = iter_semantic_maps(make_semantics(cfg, photos, masks, output / "s"))
    np.testing.assert_array_equal(maps["b.png"], mine)

    Image.fromarray(np.full((32, 48), 3, np.uint8)).save(output / "maps" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png holds ids \[3\]; expected 0\.\.2"):
        make_semantics(cfg, photos, masks, output / "t")
    Image.fromarray(np.zeros((48, 32), np.uint8)).save(output / "maps" / "b.png")
    with pytest.raises(ValueError, match=r"shape \(32, 48\).*got uint8 \(48, 32\)"):
        make_semantics(cfg, photos, masks, output / "u")


def test_an_unknown_provider_lists_those_there_are(photos, cfg, tmp_path):
    cfg.SEMANTICS.PROVIDER = "LinearProbe"
    with pytest.raises(
        ValueError,
        match=r"Unknown SEMANTICS.PROVIDER 'LinearProbe'; registered: CAUSE, DirectoryOfMaps, PatchKMeans, RegionKMeans, STEGO",
    ):
        make_semantics(cfg, photos, tmp_path, tmp_path / "x")


def test_shards_give_back_what_they_were_given(tmp_path):
    maps = {"x/a.jpg": np.array([[0, 255, 7]], np.uint8), "b.png": np.zeros((2, 1), np.uint8)}
    write_semantic_shard(tmp_path / "s.parquet", maps)
    back = read_semantic_shard(tmp_path / "s.parquet")
    assert list(back) == list(maps)
    assert all(np.array_equal(back[name], maps[name]) for name in maps)


@pytest.mark.parametrize("max_values", [1, 700, 1 << 23])
def test_maps_in_bands_equal_the_argmax_of_whole_interpolated_votes(max_values):
    rng = np.random.default_rng(0)
    for _ in range(40):
        clusters, rows, columns, height, width = (int(rng.integers(1, top)) for top in (28, 20, 20, 90, 90))
        nearest = torch.from_numpy(rng.integers(0, clusters, (rows, columns)))
        votes = F.one_hot(nearest, clusters).permute(2, 0, 1).float().contiguous()
        whole = F.interpolate(votes[None], size=(height, width), mode="bilinear", align_corners=False)[0].argmax(0)
        assert (_largest_vote(votes, (height, width), max_values) == whole.numpy()).all()


def test_the_votes_held_at_once_do_not_grow_with_the_image(monkeypatch):
    interpolate, held = F.interpolate, []

    def watched(*args, **kwargs):
        result = interpolate(*args, **kwargs)
        held.append(result.numel())
        return result

    monkeypatch.setattr(F, "interpolate", watched)
    votes = F.one_hot(torch.arange(27).reshape(3, 9), 27).permute(2, 0, 1).float()
    for size in ((40, 50), (400, 500), (800, 900)):
        held.clear()
        _largest_vote(votes, size, max_values=30_000)
        assert max(held) <= 30_000
