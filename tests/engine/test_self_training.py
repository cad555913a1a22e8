"""Self-training: the rule that joins predictions and old labels, and the rounds, killed and resumed."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from fault_injection import PARTIAL, Faults, KilledError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.data import register_dataset
from u2seg.engine import run_self_training
from u2seg.engine.self_training import self_train
from u2seg.modeling import complete_config
from u2seg.pseudo_labels import relabel as relabel_module
from u2seg.pseudo_labels.relabel import Objects, confirmed_labels_first, predictions_first, relabel
from u2seg.structures import pairwise_mask_iou
from u2seg.utils.files import short_file_digest
from u2seg.utils.manifest import StageMismatchError, TooManyFailuresError
from u2seg.utils.write_errors import WriteError


def objects(masks, classes, scores):
    return Objects(np.asarray(masks, bool), np.asarray(classes, np.int64), np.asarray(scores, np.float32))


def strip(*columns, width=10):
    mask = np.zeros((2, width), bool)
    mask[:, columns[0] : columns[1]] = True
    return mask


RULE = SimpleNamespace(MAX_IOU=0.5, CONFIRM_THRESH=0.1)


def test_predictions_first_on_a_hand_made_case():
    # Predictions: A 0..4 (0.9), B 1..5 (0.8; IoU with A 3/5, so it goes), C 6..8 (0.71), D 8..10 (0.5; below the threshold).
    new = objects([strip(1, 5), strip(0, 4), strip(6, 8), strip(8, 10)], [1, 0, 2, 3], [0.8, 0.9, 0.71, 0.5])
    # Old labels: E 0..5 (IoU with A 4/5, goes), F 6..10 (IoU with C 2/4 = 0.5, goes), G 5..7 (IoU with C 1/3, stays).
    old = objects([strip(0, 5), strip(6, 10), strip(5, 7)], [5, 6, 7], [1, 1, 0.3])
    got = predictions_first(new, old, RULE, 0.7)
    assert got.classes.tolist() == [0, 2, 7]
    assert got.scores.tolist() == pytest.approx([0.9, 0.71, 0.3])
    assert (got.masks[0] == strip(0, 4)).all() and (got.masks[2] == strip(5, 7)).all()


def test_without_predictions_the_old_labels_stay():
    none = objects(np.zeros((0, 2, 10)), [], [])
    old = objects([strip(0, 5)], [5], [1])
    assert predictions_first(none, old, RULE, 0.7).classes.tolist() == [5]
    assert len(predictions_first(none, none, RULE, 0.7)) == 0


def test_confirmed_labels_first_on_a_hand_made_case():
    # Predictions: A 0..4 (0.9), B 6..8 (0.2), C 8..10 (0.8), D 8..9 (0.75; IoU with C 1/2, so it goes), E 4..6 (0.05).
    new = objects(
        [strip(0, 4), strip(6, 8), strip(8, 10), strip(8, 9), strip(4, 6)], range(5), [0.9, 0.2, 0.8, 0.75, 0.05]
    )
    # Old labels: F 0..5 (IoU with A 4/5: confirmed, keeps its mask), G 6..8 (confirmed by B, below the threshold for labels), H 4..6
    # (E scores too little to confirm it: goes). C is new: no label that stays meets it.
    old = objects([strip(0, 5), strip(6, 8), strip(4, 6)], [5, 6, 7], [1, 0.4, 1])
    got = confirmed_labels_first(new, old, RULE, 0.7)
    assert got.classes.tolist() == [2, 5, 6]
    assert got.scores.tolist() == pytest.approx([0.8, 1, 0.4])
    assert (got.masks[1] == strip(0, 5)).all()


def test_labels_that_the_model_does_not_see_are_not_confirmed():
    none = objects(np.zeros((0, 2, 10)), [], [])
    assert len(confirmed_labels_first(none, objects([strip(0, 5)], [5], [1]), RULE, 0.7)) == 0


def test_unknown_merge_rule_ends_the_run_before_it_writes(run, tmp_path):
    run.SELF_TRAINING.MERGE = "newest"
    with pytest.raises(
        ValueError, match="Unknown SELF_TRAINING.MERGE 'newest'; registered: confirmed_labels_first, predictions_first"
    ):
        relabel(run, tmp_path / "out", 0.5)
    assert not (tmp_path / "out").exists()


def slow_iou(a, b):
    union = sum(bool(x or y) for x, y in zip(a.ravel(), b.ravel()))
    return sum(bool(x and y) for x, y in zip(a.ravel(), b.ravel())) / union if union else 0.0


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_predictions_first_equals_the_slow_rule(seed):
    rng = np.random.default_rng(seed)
    new = objects(rng.random((4, 3, 5)) < 0.5, rng.integers(0, 3, 4), rng.random(4))
    old = objects(rng.random((3, 3, 5)) < 0.5, rng.integers(0, 3, 3), rng.random(3))
    kept = []
    for index in sorted(range(4), key=lambda i: -new.scores[i]):
        if new.scores[index] >= 0.4 and all(slow_iou(new.masks[index], new.masks[k]) < 0.3 for k in kept):
            kept.append(index)
    stay = [i for i in range(3) if all(slow_iou(old.masks[i], new.masks[k]) < 0.3 for k in kept)]
    got = predictions_first(new, old, SimpleNamespace(MAX_IOU=0.3), 0.4)
    assert got.scores.tolist() == [new.scores[k] for k in kept] + [old.scores[i] for i in stay]
    expected = [[slow_iou(a, b) for b in old.masks] for a in new.masks]
    assert np.allclose(pairwise_mask_iou(new.masks, old.masks), expected)


@pytest.fixture
def run(tmp_path, write_coco_panoptic):
    """A label run, a configuration that trains on it, and a trained model."""
    root = write_coco_panoptic(tmp_path / "tiny")
    directory = tmp_path / "labels" / "panoptic"
    (directory / "stuff").mkdir(parents=True)
    (directory / "panoptic").symlink_to(root / "panoptic_train")
    for kind in ("panoptic", "instances"):
        (directory / f"{kind}.json").write_text((root / "annotations" / f"{kind}_train.json").read_text())
    for path in (root / "panoptic_train").iterdir():
        pixels = np.asarray(Image.open(path))[:, :, 0]
        Image.fromarray(np.array([255, 1, 2, 0, 0], np.uint8)[pixels]).save(directory / "stuff" / path.name)
    cfg = setup_cfg("quick_schedules/Base-Scenes-R18-FPN.yaml")
    cfg.DATASETS.BY_PATH["self_train"] = CfgNode(
        {"FORMAT": "pseudo_labels", "ROOT": str(tmp_path / "labels"), "IMAGES": str(root / "train")}
    )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("self_train",), ()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.NORM = ""
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, 2
    cfg.SELF_TRAINING.SHARD_SIZE = 2
    cfg.SELF_TRAINING.SCORE_THRESH = (0.5,)
    cfg.MODEL.WEIGHTS = "start.pth"
    return complete_config(cfg)


class Oracle(torch.nn.Module):
    """Predicts one square of class 1, at the left of the image as it is shown, with score 0.9; stuff 2 everywhere."""

    def forward(self, batch):
        height, width = batch[0]["height"], batch[0]["width"]
        instances = Instances((height, width))
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[0, 20:40, 0:20] = True
        instances.pred_masks, instances.pred_classes, instances.scores = mask, torch.tensor([1]), torch.tensor([0.9])
        logits = torch.zeros(3, height, width)
        logits[2] = 1
        return [{"instances": instances, "sem_seg": logits}]


def contents(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}


def test_new_labels_hold_predictions_and_old_ones_in_the_usual_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr(relabel_module, "_load_model", lambda cfg: Oracle())
    labels = relabel(run, tmp_path / "new", 0.7)
    register_dataset(
        "self_new", {"FORMAT": "pseudo_labels", "ROOT": str(labels), "IMAGES": run.DATASETS.BY_PATH.self_train.IMAGES}
    )
    from detectron2.data import DatasetCatalog

    records = DatasetCatalog.get("self_new")
    assert [record["image_id"] for record in records] == [1, 2, 3, 4, 5, 6]
    for record in records:
        scores = [a["score"] for a in record["annotations"]]
        assert scores[0] == pytest.approx(0.9) and record["annotations"][0]["category_id"] == 1
        stuff = np.asarray(Image.open(record["sem_seg_file_name"]))
        assert (stuff[21:39, 1:19] == 0).all()
    # Image 3 had no label of a thing: it has the predicted one now, and its old stuff elsewhere.
    assert len(records[2]["annotations"]) == 1 and set(np.unique(stuff)) <= {0, 1, 2, 255}


def test_flip_and_new_semantics(run, tmp_path, monkeypatch):
    monkeypatch.setattr(relabel_module, "_load_model", lambda cfg: Oracle())
    run.SELF_TRAINING.FLIP = run.SELF_TRAINING.NEW_SEMANTICS = True
    labels = relabel(run, tmp_path / "new", 0.7)
    stuff = np.asarray(Image.open(labels / "panoptic" / "stuff" / "000003.png"))
    expected = np.full((48, 64), 2)
    expected[20:40, :20] = expected[20:40, 44:] = 0  # the mirrored image's square comes back at the right
    assert (stuff == expected).all()


def test_killed_while_labeling_it_goes_on_and_gives_the_same_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr(relabel_module, "_load_model", lambda cfg: Oracle())
    whole = contents(relabel(run, tmp_path / "whole", 0.7))
    seen = []

    class Killed(Oracle):
        def forward(self, batch):
            seen.append(batch[0]["image_id"])
            if len(seen) == 4:
                raise KeyboardInterrupt
            return super().forward(batch)

    monkeypatch.setattr(relabel_module, "_load_model", lambda cfg: Killed())
    with pytest.raises(KeyboardInterrupt):
        relabel(run, tmp_path / "cut", 0.7)
    assert contents(relabel(run, tmp_path / "cut", 0.7)) == whole
    assert seen == [1, 2, 3, 4, 3, 4, 5, 6]  # the first shard of two is not made again
    relabel(run, tmp_path / "cut", 0.7)
    assert len(seen) == 8  # complete: nothing is predicted


@pytest.fixture
def two_images(run, monkeypatch):
    """The run, of whose images the first two are labeled, by a model that is quick."""
    monkeypatch.setattr(relabel_module, "_load_model", lambda cfg: Oracle())
    run.SELF_TRAINING.SHARD_SIZE = 1
    subset = Path(run.DATASETS.BY_PATH.self_train.ROOT) / "two.json"
    subset.write_text(json.dumps({"image_ids": [1, 2]}))
    run.DATASETS.BY_PATH.self_train.SUBSET = str(subset)
    register_dataset("self_train", run.DATASETS.BY_PATH.self_train)
    return run


def test_killed_at_every_file_operation_the_new_labels_are_the_same(two_images, tmp_path, monkeypatch):
    whole = contents(relabel(two_images, tmp_path / "whole", 0.7))
    faults = Faults(monkeypatch, tmp_path / "cut", kill=True)
    kills = faults.runs(lambda: relabel(two_images, tmp_path / "cut", 0.7), KilledError, lambda error: None)
    assert kills > 40
    assert contents(tmp_path / "cut") == whole


def test_on_a_full_disk_one_line_says_so_and_labeling_goes_on(two_images, tmp_path, monkeypatch):
    whole = contents(relabel(two_images, tmp_path / "whole", 0.7))
    faults = Faults(monkeypatch, tmp_path / "cut", kill=False, only=("mkdir", "mkstemp", "replace"))

    def check(error):
        assert str(error).startswith(str(tmp_path / "cut")) and "free some space on that disk" in str(error)
        assert not list(tmp_path.rglob(PARTIAL))

    assert faults.runs(lambda: relabel(two_images, tmp_path / "cut", 0.7), WriteError, check) > 20
    assert contents(tmp_path / "cut") == whole


def test_an_image_that_cannot_be_read_any_more_is_recorded_and_the_others_are_labeled(run, tmp_path, monkeypatch):
    monkeypatch.setattr(relabel_module, "_load_model", lambda cfg: Oracle())
    whole = contents(relabel(run, tmp_path / "whole", 0.7))
    image = Path(run.DATASETS.BY_PATH.self_train.IMAGES) / "000002.png"
    pixels = image.read_bytes()
    image.write_bytes(pixels[:100])
    with pytest.raises(TooManyFailuresError, match=r"1 of 6 images could not be read.*\n  000002\.png: .*truncated"):
        relabel(run, tmp_path / "new", 0.7)
    image.write_bytes(pixels)
    assert contents(relabel(run, tmp_path / "new", 0.7)) == {**whole, "panoptic/failures.json": b"[]\n"}
    image.unlink()
    run.MASKS.MAX_FAILURES = 0.2
    labels = relabel(run, tmp_path / "five", 0.7)
    panoptic = json.loads((labels / "panoptic" / "panoptic.json").read_text())
    assert [row["id"] for row in panoptic["images"]] == [1, 3, 4, 5, 6]
    failures = json.loads((labels / "panoptic" / "failures.json").read_text())
    assert [row["file_name"] for row in failures] == ["000002.png"] and "no such file" in failures[0]["reason"]


def test_other_weights_and_other_old_labels_are_noticed_and_moved_ones_are_not(two_images, tmp_path):
    weights = tmp_path / "model_final.pth"
    weights.write_bytes(b"1")
    two_images.MODEL.WEIGHTS = str(weights)
    relabel(two_images, tmp_path / "new", 0.7)
    two_images.MODEL.WEIGHTS = str(weights.rename(tmp_path / "moved.pth"))
    (tmp_path / "new").rename(tmp_path / "moved")
    relabel(two_images, tmp_path / "moved", 0.7)
    (tmp_path / "moved.pth").write_bytes(b"2")
    with pytest.raises(StageMismatchError, match=r"\n  settings\.weights: asked for [^\n]*\nChoose"):
        relabel(two_images, tmp_path / "moved", 0.7)
    (tmp_path / "moved.pth").write_bytes(b"1")
    instances = Path(two_images.DATASETS.BY_PATH.self_train.ROOT) / "panoptic" / "instances.json"
    instances.write_text(instances.read_text() + " ")
    with pytest.raises(StageMismatchError, match=r"\n  settings\.labels: asked for [^\n]*\nChoose"):
        relabel(two_images, tmp_path / "moved", 0.7)


def test_two_rounds_and_a_third_call_that_has_nothing_to_do(run, tmp_path, monkeypatch):
    from u2seg.engine import U2SegTrainer

    trainer = U2SegTrainer(run)
    trainer.checkpointer.save_dir = str(tmp_path)
    trainer.checkpointer.save("start")
    run.MODEL.WEIGHTS = str(tmp_path / "start.pth")
    run.SELF_TRAINING.SCORE_THRESH = (0.0, 0.9)
    last = self_train(run, tmp_path / "rounds", 2)
    assert last == tmp_path / "rounds" / "round-2" / "model" / "model_final.pth" and last.is_file()
    manifests = [
        json.loads((tmp_path / "rounds" / f"round-{n}" / "labels/panoptic/manifest.json").read_text()) for n in (1, 2)
    ]
    assert [m["settings"]["score_thresh"] for m in manifests] == [0.0, 0.9]
    last_checkpoint = tmp_path / "rounds" / "round-1" / "model" / "model_final.pth"
    assert manifests[1]["settings"]["weights"] == short_file_digest(last_checkpoint)
    before = contents(tmp_path / "rounds")
    monkeypatch.setattr(relabel_module, "_load_model", lambda cfg: pytest.fail("predicted again"))
    assert self_train(run, tmp_path / "rounds", 2) == last
    assert contents(tmp_path / "rounds") == before
    # The command does the same.
    (tmp_path / "config.yaml").write_text(run.dump())
    args = SimpleNamespace(
        config_file=str(tmp_path / "config.yaml"), opts=[], output=str(tmp_path / "rounds"), rounds=2
    )
    assert run_self_training(args) == last


def test_shipped_configurations_are_found(tmp_path, monkeypatch):
    from u2seg.engine import launch

    monkeypatch.setattr(launch, "complete_config", lambda cfg: cfg)
    monkeypatch.setattr(launch, "self_train", lambda cfg, output, rounds: cfg.MODEL.RESNETS.DEPTH)
    name = "quick_schedules/Base-Scenes-R18-FPN.yaml"
    args = SimpleNamespace(config_file=name, opts=[], output=str(tmp_path / "rounds"), rounds=1)
    assert run_self_training(args) == 18


def test_wrong_inputs_are_refused(run, tmp_path):
    cfg = run.clone()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="starts from a trained model"):
        self_train(cfg, tmp_path / "x", 1)
    cfg.DATASETS.BY_PATH.self_train.FORMAT = "coco_panoptic"
    with pytest.raises(ValueError, match=r"format pseudo_labels .* got self_train \(coco_panoptic\)"):
        self_train(cfg, tmp_path / "x", 1)
