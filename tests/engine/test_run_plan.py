"""What a run finds, chooses and refuses before it works."""

import json
import os
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.engine.photo_run import run_estimates, run_features, run_plan
from u2seg.engine.photo_run.new_config import new_config
from u2seg.engine.photo_run.run_budget import RunSize, num_iterations, plan_stages, stages_after_training
from u2seg.engine.photo_run.run_config import PHOTOS_CONFIG, free_keys, value_of
from u2seg.engine.photo_run.run_estimates import RunCost
from u2seg.engine.photo_run.run_features import choose_features
from u2seg.engine.photo_run.run_photos import Machine, default_output, find_photos, select_ground_truth
from u2seg.engine.photo_run.run_plan import make_plan
from u2seg.engine.photo_run.run_scaling import feature_size, num_thing_clusters, scaled_settings
from u2seg.engine.photo_run.run_screen import format_plan, plan_warnings
from u2seg.engine.photo_run.run_threads import Threads, divide_cores, run_in_process, training_threads
from u2seg.features.vit_weights import WeightsError
from u2seg.pseudo_labels.masks import mask_stage
from u2seg.utils.image_io import list_images
from u2seg.utils.manifest import StageMismatchError, open_stage

COST = RunCost(
    label_start_seconds=1.0,
    label_seconds=1.0,
    label_bytes=1000,
    label_memory=2**30,
    iteration_seconds={1: 0.75, 2: 0.5},
    prediction_seconds=1.0,
    prediction_bytes=50_000,
    checkpoint_bytes=10**8,
    training_memory=2**30,
    measuring_seconds=5.0,
)


@pytest.fixture
def photos(tmp_path):
    """Six gray photos of 96x64 pixels and one broken file."""
    directory = tmp_path / "photos"
    directory.mkdir()
    for number in range(6):
        Image.fromarray(np.full((64, 96, 3), 30 * number, np.uint8)).save(directory / f"{number}.jpg")
    (directory / "broken.jpg").write_bytes(b"no image")
    return directory


def test_photos_are_a_directory_one_image_or_a_list(photos, tmp_path, monkeypatch):
    found = find_photos(photos, tmp_path / "links")
    assert (len(found.names), found.size) == (7, (64, 96)) and not (tmp_path / "links").exists()
    assert [failure.file_name for failure in found.unreadable] == ["broken.jpg"]
    one = find_photos(photos / "2.jpg", tmp_path / "one")
    assert one.names == ["2.jpg"] and (one.root / "2.jpg").resolve() == photos / "2.jpg"
    (tmp_path / "list.txt").write_text(f"# mine\n{photos / '1.jpg'}\n\nphotos/3.jpg\n")
    assert find_photos(tmp_path / "list.txt", tmp_path / "listed").names == ["1.jpg", "3.jpg"]


def test_links_lead_to_the_photos_given_now_and_to_no_others(photos, tmp_path):
    links, other = tmp_path / "run" / "photos", tmp_path / "other"
    other.mkdir()
    shutil.copy(photos / "1.jpg", other / "2.jpg")
    first = find_photos(photos / "2.jpg", links)
    with pytest.raises(FileExistsError, match="holds 2.jpg, which is none of the photos of this run"):
        find_photos(other / "2.jpg", links)
    # With the run's configuration beside them, the links are known as its own.
    (tmp_path / "run" / "config.yaml").touch()
    second = find_photos(other / "2.jpg", links)
    assert first.names == second.names == ["2.jpg"] and (links / "2.jpg").resolve() == other / "2.jpg"
    (tmp_path / "list.txt").write_text("photos/1.jpg\nphotos/3.jpg\n")
    assert find_photos(tmp_path / "list.txt", links).names == ["1.jpg", "3.jpg"]
    (photos / "1.jpg").unlink()
    (tmp_path / "list.txt").write_text("photos/3.jpg\n")
    assert find_photos(tmp_path / "list.txt", links).names == ["3.jpg"]
    (links / "own.jpg").write_bytes(b"a file of the user's")
    with pytest.raises(FileExistsError, match="holds own.jpg"):
        find_photos(tmp_path / "list.txt", links)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "nowhere does not exist; expected a directory of photos, one photo, or a text file"),
        ("Photo/2.jpg", "a path in each line; did you mean .*/photos/2.jpg\\?"),
        ("missing.txt", "line 1: there is no file nothing.jpg"),
        ("empty.txt", "lists no image"),
        ("photos/broken.jpg", "none of the images in .* can be read; the first: broken.jpg"),
        ("binary.dat", "neither an image .* nor a text file"),
    ],
)
def test_what_is_no_photo_is_refused(photos, tmp_path, given, message):
    (tmp_path / "missing.txt").write_text("nothing.jpg\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "binary.dat").write_bytes(b"\xff\xfe\x80")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        find_photos(tmp_path / given, tmp_path / "links")


def test_ground_truth_is_cut_to_the_photos(photos, tmp_path):
    path = tmp_path / "instances.json"
    content = {
        "images": [{"id": 5, "file_name": "1.jpg"}, {"id": 6, "file_name": "other.jpg"}],
        "annotations": [{"id": 1, "image_id": 5}, {"id": 2, "image_id": 6}],
        "categories": [],
    }
    path.write_text(json.dumps(content))
    found = find_photos(photos, tmp_path / "links")
    description, count = select_ground_truth(path, found, tmp_path / "gt")
    kept = json.loads((tmp_path / "gt" / "instances.json").read_text())
    assert count == 1 and kept["images"] == content["images"][:1] and kept["annotations"] == content["annotations"][:1]
    assert description["FORMAT"] == "evaluation_only" and description["INSTANCES_JSON"].endswith("gt/instances.json")
    path.write_text(json.dumps({**content, "images": content["images"][1:]}))
    with pytest.raises(ValueError, match="names none of the 7 photos .* got 'other.jpg'"):
        select_ground_truth(path, found, tmp_path / "gt")
    path.write_text("[]")
    with pytest.raises(ValueError, match="is no COCO ground truth"):
        select_ground_truth(path, found, tmp_path / "gt")


@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("cores", [1, 2, 3, 4, 8, 16, 64])
def test_workers_and_threads_never_exceed_the_cores(cores, network):
    threads = divide_cores(cores, network_on_cpu=network)
    at_least_two = max(cores, 2)
    assert threads.decoding + threads.refining + threads.numerical <= at_least_two
    assert threads.loading + threads.training <= at_least_two
    assert threads.refining >= 1 and threads.numerical >= 1 and threads.training >= 1


def test_a_process_of_its_own_keeps_to_its_threads_and_hands_errors_on():
    with pytest.raises(ValueError, match="3 threads"):
        run_in_process(3, exec, "import os; raise ValueError(os.environ['OPENBLAS_NUM_THREADS'] + ' threads')")
    with pytest.raises(ChildProcessError, match="Run the same command again"):
        run_in_process(1, os._exit, 9)


def test_there_are_never_more_clusters_than_masks():
    assert [num_thing_clusters(n) for n in (0, 1, 2, 10, 225, 10**6)] == [1, 1, 1, 3, 15, 800]
    assert all(num_thing_clusters(n) <= n for n in range(1, 2000))


def test_training_fills_what_the_labels_leave_but_gets_a_third_at_least():
    # 10 minutes: 97 % are 582 s, less 152 s for the labels and 30 s for predictions, at half a second an iteration.
    assert num_iterations(10, 152, 0.5, 30) == 800
    assert num_iterations(10, 3000, 0.5, 30) == 400
    assert num_iterations(10, 0, 0.5, 3000) == 400
    assert num_iterations(0.1, 100, 60, 0) == 20


@pytest.mark.parametrize(
    ("photos", "scored", "seconds"),
    [
        # A prediction takes a second; a row of the page one and a half, and there are twelve.
        (60, 0, [60, 18]),
        # Scoring predicts once more, and the page has 18 rows.
        (60, 60, [60, 60, 27]),
        (10**5, 0, [500, 18]),
        (2, 0, [2, 3]),
    ],
)
def test_the_time_after_training_is_that_of_its_predictions(photos, scored, seconds):
    size = RunSize(photos, scored, minutes=5, max_iter=0, has_labels=False)
    assert [stage.seconds for stage in stages_after_training(COST, size)] == seconds


def test_the_stages_of_a_run_add_up_to_its_minutes():
    size = RunSize(60, 0, minutes=10, max_iter=0, has_labels=False)
    stages = plan_stages(COST, size, spent_seconds=20, own_memory=3)
    assert [stage.name for stage in stages] == ["start", "labels", "training", "predictions", "page", "spare"]
    seconds = {stage.name: stage.seconds for stage in stages}
    # 600 s less a start of 20 s, labels of 1 + 60 s, 78 s after the training, and 3 % to spare.
    assert seconds["training"] == 600 - 20 - 61 - 78 - 18
    assert sum(seconds.values()) == 600
    assert stages[1].memory == 3 + COST.label_memory
    again = plan_stages(COST, replace(size, has_labels=True, minutes=None, max_iter=7), 20, 3)
    assert [(stage.seconds, stage.disk) for stage in again[1:3]] == [(0, 0), (3.5, 2 * COST.checkpoint_bytes)]
    assert again[-1].name == "page"


@pytest.mark.parametrize(
    ("done", "has_model", "seconds", "basis"),
    [
        (0, False, 3.5, "7 iterations; a few were timed"),
        (5, False, 1.0, "2 of 7 iterations; a few were timed"),
        (7, True, 0.0, "done"),
    ],
)
def test_what_an_earlier_call_has_trained_is_not_planned_again(done, has_model, seconds, basis):
    size = RunSize(60, 0, minutes=None, max_iter=7, has_labels=True, has_model=has_model, iterations_done=done)
    training = plan_stages(COST, size, 20, 3)[2]
    assert (training.seconds, training.basis) == (seconds, basis)


def test_the_threads_of_training_are_those_with_the_fastest_step():
    assert training_threads(2, on_cpu=True) == [1, 2]
    assert training_threads(12, on_cpu=True) == [1, 6, 12]
    assert training_threads(1, on_cpu=True) == [1] and training_threads(8, on_cpu=False) == [8]
    assert COST.training_threads == 2
    assert replace(COST, iteration_seconds={1: 0.4, 2: 0.5}).training_threads == 1


def test_settings_scale_with_photos_and_machine(photos, tmp_path):
    found, threads = find_photos(photos, tmp_path / "links"), Threads(0, 1, 1, 0, 2)
    few = scaled_settings(replace(found, names=["a", "b"]), threads, on_gpu=False)
    many = scaled_settings(replace(found, names=["a"] * 3000, size=(3000, 2000)), threads, on_gpu=True)
    assert (few["SOLVER.IMS_PER_BATCH"], many["SOLVER.IMS_PER_BATCH"]) == (2, 16)
    assert (few["INPUT.MIN_SIZE_TEST"], many["INPUT.MIN_SIZE_TEST"]) == (64, 384)
    assert (few["SEMANTICS.NUM_CLUSTERS"], many["SEMANTICS.NUM_CLUSTERS"]) == (4, 27)
    assert (few["MODEL.DEVICE"], many["MODEL.DEVICE"]) == ("cpu", "cuda")
    cfg = setup_cfg(PHOTOS_CONFIG)
    assert all(type(value_of(cfg, key)) in (type(value), list) for key, value in few.items())


@pytest.mark.parametrize(
    ("size", "expected"), [((480, 640), (240, 320)), ((640, 480), (320, 240)), ((100, 1000), (192, 400))]
)
def test_the_descriptor_sees_the_photos_shape(size, expected):
    assert feature_size(*size) == expected


def test_what_the_user_sets_is_not_free():
    assert {"SOLVER.MAX_ITER", "CLUSTERS.NUM_CLUSTERS"} <= free_keys(PHOTOS_CONFIG)
    opts = ["SOLVER.MAX_ITER", str(setup_cfg(PHOTOS_CONFIG).SOLVER.MAX_ITER)]
    assert "SOLVER.MAX_ITER" not in free_keys(PHOTOS_CONFIG, opts)
    assert "CLUSTERS.NUM_CLUSTERS" not in free_keys("quick_schedules/coco_mini_handmade.yaml")


def test_what_a_users_file_sets_is_not_free_even_where_it_says_the_same(photos, tmp_path):
    default = setup_cfg(PHOTOS_CONFIG)
    text = new_config(photos)
    keys = {"CLUSTERS.NUM_CLUSTERS", "SEMANTICS.NUM_CLUSTERS", "SOLVER.MAX_ITER"}
    (tmp_path / "commented.yaml").write_text(text)
    assert keys <= free_keys(str(tmp_path / "commented.yaml"))
    for line in ("CLUSTERS:", "  NUM_CLUSTERS: 20", "SEMANTICS:", "  NUM_CLUSTERS: 12", "SOLVER:", "  MAX_ITER: 1000"):
        assert f"# {line}\n" in text
        text = text.replace(f"# {line}\n", f"{line}\n")
    (tmp_path / "base.yaml").write_text(text.replace("MAX_ITER: 1000", f"MAX_ITER: {default.SOLVER.MAX_ITER}"))
    # By way of a base of the user's as well.
    (tmp_path / "my.yaml").write_text("_BASE_: base.yaml\nMASKS: {REFINEMENT: none}\n")
    cfg = setup_cfg(tmp_path / "my.yaml")
    assert (
        cfg.MASKS.REFINEMENT == default.MASKS.REFINEMENT and cfg.CLUSTERS.NUM_CLUSTERS == default.CLUSTERS.NUM_CLUSTERS
    )
    assert free_keys(PHOTOS_CONFIG) - free_keys(str(tmp_path / "my.yaml")) == keys | {"MASKS.REFINEMENT"}


class Proxy(BaseHTTPRequestHandler):
    """Answers for a server that cannot be reached otherwise."""

    def do_HEAD(self):
        self.send_response(200 if self.path == "http://weights.invalid/dino.pth" else 404)
        self.end_headers()

    def log_message(self, *args):
        pass


def test_a_server_is_asked_by_the_proxy_that_a_download_would_take(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        assert run_features.is_server_reachable("http://weights.invalid/dino.pth")
        assert not run_features.is_server_reachable("http://weights.invalid/other.pth")
        server.shutdown()
    assert not run_features.is_server_reachable("http://weights.invalid/dino.pth")


def test_photos_that_are_links_into_a_store_are_timed(photos, tmp_path, monkeypatch):
    store, linked, seen = tmp_path / "store", tmp_path / "linked", []
    store.mkdir()
    linked.mkdir()
    for name in ("1.jpg", "2.jpg"):
        (photos / name).rename(store / f"blob{name[0]}")
        (linked / name).symlink_to(store / f"blob{name[0]}")
    monkeypatch.setattr(run_estimates, "make_pseudo_labels", lambda cfg, images, out: seen.append(list_images(images)))
    run_estimates._time_labels(PHOTOS_CONFIG, str(linked), ["1.jpg", "2.jpg"], tmp_path / "p", tmp_path / "l")
    assert seen == [["0.jpg"], ["0.jpg", "1.jpg"]]


class TestFeatures:
    @pytest.fixture(autouse=True)
    def _empty_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))

    def choose(self, *opts, reachable=False):
        cfg = setup_cfg(PHOTOS_CONFIG, opts)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_features, "is_server_reachable", lambda url: reachable)
            return choose_features(cfg, is_given=False, on_gpu=False)

    def test_without_weights_the_descriptor_says_what_it_means(self):
        choice = self.choose()
        assert choice.settings == {} and not choice.network
        assert "know color and texture, not objects" in choice.description
        assert choice.better_url.endswith("/dino_deitsmall8_pretrain.pth") and choice.better_megabytes == 87

    def test_a_download_is_announced_with_its_size(self):
        choice = self.choose(reachable=True)
        assert choice.settings["FEATURES.VIT.ARCH"] == "dino_vits8" and "87 MB will be downloaded" in choice.description

    def test_the_cache_comes_before_the_network(self, tmp_path):
        path = tmp_path / "cache" / "dino" / "dino_deitsmall16_pretrain" / "dino_deitsmall16_pretrain.pth"
        path.parent.mkdir(parents=True)
        path.touch()
        choice = self.choose(reachable=True)
        assert choice.settings["FEATURES.VIT.ARCH"] == "dino_vits16" and "in the cache" in choice.description

    @pytest.mark.parametrize(("width", "patch", "arch"), [(384, 8, "dino_vits8"), (768, 16, "dino_vitb16")])
    def test_a_local_file_needs_one_key(self, tmp_path, width, patch, arch):
        torch.save({"patch_embed.proj.weight": torch.zeros(width, 3, patch, patch)}, tmp_path / "w.pth")
        settings = self.choose("FEATURES.VIT.WEIGHTS", str(tmp_path / "w.pth")).settings
        assert (settings["FEATURES.VIT.ARCH"], settings["MASKS.GENERATOR"]) == (arch, "MaskCut")
        assert settings["SEMANTICS.PROVIDER"] == "PatchKMeans"

    def test_a_wrong_file_is_refused(self, tmp_path):
        with pytest.raises(WeightsError, match="no such file"):
            self.choose("FEATURES.VIT.WEIGHTS", str(tmp_path / "none.pth"))
        torch.save({"patch_embed.proj.weight": torch.zeros(10, 3, 8, 8)}, tmp_path / "w.pth")
        with pytest.raises(
            WeightsError, match="no DINO ViT-S or ViT-B .* set FEATURES.NAME TimmViT and FEATURES.VIT.ARCH"
        ):
            self.choose("FEATURES.VIT.WEIGHTS", str(tmp_path / "w.pth"))


class TestRefusals:
    """Each before anything is labeled: the measuring is not reached."""

    @pytest.fixture(autouse=True)
    def _no_work(self, monkeypatch):
        def measure(*args):
            raise AssertionError("work was begun")

        monkeypatch.setattr(run_plan, "run_in_process", measure)
        monkeypatch.setattr(run_features, "is_server_reachable", lambda url: False)

    def plan(self, photos, tmp_path, output="out", **options):
        return make_plan(photos, tmp_path / output, **options)

    def test_an_output_among_the_photos(self, photos, tmp_path):
        with pytest.raises(ValueError, match="lies in the image directory"):
            self.plan(photos, tmp_path, output="photos/out")

    def test_an_output_that_is_a_file(self, photos, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(NotADirectoryError, match="is a file"):
            self.plan(photos, tmp_path)

    @pytest.mark.parametrize(
        ("opts", "message"),
        [
            (("CLUSTERS.NUM_CLUSTERS", "800"), "is 800, but 7 photos can give at most 70 masks"),
            (("SOLVER.IMS_PER_BATCH", "8"), "is 8, and there are 7 photos"),
            (("MODEL.WEIGHTS", "none.pth"), "MODEL.WEIGHTS is 'none.pth', and there is no such file"),
            (("MASKS.TAO", "1"), "did you mean TAU"),
            (("DATASETS.TRAIN", "()"), "must begin with a dataset"),
        ],
    )
    def test_settings_that_cannot_work(self, photos, tmp_path, opts, message):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            self.plan(photos, tmp_path, opts=opts)

    def test_a_test_set_that_is_not_there(self, photos, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="coco_mini_val"):
            self.plan(
                photos,
                tmp_path,
                config_file="quick_schedules/coco_mini_handmade.yaml",
                opts=["CLUSTERS.NUM_CLUSTERS", "3"],
            )

    def test_minutes_are_those_of_an_earlier_call_unless_others_are_given(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: COST)
        first = self.plan(photos, tmp_path, minutes=30.0)
        assert self.plan(photos, tmp_path).minutes == 30.0  # killed before its training
        first = first.choose({"SOLVER.MAX_ITER": 77, "CLUSTERS.NUM_CLUSTERS": 5}).begin_training()
        assert not first.trains_anew
        again = self.plan(photos, tmp_path)
        assert (again.minutes, again.config.chosen["SOLVER.MAX_ITER"], again.trains_anew) == (30.0, 77, False)
        other = self.plan(photos, tmp_path, opts=["SOLVER.IMS_PER_BATCH", "2"])
        assert (
            other.trains_anew
            and other.config.is_free("SOLVER.MAX_ITER")
            and not other.config.is_free("CLUSTERS.NUM_CLUSTERS")
        )
        # The features of the labels stay, though a server can be reached now, and are still described.
        with monkeypatch.context() as patch:
            patch.setattr(run_features, "is_server_reachable", lambda url: True)
            reachable = self.plan(photos, tmp_path)
        assert reachable.features == first.features and "without weights" in reachable.features.description
        # What a later call was planned for counts only when its training begins.
        longer = self.plan(photos, tmp_path, minutes=60.0)
        assert (longer.minutes, longer.trains_anew) == (60.0, True) and longer.config.is_free("SOLVER.MAX_ITER")
        assert "is set aside, and a new one is trained" in format_plan(longer)
        assert self.plan(photos, tmp_path).trains_anew is False

    def test_a_cost_holds_for_the_settings_that_it_was_measured_with(self, photos, tmp_path, monkeypatch):
        measured, begun = [], []
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: measured.append(args) or COST)
        options = {"before_measuring": lambda: begun.append(1)}
        first = self.plan(photos, tmp_path, minutes=30.0, **options)
        assert self.plan(photos, tmp_path, minutes=60.0, **options).cost == first.cost and len(measured) == 1
        self.plan(photos, tmp_path, opts=["SOLVER.IMS_PER_BATCH", "2"], **options)
        assert len(measured) == len(begun) == 2

    def test_one_photo_is_enough_where_the_number_of_clusters_is_free(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: COST)
        assert self.plan(photos / "2.jpg", tmp_path).cfg.SOLVER.IMS_PER_BATCH == 1

    def test_minutes_count_for_nothing_where_the_user_sets_the_length(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: COST)
        opts = ["SOLVER.MAX_ITER", "30"]
        self.plan(photos, tmp_path, opts=opts, minutes=60.0).begin_training()
        again = self.plan(photos, tmp_path, opts=opts, minutes=30.0)
        assert (again.trains_anew, again.minutes, again.size.max_iter) == (False, None, 30)

    def test_other_features_bring_all_their_settings(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: COST)
        first = self.plan(photos, tmp_path)
        first.choose({"CLUSTERS.NUM_CLUSTERS": 5})
        weights = tmp_path / "w.pth"
        torch.save({"patch_embed.proj.weight": torch.zeros(384, 3, 8, 8)}, weights)
        opts = ["FEATURES.VIT.WEIGHTS", str(weights)]
        dino, alone = (self.plan(photos, tmp_path, output=name, opts=opts).cfg for name in ("out", "alone"))
        assert (dino.FEATURES.NAME, dino.FEATURES.IMAGE_SIZE) == ("TimmViT", (320, 320))
        for section in ("FEATURES", "MASKS", "CLUSTERS", "SEMANTICS"):
            assert dino[section] == alone[section]
        again = self.plan(photos, tmp_path).cfg
        assert again.FEATURES == first.cfg.FEATURES and again.MASKS == first.cfg.MASKS

    def test_labels_of_other_features_are_refused_before_anything_is_written(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: COST)
        plan = self.plan(photos, tmp_path)
        masks = open_stage(tmp_path / "out/labels/masks", "masks", mask_stage._cfg_settings(plan.cfg))
        (masks / "shard-000000.parquet").touch()
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
        assert {"config.yaml", "chosen_settings.json"} <= before.keys()
        for opts in (["FEATURES.NAME", "TimmViT"], ["MASKS.HIERARCHY.MAX_MASKS", "3"]):
            with pytest.raises(StageMismatchError, match="was made with other settings:\n .*asked for"):
                self.plan(photos, tmp_path, opts=opts)
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before
        assert self.plan(photos, tmp_path).features == plan.features

    def test_another_machine_gets_settings_and_a_measurement_of_its_own(self, photos, tmp_path, monkeypatch):
        measured = []
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: measured.append(args) or COST)
        monkeypatch.setattr(run_plan, "find_machine", lambda: Machine(16, 1, 0))
        fast = self.plan(photos, tmp_path)
        monkeypatch.setattr(run_plan, "find_machine", lambda: Machine(2, 0, 0))
        slow = self.plan(photos, tmp_path, num_gpus=1)
        for plan, device, loading in ((fast, "cuda", 4), (slow, "cpu", 0)):
            assert (device, device) == (plan.cfg.MODEL.DEVICE, plan.cfg.FEATURES.DEVICE)
            assert plan.cfg.MASKS.NUM_WORKERS == plan.cfg.DATALOADER.NUM_WORKERS == loading
        # What the results depend on stays.
        assert slow.cfg.SOLVER.IMS_PER_BATCH == fast.cfg.SOLVER.IMS_PER_BATCH == 7
        assert slow.cfg.INPUT == fast.cfg.INPUT and len(measured) == 2

    def test_the_record_of_an_older_version_is_read(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: COST)
        features = {"description": "old ones", "settings": {}, "speed": 1, "asked": {"name": "", "weights": ""}}
        cost = {"settings": "", "measured": {"seconds": 1}}
        (tmp_path / "out").mkdir()
        old = {"features": features, "run_cost": cost, "cost": {"seconds": 1}, "settings": {"MODEL.DEVICE": "cuda"}}
        (tmp_path / "out" / "chosen_settings.json").write_text(json.dumps(old))
        plan = self.plan(photos, tmp_path)
        assert plan.features.description == "old ones" and plan.cost.prediction_seconds == COST.prediction_seconds
        assert plan.cfg.MODEL.DEVICE == "cpu"

    def test_few_photos_and_unreadable_ones_are_warned_of(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: COST)
        plan = self.plan(photos, tmp_path)
        few, unreadable = plan_warnings(plan)
        assert few.startswith("7 photos are very few")
        assert unreadable.startswith("1 of the 7 photos looked at cannot be read, such as broken.jpg")
        assert "more than 20%" in unreadable and "warning   7 photos" in format_plan(plan)
        many = replace(plan.photos, names=plan.photos.names * 20, num_looked_at=140)
        assert plan_warnings(replace(plan, photos=many)) == []

    def test_a_full_disk(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(run_plan, "run_in_process", lambda *args: COST)
        plan = self.plan(photos, tmp_path)
        needed = sum(stage.disk for stage in plan.stages)
        # Two checkpoints, labels and predictions of seven photos, and as many rows of the page.
        assert needed == 2 * COST.checkpoint_bytes + 7 * (1000 + 50_000 + 150_000)
        usage = run_plan.shutil.disk_usage(tmp_path)._replace(free=needed - 1)
        monkeypatch.setattr(run_plan.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match="free, and this run needs about .* two checkpoints of"):
            self.plan(photos, tmp_path)


def test_a_new_configuration_names_the_photos_and_loads(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(new_config("photos"))
    cfg = setup_cfg("my.yaml")
    assert cfg.DATASETS.BY_PATH.photos.IMAGES == "photos" and cfg.OUTPUT_DIR == "output/photos/model"
    assert cfg.MODEL.META_ARCHITECTURE == "PanopticFPN" and "7 photos" in (tmp_path / "my.yaml").read_text()
    with pytest.raises(FileNotFoundError):
        new_config("elsewhere")


def test_a_run_goes_where_its_photos_are_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trip.2024").mkdir()
    (tmp_path / "photos").symlink_to("trip.2024")
    names = {"trip.2024": "trip.2024", "photos/": "photos", "trip.2024/a.jpg": "a", "list.txt": "list", "/": "photos"}
    assert {given: str(default_output(given)) for given in names} == {k: f"output/{v}" for k, v in names.items()}
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    assert 'OUTPUT_DIR: "output/photos/model"' in new_config("photos")
