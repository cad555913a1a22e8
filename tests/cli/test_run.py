"""``u2seg run`` as a newcomer types it: photos in, everything else chosen; nothing but progress and results on the screen."""

import json
import shlex
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_photos import write_tiny_photos_config
from tiny_scenes import render_scenes
from u2seg.cli.main import main, parse_arguments
from u2seg.engine import end_to_end
from u2seg.engine.photo_run import run_config, run_features, run_plan
from u2seg.engine.photo_run.run_budget import RunSize
from u2seg.engine.photo_run.run_estimates import RunCost
from u2seg.utils.files import read_json

SHORT = ["SOLVER.MAX_ITER", "2"]


@pytest.fixture(autouse=True)
def _no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run_features, "is_server_reachable", lambda url: False)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    """No process of its own for the measuring: importing PyTorch there takes longer than all the rest."""
    monkeypatch.setattr(run_plan, "run_in_process", lambda num_threads, function, *args: function(*args))


@pytest.fixture
def _tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(run_config, "PHOTOS_CONFIG", write_tiny_photos_config(tmp_path / "tiny.yaml"))


@pytest.fixture
def _labels_in_this_process(monkeypatch):
    monkeypatch.setattr(end_to_end, "run_in_process", lambda num_threads, function, *args: function(*args))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return render_scenes(tmp_path_factory.mktemp("data") / "scenes", 1, 6)


def test_check_shows_the_plan_and_writes_nothing(scenes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(scenes / "val"), "--check"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "6 in ",
        "HandmadeDescriptor, without weights",
        "none (no --ground-truth)",
        "an iteration takes",
        "dl.fbaipublicfiles.com/dino",
        f"u2seg run {scenes / 'val'} --output output/val_dino FEATURES.VIT.WEIGHTS dino_deitsmall8_pretrain.pth",
    ):
        assert expected in out
    table = [line.split() for line in out.splitlines() if line.startswith("  ")]
    rows = [row[0] for row in table[[row[0] for row in table].index("time") :]]
    assert rows[1:8] == ["start", "labels", "training", "predictions", "page", "spare", "in"]
    assert "The same command without --check runs this into output/val" in out
    assert len(out.splitlines()) <= 45 and not (tmp_path / "output").exists()


@pytest.mark.usefixtures("_tiny")
def test_photos_alone_give_labels_a_model_predictions_and_a_page(scenes, tmp_path, capfd):
    output = tmp_path / "run"
    ground_truth = scenes / "annotations" / "panoptic_val.json"
    command = ["run", str(scenes / "val"), "--output", str(output), "--ground-truth", str(ground_truth), *SHORT]
    assert main(command) == 0
    screen = capfd.readouterr()
    # One lasting line a stage, on standard error; nothing of what libraries say.
    stages = ["masks", "clusters", "semantic maps", "panoptic labels"]
    stages += ["training", "scoring", "scoring maps", "predictions", "page"]
    lasting = [line for line in screen.err.splitlines() if " in " in line and not line.startswith("warning")]
    assert [line.split("  ")[0].strip() for line in lasting] == stages
    for noise in ("meshgrid", "Running with full config", "faiss", "Warning"):
        assert noise not in screen.out + screen.err
    assert "Running with full config" in (output / "model" / "log.txt").read_text()
    assert "Starting training" in (output / "log.txt").read_text()
    assert "6 labeled" in screen.out and "PQ" in screen.out
    # The next command is one that can be typed as it stands.
    advice = next(line for line in screen.out.splitlines() if "u2seg predict" in line)
    _, args = parse_arguments(shlex.split(advice)[1:])
    assert args.images == ["OTHER_PHOTOS"] and args.opts[0] == "MODEL.WEIGHTS" and Path(args.opts[1]).is_file()
    masks = read_json(output / "labels" / "masks" / "manifest.json")["counts"]["masks"]
    chosen = yaml.safe_load((output / "config.yaml").read_text())
    assert 1 <= chosen["CLUSTERS"]["NUM_CLUSTERS"] <= max(masks, 1)
    assert sorted(path.name for path in (output / "model").glob("*.pth")) == ["model_final.pth"]
    assert len(list((output / "predictions" / "visualizations").iterdir())) == 6
    page = (output / "report" / "index.html").read_text()
    for expected in (
        "Most like its ground truth",
        "Least like its ground truth",
        "Predictions: ",
        "are things, ",
        "time for training and scoring",
        "The model by category",
        "names by matching",
        "knows clusters by number alone",
    ):
        assert expected in page
    # A second call has nothing to do but to draw the names that clusters have been given, and says the same.
    labels = output / "labels"
    assert main(["clusters", "rename", str(labels), "1=crate"]) == 0
    made = {path: path.stat().st_mtime_ns for path in (*labels.rglob("*"), output / "model" / "model_final.pth")}
    capfd.readouterr()
    assert main(command) == 0
    assert capfd.readouterr().out.splitlines()[-1] == screen.out.splitlines()[-1]
    assert read_json(output / "predictions" / "panoptic.json")["categories"][0]["name"] == "crate"
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_minutes_set_the_length_of_training_by_what_was_measured():
    cost = RunCost(
        label_start_seconds=9.0,
        label_seconds=9.0,
        label_bytes=1,
        label_memory=1,
        iteration_seconds={1: 0.75, 2: 0.5},
        prediction_seconds=1.0,
        prediction_bytes=1,
        checkpoint_bytes=1,
        training_memory=1,
        measuring_seconds=1.0,
    )
    size = RunSize(num_photos=6, num_scored=0, minutes=5.0, max_iter=0, has_labels=True)
    plan = SimpleNamespace(cost=cost, size=size, started=time.monotonic() - 60)
    length = end_to_end._measured_length(plan, 5.0)
    # 97 % of 300 s, less 60 s so far, less 6 predictions and 6 rows of the page that cost one and a half each.
    assert length["SOLVER.MAX_ITER"] == pytest.approx((291 - 60 - 15) / 0.5, abs=2)
    assert (length["SOLVER.WARMUP_ITERS"], length["SOLVER.CHECKPOINT_PERIOD"]) == (43, 120)


def test_a_model_set_aside_takes_the_place_of_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(end_to_end, "complete_config", lambda cfg: cfg)
    for name in ("model", "earlier/2"):  # earlier/1 was deleted
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "times.json").write_text('{"labels": 1.0}')
    config = SimpleNamespace(path=run_config.PHOTOS_CONFIG)
    plan = SimpleNamespace(config=config, log=tmp_path / "log.txt", trains_anew=True)
    aside = end_to_end._set_aside_other_model(plan, end_to_end.RunDirectories(tmp_path))
    assert aside == tmp_path / "earlier" / "3" and (aside / "model").is_dir() and (tmp_path / "earlier" / "2").is_dir()


def test_a_wrong_argument_is_told_before_anything_else(tmp_path, capsys):
    assert main(["run", str(tmp_path / "nowhere"), "--check"]) == 1
    screen = capsys.readouterr()
    assert screen.out == "" and screen.err.startswith("error: ")


@pytest.mark.usefixtures("_labels_in_this_process", "_tiny")
def test_photos_without_things_give_labels_of_stuff_and_a_warning(tmp_path, capfd):
    photos = tmp_path / "gray"
    photos.mkdir()
    for number in range(3):
        Image.fromarray(np.full((64, 96, 3), 60 * number, np.uint8)).save(photos / f"{number}.png")
    assert main(["run", str(photos), "--output", str(tmp_path / "run"), "SEMANTICS.NUM_CLUSTERS", "2", *SHORT]) == 0
    screen = capfd.readouterr()
    assert "no things found in 3 photos: the labels hold stuff alone" in screen.err
    assert "0 masks" in screen.out and "photos without a thing: 3" in screen.out
    labels = read_json(tmp_path / "run" / "labels" / "panoptic" / "panoptic.json")
    assert all(row["segments_info"] for row in labels["annotations"])


def test_a_file_without_a_model_is_refused_by_run_and_train(scenes, tmp_path, capsys):
    path = tmp_path / "my.yaml"
    path.write_text('DATASETS:\n  TRAIN: ("my_train",)\n')
    assert main(["run", str(scenes / "val"), "--config-file", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "_BASE_: quick_schedules/photos.yaml" in capsys.readouterr().err
    assert main(["train", "--config-file", str(path)]) == 1
    assert "_BASE_: quick_schedules/photos.yaml" in capsys.readouterr().err


def test_evaluate_masks_takes_the_label_directory(tmp_path, capsys):
    (tmp_path / "gt.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]})
    )
    assert main(["evaluate-masks", str(tmp_path), "--ground-truth", str(tmp_path / "gt.json")]) == 1
    assert "holds no masks: expected a label directory" in capsys.readouterr().err
