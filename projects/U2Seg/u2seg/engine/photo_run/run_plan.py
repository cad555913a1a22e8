"""The plan of a run from photos to a model: what was found, which settings follow from it, what it will cost, and what stands in its way.

Everything that can be known is known before the first minute of work.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from u2seg.config import find_config_file, setup_cfg
from u2seg.config.config import require_chosen_model
from u2seg.engine.photo_run.run_budget import RunSize, Stage, plan_stages
from u2seg.engine.photo_run.run_estimates import (
    SAMPLE_PHOTOS,
    RunCost,
    format_bytes,
    measure_run,
    peak_memory,
)
from u2seg.engine.photo_run.run_features import FeatureChoice, choose_features
from u2seg.engine.photo_run.run_photos import Machine, Photos, find_machine, find_photos, select_ground_truth
from u2seg.engine.photo_run.run_threads import Threads, divide_cores, run_in_process, training_threads
from u2seg.engine.training_record import FINAL, iterations_done, training_settings
from u2seg.pseudo_labels.clusters.cluster_names import merged_clusters
from u2seg.pseudo_labels.pipeline import STAGES
from u2seg.utils.files import did_you_mean, read_json, write_json
from u2seg.utils.manifest import is_complete
from u2seg.visualization.label_page import evenly_spaced

PHOTOS_CONFIG = "quick_schedules/photos.yaml"
DEFAULT_MINUTES = 15.0
GROUND_TRUTH = "photos_ground_truth"  # the dataset that --ground-truth makes
LOG = "log.txt"
MAX_CLUSTERS = 800  # U2Seg's number for COCO and ImageNet
_CHOSEN = "chosen_settings.json"
# The length of the training, which is chosen anew where a run is asked for another one.
_LENGTH_KEYS = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD")
_BASE_SIDE = 192  # pixels: the short side for which quick_schedules/Base-COCO-mini.yaml is written


@dataclass(frozen=True)
class RunPlan:
    """A run, ready to start.

    Attributes:
        config_file: the run's own configuration, written below its output: a base, and what was chosen.
        base: the configuration that it builds on.
        opts: the user's KEY VALUE ...
        chosen: what was chosen for these photos and this machine, by key.
        photos: the photos.
        machine: where it runs.
        output: directory that it fills.
        features: what labels are made from.
        threads: how the cores are divided.
        minutes: wanted in all; None: ``SOLVER.MAX_ITER`` says how long training is.
        num_gpus: to train on.
        num_scored: photos with ground truth; 0: nothing is scored.
        cost: measured on a few photos.
        ground_truth: the user's file; "" for none.
        own_memory: largest resident memory of this process until the plan was made, bytes.
        planning_seconds: from ``started`` until the plan was made.
        started: when the program or the planning began, by ``time.monotonic``; ``minutes`` count from there.
        asked: what the training depends on: minutes, the user's settings, clusters joined by their names.
        trained_as: the same for the model that the output holds; None: nothing is known of one.
        set_aside: where the run has moved a model that was trained with other settings; None: there was none.
    """

    config_file: Path
    base: str
    opts: list[str]
    chosen: dict[str, object]
    photos: Photos
    machine: Machine
    output: Path
    features: FeatureChoice
    threads: Threads
    minutes: float | None
    num_gpus: int
    num_scored: int = 0
    cost: RunCost | None = None
    own_memory: int = 0
    planning_seconds: float = 0.0
    ground_truth: str = ""
    started: float = 0.0
    asked: dict[str, object] = field(default_factory=dict)
    trained_as: dict[str, object] | None = None
    set_aside: Path | None = None

    @property
    def has_labels(self) -> bool:
        """Whether the labels are finished."""
        return is_complete(self.output / "labels" / STAGES[-1])

    @property
    def trains_anew(self) -> bool:
        """Whether the output holds a model, or a part of one, that was asked for with other settings."""
        return self.trained_as not in (None, self.asked)

    @property
    def size(self) -> RunSize:
        """How much there is to do."""
        cfg = setup_cfg(self.config_file)
        return RunSize(
            len(self.photos.names),
            self.num_scored,
            self.minutes if self.is_free("SOLVER.MAX_ITER") else None,
            cfg.SOLVER.MAX_ITER,
            self.has_labels,
            has_model=not self.trains_anew and (Path(cfg.OUTPUT_DIR) / f"{FINAL}.pth").is_file(),
            iterations_done=0 if self.trains_anew else iterations_done(cfg),
        )

    @property
    def measured(self) -> RunCost:
        """The cost, which a complete plan has."""
        if self.cost is None:
            raise ValueError("this plan has no costs yet; make_plan measures them")
        return self.cost

    @property
    def stages(self) -> list[Stage]:
        """What each stage needs."""
        return plan_stages(self.measured, self.size, self.planning_seconds, self.own_memory)

    @property
    def log(self) -> Path:
        """What libraries print, log and warn."""
        return self.config_file.parent / LOG

    def choose(self, settings: Mapping[str, object]) -> "RunPlan":
        """Returns the plan with more settings chosen, of those that neither the user nor the run chose before.

        They are kept on the disk, so that a run that was killed goes on with the same ones.
        """
        plan = replace(self, chosen={**self.chosen, **{k: v for k, v in settings.items() if self.is_free(k)}})
        plan.write_config({})
        return plan

    def begin_training(self) -> "RunPlan":
        """Returns the plan, having written down that the model in the output is from now on the one that it asks for."""
        plan = replace(self, trained_as=self.asked)
        plan.write_config({})
        return plan

    def is_free(self, key: str) -> bool:
        """Returns whether neither the user nor this run has chosen a value for a key."""
        return key not in self.chosen and key in free_keys(setup_cfg(self.base, self.opts), self.opts)

    def write_config(self, datasets: Mapping[str, object]) -> None:
        """Writes the run's configuration and what was chosen.

        Args:
            datasets: values of keys that lie below ``DATASETS``; empty keeps those that are written already.
        """
        if not datasets and self.config_file.is_file():
            datasets = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))["DATASETS"]
        values: dict[str, Any] = {
            "_BASE_": _base_name(self.base),
            **nested({**self.chosen, **dict(_pairs(self.base, self.opts))}),
        }
        values["DATASETS"] = {**values.get("DATASETS", {}), **datasets}
        values["OUTPUT_DIR"] = str(self.output.resolve() / "model")
        header = (
            f"# The settings of one run, written by `u2seg run`: {self.base} with what was chosen for these photos.\n"
        )
        self.config_file.write_text(header + yaml.safe_dump(plain(values), sort_keys=False), encoding="utf-8")
        kept = {
            "settings": plain(self.chosen),
            "run_cost": self.cost and {"settings": self.asked["settings"], "measured": asdict(self.cost)},
            "trained_as": self.trained_as,
            "features": asdict(self.features),
        }
        write_json(self.config_file.parent / _CHOSEN, kept)


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
    is_reachable: Callable[[str], bool] | None = None,
    started: float | None = None,
    before_measuring: Callable[[], None] = lambda: None,
) -> RunPlan:
    """Returns the plan of a run, having checked all that can be known beforehand.

    Args:
        given: see :func:`u2seg.engine.photo_run.run_photos.find_photos`.
        output: directory that the run will fill.
        config_file: the user's; None: ``quick_schedules/photos.yaml``.
        opts: the user's KEY VALUE ...
        minutes: for the whole run; None: as many as an earlier call of the same run was given, else 15, unless a configuration or
            ``opts`` sets ``SOLVER.MAX_ITER``.
        ground_truth: COCO panoptic or instances JSON of some of the photos, for scores alone; "" for none.
        num_gpus: to train on; None: one, where there is one.
        directory: where the plan's own files go; None: ``output``. For a look without a run, a temporary one.
        is_reachable: see :func:`u2seg.engine.photo_run.run_features.choose_features`.
        started: when the program began, by ``time.monotonic``; ``minutes`` count from there. None: now.
        before_measuring: called when all is checked and the measuring begins; not called where nothing is left to be measured.

    Raises:
        FileNotFoundError, ValueError, OSError: something stands in the way; the message says what to do.
    """
    started = time.monotonic() if started is None else started
    base, opts, output = config_file or PHOTOS_CONFIG, list(opts), Path(output)
    cfg = setup_cfg(base, opts)
    require_chosen_model(cfg, base)
    name = training_set_of(cfg)
    directory = Path(directory or output)
    _require_writable(output)
    if directory == output:
        output.mkdir(parents=True, exist_ok=True)
    machine = find_machine()
    photos = find_photos(given, directory / "photos")
    _require_apart(photos.root, output)
    free = free_keys(cfg, opts)
    num_gpus = min(machine.gpus, 1) if num_gpus is None else num_gpus
    on_gpu = num_gpus > 0 and "MODEL.DEVICE" in free
    earlier = _earlier_call(output)
    kept = earlier.settings
    if minutes is None and "SOLVER.MAX_ITER" in free:
        minutes = (earlier.trained_as or {}).get("minutes") or DEFAULT_MINUTES
    asked = _asked_training(cfg, minutes, output / "labels")
    if earlier.trained_as not in (None, asked):
        kept = {key: value for key, value in kept.items() if key not in _LENGTH_KEYS}
    features_asked = {
        "name": "" if "FEATURES.NAME" in free else cfg.FEATURES.NAME,
        "weights": cfg.FEATURES.VIT.WEIGHTS,
    }
    features = earlier.features
    if features is None or features.asked != features_asked:
        is_given = bool(features_asked["name"])
        features = choose_features(cfg, is_given=is_given, on_gpu=on_gpu, is_reachable=is_reachable)
        features = replace(features, asked=features_asked)
    threads = divide_cores(machine.cores, network_on_cpu=features.network and not on_gpu)
    chosen = {**scaled_settings(photos, threads, on_gpu=on_gpu), **features.settings, **kept}
    chosen = {key: value for key, value in chosen.items() if key in free}
    plan = RunPlan(
        directory / "config.yaml",
        base,
        opts,
        chosen,
        photos,
        machine,
        output,
        features,
        threads,
        minutes,
        num_gpus,
        cost=earlier.cost_of(asked["settings"]),
        ground_truth=ground_truth,
        started=started,
        asked=asked,
        trained_as=earlier.trained_as,
    )
    plan = _with_datasets(plan, name, cfg)
    plan = _checked(plan)
    if plan.cost is None:
        before_measuring()
    return _with_costs(plan, name)


def scaled_settings(photos: Photos, threads: Threads, *, on_gpu: bool) -> dict[str, object]:
    """Returns the settings that follow from the photos and the machine, by key; the number of clusters follows from the masks later.

    Args:
        photos: number and size count.
        threads: workers.
        on_gpu: whether a GPU trains.
    """
    count, (height, width) = len(photos.names), photos.size
    # The short side: no larger than the photos', since enlarging adds nothing.
    side = min(384 if on_gpu else _BASE_SIDE, max(64, min(height, width) // 32 * 32))
    scale = side / _BASE_SIDE
    batch = min(count, (16 if count >= 1000 else 8) if on_gpu else 4)
    return {
        "MODEL.DEVICE": "cuda" if on_gpu else "cpu",
        "FEATURES.DEVICE": "cuda" if on_gpu else "cpu",
        "FEATURES.IMAGE_SIZE": feature_size(height, width),
        "FEATURES.BATCH_SIZE": min(count, 8),
        # Small shards lose little when a run is killed, and let every stage count in few images.
        "MASKS.SHARD_SIZE": min(64, max(4, count // 20)),
        "MASKS.NUM_WORKERS": threads.decoding,
        "MASKS.NUM_THREADS": threads.refining,
        "SEMANTICS.NUM_CLUSTERS": min(27, max(4, round(2 * count**0.5))),
        "SEMANTICS.PATCHES_PER_IMAGE": 64 if count >= 100 else 256,
        "INPUT.MIN_SIZE_TRAIN": tuple(round(side * part) for part in (5 / 6, 11 / 12, 1, 13 / 12, 7 / 6)),
        "INPUT.MAX_SIZE_TRAIN": round(side * 11 / 6),
        "INPUT.MIN_SIZE_TEST": side,
        "INPUT.MAX_SIZE_TEST": round(side * 5 / 3),
        "MODEL.ANCHOR_GENERATOR.SIZES": [[round(size * scale)] for size in (16, 32, 64, 128, 192)],
        # 4096 pixels belong to photos of 640x480.
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": max(64, round(4096 * height * width / (640 * 480))),
        "SOLVER.IMS_PER_BATCH": batch,
        "DATALOADER.NUM_WORKERS": threads.loading,
    }


# What a run may choose after the labels are made.
_LATER_KEYS = (
    *(
        "CLUSTERS.NUM_CLUSTERS",
        "CLUSTERS.NORMALIZE",
        "SOLVER.MAX_ITER",
        "SOLVER.WARMUP_ITERS",
        "SOLVER.CHECKPOINT_PERIOD",
    ),
    *("FEATURES.NAME", "FEATURES.VIT.ARCH", "MASKS.GENERATOR", "MASKS.MAX_AREA", "MASKS.MAX_CORNERS"),
    *("MASKS.MIN_AREA", "MASKS.REFINEMENT", "MASKS.CRF.BILATERAL_SXY", "SEMANTICS.PROVIDER"),
)


def _choosable_keys() -> set[str]:
    one_photo = Photos(Path(), [""], (64, 64), [], 1)
    return {*_LATER_KEYS, *scaled_settings(one_photo, divide_cores(2, network_on_cpu=False), on_gpu=False)}


def free_keys(cfg: CfgNode, opts: Sequence[str]) -> set[str]:
    """Returns the keys that a run may choose: those on which the user's configuration says what ``photos.yaml`` says.

    Args:
        cfg: the user's file with ``opts``.
        opts: KEY VALUE ..., which are never free.
    """
    default = setup_cfg(PHOTOS_CONFIG)
    return {key for key in _choosable_keys() if value_of(cfg, key) == value_of(default, key)} - set(opts[::2])


def feature_size(height: int, width: int) -> tuple[int, int]:
    """Returns (height, width) of the image that the hand-made descriptor sees: about 240x320 pixels, in the photos' shape.

    Args:
        height: of a typical photo, pixels.
        width: of the same.
    """
    ratio = min(max(height / width, 0.5), 2.0)
    rows = round((240 * 320 * ratio) ** 0.5 / 16) * 16
    return rows, round(240 * 320 / rows / 16) * 16


def num_thing_clusters(num_masks: int) -> int:
    """Returns K for a number of masks: its square root, at least 1, at most 800; never more clusters than masks."""
    return min(max(1, round(num_masks**0.5)), MAX_CLUSTERS)


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


def training_set_of(cfg: CfgNode) -> str:
    """Returns the name of the training set that a run fills: the first one, which must be made of pseudo-labels.

    Raises:
        ValueError: it is not.
    """
    name = cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else ""
    if cfg.DATASETS.BY_PATH.get(name, {}).get("FORMAT") != "pseudo_labels":
        raise ValueError(
            f"DATASETS.TRAIN must begin with a dataset of DATASETS.BY_PATH with FORMAT: pseudo_labels, got {cfg.DATASETS.TRAIN}"
        )
    return name


# --- checks ----------------------------------------------------------------------------------------------------------------------


def _require_writable(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file; --output must name a directory")
    parent = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{output} cannot be written: no permission in {parent}; choose another --output")


def _require_apart(images: Path, output: Path) -> None:
    if (output / "labels").resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"the output directory {output} lies in the image directory {images}; its images would be taken for photos. Choose another "
            "--output"
        )


def _checked(plan: RunPlan) -> RunPlan:
    """Returns the plan; refuses what its settings cannot do with these photos."""
    cfg = setup_cfg(plan.config_file)
    count = len(plan.photos.names)
    limits = {
        "MaskCut": cfg.MASKS.ROUNDS,
        "RecursiveCut": cfg.MASKS.RECURSIVE.MAX_CUTS_PER_IMAGE + 1,
        "RegionHierarchy": cfg.MASKS.HIERARCHY.MAX_MASKS,
    }
    most = count * limits.get(cfg.MASKS.GENERATOR, cfg.CLUSTERS.NUM_CLUSTERS)
    if most < cfg.CLUSTERS.NUM_CLUSTERS:
        raise ValueError(
            f"CLUSTERS.NUM_CLUSTERS is {cfg.CLUSTERS.NUM_CLUSTERS}, but {count} photos can give at most {most} masks, and no cluster may "
            "be empty. Leave the key out to have the number chosen from the masks"
        )
    if count < cfg.SOLVER.IMS_PER_BATCH:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, and there are {count} photos; ask for no more, or leave the key out"
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
    return plan


def _with_datasets(plan: RunPlan, training_set: str, cfg: CfgNode) -> RunPlan:
    """Returns the plan, its configuration written, with the training set and, where it is given, the ground truth in it."""
    labels, images = plan.output.resolve() / "labels", plan.photos.root.resolve()
    described = {"FORMAT": "pseudo_labels", "ROOT": str(labels), "IMAGES": str(images)}
    by_path: dict[str, object] = {training_set: described}
    datasets: dict[str, object] = {"BY_PATH": by_path, "TRAIN": list(cfg.DATASETS.TRAIN)}
    num_scored = 0
    if plan.ground_truth:
        found, num_scored = select_ground_truth(
            plan.ground_truth, plan.photos, plan.config_file.parent / "ground_truth"
        )
        by_path[GROUND_TRUTH] = found
        datasets["TEST"] = [GROUND_TRUTH]
    plan.write_config(datasets)
    return replace(plan, num_scored=num_scored)


def _with_costs(plan: RunPlan, training_set: str) -> RunPlan:
    """Returns the plan with what it will cost, measured; refuses a disk that is too full."""
    unreadable = {failure.file_name for failure in plan.photos.unreadable}
    names = [name for name in plan.photos.names if name not in unreadable]
    cost = plan.cost
    if cost is None:
        started = time.monotonic()
        cost = run_in_process(
            plan.threads.numerical,
            measure_run,
            str(plan.config_file),
            str(plan.photos.root),
            evenly_spaced(names, SAMPLE_PHOTOS),
            training_set,
            training_threads(plan.threads.training, on_cpu=plan.num_gpus == 0),
            str(plan.log),
        )
        # The labels will be made in such a process as well, which has to start.
        starting = max(time.monotonic() - started - cost.measuring_seconds, 0.0)
        cost = replace(cost, label_start_seconds=cost.label_start_seconds + starting)
    plan = replace(
        plan,
        cost=cost,
        threads=replace(plan.threads, training=cost.training_threads),
        own_memory=peak_memory(),
        planning_seconds=time.monotonic() - plan.started,
    )
    plan.write_config({})
    parent = next(path for path in (plan.output, *plan.output.absolute().parents) if path.is_dir())
    needed, free = sum(stage.disk for stage in plan.stages), shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            f"{parent} has {format_bytes(free)} free, and this run needs about {format_bytes(needed)}, most of it for two checkpoints of "
            f"{format_bytes(cost.checkpoint_bytes)}; free some space or choose another --output"
        )
    return plan


# --- values ----------------------------------------------------------------------------------------------------------------------


def value_of(cfg: CfgNode, key: str) -> object:
    """Returns the value of a key such as ``"SOLVER.MAX_ITER"``, sequences as lists."""
    for part in key.split("."):
        cfg = cfg[part]
    return plain(cfg)


def plain(value: object) -> object:
    """Returns a value as JSON and YAML have it: tuples as lists, configurations as dicts."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return value


def nested(values: Mapping[str, object]) -> dict[str, object]:
    """Returns ``{"A.B": 1}`` as ``{"A": {"B": 1}}``."""
    tree: dict[str, Any] = {}
    for key, value in sorted(values.items()):
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _pairs(base: str, opts: Sequence[str]) -> list[tuple[str, object]]:
    cfg = setup_cfg(base, list(opts))
    return [(key, value_of(cfg, key)) for key in opts[::2]]


@dataclass(frozen=True)
class _EarlierCall:
    """What an earlier call of the same run chose and measured, each None where there was none.

    Attributes:
        settings: by key.
        cost: as measured, and the settings of the training that it holds for.
        trained_as: what the training was asked for.
        features: those of the labels; they stay, even if better ones could be had now.
    """

    settings: dict[str, object]
    cost: dict[str, Any] | None
    trained_as: dict[str, Any] | None
    features: FeatureChoice | None

    def cost_of(self, settings: object) -> RunCost | None:
        """Returns the cost that was measured for such settings of the training; None where it has to be measured."""
        if self.cost is None or self.cost["settings"] != settings:
            return None
        measured = dict(self.cost["measured"])
        # JSON knows no numbers as keys.
        iteration = {int(count): seconds for count, seconds in measured.pop("iteration_seconds").items()}
        return RunCost(iteration_seconds=iteration, **measured)


def _earlier_call(directory: Path) -> _EarlierCall:
    path = directory / _CHOSEN
    kept = read_json(path) if path.is_file() else {}
    return _EarlierCall(
        kept.get("settings", {}),
        kept.get("run_cost"),
        kept.get("trained_as"),
        FeatureChoice(**kept["features"]) if kept.get("features") else None,
    )


def _base_name(base: str) -> str:
    """Returns how the run's configuration names its base: a shipped one by its name, another by its path."""
    return str(Path(find_config_file(base)).resolve()) if Path(base).is_file() else base.removeprefix("configs/")
