"""The whole chain in one call: photos in; pseudo-labels, a trained model, scores and a page of pictures out."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from u2seg.config import setup_cfg
from u2seg.pipeline import make_pseudo_labels
from u2seg.stages import read_json, write_json

METRICS = "metrics.json"
TIMES = "times.json"
CURVES = "metrics.json"  # Detectron2's name for a training's losses, in the model's folder


@dataclass(frozen=True)
class ChainFolders:
    """Where one run of the chain keeps what it makes, all below ``root``."""

    root: Path

    @property
    def labels(self) -> Path:
        """Pseudo-labels of the training pictures."""
        return self.root / "labels"

    @property
    def model(self) -> Path:
        """Checkpoints, losses and scores of the model."""
        return self.root / "model"

    @property
    def test_labels(self) -> Path:
        """Pseudo-labels of the test pictures, made with the training pictures' centroids; for the report alone."""
        return self.root / "test_labels"

    @property
    def test_label_scores(self) -> Path:
        """Scores of those."""
        return self.root / "test_label_scores"

    @property
    def report(self) -> Path:
        """The page of pictures."""
        return self.root / "report" / "index.html"


def run_chain(
    config_file: str, images: str | Path, output: str | Path, *, opts: Sequence[str] = (), num_gpus: int = 0
) -> ChainFolders:
    """Returns the folders of a finished run: labels from ``images``, a model trained on them, its scores, the report's parts.

    Called again it goes on where it was killed, and repeats nothing that is done.

    Args:
        config_file: its first training set must be one of ``DATASETS.BY_PATH`` with ``FORMAT: pseudo_labels``; where it lies is set
            here. Test sets are scored where there are any.
        images: folder of training photos.
        output: folder to fill.
        opts: configuration, KEY VALUE ...
        num_gpus: GPUs to train on; 0 is the CPU.

    Raises:
        ValueError: the configuration has no such training set.
    """
    folders = ChainFolders(Path(output))
    cfg = setup_cfg(config_file, opts)
    training_opts = [*opts, *_training_set_options(cfg, images, folders)]
    setup_cfg(config_file, training_opts)  # an error in these should not wait until the labels are made
    with _timed(folders, "labels"):
        make_pseudo_labels(cfg, images, folders.labels)
    with _timed(folders, "training and scoring"):
        train(config_file, folders.model, training_opts, num_gpus)
    if cfg.DATASETS.TEST:
        scores = folders.model / "inference" / cfg.DATASETS.TEST[0] / METRICS
        write_json(folders.root / METRICS, read_json(scores))
        with _timed(folders, "labels of the test pictures"):
            label_test_pictures(config_file, folders, opts)
    return folders


def train(config_file: str, output: Path, opts: Sequence[str], num_gpus: int = 0) -> None:
    """Trains and scores a model as ``tools/train_net.py --resume`` does."""
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


def label_test_pictures(config_file: str, folders: ChainFolders, opts: Sequence[str]) -> None:
    """Labels the test pictures with the training pictures' centroids and scores these labels: what the model had to learn from."""
    from detectron2.data import MetadataCatalog

    from u2seg.data import register_datasets
    from u2seg.evaluation.commands import score_panoptic_files

    centroids = []
    for section, stage in (("CLUSTERS", "clusters"), ("SEMANTICS", "semantics")):
        centroids += [f"{section}.CENTROIDS", repr(str(folders.labels / stage / "centroids.npy"))]
    cfg = setup_cfg(config_file, [*opts, *centroids])
    register_datasets(cfg.DATASETS.BY_PATH, list(cfg.DATASETS.TEST[:1]))
    truth = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    labels = make_pseudo_labels(cfg, truth.image_root, folders.test_labels)
    score_panoptic_files(
        truth.panoptic_json,
        truth.panoptic_root,
        labels / "panoptic" / "panoptic.json",
        labels / "panoptic" / "panoptic",
        output=folders.test_label_scores,
        protocols=cfg.TEST.PROTOCOLS,
    )


def _training_set_options(cfg, images: str | Path, folders: ChainFolders) -> list[str]:
    name = cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else ""
    if cfg.DATASETS.BY_PATH.get(name, {}).get("FORMAT") != "pseudo_labels":
        raise ValueError(
            f"DATASETS.TRAIN must begin with a data set of DATASETS.BY_PATH with FORMAT: pseudo_labels, got {cfg.DATASETS.TRAIN}"
        )
    key = f"DATASETS.BY_PATH.{name}"
    # Quoted, since a folder called 2024 is no number.
    return [f"{key}.ROOT", repr(str(folders.labels)), f"{key}.IMAGES", repr(str(images))]


@contextmanager
def _timed(folders: ChainFolders, step: str) -> Iterator[None]:
    """Adds a step's wall time in seconds to ``times.json``; a step that went on after a kill counts all its parts."""
    path = folders.root / TIMES
    started = time.monotonic()
    try:
        yield
    finally:
        times = read_json(path) if path.is_file() else {}
        times[step] = round(times.get(step, 0.0) + time.monotonic() - started, 1)
        write_json(path, times)
