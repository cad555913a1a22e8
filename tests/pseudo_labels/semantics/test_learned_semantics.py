"""STEGO and CAUSE as semantic providers: neighbors, crops, heads, training, maps, evaluation."""

import shutil

import numpy as np
import pytest
import torch
from label_stages import make_semantics
from PIL import Image
from u2seg.checkpoint import CheckpointError, read_weights
from u2seg.config import setup_cfg
from u2seg.data.formats.semantic_shards import iter_semantic_maps
from u2seg.features import build_feature_extractor
from u2seg.modeling import build_model
from u2seg.pseudo_labels.masks import make_masks
from u2seg.pseudo_labels.masks.dense_crf import STEGO_CRF, DenseCRF
from u2seg.pseudo_labels.semantics.learned.cause_training import (
    ConceptObjective,
    ContrastSettings,
    ProbeObjective,
    draw_places,
    find_starts,
    take_places,
)
from u2seg.pseudo_labels.semantics.learned.cluster_probe import ClusterProbe
from u2seg.pseudo_labels.semantics.learned.code_heads import CodeHead, ConceptDecoderHead
from u2seg.pseudo_labels.semantics.learned.crops import CropFeatures, CropSet, batch_numbers, five_crop_box
from u2seg.pseudo_labels.semantics.learned.head_training import HeadSchedule, train_head
from u2seg.pseudo_labels.semantics.learned.learned_providers import LearnedSemantics, build_stego
from u2seg.pseudo_labels.semantics.learned.neighbors import nearest_neighbors
from u2seg.pseudo_labels.semantics.learned.semantic_head import PixelClusters, PixelSettings, SemanticHead
from u2seg.pseudo_labels.semantics.learned.stego_training import mean_correlation
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import read_json
from u2seg.utils.image_io import ImageReadError
from u2seg.utils.manifest import StageMismatchError, TooManyFailuresError

OPTIONS = """
FEATURES.IMAGE_SIZE (32,32) FEATURES.HANDMADE.PATCH_SIZE 4 FEATURES.DEVICE cpu SEMANTICS.NUM_CLUSTERS 3
MASKS.NUM_WORKERS 0 MASKS.GENERATOR WholeImage MASKS.REFINEMENT none
SEMANTICS.LEARNED.TRAIN_SIZE (32,32) SEMANTICS.LEARNED.MAP_SIZE (32,32) SEMANTICS.LEARNED.BATCH_SIZE 4
SEMANTICS.LEARNED.CRF.ENABLED False SEMANTICS.LEARNED.CHECKPOINT_PERIOD 3
SEMANTICS.STEGO.DIM 8 SEMANTICS.STEGO.NUM_POINTS 5 SEMANTICS.STEGO.MAX_ITER 8
SEMANTICS.CAUSE.DIM 8 SEMANTICS.CAUSE.CODEBOOK_SIZE 6 SEMANTICS.CAUSE.PROJECTION_DIM 8 SEMANTICS.CAUSE.BANK_SIZE 4
SEMANTICS.CAUSE.HEAD_EPOCHS 1 SEMANTICS.CAUSE.PROBE_EPOCHS 1 SEMANTICS.CAUSE.CELL 2
"""


TOLERANT = ("MASKS.MAX_FAILURES", "0.5")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four images, 40 x 48, of an upper and a lower color each, three colors in all."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    for index in range(4):
        image = np.zeros((40, 48, 3), np.int32)
        image[:20], image[20:] = colors[index % 3], colors[(index + 1) % 3]
        image += rng.integers(-5, 6, image.shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def masks(photos, tmp_path_factory):
    return make_masks(make_cfg("STEGO"), photos, tmp_path_factory.mktemp("out") / "masks")


def make_cfg(provider: str, *opts: str):
    return setup_cfg("quick_schedules/scenes.yaml", ["SEMANTICS.PROVIDER", provider, *OPTIONS.split(), *opts])


def maps_of(directory) -> dict:
    return {name: found for maps in iter_semantic_maps(directory) for name, found in maps.items()}


def test_neighbors_equal_brute_force_with_equal_vectors_among_them():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 5)).astype(np.float32)
    vectors[7] = vectors[9] = vectors[30]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = nearest_neighbors(vectors, 6, block=7)
    products = vectors @ vectors.T
    np.fill_diagonal(products, -np.inf)
    for row, neighbors in enumerate(found):
        assert row not in neighbors and len(set(neighbors.tolist())) == 6
        np.testing.assert_allclose(products[row, neighbors], np.sort(products[row])[::-1][:6], atol=1e-6)
    assert nearest_neighbors(np.ones((30, 2), np.float32), 2).shape == (30, 2)
    assert nearest_neighbors(vectors[:3], 6).shape == (3, 2)
    with pytest.raises(ValueError, match="at least 2 crops, got 1"):
        nearest_neighbors(vectors[:1], 6)


def test_the_five_crops_lie_in_the_corners_and_the_center():
    boxes = [five_crop_box((10, 21), 0.5, position) for position in range(5)]
    assert boxes == [(0, 0, 5, 10), (0, 11, 5, 10), (5, 0, 5, 10), (5, 11, 5, 10), (2, 6, 5, 10)]
    assert five_crop_box((1, 1), 0.5, 4) == (0, 0, 1, 1)


def test_crops_are_read_as_squares_and_their_features_kept_or_not(photos):
    records = [ImageMasks(i, f"{i}.png", height=40, width=48) for i in range(4)]
    crops = CropSet(photos, records, 0.5)
    assert len(crops) == 20
    assert crops.read(7).shape == (20, 20, 3)
    whole = np.asarray(Image.open(photos / "1.png"))
    np.testing.assert_array_equal(
        crops.read(7), whole[20:40, 2:22]
    )  # crop 2 of image 1: bottom left, its square center
    assert len(CropSet(photos, records, 1.0)) == 4
    extractor = build_feature_extractor(make_cfg("STEGO"))
    kept, not_kept = (CropFeatures(crops, extractor, batch_size=6, cache_mib=mib, num_threads=2) for mib in (100, 0))
    numbers = np.array([3, 19, 3])
    torch.testing.assert_close(kept(numbers), not_kept(numbers))
    means = kept.means()
    np.testing.assert_allclose(means[numbers], kept(numbers).mean(dim=(2, 3)).numpy(), atol=1e-5)
    before = kept(numbers)
    for features in (kept, not_kept):
        features.center = torch.from_numpy(means.mean(axis=0))
        torch.testing.assert_close(features(numbers), before - features.center[:, None, None])


def test_an_epoch_sees_every_crop_once():
    seen = np.concatenate([batch_numbers(iteration, 12, 4, seed=3) for iteration in range(3)])
    assert sorted(seen) == list(range(12))
    assert not np.array_equal(batch_numbers(0, 12, 4, 3), batch_numbers(3, 12, 4, 3))
    assert batch_numbers(5, 3, 8, 0).shape == (8,)


def test_the_crf_of_two_labels_is_the_foreground_of_their_difference():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 15, 3)).astype(np.uint8)
    scores = torch.from_numpy(rng.normal(size=(2, 12, 15)).astype(np.float32))
    crf = DenseCRF(image, STEGO_CRF)
    found = crf.marginals(scores)
    torch.testing.assert_close(found[1], crf.foreground((scores[1] - scores[0])[None])[0], atol=1e-5, rtol=1e-5)
    # A third label that is as good as excluded changes nothing, and neither does a constant at each pixel.
    more = torch.cat([scores, torch.full((1, 12, 15), -50.0)]) + torch.rand(12, 15)
    torch.testing.assert_close(crf.marginals(more)[:2], found, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"\(K, 12, 15\) to match the image, got \(2, 15, 12\)"):
        crf.marginals(scores.transpose(1, 2))


def test_a_tr_head_takes_another_grid_and_knows_its_own():
    torch.manual_seed(0)
    head = ConceptDecoderHead(torch.randn(5, 6), (4, 2), dim=3, dropout=0.1, feedforward=7).eval()
    features = torch.randn(2, 6, 4, 2)
    assert head(features).shape == (2, 3, 4, 2)
    assert head(torch.randn(1, 6, 3, 5)).shape == (1, 3, 3, 5)
    assert head.state_dict()["grid"].tolist() == [4, 2]
    # Tokens see one another: a change of one token moves another's code.
    changed = features.clone()
    changed[0, :, 0, 0] += 1
    assert not torch.allclose(head(changed)[0, :, 3, 1], head(features)[0, :, 3, 1])
    torch.testing.assert_close(head(changed)[1], head(features)[1])


def test_one_place_is_drawn_in_each_cell():
    maps = torch.arange(35.0).reshape(1, 1, 5, 7).repeat(3, 1, 1, 1)
    torch.manual_seed(0)
    for _ in range(20):
        places = draw_places(maps, 2)
        assert places.shape == (3, 6)
        cells = places // 7 // 2 * 3 + places % 7 // 2
        assert torch.equal(cells, torch.arange(6).expand(3, -1))
    torch.testing.assert_close(take_places(maps, places)[:, :, 0], places.float())
    assert draw_places(maps, 100).shape == (3, 1)


def test_no_gradient_reaches_what_is_scored_in_causes_last_training():
    torch.manual_seed(0)
    head, probe = CodeHead(4, 3, torch.nn.Dropout(0.1)), ClusterProbe(5, 3, 3.0)
    objective = ProbeObjective(head, probe, cell=1)
    objective.train()
    loss = objective(torch.randn(2, 4, 3, 3))["loss_modularity"]
    loss.backward()
    assert probe.clusters.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in head.parameters()) and not head.training
    assert {name for name, _ in objective.named_parameters()} == {"probe.clusters"}


def test_causes_clusters_start_at_the_groups_of_codes():
    rng = np.random.default_rng(0)
    # Features along three axes, of any length; the head passes them on.
    maps = torch.eye(3)[torch.from_numpy(rng.integers(0, 3, (6, 4, 4)))].permute(0, 3, 1, 2) * 7
    maps += torch.from_numpy(rng.normal(0, 0.05, maps.shape)).float()
    head = CodeHead(3, 3, torch.nn.Identity())
    for parameter in head.parameters():
        parameter.data.zero_()
    head.linear.weight.data[:, :, 0, 0] = torch.eye(3)
    objective = ProbeObjective(head, ClusterProbe(3, 3, 3.0), cell=2)
    starts = find_starts(make_cfg("CAUSE"), objective, lambda number: maps[number : number + 2], 5)
    assert starts.shape == (3, 3)
    np.testing.assert_allclose(starts[starts.argmax(axis=1).argsort()], np.eye(3), atol=0.05)
    # From there the modularity is larger than with two centers in one group, where the third group has no center to attract.
    losses = []
    for centers in (starts, starts[[0, 0, 1]]):
        objective.probe.clusters.data = torch.from_numpy(np.array(centers))
        losses.append(objective(maps)["loss_modularity"].item())
    assert losses[0] < losses[1]


def test_the_average_follows_the_student_and_alone_stays_without_gradient():
    torch.manual_seed(0)
    settings = ContrastSettings.of_config(make_cfg("CAUSE"))
    objective = ConceptObjective(CodeHead(4, settings.dim, torch.nn.Dropout(0.1)), torch.randn(6, 4), settings)
    for _ in range(2):  # the second time the bank holds keys
        losses = objective(torch.randn(3, 4, 4, 4))
    assert losses["loss_bank"] > 0 and objective.bank.filled.sum() > 0
    sum(losses.values()).backward()
    assert all(p.grad is None for p in [*objective.average.parameters(), *objective.average_projection.parameters()])
    assert objective.student.linear.weight.grad.abs().sum() > 0
    objective.student.linear.weight.data += 1
    before = objective.average.linear.weight.clone()
    objective.update_average(0.75)
    torch.testing.assert_close(objective.average.linear.weight, before + 0.25)


class Counted(torch.nn.Module):
    """Learns one number and remembers what it drew; raises at a given call."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls, self.fail_at = [], fail_at

    def forward(self, batch):
        if batch == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(batch)
        return {"loss": (self.weight * (batch + torch.rand(1))).sum()}


def test_a_training_that_was_killed_ends_as_one_that_was_not(tmp_path):
    def run(directory, fail_at=None):
        model = Counted(fail_at)
        optimizer = torch.optim.Adam(model.parameters(), 0.1)
        schedule = HeadSchedule("test", 9, 4, seed=1, max_norm=0.5, learning_rate=lambda i: 0.5 ** (i // 3))
        train_head(model, optimizer, lambda iteration: iteration, tmp_path / directory, schedule)
        return model

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", fail_at=6)
    again = run("killed")
    assert again.calls == [4, 5, 6, 7, 8] and torch.equal(again.weight, whole.weight)
    assert run("killed").calls == [] and torch.equal(run("killed").weight, whole.weight)


@pytest.mark.parametrize(
    "options", [("STEGO", "SEMANTICS.LEARNED.CENTER", "True"), ("CAUSE", "SEMANTICS.CAUSE.HEAD", "MLP"), ("CAUSE",)]
)
def test_a_provider_trains_labels_and_is_scored_by_its_file(photos, masks, tmp_path, options):
    cfg = make_cfg(*options)
    maps = maps_of(make_semantics(cfg, photos, masks, tmp_path / "s"))
    assert sorted(maps) == ["0.png", "1.png", "2.png", "3.png"]
    assert all(one.shape == (40, 48) and one.dtype == np.uint8 and one.max() < 3 for one in maps.values())
    weights = tmp_path / "s" / "model_final.pth"
    center = read_weights(weights)["center"]
    if cfg.SEMANTICS.LEARNED.CENTER:
        assert center.numpy() == pytest.approx(np.load(tmp_path / "s" / "crop_means.npy").mean(axis=0))
    assert bool(center.any()) == cfg.SEMANTICS.LEARNED.CENTER

    # The file labels new images as the training did, and the evaluation's model agrees.
    cfg.SEMANTICS.LEARNED.WEIGHTS = cfg.MODEL.WEIGHTS = str(weights)
    again = maps_of(make_semantics(cfg, photos, masks, tmp_path / "again"))
    assert all(np.array_equal(maps[name], again[name]) for name in maps)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "SemanticHeadSegmenter", "cpu"
    model = build_model(cfg).eval()
    image = torch.from_numpy(np.array(Image.open(photos / "1.png"))).permute(2, 0, 1)
    image = image.flip(0) if cfg.INPUT.FORMAT == "BGR" else image
    scores = model([{"image": image, "height": 40, "width": 48}])[0]["sem_seg"]
    assert scores.shape == (4, 40, 48)
    np.testing.assert_array_equal(scores.argmax(0).numpy() - 1, maps["1.png"])
    with pytest.raises(RuntimeError, match="u2seg labels --stages masks,semantics"):
        model.train()([])

    cfg.SEMANTICS.NUM_CLUSTERS = 4
    with pytest.raises(CheckpointError, match=r"3 clusters, SEMANTICS.NUM_CLUSTERS is 4; set it to 3"):
        make_semantics(cfg, photos, masks, tmp_path / "other")


@pytest.mark.parametrize("provider", ["STEGO", "CAUSE"])
def test_an_image_that_was_lost_since_is_recorded_and_the_others_are_labeled(provider, photos, masks, tmp_path):
    images, output = tmp_path / "photos", tmp_path / "s"
    shutil.copytree(photos, images)
    (images / "2.png").unlink()
    with pytest.raises(TooManyFailuresError):
        make_semantics(make_cfg(provider), images, masks, output)
    assert {path.name for path in output.iterdir()} == {"manifest.json", "failures.json"}

    cfg = make_cfg(provider, *TOLERANT)
    maps = maps_of(make_semantics(cfg, images, masks, output))
    assert sorted(maps) == ["0.png", "1.png", "3.png"]
    assert np.load(output / "readable.npy").tolist() == [0, 1, 3]
    assert [failure["file_name"] for failure in read_json(output / "failures.json")] == ["2.png"]

    # A trained head labels what is left, nothing here, and a training without an image says so.
    cfg.SEMANTICS.LEARNED.WEIGHTS = str(output / "model_final.pth")
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(TooManyFailuresError):
        make_semantics(cfg, images, masks, tmp_path / "none")
    with pytest.raises(ImageReadError, match=f"none of the 4 images .*{provider} has nothing to learn from"):
        make_semantics(make_cfg(provider, *TOLERANT), images, masks, tmp_path / "untrained")


def test_an_image_that_is_lost_during_the_training_gives_way_to_the_next(photos, masks, tmp_path, caplog, monkeypatch):
    images = tmp_path / "photos"
    shutil.copytree(photos, images)
    check = LearnedSemantics._find_readable

    def check_then_lose(provider, records):
        found = check(provider, records)
        (images / "3.png").unlink()
        (images / "1.png").write_bytes(b"damaged")
        return found

    monkeypatch.setattr(LearnedSemantics, "_find_readable", check_then_lose)
    maps = maps_of(make_semantics(make_cfg("STEGO", *TOLERANT), images, masks, tmp_path / "s"))
    assert sorted(maps) == ["0.png", "2.png"] and np.load(tmp_path / "s" / "readable.npy").tolist() == [0, 1, 2, 3]
    warnings = [record.message for record in caplog.records if "during the training" in record.message]
    assert len(warnings) == 1 and warnings[0].startswith("2 of 4 images") and "The first: 1.png: " in warnings[0]

    records = [ImageMasks(i, f"{i}.png", height=40, width=48) for i in range(4)]
    extractor = build_feature_extractor(make_cfg("STEGO"))
    features = CropFeatures(CropSet(images, records, 0.5), extractor, batch_size=4, cache_mib=0, num_threads=2)
    found = features(np.array([7, 12, 18, 3]))
    torch.testing.assert_close(found[0], found[1])  # the third crop of image 1 is that of image 2 now
    torch.testing.assert_close(found[2], found[3])  # and after the last image comes the first
    assert sorted(features.lost) == [1, 3]
    for name in ("0.png", "2.png"):
        (images / name).unlink()
    with pytest.raises(ImageReadError, match=r"none of the 4 training images can be read any more: .*2\.png"):
        features(np.array([10]))


def test_of_too_many_images_a_seeded_sample_is_trained_on(photos, masks, tmp_path):
    def chosen(number, *opts):
        cfg = make_cfg("STEGO", "SEMANTICS.LEARNED.MAX_IMAGES", str(number), *opts)
        return [image.file_name for image in build_stego(cfg, photos, masks, tmp_path)._training_images()]

    names = [f"{index}.png" for index in range(4)]
    assert chosen(4) == chosen(9) == names
    samples = [chosen(2, "SEMANTICS.SEED", str(seed)) for seed in range(8)]
    assert samples[0] == chosen(2) and len(set(map(tuple, samples))) > 2
    assert all(len(set(sample)) == 2 and sample == sorted(sample) for sample in samples)
    # Every image gets a map, whether it was in the sample or not.
    maps = maps_of(
        make_semantics(make_cfg("STEGO", "SEMANTICS.LEARNED.MAX_IMAGES", "2"), photos, masks, tmp_path / "s")
    )
    assert sorted(maps) == names and len(np.load(tmp_path / "s" / "readable.npy")) == 2


def test_log_probabilities_come_one_image_at_a_time():
    cfg = make_cfg("STEGO")
    extractor = build_feature_extractor(cfg)
    head = SemanticHead(CodeHead(8, 8, torch.nn.Dropout(0.0)), ClusterProbe(3, 8, 2.0), torch.zeros(8)).eval()
    found = PixelClusters(extractor, head, PixelSettings.of_config(cfg))([np.zeros((9, 7, 3), np.uint8)] * 2)
    first = next(found)
    assert first.shape == (3, 9, 7) and not first.requires_grad
    torch.testing.assert_close(first.exp().sum(dim=0), torch.ones(9, 7))
    assert len(list(found)) == 1


def test_features_that_all_look_alike_are_noticed(photos, masks, tmp_path, caplog):
    features = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)) + 1
    unit = torch.nn.functional.normalize(features, dim=1)
    pairs = [
        float((unit[i, :, y, x] * unit[j, :, v, u]).sum())
        for i in range(3)
        for j in range(3)
        if i != j
        for y in range(2)
        for x in range(2)
        for v in range(2)
        for u in range(2)
    ]
    assert mean_correlation(features) == pytest.approx(np.mean(pairs), abs=1e-6)
    for shift, warned in (("-0.9", True), ("0.99", False)):
        caplog.clear()
        cfg = make_cfg("STEGO", "SEMANTICS.STEGO.NEGATIVE_SHIFT", shift, "SEMANTICS.STEGO.MAX_ITER", "1")
        make_semantics(cfg, photos, masks, tmp_path / shift)
        assert ("one cluster will be left" in caplog.text) == warned


def test_settings_of_another_provider_do_not_bind_a_directory(photos, masks, tmp_path):
    make_semantics(make_cfg("PatchKMeans"), photos, masks, tmp_path / "s")
    make_semantics(make_cfg("PatchKMeans", "SEMANTICS.STEGO.DIM", "9"), photos, masks, tmp_path / "s")
    make_semantics(make_cfg("PatchKMeans", "SEMANTICS.LEARNED.TRAIN_SIZE", "(64,64)"), photos, masks, tmp_path / "s")
    with pytest.raises(StageMismatchError, match="seed"):
        make_semantics(make_cfg("PatchKMeans", "SEMANTICS.SEED", "4"), photos, masks, tmp_path / "s")


def test_equal_colors_get_equal_clusters_and_different_ones_are_told_apart(photos, masks, tmp_path):
    opts = "SEMANTICS.STEGO.MAX_ITER 60 SEMANTICS.LEARNED.CROP_RATIO 1.0 SEMANTICS.STEGO.NEGATIVE_SHIFT 0.2"
    maps = maps_of(make_semantics(make_cfg("STEGO", *opts.split()), photos, masks, tmp_path / "s"))
    tops, bottoms = (
        [int(np.bincount(maps[f"{i}.png"][rows].ravel()).argmax()) for i in range(4)]
        for rows in (slice(2, 15), slice(25, 38))
    )
    # A probe of random centers need not find all three: of these colors it may join two.
    assert len({*tops}) >= 2 and tops[3] == tops[0] and bottoms == [tops[1], tops[2], tops[0], tops[1]]


def test_a_head_of_other_features_or_another_file_is_refused(tmp_path):
    cfg = make_cfg("STEGO")
    extractor = build_feature_extractor(cfg)
    head = SemanticHead(CodeHead(5, 8, torch.nn.Dropout(0.0)), ClusterProbe(3, 8, 2.0), torch.zeros(5))
    with pytest.raises(ValueError, match="trained on features of 5 channels, FEATURES gives 8"):
        PixelClusters(extractor, head, PixelSettings.of_config(cfg))
    torch.save({"model": {"backbone.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = "SemanticHeadSegmenter", str(tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no trained head of STEGO or CAUSE.*got backbone\.weight"):
        build_model(cfg)
