"""Killed at any file operation of its end, a training, a self-training or a stage of LUSS goes on and ends as if it had not been."""

import builtins
import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.events import JSONWriter
from fault_injection import PARTIAL, Faults
from torch import nn
from u2seg.engine import (
    TrainingMismatchError,
    U2SegTrainer,
    continue_training,
    launch,
    run_training,
    self_training,
    training_record,
)
from u2seg.engine.trainer import train_and_record
from u2seg.evaluation import EVALUATOR_REGISTRY
from u2seg.evaluation.evaluator import RecordingEvaluator
from u2seg.luss import recipe
from u2seg.utils.files import atomic_path, remove_partial_files, write_json
from u2seg.utils.write_errors import WriteError

KILLED = 9


class Tiny(nn.Module):
    """One weight that should make an image's mean 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 0.5))

    def forward(self, batch):
        means = torch.stack([one["image"].float().mean((1, 2)) / 255 for one in batch])
        return {"loss": ((means * self.weight).sum(1) - 1).square().mean()} if self.training else [{} for _ in batch]


class WritesScores(DatasetEvaluator):
    def __init__(self, name, cfg, output_dir):
        self.path = os.path.join(output_dir, "metrics.json")

    def reset(self):
        self.seen = 0

    def process(self, inputs, outputs):
        self.seen += len(inputs)

    def evaluate(self):
        write_json(self.path, {"images": self.seen})
        return {"panoptic_seg": {"PQ": float(self.seen)}}


@pytest.fixture
def tiny_run(tiny_cfg, monkeypatch):
    """Returns a function that makes the configuration of a training of one weight, scored at its end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    monkeypatch.setattr(U2SegTrainer, "build_model", classmethod(lambda cls, cfg: Tiny()))
    monkeypatch.setitem(EVALUATOR_REGISTRY._obj_map, "u2seg_panoptic", WritesScores)

    def make(output_dir, *opts):
        cfg = tiny_cfg(
            output_dir, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.EMA.ENABLED", True, *opts
        )
        cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
        return cfg

    yield make
    torch.set_num_threads(threads)


def kill_at(number):
    """Ends this process without any clean-up before its file operation ``number``, counted from 1."""
    left = [number]

    def before():
        left[0] -= 1
        if not left[0]:
            os._exit(KILLED)

    def counted(function, is_counted=lambda *args, **kwargs: True):
        def wrapped(*args, **kwargs):
            if is_counted(*args, **kwargs):
                before()
            return function(*args, **kwargs)

        return wrapped

    def writes(file, mode="r", *args, **kwargs):
        return any(letter in mode for letter in "wax+")

    save = torch.save

    def half(data, file, *args, **kwargs):
        if left[0] == 1:
            file.write(b"half a checkpoint")
            file.flush()
        before()
        save(data, file, *args, **kwargs)

    torch.save = half
    for name in ("replace", "fsync", "unlink", "chmod", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    tempfile.mkstemp = counted(tempfile.mkstemp)
    builtins.open, io.open = counted(builtins.open, writes), counted(io.open, writes)


def in_a_process(work, number):
    """Returns whether ``work()`` came to its end in another process, killed at its file operation ``number``."""

    def child():
        kill_at(number)
        work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in (0, KILLED), process.exitcode
    return process.exitcode == 0


def state(directory):
    """Returns what a finished training leaves that a later step or a reader uses; checkpoints by their weights."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.suffix == ".pth":
            weights = torch.load(path, weights_only=True)["model"]
            found[name] = {key: value.tolist() for key, value in weights.items()}
        elif path.is_file() and "tfevents" not in name and name not in ("metrics.json", "log.txt"):
            found[name] = path.read_text()
    return found


def test_a_training_killed_at_any_operation_of_its_end_is_completed(tiny_run, tmp_path):
    train_and_record(tiny_run(tmp_path / "whole"), resume=False)
    whole = state(tmp_path / "whole")
    assert json.loads(whole["inference/tiny_train/metrics.json"]) == {"images": 6}
    # The first half of the training, from which every attempt starts.
    begun, cut = tmp_path / "begun", tmp_path / "cut"
    cfg = tiny_run(cut)
    shutil.copytree(tmp_path / "whole", begun)
    for name in ("model_final.pth", "model_0000003.pth", "model_ema.pth", "inference", "training.json"):
        shutil.rmtree(begun / name) if (begun / name).is_dir() else (begun / name).unlink()
    (begun / "last_checkpoint").write_text("model_0000001.pth")
    number, finished = 0, False
    while not finished:
        number += 1
        shutil.rmtree(cut, ignore_errors=True)
        shutil.copytree(begun, cut)
        finished = in_a_process(lambda: train_and_record(cfg, resume=True), number)
        if not training_record.is_finished(cfg):
            train_and_record(cfg, resume=True)
        assert state(cut) == whole, f"killed before operation {number}"
    assert number > 30  # the operations were counted


def test_on_a_full_disk_a_training_says_so_and_goes_on(tiny_run, tmp_path, monkeypatch):
    train_and_record(tiny_run(tmp_path / "whole"), resume=False)
    cfg = tiny_run(tmp_path / "cut")
    faults = Faults(monkeypatch, tmp_path / "cut", kill=False, only=("mkdir", "mkstemp", "replace"))

    def check(error):
        assert str(error).startswith(str(tmp_path / "cut")) and "free some space on that disk" in str(error)
        assert not list(tmp_path.rglob(PARTIAL))

    assert faults.runs(lambda: train_and_record(cfg, resume=True), WriteError, check) > 12
    assert state(tmp_path / "cut") == state(tmp_path / "whole")


def test_an_error_of_writing_that_names_no_file_names_the_directory(tiny_run, tmp_path, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JSONWriter, "write", full)
    with pytest.raises(WriteError, match=r"run cannot be written: No space left on device; free some space"):
        train_and_record(tiny_run(tmp_path / "run"), resume=False)


def test_a_directory_deleted_during_training_is_named(tiny_run, tmp_path, monkeypatch):
    train_and_record(tiny_run(tmp_path / "whole"), resume=False)
    forward = Tiny.forward

    def deleting(self, batch):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return forward(self, batch)

    cfg = tiny_run(tmp_path / "run")
    with (
        monkeypatch.context() as patch,
        pytest.raises(WriteError, match="was deleted or moved"),
    ):
        patch.setattr(Tiny, "forward", deleting)
        train_and_record(cfg, resume=True)
    # TensorBoard's file may be there again, nothing that a restart would go on from.
    assert not {path.suffix for path in (tmp_path / "run").rglob("*.*")} & {".pth", ".json"}
    train_and_record(cfg, resume=True)
    assert state(tmp_path / "run") == state(tmp_path / "whole")


def test_a_stale_final_model_is_not_taken_for_the_new_one(tiny_run, tmp_path):
    train_and_record(tiny_run(tmp_path), resume=False)
    old = torch.load(tmp_path / "model_final.pth", weights_only=True)
    longer = tiny_run(tmp_path, "SOLVER.MAX_ITER", 6)
    # Killed behind model_0000005.pth, before the old model_final.pth was replaced.
    train_and_record(longer, resume=True)
    torch.save(old, tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000005.pth")
    training_record.begin(longer)
    assert not training_record.is_finished(longer)
    train_and_record(longer, resume=True)
    last, final = (torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in ("model_0000005", "model_final"))
    assert torch.equal(last["model"]["weight"], final["model"]["weight"]) and final["iteration"] == 5
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def arguments(cfg, path, **more):
    path.write_text(cfg.dump())
    return SimpleNamespace(**{"config_file": str(path), "opts": [], "eval_only": False, "resume": True, **more})


def test_a_finished_run_is_neither_repeated_nor_taken_for_one_with_other_settings(tiny_run, tmp_path, monkeypatch):
    file = tmp_path / "in.yaml"
    cfg = tiny_run(tmp_path / "run")
    assert continue_training(arguments(cfg, file))["panoptic_seg"]["PQ"] == 6.0
    before = state(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(U2SegTrainer, "train", lambda self: pytest.fail("trained again"))
        continue_training(arguments(cfg, file))
    for key, value in (("SOLVER.BASE_LR", 0.5), ("SOLVER.MAX_ITER", 2), ("INPUT.RANDOM_FLIP", "none")):
        changed = tiny_run(tmp_path / "run", key, value)
        for start in (continue_training, run_training):
            with pytest.raises(TrainingMismatchError, match=rf"(?s)trained with other settings:\n  {key}: asked for"):
                start(arguments(changed, file))
    # A longer training goes on where it is asked to explicitly, and is refused to a recipe.
    longer = tiny_run(tmp_path / "run", "SOLVER.MAX_ITER", 6)
    with pytest.raises(TrainingMismatchError, match=r"SOLVER\.MAX_ITER: asked for 6, the model has 4"):
        continue_training(arguments(longer, file))
    assert state(tmp_path / "run") == before
    # Test settings change the scores alone: these are computed again.
    other_test = tiny_run(tmp_path / "run", "TEST.DETECTIONS_PER_IMAGE", 7)
    assert continue_training(arguments(other_test, file))["panoptic_seg"]["PQ"] == 6.0
    run_training(arguments(longer, file))
    assert training_record.iterations_done(longer) == 6


def test_a_round_of_self_training_killed_anywhere_is_completed(tiny_run, tmp_path):
    def train(output):
        self_training._train(tiny_run(output))

    train(tmp_path / "whole")
    whole = state(tmp_path / "whole")
    finished, number, step = False, 0, 3
    while not finished:
        number += step
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        finished = in_a_process(lambda: train(tmp_path / "cut"), number)
        train(tmp_path / "cut")
        assert state(tmp_path / "cut") == whole, f"killed before operation {number}"
    assert number > 30


def test_a_stage_of_luss_that_was_not_scored_is_not_taken_for_done(tiny_run, tmp_path, monkeypatch):
    cfg = tiny_run(tmp_path / "run" / "pretrain")
    (tmp_path / "x_pretrain.yaml").write_text(cfg.dump())
    monkeypatch.setattr(recipe, "launch", lambda work, gpus, dist_url, args: work(*args))
    run = recipe.Run(str(tmp_path / "x"), tmp_path / "run")
    scores = tmp_path / "run" / "pretrain" / "inference" / "tiny_train" / "metrics.json"
    recipe.run_pass(run, ("pretrain",))
    finished = state(tmp_path / "run" / "pretrain")
    # Killed in the evaluation: the final checkpoint is there, the scores are not.
    scores.unlink()
    training_record.begin(cfg)
    recipe.run_pass(run, ("pretrain",))
    assert state(tmp_path / "run" / "pretrain") == finished and scores.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(U2SegTrainer, "train", lambda self: pytest.fail("trained again"))
        recipe.run_pass(run, ("pretrain",))


def test_a_run_that_was_moved_or_is_named_otherwise_is_the_same(tiny_run, tmp_path, monkeypatch):
    cfg = tiny_run(tmp_path / "a" / "run")
    labels = tmp_path / "a" / "labels"
    shutil.copytree(cfg.DATASETS.BY_PATH.tiny_train.ROOT, labels)
    cfg.DATASETS.BY_PATH.tiny_train.ROOT = str(labels)
    train_and_record(cfg, resume=False)
    monkeypatch.chdir(tmp_path)
    cfg.DATASETS.BY_PATH.tiny_train.ROOT = "a/labels"
    assert not training_record.differences(cfg)
    shutil.move(tmp_path / "a", tmp_path / "b")
    cfg.DATASETS.BY_PATH.tiny_train.ROOT, cfg.OUTPUT_DIR = "b/labels", "b/run"
    assert not training_record.differences(cfg)
    cfg.DATASETS.BY_PATH.tiny_train.ROOT = "c/labels"
    assert [line.partition(":")[0] for line in training_record.differences(cfg)] == ["DATASETS.BY_PATH.tiny_train.ROOT"]


def write_and_wait(path, begun):
    with atomic_path(path):
        begun.set()
        time.sleep(60)


def test_living_processes_keep_their_partial_files_and_dead_ones_do_not(tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    other = context.Process(target=write_and_wait, args=(tmp_path / "x.pth", begun))
    other.start()
    assert begun.wait(30)
    with atomic_path(tmp_path / "own.json") as own:
        remove_partial_files(tmp_path)
        assert own.is_file() and len(list(tmp_path.iterdir())) == 2
    other.kill()
    other.join()
    assert len(list(tmp_path.glob(".u2seg-partial-*"))) == 1
    (tmp_path / ".u2seg-partial-abcdef.json").touch()  # of a version that did not name the process
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


class KeepsRecords(RecordingEvaluator):
    records: ClassVar[list] = []

    def __init__(self, name, cfg, output_dir):
        pass

    def reset(self):
        pass

    def process(self, inputs, outputs):
        pass

    def evaluate(self):
        self.records.append(dict(self.weights))
        return {}


def test_evaluators_learn_which_weights_are_scored(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(EVALUATOR_REGISTRY._obj_map, "u2seg_panoptic", KeepsRecords)
    monkeypatch.setattr(KeepsRecords, "records", [])
    cfg = tiny_run(tmp_path, "SOLVER.MAX_ITER", 2, "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 1)
    U2SegTrainer(cfg).train()
    first = tmp_path / "model_0000000.pth"
    cfg.MODEL.WEIGHTS = str(first)
    launch._evaluate(cfg, resume=False)
    launch._evaluate(cfg, resume=True)
    during, at_the_end, named, resumed = KeepsRecords.records
    assert during["weights"] == f"averaged weights of {tmp_path} after 1 iterations"
    for record, path in (
        (at_the_end, tmp_path / "model_ema.pth"),
        (named, first),
        (resumed, tmp_path / "model_final.pth"),
    ):
        assert record == {"weights": str(path), "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
