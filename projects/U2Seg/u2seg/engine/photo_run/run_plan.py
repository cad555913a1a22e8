"""The plan of a run from photos to a model: what was found, which settings follow from it, what it will cost, and what stands in its way.

Everything that can be known is known before the first minute of work.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from u2seg.config import setup_cfg
from u2seg.config.config import require_chosen_model
from u2seg.engine.photo_run import run_config
from u2seg.engine.photo_run.run_budget import RunSize, Stage, plan_stages
from u2seg.engine.photo_run.run_config import (
    LENGTH_KEYS,
    RunConfig,
    RunRecord,
    free_keys,
    read_record,
    training_set_of,
    value_of,
)
from u2seg.engine.photo_run.run_estimates import (
    SAMPLE_PHOTOS,
    RunCost,
    format_bytes,
    measure_run,
    peak_memory,
)
from u2seg.engine.photo_run.run_features import FeatureChoice, choose_features
from u2seg.engine.photo_run.run_photos import (
    RUN_CONFIG,
    Machine,
    Photos,
    find_machine,
    find_photos,
    select_ground_truth,
)
from u2seg.engine.photo_run.run_scaling import scaled_settings
from u2seg.engine.photo_run.run_threads import Threads, divide_cores, run_in_process, training_threads
from u2seg.engine.training_record import FINAL, iterations_done, training_settings
from u2seg.pseudo_labels.clusters.cluster_names import merged_clusters
from u2seg.pseudo_labels.masks.mask_stage import refuse_other_masks
from u2seg.pseudo_labels.pipeline import STAGES, require_apart
from u2seg.utils.files import did_you_mean, nearest_directory
from u2seg.utils.manifest import is_complete
from u2seg.version import __version__
from u2seg.visualization.label_page import evenly_spaced

DEFAULT_MINUTES = 15.0
GROUND_TRUTH = "photos_ground_truth"  # the dataset that --ground-truth makes
LOG = "log.txt"


@dataclass(frozen=True)
class RunPlan:
    """A run, ready to start.

    Attributes:
        config: the run's own configuration, written below its output.
        photos: the photos.
        machine: where it runs.
        output: directory that it fills.
        features: what labels are made from.
        threads: how the cores are divided.
        minutes: wanted in all; None: the user's ``SOLVER.MAX_ITER`` says how long training is.
        num_gpus: processes that train, one a GPU; 0 or 1: one process.
        ground_truth: the user's file; "" for none.
        num_scored: photos with ground truth; 0: nothing is scored.
        cost: measured on a few photos.
        measured_with: what the cost depends on: version, machine, settings of the training.
        stages: what each stage needs, as it was when the plan was made.
        started: when the program or the planning began, by ``time.monotonic``; ``minutes`` count from there.
        asked: what the training depends on: minutes, the user's settings, clusters joined by their names.
        trained_as: the same for the model that the output holds; None: nothing is known of one.
        set_aside: where the run has moved a model that was trained with other settings; None: there was none.
    """

    config: RunConfig
    photos: Photos
    machine: Machine
    output: Path
    features: FeatureChoice
    threads: Threads
    minutes: float | None
    num_gpus: int
    ground_truth: str
    num_scored: int
    cost: RunCost
    measured_with: dict[str, object]
    stages: list[Stage]
    started: float
    asked: dict[str, object]
    trained_as: dict[str, object] | None
    set_aside: Path | None = None

    @property
    def cfg(self) -> CfgNode:
        """The configuration's values."""
        return self.config.cfg

    @property
    def has_labels(self) -> bool:
        """Whether the labels are finished."""
        return is_complete(self.output / "labels" / STAGES[-1])

    @property
    def trains_anew(self) -> bool:
        """Whether the output holds a model, or a part of one, that was asked for with other settings."""
        return self.trained_as not in (None, self.asked)

    @property
    def minutes_to_fill(self) -> float | None:
        """The minutes of the run where the length of its training is still to be chosen by them; else None."""
        return self.minutes if self.config.is_free("SOLVER.MAX_ITER") else None

    @property
    def size(self) -> RunSize:
        """How much there is to do."""
        cfg = self.cfg
        return RunSize(
            len(self.photos.names),
            self.num_scored,
            self.minutes_to_fill,
            cfg.SOLVER.MAX_ITER,
            self.has_labels,
            has_model=not self.trains_anew and (Path(cfg.OUTPUT_DIR) / f"{FINAL}.pth").is_file(),
            iterations_done=0 if self.trains_anew else iterations_done(cfg),
        )

    @property
    def log(self) -> Path:
        """What libraries print, log and warn."""
        return self.config.path.parent / LOG

    def choose(self, settings: Mapping[str, object]) -> "RunPlan":
        """Returns the plan with more settings chosen, of those that neither the user nor the run chose before.

        They are kept on the disk, so that a run that was killed goes on with the same ones.
        """
        plan = replace(self, config=self.config.choose(settings))
        plan.config.write()
        plan.write_record()
        return plan

    def begin_training(self) -> "RunPlan":
        """Returns the plan, having written down that the model in the output is from now on the one that it asks for."""
        plan = replace(self, trained_as=self.asked)
        plan.write_record()
        return plan

    def write_record(self) -> None:
        """Writes down what was chosen and measured, for later calls."""
        settings = dict(self.config.chosen)
        record = RunRecord(settings, self.features, self.cost, self.measured_with, self.trained_as, self.minutes)
        record.write(self.config.path.parent)


def make_plan(
    given: str | Path,
    output: str | Path,
    *,
    config_file: str | None = None,
    opts: Sequence[str] = (),
    minutes: float | None = None,
    ground_truth: str = "",
    num_gpus: int | None = None,
    directory: str | Path | None = None,
    started: float | None = None,
    before_measuring: Callable[[], None] = lambda: None,
) -> RunPlan:
    """Returns the plan of a run, having checked all that can be known beforehand.

    Args:
        given: see :func:`u2seg.engine.photo_run.run_photos.find_photos`.
        output: directory that the run will fill.
        config_file: the user's; None: ``quick_schedules/photos.yaml``.
        opts: the user's KEY VALUE ...
        minutes: for the whole run; None: as many as an earlier call of the same run was given, else 15. They count for nothing where
            the file or ``opts`` sets ``SOLVER.MAX_ITER``.
        ground_truth: COCO panoptic or instances JSON of some of the photos, for scores alone; "" for none.
        num_gpus: to train on; None: one, where there is one; 0: the CPU.
        directory: where the plan's own files go; None: ``output``. For a look without a run, a temporary one.
        started: when the program began, by ``time.monotonic``; ``minutes`` count from there. None: now.
        before_measuring: called when all is checked and the measuring begins; not called where nothing is left to be measured.

    Raises:
        FileNotFoundError, ValueError, OSError: something stands in the way; the message says what to do.
    """
    started = time.monotonic() if started is None else started
    base, opts, output = config_file or run_config.PHOTOS_CONFIG, list(opts), Path(output)
    cfg = setup_cfg(base, opts)
    require_chosen_model(cfg, base)
    training_set = training_set_of(cfg)
    directory = Path(directory or output)
    _require_writable(output)
    machine = find_machine()
    photos = find_photos(given, directory / "photos")
    require_apart(photos.root, output / "labels")
    if directory == output:
        output.mkdir(parents=True, exist_ok=True)
    free = free_keys(base, opts)
    num_gpus = min(machine.gpus, 1) if num_gpus is None else num_gpus
    on_gpu = min(num_gpus, machine.gpus) > 0 and "MODEL.DEVICE" in free
    earlier = read_record(output)
    if "SOLVER.MAX_ITER" not in free:
        minutes = None
    elif minutes is None:
        minutes = (earlier.trained_as or {}).get("minutes") or earlier.minutes or DEFAULT_MINUTES
    asked = _asked_training(cfg, minutes, output / "labels")
    features = _features(cfg, free, earlier, on_gpu)
    threads = divide_cores(machine.cores, network_on_cpu=features.network and not on_gpu)
    chosen = {
        **scaled_settings(photos, threads, on_gpu=on_gpu),
        **features.settings,
        **_kept_settings(earlier, features, asked),
    }
    chosen = {key: value for key, value in chosen.items() if key in free}
    values: list[Any] = [*chain(*chosen.items()), *opts]
    refuse_other_masks(setup_cfg(base, values), output / "labels" / STAGES[0])
    datasets, num_scored = _datasets(cfg, output, photos, ground_truth, directory)
    if ground_truth and "TEST.LABEL_MAP.FIT_ON" not in opts[::2]:
        chosen["TEST.LABEL_MAP.FIT_ON"] = ""  # the file's is of its own test sets
    fixed = {key: value_of(cfg, key) for key in opts[::2]}
    config = RunConfig(directory / RUN_CONFIG, base, fixed, free, chosen, datasets, output.resolve() / "model")
    config.write()
    if not config.is_free("CLUSTERS.NUM_CLUSTERS"):
        _require_enough_masks(config.cfg, len(photos.names))
    _check_settings(config.cfg, len(photos.names))
    measured_with: dict[str, object] = {
        "version": __version__,
        "cores": machine.cores,
        "gpus": num_gpus if on_gpu else 0,
        "settings": asked["settings"],
        "features": features.asked,
    }
    cost = earlier.cost if earlier.measured_with == measured_with else None
    if cost is None:
        before_measuring()
        counts = training_threads(threads.training, on_cpu=not on_gpu)
        cost = _measure(config.path, photos, training_set, threads.numerical, counts)
    plan = RunPlan(
        config=config,
        photos=photos,
        machine=machine,
        output=output,
        features=features,
        threads=replace(threads, training=cost.training_threads),
        minutes=minutes,
        num_gpus=num_gpus,
        ground_truth=ground_truth,
        num_scored=num_scored,
        cost=cost,
        measured_with=measured_with,
        stages=[],
        started=started,
        asked=asked,
        trained_as=earlier.trained_as,
    )
    plan = replace(plan, stages=plan_stages(cost, plan.size, time.monotonic() - started, peak_memory()))
    plan.write_record()
    _require_room(plan)
    return plan


def _features(cfg: CfgNode, free: frozenset[str], earlier: RunRecord, on_gpu: bool) -> FeatureChoice:
    """Returns the features of an earlier call, unless other ones are asked for now."""
    name = "" if "FEATURES.NAME" in free else cfg.FEATURES.NAME
    asked = {"name": name, "weights": cfg.FEATURES.VIT.WEIGHTS}
    if earlier.features is not None and earlier.features.asked == asked:
        return earlier.features
    return replace(choose_features(cfg, is_given=bool(name), on_gpu=on_gpu), asked=asked)


def _kept_settings(earlier: RunRecord, features: FeatureChoice, asked: dict[str, object]) -> dict[str, object]:
    """Returns the settings of an earlier call that hold for this one as well."""
    outdated: set[str] = set()
    if earlier.trained_as not in (None, asked):
        outdated.update(LENGTH_KEYS)
    if earlier.features is not None and earlier.features != features:
        # Values that were scaled, or follow from masks, for the features of the earlier call, and those that came with them.
        outdated.update(earlier.features.settings, features.settings, ("CLUSTERS.NUM_CLUSTERS",))
    return {key: value for key, value in earlier.settings.items() if key not in outdated}


def _asked_training(cfg: CfgNode, minutes: float | None, labels: Path) -> dict[str, object]:
    """Returns what a training depends on, for a later call that may ask for another one.

    Paths are left out, since an output may be moved; :func:`u2seg.engine.training_record.differences` compares those.
    """
    settings = {
        key: value
        for key, value in training_settings(cfg).items()
        if not key.startswith("DATASETS.") and key != "MODEL.WEIGHTS"
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return {"minutes": minutes, "settings": digest, "joined_clusters": merged_clusters(labels)}


def _datasets(
    cfg: CfgNode, output: Path, photos: Photos, ground_truth: str, directory: Path
) -> tuple[dict[str, Any], int]:
    """Returns the values below ``DATASETS``, with the training set and, where it is given, the ground truth; and how many it scores."""
    described = {
        "FORMAT": "pseudo_labels",
        "ROOT": str(output.resolve() / "labels"),
        "IMAGES": str(photos.root.resolve()),
    }
    datasets: dict[str, Any] = {"BY_PATH": {training_set_of(cfg): described}, "TRAIN": list(cfg.DATASETS.TRAIN)}
    if not ground_truth:
        return datasets, 0
    found, num_scored = select_ground_truth(ground_truth, photos, directory / "ground_truth")
    datasets["BY_PATH"][GROUND_TRUTH] = found
    return {**datasets, "TEST": [GROUND_TRUTH]}, num_scored


def _measure(config_file: Path, photos: Photos, training_set: str, num_threads: int, counts: Sequence[int]) -> RunCost:
    """Returns what the run will cost, measured in a process like the one that will make the labels."""
    unreadable = {failure.file_name for failure in photos.unreadable}
    names = [name for name in photos.names if name not in unreadable]
    started = time.monotonic()
    cost = run_in_process(
        num_threads,
        measure_run,
        str(config_file),
        str(photos.root),
        evenly_spaced(names, SAMPLE_PHOTOS),
        training_set,
        counts,
        str(config_file.parent / LOG),
    )
    # Such a process has to start.
    starting = max(time.monotonic() - started - cost.measuring_seconds, 0.0)
    return replace(cost, label_start_seconds=cost.label_start_seconds + starting)


# --- checks ----------------------------------------------------------------------------------------------------------------------


def _require_writable(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; --output must name a directory")
    parent = nearest_directory(output)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{output} cannot be written: no permission in {parent}; choose another --output")


def _require_enough_masks(cfg: CfgNode, num_photos: int) -> None:
    limits = {
        "MaskCut": cfg.MASKS.ROUNDS,
        "RecursiveCut": cfg.MASKS.RECURSIVE.MAX_CUTS_PER_IMAGE + 1,
        "RegionHierarchy": cfg.MASKS.HIERARCHY.MAX_MASKS,
    }
    most = num_photos * limits.get(cfg.MASKS.GENERATOR, cfg.CLUSTERS.NUM_CLUSTERS)
    if most < cfg.CLUSTERS.NUM_CLUSTERS:
        raise ValueError(
            f"CLUSTERS.NUM_CLUSTERS is {cfg.CLUSTERS.NUM_CLUSTERS}, but {num_photos} photos can give at most {most} masks, and no cluster "
            "may be empty. Leave the key out to have the number chosen from the masks"
        )


def _check_settings(cfg: CfgNode, num_photos: int) -> None:
    """Refuses what the settings cannot do with so many photos, and files that are not there."""
    if num_photos < cfg.SOLVER.IMS_PER_BATCH:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, and there are {num_photos} photos; ask for no more, or leave the key out"
        )
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(
            f"MODEL.WEIGHTS is {weights!r}, and there is no such file; MODEL.WEIGHTS '' starts at random{did_you_mean(weights)}"
        )
    if cfg.DATASETS.TEST:
        from u2seg.data import register_datasets
        from u2seg.data.datasets.registration import require_dataset_files

        register_datasets(cfg.DATASETS.BY_PATH, list(cfg.DATASETS.TEST))
        for name in cfg.DATASETS.TEST:
            require_dataset_files(name)


def _require_room(plan: RunPlan) -> None:
    parent = nearest_directory(plan.output)
    needed, free = sum(stage.disk for stage in plan.stages), shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            f"{parent} has {format_bytes(free)} free, and this run needs about {format_bytes(needed)}, most of it for two checkpoints of "
            f"{format_bytes(plan.cost.checkpoint_bytes)}; free some space or choose another --output"
        )
