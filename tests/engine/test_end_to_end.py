"""The whole pipeline in one call, tiny: with ground truth for scoring, and without any."""

import pytest
from tiny_scenes import CONFIG, FEW_CLUSTERS, render_scenes
from u2seg.engine import TrainingMismatchError
from u2seg.engine.end_to_end import run_end_to_end
from u2seg.engine.end_to_end_report import write_run_report
from u2seg.utils.files import read_json

TINY = [*FEW_CLUSTERS, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    # A directory whose name is a number stays a directory.
    return render_scenes(tmp_path_factory.mktemp("data") / "2024", 4, 3)


def test_photos_without_any_ground_truth_give_labels_a_model_and_a_page(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(scenes.parent)
    opts = [*TINY, "DATASETS.TEST", "()"]
    directories = run_end_to_end(CONFIG, "2024/train", tmp_path / "run", opts=opts)
    page = write_run_report(CONFIG, "2024/train", tmp_path / "run", title="t", summary="s", opts=opts, num_rows=2)
    html = page.read_text()
    assert html.count("training image") >= 2 and "test image" not in html and "ground truth" not in html
    before = (directories.model / "model_final.pth").stat().st_mtime_ns
    run_end_to_end(CONFIG, str(scenes / "train"), tmp_path / "run", opts=opts)  # the same images by another name
    assert (directories.model / "model_final.pth").stat().st_mtime_ns == before  # nothing is trained again
    with pytest.raises(TrainingMismatchError, match=r"SOLVER\.BASE_LR: asked for 0\.5, the model has 0\.001"):
        run_end_to_end(CONFIG, "2024/train", tmp_path / "run", opts=[*opts, "SOLVER.BASE_LR", "0.5"])
    assert (directories.model / "model_final.pth").is_file() and not (tmp_path / "run" / "metrics.json").exists()


def test_with_ground_truth_there_are_scores_of_the_model_and_of_its_labels(scenes, tmp_path):
    opts = [*TINY, "DATASETS.BY_PATH.scenes_val.ROOT", str(scenes)]
    directories = run_end_to_end(CONFIG, scenes / "train", tmp_path / "run", opts=opts)
    metrics = read_json(directories.root / "metrics.json")
    assert metrics.pop("record")["complete"]
    assert metrics.keys() == {"panoptic_seg", "bbox", "segm", "sem_seg"}
    numbers = [v for task in metrics.values() for protocol in task.values() for v in protocol.values()]
    assert numbers and all(0 <= value <= 100 for value in numbers)
    page = write_run_report(CONFIG, scenes / "train", tmp_path / "run", title="t", summary="s", opts=opts, num_rows=2)
    html = page.read_text()
    assert "pseudo-labels of the same images" in html and html.count("test image") >= 2


def test_a_configuration_without_pseudo_labels_fails_before_any_work(scenes, tmp_path):
    with pytest.raises(ValueError, match="must begin with a dataset .* FORMAT: pseudo_labels"):
        run_end_to_end("quick_schedules/scenes_supervised.yaml", scenes / "train", tmp_path / "run")
    assert not (tmp_path / "run").exists()
