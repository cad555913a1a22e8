"""What a run will cost, measured on a few of its photos and on its own model: time, memory, disk."""

import contextlib
import io
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from u2seg.config import setup_cfg
from u2seg.engine.photo_run.run_threads import torch_threads
from u2seg.modeling.build import complete_config
from u2seg.pseudo_labels.pipeline import make_pseudo_labels
from u2seg.utils.quiet_screen import quiet_screen

SAMPLE_PHOTOS = 3
_WARM_UP_STEPS, _TIMED_STEPS = 1, 3
# What grows while a model learns, as the largest ratios seen on photos. Steps take longer: more regions of interest hit an object. So
# does memory: a few photos are not the largest with the most objects. Drawings and masks of objects take room on the disk.
_SLOWDOWN, _MEMORY_GROWTH, _PREDICTION_GROWTH = 1.15, 1.45, 2.5


@dataclass(frozen=True)
class RunCost:
    """What a run costs, measured on a few photos.

    Attributes:
        label_start_seconds: until the labels of the first photo are begun: reading weights, starting processes.
        label_seconds: of one photo, after that.
        label_bytes: of one photo, on the disk.
        label_memory: largest resident memory of the process that makes labels, bytes.
        iteration_seconds: of training, by the number of PyTorch's threads.
        prediction_seconds: of one photo, drawn and written.
        prediction_bytes: of one photo, on the disk.
        checkpoint_bytes: of one checkpoint: the weights, and what the optimizer keeps for each.
        training_memory: largest resident memory of a process that trains and predicts, bytes.
        measuring_seconds: that it took to find all this out.
    """

    label_start_seconds: float
    label_seconds: float
    label_bytes: int
    label_memory: int
    iteration_seconds: dict[int, float]
    prediction_seconds: float
    prediction_bytes: int
    checkpoint_bytes: int
    training_memory: int
    measuring_seconds: float

    @property
    def iteration(self) -> float:
        """Seconds of a step of training with the best number of threads."""
        return min(self.iteration_seconds.values())

    @property
    def training_threads(self) -> int:
        """The number of PyTorch's threads with which a step of training is fastest."""
        return min(self.iteration_seconds, key=self.iteration_seconds.__getitem__)


def measure_run(
    config_file: str, root: str, names: Sequence[str], training_set: str, threads: Sequence[int], log_file: str
) -> RunCost:
    """Labels a few photos in a temporary directory, trains a few steps on these labels, and returns what that costs.

    Args:
        config_file: of the run.
        root: directory of the photos.
        names: those to label, readable; two or more, so that the start is told apart.
        training_set: name of the dataset, of ``DATASETS.BY_PATH``, that the run fills with labels.
        threads: numbers of PyTorch's threads to try for training, at least one.
        log_file: takes what libraries print.
    """
    started = time.monotonic()
    with (
        quiet_screen(log_file),
        contextlib.redirect_stderr(io.StringIO()),  # a few photos are no stage to show
        tempfile.TemporaryDirectory() as temporary,
    ):
        photos, labels = Path(temporary) / "photos", Path(temporary) / "labels"
        start, per_photo = _time_labels(config_file, root, names, photos, labels)
        label_bytes, label_memory = _size(labels) // len(names), peak_memory()
        cfg = setup_cfg(config_file)
        cfg.DATASETS.BY_PATH[training_set].update({"ROOT": str(labels), "IMAGES": str(photos)})
        cfg.DATASETS.TEST = ()
        complete_config(cfg)
        model, iteration, checkpoint_bytes = _time_training(cfg, threads)
        fastest = min(iteration, key=iteration.__getitem__)
        with torch_threads(fastest):
            prediction, prediction_bytes = _time_predictions(cfg, model, sorted(photos.iterdir()), Path(temporary))
    return RunCost(
        label_start_seconds=start,
        label_seconds=per_photo,
        label_bytes=label_bytes,
        label_memory=label_memory,
        iteration_seconds=iteration,
        prediction_seconds=prediction,
        prediction_bytes=prediction_bytes,
        checkpoint_bytes=checkpoint_bytes,
        training_memory=round(_MEMORY_GROWTH * peak_memory()),
        measuring_seconds=time.monotonic() - started,
    )


def _time_labels(config_file: str, root: str, names: Sequence[str], photos: Path, labels: Path) -> tuple[float, float]:
    """Fills ``photos`` with links and ``labels`` with their labels; returns seconds for the start and for each photo."""
    # As few clusters as there can be, since three photos may hold three masks.
    few_clusters = ["CLUSTERS.NUM_CLUSTERS", "1", "SEMANTICS.NUM_CLUSTERS", "2", "MASKS.MAX_FAILURES", "1.0"]
    cfg = setup_cfg(config_file, few_clusters)
    seconds = []
    # The first call pays for the start; its photo is labeled in both.
    for chosen, images, output in (
        (names[:1], photos.with_name("one"), labels.with_name("warm-up")),
        (names, photos, labels),
    ):
        images.mkdir()
        for index, name in enumerate(chosen):
            # A photo may be a link to a file without a suffix, in a cache of downloads for example.
            (images / f"{index}{Path(name).suffix}").symlink_to((Path(root) / name).resolve())
        started = time.monotonic()
        make_pseudo_labels(cfg, images, output)
        seconds.append(time.monotonic() - started)
    per_photo = max(seconds[1] / len(names), 1e-3)
    return max(seconds[0] - per_photo, 0.0), per_photo


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _time_training(cfg: CfgNode, threads: Sequence[int]) -> tuple[torch.nn.Module, dict[int, float], int]:
    """Returns the model after a few steps, the seconds of a step with each number of threads, and the bytes of a checkpoint."""
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
    iteration = {}
    with EventStorage(0) as step.storage:
        step.iter = 0
        step.run_step()  # the first one gets memory from the system
        for count in threads:
            with torch_threads(count):
                times = [_timed(step.run_step) for step.iter in range(_WARM_UP_STEPS + _TIMED_STEPS)]
            iteration[count] = float(np.mean(times[_WARM_UP_STEPS:])) * _SLOWDOWN
    kept = [
        state for states in optimizer.state.values() for state in states.values() if isinstance(state, torch.Tensor)
    ]
    weights = _num_bytes(model.state_dict().values())
    return model, iteration, weights * (1 + cfg.SOLVER.EMA.ENABLED) + _num_bytes(kept)


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _timed(function: Callable[[], object]) -> float:
    started = time.monotonic()
    function()
    return time.monotonic() - started


def _time_predictions(
    cfg: CfgNode, model: torch.nn.Module, photos: Sequence[Path], directory: Path
) -> tuple[float, int]:
    """Returns the seconds and the bytes on the disk that the prediction for one photo costs.

    How many objects a trained model will find is not known yet, and the time for none and for all that it may find can differ by a
    factor of ten. The geometric mean of both is wrong by the root of that at most, either way.

    Args:
        cfg: complete.
        model: hardly trained, so that it finds few objects, or with a score threshold of 0 as many as it may.
        photos: readable, at least one; the first is there to warm up and is timed only if it is alone.
        directory: temporary.
    """
    from u2seg.predictor import Predictor, predict_files

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(directory / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
    timed = photos[1:] or photos
    seconds, sizes = [], []
    for threshold in (cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, 0.0):
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
        predictor, output = Predictor(cfg), directory / f"predictions at {threshold}"
        predict_files(predictor, photos[:1], output / "warm-up")
        started = time.monotonic()
        predict_files(predictor, timed, output / "timed")
        seconds.append((time.monotonic() - started) / len(timed))
        sizes.append(_size(output / "timed") / len(timed))
    return float(np.sqrt(np.prod(seconds))), round(_PREDICTION_GROWTH * float(np.sqrt(np.prod(sizes))))


def peak_memory() -> int:
    """Returns the largest resident memory that this process has had, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def format_bytes(count: float) -> str:
    """Returns a number of bytes as people write it: ``"12 MiB"``, ``"1.5 GiB"``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"
