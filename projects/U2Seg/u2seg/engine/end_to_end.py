"""The whole pipeline in one call: photos in; pseudo-labels, a trained model, scores and a page of images out."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from detectron2.config import CfgNode

from u2seg.config import setup_cfg
from u2seg.data.formats.label_directory import find_panoptic_json, panoptic_directory
from u2seg.engine import training_record
from u2seg.engine.launch import continue_training
from u2seg.engine.photo_run.run_budget import (
    MAX_PREDICTED,
    num_iterations,
    stages_after_training,
    training_length,
)
from u2seg.engine.photo_run.run_config import training_set_of
from u2seg.engine.photo_run.run_photos import Photos
from u2seg.engine.photo_run.run_plan import LOG, RunPlan
from u2seg.engine.photo_run.run_scaling import num_thing_clusters
from u2seg.engine.photo_run.run_threads import run_in_process, torch_threads
from u2seg.modeling.build import complete_config
from u2seg.predictor import Predictor, predict_files, things_by_image
from u2seg.pseudo_labels.pipeline import STAGES, make_pseudo_labels
from u2seg.utils.files import read_json, write_json
from u2seg.utils.kmeans import CENTROIDS
from u2seg.utils.manifest import MANIFEST
from u2seg.utils.quiet_screen import quiet_screen
from u2seg.visualization.label_page import evenly_spaced

METRICS = "metrics.json"
TIMES = "times.json"
STEPS = LABELS, TRAINING, TEST_LABELS, PREDICTIONS = (  # names of the steps in it
    "labels",
    "training and scoring",
    "labels of the test images",
    "predictions",
)
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
    def predictions(self) -> Path:
        """What the model says about the photos."""
        return self.root / "predictions"

    @property
    def log(self) -> Path:
        """What libraries print, log and warn."""
        return self.root / LOG

    @property
    def report(self) -> Path:
        """The page of images."""
        return self.root / "report" / "index.html"

    @property
    def earlier(self) -> Path:
        """Models that were trained on the same labels with other settings, and what was made with them: a directory each."""
        return self.root / "earlier"


def run_end_to_end(
    config_file: str, images: str | Path, output: str | Path, *, opts: Sequence[str] = (), num_gpus: int = 1
) -> RunDirectories:
    """Returns the directories of a finished run: labels from ``images``, a model trained on them, its scores, the report's parts.

    Called again it goes on where it was killed, and repeats nothing that is done.

    Args:
        config_file: its first training set must be one of ``DATASETS.BY_PATH`` with ``FORMAT: pseudo_labels``; where it lies is set
            here. Test sets are scored where there are any.
        images: directory of training photos.
        output: directory to fill.
        opts: configuration, KEY VALUE ...
        num_gpus: processes that train, one a GPU; without a GPU the CPU is used.

    Raises:
        ValueError: the configuration has no such training set.
        TrainingMismatchError: ``output`` holds a model that was trained with other settings.
    """
    directories = RunDirectories(Path(output))
    cfg = setup_cfg(config_file, list(opts))
    _require_coco_files(cfg)
    training_opts = [*opts, *_training_set_options(cfg, images, directories)]
    setup_cfg(config_file, training_opts)  # an error in these should not wait until the labels are made
    with _timed(directories, LABELS), quiet_screen(directories.log):
        make_pseudo_labels(cfg, images, directories.labels)
    with _timed(directories, TRAINING):
        train(config_file, directories.model, training_opts, num_gpus, directories.log)
    if cfg.DATASETS.TEST:
        scores = directories.model / "inference" / cfg.DATASETS.TEST[0] / METRICS
        write_json(directories.root / METRICS, read_json(scores))
        with _timed(directories, TEST_LABELS), quiet_screen(directories.log):
            label_test_images(config_file, directories, opts)
    return directories


@dataclass(frozen=True)
class RunCounts:
    """What a run made, for the final summary.

    Attributes:
        images: photos labeled.
        unreadable: photos that could not be read.
        masks: found in all photos.
        things: thing segments kept in the labels.
        dropped: masks that the labels lost to others in front of them.
        stuff: stuff segments in the labels.
        without_things: photos whose labels have no thing.
        clusters: K, thing classes of the labels.
        stuff_clusters: S, their stuff classes.
        predicted_things: thing segments in the model's panoptic maps.
        predicted_without_things: photos in which the model shows none.
        predicted_images: photos on which it was run.
        detections: of the model, confident or not.
        best_score: of a detection, 0..1; 0 without one.
    """

    images: int
    unreadable: int
    masks: int
    things: int
    dropped: int
    stuff: int
    without_things: int
    clusters: int
    stuff_clusters: int
    predicted_things: int
    predicted_without_things: int
    predicted_images: int
    detections: int
    best_score: float


def run_photos(plan: RunPlan) -> RunPlan:
    """Runs a plan: labels, training, scores where there is ground truth, predictions; returns the plan with all that was chosen.

    Called again it goes on where it was killed. Called again for another training, it uses the finished labels again and sets the
    model that is there aside.

    Args:
        plan: of :func:`u2seg.engine.photo_run.run_plan.make_plan`, made for its output directory.
    """
    directories = RunDirectories(plan.output)
    with _timed(directories, LABELS):
        clusters = run_in_process(
            plan.threads.numerical,
            label_photos,
            str(plan.config.path),
            str(plan.photos.root),
            str(directories.labels),
            str(directories.log),
            plan.config.is_free("CLUSTERS.NUM_CLUSTERS"),
        )
    plan = plan.choose({"CLUSTERS.NUM_CLUSTERS": clusters})
    with torch_threads(plan.threads.training):
        return _train_and_predict(plan, directories)


def _train_and_predict(plan: RunPlan, directories: RunDirectories) -> RunPlan:
    """Trains on finished labels, scores where there is ground truth, and predicts on the photos."""
    if plan.minutes_to_fill is not None:
        plan = plan.choose(_measured_length(plan, plan.minutes_to_fill))
    plan = replace(plan, set_aside=_set_aside_other_model(plan, directories)).begin_training()
    with _timed(directories, TRAINING):
        train(str(plan.config.path), directories.model, (), plan.num_gpus, directories.log)
    cfg = plan.cfg
    if cfg.DATASETS.TEST:
        scores = directories.model / "inference" / cfg.DATASETS.TEST[0] / METRICS
        write_json(directories.root / METRICS, read_json(scores))
        if plan.num_scored and cfg.DATASETS.BY_PATH[cfg.DATASETS.TEST[0]].get("PANOPTIC_JSON"):
            with quiet_screen(directories.log):
                score_labels(cfg, directories.labels, directories)
    with _timed(directories, PREDICTIONS), quiet_screen(directories.log):
        predict_photos(cfg, plan.photos, directories)
    return plan


def label_photos(config_file: str, images: str, output: str, log: str, choose_clusters: bool) -> int:
    """Makes the labels of a run; returns the number of thing clusters, K.

    Args:
        config_file: of the run.
        images: directory of photos.
        output: directory for the labels.
        log: takes what libraries print.
        choose_clusters: whether K is to follow from the number of masks; else it is ``CLUSTERS.NUM_CLUSTERS``.
    """
    cfg = setup_cfg(config_file)
    _require_coco_files(cfg)
    with quiet_screen(log):
        make_pseudo_labels(cfg, images, output, stages=["masks"], sample_patches=True)
        if choose_clusters:
            cfg.CLUSTERS.NUM_CLUSTERS = num_thing_clusters(_stage_counts(Path(output), "masks")["masks"])
        make_pseudo_labels(cfg, images, output, stages=STAGES[1:])
    return cfg.CLUSTERS.NUM_CLUSTERS


def _measured_length(plan: RunPlan, minutes: float) -> dict[str, object]:
    """Returns the schedule that fills what is left of the run's time, by key."""
    cost = plan.cost
    finishing = sum(stage.seconds for stage in stages_after_training(cost, plan.size))
    iterations = num_iterations(minutes, time.monotonic() - plan.started, cost.iteration, finishing)
    return training_length(iterations, cost.iteration)


def _set_aside_other_model(plan: RunPlan, directories: RunDirectories) -> Path | None:
    """Moves a model that was trained with other settings, and what was made with it, to ``earlier/N``; returns that, None for no such."""
    opts = _training_options(str(plan.config.path), directories.model, ())
    cfg = setup_cfg(plan.config.path, opts)
    with quiet_screen(plan.log):
        complete_config(cfg)
    if not (plan.trains_anew or training_record.differences(cfg)) or not directories.model.is_dir():
        return None
    made = (directories.model, directories.predictions, directories.report.parent, directories.test_label_scores)
    numbers = [int(path.name) for path in directories.earlier.glob("*") if path.name.isdigit()]
    aside = directories.earlier / str(1 + max(numbers, default=0))
    aside.mkdir(parents=True)
    # The model last: a kill before that is noticed by it.
    for path in (*made[1:], directories.root / METRICS, made[0]):
        if path.exists():
            path.rename(aside / path.name)
    times = read_json(directories.root / TIMES)
    write_json(directories.root / TIMES, {LABELS: times[LABELS]})
    return aside


def predict_photos(cfg: CfgNode, photos: Photos, directories: RunDirectories) -> None:
    """Writes the model's predictions on the photos, on at most 500 of them, evenly spaced."""
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = str(directories.model / "model_final.pth")
    names = evenly_spaced(photos.names, MAX_PREDICTED)
    predict_files(Predictor(cfg), [photos.root / name for name in names], directories.predictions)


def count_run(plan: RunPlan) -> RunCounts:
    """Returns the counts of a finished run."""
    directories = RunDirectories(plan.output)
    masks, panoptic = (_stage_counts(directories.labels, stage) for stage in ("masks", "panoptic"))
    labels = read_json(find_panoptic_json(directories.labels))
    predicted = read_json(directories.predictions / "panoptic.json")
    scores = [detection["score"] for detection in read_json(directories.predictions / "coco_results.json")]
    things, predicted_things = (things_by_image(content) for content in (labels, predicted))
    return RunCounts(
        images=panoptic["images"],
        unreadable=masks["failures"],
        masks=masks["masks"],
        things=panoptic["instances"],
        dropped=masks["masks"] - panoptic["instances"],
        stuff=panoptic["segments"] - panoptic["instances"],
        without_things=things.count(0),
        clusters=sum(bool(category["isthing"]) for category in labels["categories"]),
        stuff_clusters=sum(not category["isthing"] for category in labels["categories"]),
        predicted_things=sum(predicted_things),
        predicted_without_things=predicted_things.count(0),
        predicted_images=len(predicted_things),
        detections=len(scores),
        best_score=max(scores, default=0.0),
    )


def _stage_counts(labels: Path, stage: str) -> dict:
    return read_json(labels / stage / MANIFEST)["counts"]


def train(config_file: str, output: Path, opts: Sequence[str], num_gpus: int, log: Path) -> None:
    """Trains and scores a model as ``u2seg train --resume`` does, unless that is done, with nothing but a progress line on the screen.

    Args:
        config_file: a file, or the name of a shipped one.
        output: the model's directory; of its checkpoints the last one is kept.
        opts: configuration, KEY VALUE ...
        num_gpus: processes that train, one a GPU; without a GPU the CPU is used.
        log: takes what libraries print.

    Raises:
        TrainingMismatchError: ``output`` holds a model that was trained with other settings.
    """
    from detectron2.engine import launch

    opts = _training_options(config_file, output, opts)
    launch(_train_quietly, num_gpus, dist_url="auto", args=(config_file, opts, log))


def _training_options(config_file: str, output: Path, opts: Sequence[str]) -> list[str]:
    hooks = setup_cfg(config_file, list(opts)).HOOKS
    hooks = (*hooks, *(name for name in ("TrainingProgress", "KeepLastCheckpoint") if name not in hooks))
    return [*opts, "HOOKS", repr(hooks), "OUTPUT_DIR", repr(str(output))]


def _train_quietly(config_file: str, opts: list[str], log: Path) -> None:
    with quiet_screen(log):
        continue_training(config_file, opts)


def label_test_images(config_file: str, directories: RunDirectories, opts: Sequence[str]) -> None:
    """Labels the test images with the training images' centroids and scores these labels: what the model had to learn from."""
    from detectron2.data import MetadataCatalog

    from u2seg.data import register_datasets

    centroids = []
    for section, stage in (("CLUSTERS", "clusters"), ("SEMANTICS", "semantics")):
        centroids += [f"{section}.CENTROIDS", repr(str(directories.labels / stage / CENTROIDS))]
    cfg = setup_cfg(config_file, [*opts, *centroids])
    register_datasets(cfg.DATASETS.BY_PATH, list(cfg.DATASETS.TEST[:1]))
    gt = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    score_labels(cfg, make_pseudo_labels(cfg, gt.image_root, directories.test_labels), directories)


def score_labels(cfg: CfgNode, labels: Path, directories: RunDirectories) -> None:
    """Scores pseudo-labels against the first test set's panoptic ground truth, as an upper bound for what a model learns from them."""
    from detectron2.data import MetadataCatalog

    from u2seg.evaluation.score_files import score_panoptic_files

    gt = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    score_panoptic_files(
        gt.panoptic_json,
        gt.panoptic_root,
        find_panoptic_json(labels),
        panoptic_directory(labels) / "panoptic",
        output=directories.test_label_scores,
        protocols=cfg.TEST.PROTOCOLS,
    )


def _require_coco_files(cfg: CfgNode) -> None:
    if cfg.PANOPTIC_LABELS.FORMAT != "coco":
        raise ValueError(
            f"PANOPTIC_LABELS.FORMAT is {cfg.PANOPTIC_LABELS.FORMAT}, but a whole run reads COCO's files to count and score the labels; "
            "leave it at coco, or use `u2seg labels` and `u2seg train`, which do not need the files"
        )


def _training_set_options(cfg: CfgNode, images: str | Path, directories: RunDirectories) -> list[str]:
    key = f"DATASETS.BY_PATH.{training_set_of(cfg)}"
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
