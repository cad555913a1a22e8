"""A training as it is handed to others: weights, settings, model card."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from u2seg.checkpoint.reading import read_weights
from u2seg.cli.main import main
from u2seg.config import setup_cfg
from u2seg.engine.model_card import model_card
from u2seg.engine.release import trained_weights, write_release

PRETRAINING = {
    "backbone.stem.conv1.weight": torch.full((4, 3, 3, 3), 1 / 3),
    "view_head.hidden.weight": torch.ones(2, 2),
}


def make_run(directory: Path, config: str = "LUSS/dense_contrast_photos_cpu.yaml", opts: tuple = ()) -> Path:
    """Returns ``directory`` with what a training leaves behind, weights excepted."""
    directory.mkdir(parents=True)
    cfg = setup_cfg(config, ["OUTPUT_DIR", str(directory), *opts])
    (directory / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    (directory / "run.json").write_text(json.dumps({"seed": 7, "u2seg": "0.1.0", "torch": "2.11.0"}), encoding="utf-8")
    (directory / "training.json").write_text(json.dumps({"finished": "0123", "settings": {}}), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector's run with scores."""
    run = make_run(
        tmp_path_factory.mktemp("runs") / "model", "quick_schedules/photos.yaml", ("CLUSTERS.NUM_CLUSTERS", 5)
    )
    torch.save(
        {"model": {"roi_heads.weight": torch.ones(3, 2), "roi_heads.bias": torch.full((3,), 1 / 3)}},
        run / "model_final.pth",
    )
    scores = run / "inference" / "coco_mini_val"
    scores.mkdir(parents=True)
    record = {"dataset": "coco_mini_val", "images": 50, "fitted_on": "coco_mini_train (/somewhere/tables.npz)"}
    results = {"panoptic_seg": {"hungarian": {"PQ": 12.34, "SQ": 60.0, "RQ": 20.0}}, "record": record}
    (scores / "metrics.json").write_text(json.dumps(results), encoding="utf-8")
    intervals = {"panoptic_seg": {"hungarian": {"PQ": [10.0, 15.0]}}}
    (scores / "intervals.json").write_text(json.dumps(intervals), encoding="utf-8")
    return run


def test_a_card_tells_scores_with_split_and_interval_and_names_no_directory(detector: Path) -> None:
    text = model_card(detector, "my-model", license_id="cc-by-4.0")
    front, body = text.removeprefix("---\n").split("---\n", maxsplit=1)
    assert yaml.safe_load(front) == {
        "license": "cc-by-4.0",
        "library_name": "detectron2",
        "pipeline_tag": "image-segmentation",
        "tags": ["u2seg", "unsupervised"],
    }
    assert "# my-model" in body
    assert "without any human label" in body
    assert "`coco_mini_val`: 50 images, label maps fitted on coco_mini_train. Percentages." in body
    assert "12.34" in body or "12.3" in body
    assert "10.0" in body and "15.0" in body
    assert "| seed | 7 |" in body
    assert str(detector) not in text and "/somewhere" not in text


def test_a_card_says_who_labeled_the_training_images(tmp_path: Path) -> None:
    opts = ("DATASETS.TRAIN", ("coco_mini_val",), "DATASETS.BY_PATH.coco_mini_val.ROOT", "datasets/coco_mini")
    text = model_card(make_run(tmp_path / "model", "quick_schedules/coco_mini_handmade.yaml", opts), "m")
    assert "with the labels of coco_mini_val" in text
    assert "unsupervised" not in text
    assert "without any human label" not in text


def test_a_card_of_pretraining_has_the_last_knn_accuracy_and_says_what_is_unfinished(tmp_path: Path) -> None:
    run = make_run(tmp_path / "backbone")
    lines = [
        {"iteration": 9, "pass/knn_accuracy": 0.2},
        {"iteration": 19, "pass/knn_accuracy": 0.375},
        {"iteration": 29},
    ]
    (run / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run / "training.json").write_text(json.dumps({"finished": None}), encoding="utf-8")
    text = model_card(run, "backbone")
    assert "37.5 %" in text
    assert "4000 planned; this training has not finished" in text
    (run / "last_checkpoint").write_text("model_0000799.pth", encoding="utf-8")
    assert "| iterations | 800 of 4000; this training has not finished |" in model_card(run, "backbone")
    assert "pipeline_tag: image-feature-extraction" in text
    assert "FEATURES.RESNET.OUT_FEATURE res5" in text


def test_a_training_without_scores_says_so(tmp_path: Path) -> None:
    assert "## Scores\n\nNot scored." in model_card(make_run(tmp_path / "model", "quick_schedules/photos.yaml"), "m")


def test_a_directory_that_is_no_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no training: expected its config\.yaml"):
        write_release(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_backbone_of_pretraining_is_written_alone_in_half_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = make_run(tmp_path / "backbone")
    torch.save({"model": PRETRAINING}, run / "model_ema.pth")
    assert main(["convert", "safetensors", str(run), "--output", str(tmp_path / "release")]) == 0
    weights = read_weights(tmp_path / "release" / "backbone" / "model.safetensors")
    assert list(weights) == ["backbone.stem.conv1.weight"]
    assert weights["backbone.stem.conv1.weight"].dtype == torch.float16
    assert torch.allclose(weights["backbone.stem.conv1.weight"].float(), torch.tensor(1 / 3), atol=2e-4)
    line = capsys.readouterr().out
    assert "0.0 MB, SHA-256 " in line and len(line.split()[-1]) == 64


def test_vectors_and_values_beyond_half_precision_stay_as_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "model", "quick_schedules/photos.yaml")
    wide, bias = torch.full((2, 2), 1e6), torch.tensor([1 / 3])
    torch.save({"model": {"wide": wide, "bias": bias}}, run / "model_final.pth")
    written = read_weights(write_release(run, tmp_path / "out").directory / "model.safetensors")
    assert torch.equal(written["wide"], wide) and written["wide"].dtype == torch.float32
    assert torch.equal(written["bias"], bias)


def test_the_settings_go_along_without_any_path_and_with_the_cluster_counts(detector: Path, tmp_path: Path) -> None:
    out = write_release(detector, tmp_path / "out").directory
    cfg = setup_cfg(str(out / "config.yaml"))
    assert cfg.MODEL.WEIGHTS == "" and cfg.DATASETS.TRAIN == ()
    assert cfg.CLUSTERS.NUM_CLUSTERS == setup_cfg(str(detector / "config.yaml")).MODEL.ROI_HEADS.NUM_CLASSES
    assert cfg.MODEL.FPN.OUT_CHANNELS == 64
    assert str(detector.parent) not in (out / "config.yaml").read_text(encoding="utf-8")


def test_averaged_weights_of_an_unfinished_training_win_over_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "backbone")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        trained_weights(run)
    average = {"updates": 3, "weights": {"backbone.w": torch.tensor([2.0])}}
    torch.save({"model": {"backbone.w": torch.tensor([1.0])}, "ema": average}, run / "model_0000049.pth")
    (run / "last_checkpoint").write_text("model_0000049.pth", encoding="utf-8")
    assert trained_weights(run)["backbone.w"].tolist() == [2.0]


def test_two_trainings_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert (
        main(
            [
                "convert",
                "safetensors",
                str(tmp_path / "a/model"),
                str(tmp_path / "b/model"),
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 1
    )
    assert "trainings must have different names" in capsys.readouterr().err
