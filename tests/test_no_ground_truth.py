"""No label reaches label making or training: every ground-truth file is deleted, and nothing changes."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from tiny_scenes import CONFIG, FEW_CLUSTERS, render_scenes
from u2seg.config import setup_cfg
from u2seg.engine.end_to_end import train
from u2seg.pseudo_labels.pipeline import make_pseudo_labels


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Scenes with ground truth for the training images too, which the demo's do not have."""
    return render_scenes(tmp_path_factory.mktemp("data") / "scenes", 8, 2, annotate_train=True)


@pytest.fixture
def opened_files():
    """A list that grows with the name of every file that this process opens while the test runs."""
    opened: list[str] = []
    is_watching = True

    def audit(event, arguments):
        if is_watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(audit)  # a hook cannot be removed, only silenced
    yield opened
    is_watching = False


def label_and_train(scenes: Path, output: Path) -> dict[str, bytes]:
    """Returns every file that label making wrote, and the trained weights' bytes."""
    labels = make_pseudo_labels(setup_cfg(CONFIG, FEW_CLUSTERS), scenes / "train", output / "labels")
    dataset = "DATASETS.BY_PATH.scenes_train"
    opts = [
        *FEW_CLUSTERS,
        f"{dataset}.ROOT",
        str(labels),
        f"{dataset}.IMAGES",
        str(scenes / "train"),
        "DATASETS.TEST",
        "()",
    ]
    train(
        CONFIG,
        output / "model",
        [*opts, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2"],
        0,
        output / "log.txt",
    )
    weights = torch.load(output / "model" / "model_final.pth", weights_only=False)["model"]
    result = {path.relative_to(labels).as_posix(): path.read_bytes() for path in labels.rglob("*") if path.is_file()}
    result["weights"] = b"".join(tensor.numpy().tobytes() for _, tensor in sorted(weights.items()))
    return result


def test_labels_and_model_are_the_same_without_any_ground_truth(scenes, tmp_path, opened_files):
    with_gt = label_and_train(scenes, tmp_path / "with")
    opened = list(opened_files)
    touched = [name for name in opened if str(scenes) in name and f"{scenes}/train/" not in name]
    assert not touched, f"ground truth was read: {touched[:3]}"
    assert any(name.startswith(f"{scenes}/train/") for name in opened), "the monitor saw no image being opened"

    for directory in ("annotations", "panoptic_train", "panoptic_val", "val"):
        shutil.rmtree(scenes / directory)
    without_gt = label_and_train(scenes, tmp_path / "without")
    assert with_gt.keys() == without_gt.keys()
    assert [name for name in with_gt if with_gt[name] != without_gt[name]] == []
