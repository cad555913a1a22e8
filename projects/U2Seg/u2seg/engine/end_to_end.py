"""The whole pipeline in one call: photos in; pseudo-labels, a trained model, scores and a page of images out."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from u2seg.config import setup_cfg
from u2seg.pseudo_labels.pipeline import make_pseudo_labels
from u2seg.utils.files import read_json, write_json

METRICS = "metrics.json"
TIMES = "times.json"
CURVES = "metrics.json"  # Detectron2's name for a training's losses, in the model's directory


@dataclass(frozen=True)
class RunDirectories:
    """Where one run of the pipeline keeps what it makes, all below ``root``."""

    root: Path

    @property
    def labels(self) -> Path:
        """Pseudo-labels of the training images."""
        return self.root / "labels"

    @property
    def model(self) -> Path:
        """Checkpoints, losses and scores of the model."""
        return self.root / "model"

    @property
    def test_labels(self) -> Path:
        """Pseudo-labels of the test images, made with the training images' centroids; for the report alone."""
        return self.root / "test_labels"

    @property
    def test_label_scores(self) -> Path:
        """Scores of those."""
        return self.root / "test_label_scores"

    @property
    def report(self) -> Path:
        """The page of images."""
        return self.root / "report" / "index.html"


def run_end_to_end(
    config_file: str, images: str | Path, output: str | Path, *, opts: Sequence[str] = (), num_gpus: int = 0
) -> RunDirectories:
    """Returns the directories of a finished run: labels from ``images``, a model trained on them, its scores, the report's parts.

    Called again it goes on where it was killed, and repeats nothing that is done.

    Args:
        config_file: its first training set must be one of ``DATASETS.BY_PATH`` with ``FORMAT: pseudo_labels``; where it lies is set
            here. Test sets are scored where there are any.
        images: directory of training photos.
        output: directory to fill.
        opts: configuration, KEY VALUE ...
        num_gpus: GPUs to train on; 0 is the CPU.

    Raises:
        ValueError: the configuration has no such training set.
    """
    directories = RunDirectories(Path(output))
    cfg = setup_cfg(config_file, list(opts))
    training_opts = [*opts, *_training_set_options(cfg, images, directories)]
    setup_cfg(config_file, training_opts)  # an error in these should not wait until the labels are made
    with _timed(directories, "labels"):
        make_pseudo_labels(cfg, images, directories.labels)
    with _timed(directories, "training and scoring"):
        train(config_file, directories.model, training_opts, num_gpus)
    if cfg.DATASETS.TEST:
        scores = directories.model / "inference" / cfg.DATASETS.TEST[0] / METRICS
        write_json(directories.root / METRICS, read_json(scores))
        with _timed(directories, "labels of the test images"):
            label_test_images(config_file, directories, opts)
    return directories


def train(config_file: str, output: Path, opts: Sequence[str], num_gpus: int = 0) -> None:
    """Trains and scores a model as ``u2seg train --resume`` does."""
    from detectron2.engine import default_argument_parser, launch

    from u2seg.engine import run_training

    arguments = [
        "--config-file",
        config_file,
        "--resume",
        "--num-gpus",
        str(num_gpus),
        *opts,
        "OUTPUT_DIR",
        str(output),
    ]
    args: argparse.Namespace = default_argument_parser().parse_args(arguments)
    launch(run_training, num_gpus, dist_url="auto", args=(args,))


def label_test_images(config_file: str, directories: RunDirectories, opts: Sequence[str]) -> None:
    """Labels the test images with the training images' centroids and scores these labels: what the model had to learn from."""
    from detectron2.data import MetadataCatalog

    from u2seg.data import register_datasets
    from u2seg.evaluation.score_files import score_panoptic_files

    centroids = []
    for section, stage in (("CLUSTERS", "clusters"), ("SEMANTICS", "semantics")):
        centroids += [f"{section}.CENTROIDS", repr(str(directories.labels / stage / "centroids.npy"))]
    cfg = setup_cfg(config_file, [*opts, *centroids])
    register_datasets(cfg.DATASETS.BY_PATH, list(cfg.DATASETS.TEST[:1]))
    gt = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    labels = make_pseudo_labels(cfg, gt.image_root, directories.test_labels)
    score_panoptic_files(
        gt.panoptic_json,
        gt.panoptic_root,
        labels / "panoptic" / "panoptic.json",
        labels / "panoptic" / "panoptic",
        output=directories.test_label_scores,
        protocols=cfg.TEST.PROTOCOLS,
    )


def _training_set_options(cfg: CfgNode, images: str | Path, directories: RunDirectories) -> list[str]:
    name = cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else ""
    if cfg.DATASETS.BY_PATH.get(name, {}).get("FORMAT") != "pseudo_labels":
        raise ValueError(
            f"DATASETS.TRAIN must begin with a dataset of DATASETS.BY_PATH with FORMAT: pseudo_labels, got {cfg.DATASETS.TRAIN}"
        )
    key = f"DATASETS.BY_PATH.{name}"
    # Quoted, since a directory called 2024 is no number.
    return [f"{key}.ROOT", repr(str(directories.labels)), f"{key}.IMAGES", repr(str(images))]


@contextmanager
def _timed(directories: RunDirectories, step: str) -> Iterator[None]:
    """Adds a step's wall time in seconds to ``times.json``; a step that went on after a kill counts all its parts."""
    path = directories.root / TIMES
    started = time.monotonic()
    try:
        yield
    finally:
        times = read_json(path) if path.is_file() else {}
        times[step] = round(times.get(step, 0.0) + time.monotonic() - started, 1)
        write_json(path, times)
