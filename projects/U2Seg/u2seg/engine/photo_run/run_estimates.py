"""What a run will cost, measured on a few of its photos and on its own model: time, memory, disk."""

import contextlib
import io
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from u2seg.config import setup_cfg
from u2seg.pseudo_labels.pipeline import make_pseudo_labels
from u2seg.utils.quiet_screen import quiet_screen

SAMPLE_PHOTOS = 3
_WARM_UP_STEPS, _TIMED_STEPS = 2, 4
# Steps grow slower while a model learns: more regions of interest hit an object. Largest ratio seen on photos.
_SLOWDOWN = 1.15


@dataclass(frozen=True)
class LabelCost:
    """What labels cost.

    Attributes:
        start_seconds: until the first photo: reading weights, starting processes.
        seconds_per_photo: after that.
        bytes_per_photo: on the disk.
        memory_bytes: largest resident memory of the process.
    """

    start_seconds: float
    seconds_per_photo: float
    bytes_per_photo: int
    memory_bytes: int


def measure_labels(config_file: str, opts: Sequence[str], root: str, names: Sequence[str], log_file: str) -> LabelCost:
    """Makes labels of a few photos in a temporary directory; returns what they cost.

    Args:
        config_file: of the run.
        opts: KEY VALUE ...
        root: directory of the photos.
        names: those to label, at least two, readable.
        log_file: takes what libraries print.
    """
    few_clusters = ["CLUSTERS.NUM_CLUSTERS", "1", "SEMANTICS.NUM_CLUSTERS", "2", "MASKS.MAX_FAILURES", "1.0"]
    cfg = setup_cfg(config_file, [*opts, *few_clusters])
    seconds = []
    with quiet_screen(log_file), tempfile.TemporaryDirectory() as temporary:
        # The first call pays for the start, one photo is labeled in both.
        for count in (1, len(names)):
            photos, labels = Path(temporary) / f"photos{count}", Path(temporary) / f"labels{count}"
            photos.mkdir()
            for index, name in enumerate(names[:count]):
                source = (Path(root) / name).resolve()
                (photos / f"{index}{source.suffix}").symlink_to(source)
            started = time.monotonic()
            with contextlib.redirect_stderr(io.StringIO()):  # a few photos are no stage to show
                make_pseudo_labels(cfg, photos, labels)
            seconds.append(time.monotonic() - started)
        size = sum(path.stat().st_size for path in labels.rglob("*") if path.is_file())
    per_photo = max(seconds[1] / len(names), 1e-3)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return LabelCost(max(seconds[0] - per_photo, 0.0), per_photo, size // len(names), memory)


def checkpoint_bytes(cfg: CfgNode) -> int:
    """Returns the size of a training checkpoint: the weights, and what the optimizer keeps for each.

    Args:
        cfg: with class counts set; nothing is loaded.
    """
    from u2seg.modeling import build_model

    model = build_model(cfg)
    parameters = sum(p.numel() for p in model.parameters())
    moments = {"ADAMW": 2}.get(cfg.SOLVER.OPTIMIZER, 1)
    return 4 * parameters * (1 + moments + cfg.SOLVER.EMA.ENABLED)


@dataclass(frozen=True)
class TrainingCost:
    """What training and what follows it cost.

    Attributes:
        seconds_per_iteration: of training.
        seconds_per_prediction: on one photo, drawn and written.
    """

    seconds_per_iteration: float
    seconds_per_prediction: float


def measure_training(cfg: CfgNode, photos: Sequence[Path]) -> TrainingCost:
    """Returns what training and prediction cost, measured on a few steps that are thrown away and on the model that they leave.

    How many objects a trained model will find is not known yet, and the time for none and for all that it may find can differ by a
    factor of ten. Their geometric mean is wrong by the root of that at most, either way.

    Args:
        cfg: complete; the labels are there.
        photos: readable ones to predict on, at least one; the first is there to warm up and is timed only if it is alone.
    """
    from u2seg.data import build_train_loader
    from u2seg.engine.trainer import U2SegTrainer
    from u2seg.engine.training_step import TrainingStep, resolve_precision

    torch.manual_seed(0)
    model = U2SegTrainer.build_model(cfg).train()
    optimizer = U2SegTrainer.build_optimizer(cfg, model)
    step = TrainingStep(
        model,
        build_train_loader(cfg, 0),
        optimizer,
        seed=0,
        accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
        precision=resolve_precision(cfg),
    )
    times = []
    with EventStorage(0) as step.storage:
        for step.iter in range(_WARM_UP_STEPS + _TIMED_STEPS):
            started = time.monotonic()
            step.run_step()
            times.append(time.monotonic() - started)
    iteration = float(np.mean(times[_WARM_UP_STEPS:])) * _SLOWDOWN
    return TrainingCost(iteration, _seconds_per_prediction(cfg, model, photos))


def _seconds_per_prediction(cfg: CfgNode, model: torch.nn.Module, photos: Sequence[Path]) -> float:
    """Returns the geometric mean of the times with as few objects as a hardly trained model finds, and with as many as it may."""
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stderr(io.StringIO()):
        weights = Path(temporary) / "model.pth"
        torch.save({"model": model.state_dict()}, weights)
        few = _time_predictions(cfg, photos, weights, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
        many = _time_predictions(cfg, photos, weights, 0.0)
    return float(np.sqrt(few * many))


def _time_predictions(cfg: CfgNode, photos: Sequence[Path], weights: Path, score_threshold: float) -> float:
    from u2seg.predictor import Predictor, predict_files

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = str(weights), score_threshold
    predictor = Predictor(cfg)
    output = weights.parent / f"at {score_threshold}"
    predict_files(predictor, photos[:1], output / "warm-up")
    timed = list(photos[1:] or photos)
    started = time.monotonic()
    predict_files(predictor, timed, output / "timed")
    return (time.monotonic() - started) / len(timed)


def format_bytes(count: float) -> str:
    """Returns a number of bytes as people write it: ``"12 MiB"``, ``"1.5 GiB"``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"
