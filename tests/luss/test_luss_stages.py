"""Clustering and pseudo-labels as stages: quality of clusters, resuming, what they refuse."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from fault_injection import PARTIAL, Faults, KilledError, contents
from luss_toy import make_toy, write_config
from u2seg.config import setup_cfg
from u2seg.luss.clustering import cluster_images, cluster_quality, read_embeddings
from u2seg.luss.data import LabelStore
from u2seg.luss.distance_matching import build_bank
from u2seg.luss.pixel_labels import write_pseudo_labels
from u2seg.luss.recipe import Run, run_pass
from u2seg.modeling import complete_config
from u2seg.utils.files import read_json
from u2seg.utils.manifest import StageMismatchError, TooManyFailuresError
from u2seg.utils.write_errors import WriteError

SMALL = ["MODEL.DEVICE", "cpu", "MODEL.SMALL_RESNET.WIDTH", 8, "MODEL.PASS.HIDDEN_DIM", 16, "DATALOADER.NUM_WORKERS", 0]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    splits = make_toy(root / "data", train=20, semi=8, val=4)
    torch.manual_seed(0)
    torch.save({"model": build_model(setup_cfg("LUSS/pass_tiny_attention.yaml", SMALL)).state_dict()}, root / "w.pth")
    return root, splits


def config(toy, split="train", *opts, name="LUSS/pass_tiny_attention.yaml"):
    root, splits = toy
    file = write_config(root / "toy.yaml", name, {"toy": splits[split]}, "toy")
    return complete_config(setup_cfg(file, [*SMALL, "MODEL.WEIGHTS", str(root / "w.pth"), "LUSS.SHARD_SIZE", 8, *opts]))


def test_quality_by_hand():
    # Two clusters, two classes, one image of four in the wrong one.
    quality = cluster_quality(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 0]))
    assert quality["accuracy"] == 0.75
    # H(cluster) = ln 2, H(class) = 0.5623, I = 0.2158: NMI 0.2158 / 0.6277.
    assert quality["nmi"] == pytest.approx(0.3437, abs=1e-3)
    assert cluster_quality(np.array([0, 1, 2]), np.array([2, 0, 1])) == pytest.approx({"nmi": 1.0, "accuracy": 1.0})


def test_clusters_are_made_once_and_the_same_again(toy, tmp_path, monkeypatch):
    cfg = config(toy)
    first = cluster_images(cfg, tmp_path / "a")
    numbers, vectors = read_embeddings(first)
    assert numbers.tolist() == list(range(20)) and vectors.shape == (20, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert np.load(first / "centroids.npy").shape == (4, 64)
    cluster_images(cfg, tmp_path / "c")
    assert np.array_equal(np.load(first / "centroids.npy"), np.load(tmp_path / "c/centroids.npy"))
    monkeypatch.setattr("u2seg.luss.clustering.load_model", lambda *_: pytest.fail("a finished stage needs no model"))
    cluster_images(cfg, first)


def test_other_settings_are_refused(toy, tmp_path):
    cluster_images(config(toy), tmp_path / "a")
    with pytest.raises(StageMismatchError, match="NUM_CLUSTERS: asked for 3, the directory has 4"):
        cluster_images(config(toy, "train", "LUSS.NUM_CLUSTERS", 3), tmp_path / "a")


def test_an_interrupted_clustering_goes_on(toy, tmp_path, monkeypatch):
    cfg = config(toy)
    from u2seg.luss import clustering

    whole = cluster_images(cfg, tmp_path / "whole")
    real, done = clustering._embed_shard, []

    def dies_in_the_second(*args):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args)

    monkeypatch.setattr(clustering, "_embed_shard", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        cluster_images(cfg, tmp_path / "killed")
    computed = []
    monkeypatch.setattr(clustering, "_embed_shard", lambda *args: computed.append(args[-1].name) or real(*args))
    resumed = cluster_images(cfg, tmp_path / "killed")
    assert computed == ["shard-000001.npz", "shard-000002.npz"]
    assert np.array_equal(np.load(whole / "centroids.npy"), np.load(resumed / "centroids.npy"))


def test_pseudo_labels_are_the_models_coarse_maps(toy, tmp_path):
    root, _ = toy
    clusters = cluster_images(config(toy), tmp_path / "clusters")
    cfg = config(toy, "train", "LUSS.CENTROIDS", str(clusters / "centroids.npy"))
    store = LabelStore(write_pseudo_labels(cfg, tmp_path / "labels"))
    assert len(store) == 20 and store.num_clusters == 4 and list(store.numbers()) == list(range(20))
    coarse, attention = store.load(17)
    assert (
        coarse.shape == (16, 16)
        and 1 <= coarse.min() <= coarse.max() <= 4
        and 0 <= attention.min() <= attention.max() <= 1
    )
    assert write_pseudo_labels(cfg, tmp_path / "labels") == tmp_path / "labels"  # done: nothing is computed


def test_weights_of_the_hub_bind_a_directory_by_their_content(toy, tmp_path, monkeypatch):
    root, _ = toy
    monkeypatch.setattr("u2seg.utils.hub_files.hub_file", lambda path, force=False: root / path.rpartition("/")[2])
    labels = ["LUSS.CENTROIDS", str(cluster_images(config(toy), tmp_path / "clusters") / "centroids.npy")]
    write_pseudo_labels(config(toy, "train", *labels), tmp_path / "labels")
    # The same file under the Hub's name is no other setting; another file is one.
    named = ["MODEL.WEIGHTS", "hf://org/model/w.pth"]
    cluster_images(config(toy, "train", *named), tmp_path / "clusters")
    write_pseudo_labels(config(toy, "train", *labels, *named), tmp_path / "labels")
    torch.save({"model": {}}, root / "other.pth")
    named = ["MODEL.WEIGHTS", "hf://org/model/other.pth"]
    with pytest.raises(StageMismatchError, match="WEIGHTS"):
        cluster_images(config(toy, "train", *named), tmp_path / "clusters")
    with pytest.raises(StageMismatchError, match="WEIGHTS"):
        write_pseudo_labels(config(toy, "train", *labels, *named), tmp_path / "labels")


def test_images_that_cannot_be_read_are_recorded(toy, tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    root, splits = toy
    sources = sorted((root / "data/imagenet/train").rglob("*.JPEG"))
    for index, source in enumerate(sources):
        (directory / f"{index:02d}.jpg").write_bytes(b"" if index == 3 else source.read_bytes())
    given = ["DATASETS.BY_PATH.pass_images.ROOT", str(directory), "MASKS.MAX_FAILURES", 0.1]
    cfg = complete_config(
        setup_cfg("LUSS/pass_tiny_attention.yaml", [*SMALL, *given, "MODEL.WEIGHTS", str(root / "w.pth")])
    )
    clusters = cluster_images(cfg, tmp_path / "clusters")
    assert len(read_embeddings(clusters)[0]) == 19
    assert '"03.jpg"' in (clusters / "failures.json").read_text()
    cfg.LUSS.CENTROIDS = str(clusters / "centroids.npy")
    labels = write_pseudo_labels(cfg, tmp_path / "labels")
    assert 3 not in set(LabelStore(labels).numbers()) and len(LabelStore(labels)) == 20
    reason = (labels / "failures.json").read_text()
    assert '"03.jpg"' in reason and "0 bytes" in reason


def stages_of(toy, root):
    """Returns a function that makes clusters, labels and the bank of eight images below ``root``."""
    cfg = config(toy, "train_semi")
    bank_cfg = config(toy, "train_semi", name="LUSS/pass_tiny_distance.yaml")

    def make():
        clusters = cluster_images(cfg, root / "clusters")
        cfg.LUSS.CENTROIDS = str(clusters / "centroids.npy")
        write_pseudo_labels(cfg, root / "labels")
        if not (root / "bank.npz").is_file():
            build_bank(bank_cfg, root / "bank.npz")

    return make


def arrays(root):
    """Returns the contents of all files below a directory; of archives the arrays, since an archive holds the time of its writing."""
    found = contents(root)
    for name in [name for name in found if name.endswith(".npz")]:
        with np.load(root / name) as archive:
            found[name] = {key: archive[key].tolist() for key in archive.files}
    return found


@pytest.fixture
def quick_models(monkeypatch):
    """Each architecture is built once: what is tested are files."""
    from u2seg.luss import clustering, distance_matching, image_list, pixel_labels

    built = {}

    def load(cfg, architecture):
        if architecture not in built:
            built[architecture] = image_list.load_model(cfg, architecture)
        return built[architecture]

    for module in (clustering, distance_matching, pixel_labels):
        monkeypatch.setattr(module, "load_model", load)


@pytest.mark.parametrize("kill", [True, False])
def test_clusters_labels_and_bank_survive_a_fault_at_every_file_operation(
    toy, tmp_path, monkeypatch, quick_models, kill
):
    stages_of(toy, tmp_path / "whole")()
    faults = Faults(monkeypatch, tmp_path / "cut", kill=kill, only=() if kill else ("mkdir", "mkstemp", "replace"))

    def check(error):
        if not kill:
            assert str(error).startswith(str(tmp_path / "cut")) and "free some space on that disk" in str(error)
            assert not list(tmp_path.rglob(PARTIAL))

    count = faults.runs(stages_of(toy, tmp_path / "cut"), KilledError if kill else WriteError, check)
    assert count > (40 if kill else 20)
    assert arrays(tmp_path / "cut") == arrays(tmp_path / "whole")


def test_images_that_were_put_back_are_labeled(toy, tmp_path, quick_models):
    directory = tmp_path / "images"
    directory.mkdir()
    sources = sorted((toy[0] / "data/imagenet/train").rglob("*.JPEG"))[:6]
    for index, source in enumerate(sources):
        (directory / f"{index}.jpg").write_bytes(source.read_bytes())
    given = ["DATASETS.BY_PATH.pass_images.ROOT", str(directory), "LUSS.SHARD_SIZE", 3]
    weights = ["MODEL.WEIGHTS", str(toy[0] / "w.pth")]
    cfg = complete_config(setup_cfg("LUSS/pass_tiny_attention.yaml", [*SMALL, *given, *weights]))
    from u2seg.luss import clustering

    whole = cluster_images(cfg, tmp_path / "whole")
    # It vanishes when the list of images has been made.
    batches = clustering.iter_batches

    def vanishing(*args):
        (directory / "1.jpg").unlink(missing_ok=True)
        return batches(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(TooManyFailuresError, match=r"1\.jpg: .*no such file"):
        patch.setattr(clustering, "iter_batches", vanishing)
        cluster_images(cfg, tmp_path / "cut")
    (directory / "1.jpg").write_bytes(sources[1].read_bytes())
    cluster_images(cfg, tmp_path / "cut")
    assert arrays(tmp_path / "cut") == arrays(whole)


def test_the_bank_holds_one_vector_for_each_class_of_an_image(toy, tmp_path):
    cfg = config(toy, "train_semi", name="LUSS/pass_tiny_distance.yaml")
    bank = np.load(build_bank(cfg, tmp_path / "bank.npz"))
    # Eight images, "other" and one class each.
    assert bank["features"].shape == (16, 64) and sorted(set(bank["labels"].tolist())) == [0, 1, 2, 3, 4]
    assert (bank["labels"] == 0).sum() == 8


def test_a_stage_needs_the_ones_before(tmp_path):
    with pytest.raises(FileNotFoundError, match="pretrain/model_final.pth is missing: run the earlier stages first"):
        run_pass(Run("LUSS/pass_tiny", tmp_path), ("attention",))
    with pytest.raises(ValueError, match="unknown stages cluster; there are pretrain, attention, clusters"):
        run_pass(Run("LUSS/pass_tiny", tmp_path), ("cluster",))


def test_every_stage_hands_over_to_the_next(toy, tmp_path):
    _, splits = toy
    # The recipe puts the images that it labeled in the place of those that the configuration names.
    labels = {"FORMAT": "luss_pseudo_labels", "ROOT": str(tmp_path / "run/labels"), "IMAGES": "somewhere/else"}
    for stage in ("pretrain", "attention"):
        write_config(tmp_path / f"toy_{stage}.yaml", f"LUSS/pass_tiny_{stage}.yaml", {"toy": splits["train"]}, "toy")
    sets = {"pass_labels": labels, "toy_val": splits["val"]}
    write_config(tmp_path / "toy_finetune.yaml", "LUSS/pass_tiny_finetune.yaml", sets, "pass_labels", "toy_val")
    two_steps = ("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "4")
    run = Run(str(tmp_path / "toy"), tmp_path / "run", (*map(str, SMALL), *two_steps))
    run_pass(run)
    scores = read_json(tmp_path / "run/finetune/inference/toy_val/metrics.json")["luss"]["hungarian"]
    assert 0 <= scores["mIoU"] <= 100
    files = {path: path.stat().st_mtime_ns for path in run.output.rglob("*") if path.is_file()}
    run_pass(run)
    assert {path: path.stat().st_mtime_ns for path in run.output.rglob("*") if path.is_file()} == files
