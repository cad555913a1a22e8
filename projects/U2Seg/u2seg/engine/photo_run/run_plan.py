"""The plan of a run from photos to a model: what was found, which settings follow from it, what it will cost, and what stands in its way.

Everything that can be known is known before the first minute of work.
"""

import json
import os
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from u2seg.config import find_config_file, setup_cfg
from u2seg.config.config import require_chosen_model
from u2seg.engine.photo_run.run_estimates import SAMPLE_PHOTOS, LabelCost, checkpoint_bytes, measure_labels
from u2seg.engine.photo_run.run_features import FeatureChoice, choose_features
from u2seg.engine.photo_run.run_photos import Machine, Photos, find_machine, find_photos, select_ground_truth
from u2seg.engine.photo_run.run_threads import Threads, divide_cores, run_in_process
from u2seg.utils.files import read_json, write_json
from u2seg.utils.image_io import list_images
from u2seg.utils.progress import format_seconds

PHOTOS_CONFIG = "quick_schedules/photos.yaml"
DEFAULT_MINUTES = 15.0
GROUND_TRUTH = "photos_ground_truth"  # the dataset that --ground-truth makes
LOG = "log.txt"
MAX_CLUSTERS = 800  # U2Seg's number for COCO and ImageNet
_CHOSEN = "chosen_settings.json"
_MIN_ITERATIONS = 20
_TRAINING_SHARE = 1 / 3  # of --minutes that training gets even where the labels take longer than planned
_FINISHING_SHARE = 0.08  # of --minutes, for predictions, scores and the page
_SPARE_BYTES = 200 * 2**20  # page, predictions, logs
_TRAINING_MEMORY_BYTES = 1.2 * 2**30  # PyTorch and Detectron2 with a ResNet-18 at 192 pixels, measured
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
        cost: of the labels, measured on a few photos.
        checkpoint_bytes: of one checkpoint.
        ground_truth: the user's file; "" for none.
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
    cost: LabelCost | None = None
    checkpoint_bytes: int = 0
    ground_truth: str = ""

    @property
    def label_cost(self) -> LabelCost:
        """The cost of the labels, which a complete plan has."""
        if self.cost is None:
            raise ValueError("this plan has no costs yet; make_plan measures them")
        return self.cost

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
        kept = {"settings": plain(self.chosen), "cost": self.cost and asdict(self.cost)}
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
) -> RunPlan:
    """Returns the plan of a run, having checked all that can be known beforehand.

    Args:
        given: see :func:`u2seg.engine.photo_run.run_photos.find_photos`.
        output: directory that the run will fill.
        config_file: the user's; None: ``quick_schedules/photos.yaml``.
        opts: the user's KEY VALUE ...
        minutes: for the whole run; None: 15, unless a configuration or ``opts`` sets ``SOLVER.MAX_ITER``.
        ground_truth: COCO panoptic or instances JSON of some of the photos, for scores alone; "" for none.
        num_gpus: to train on; None: one, where there is one.
        directory: where the plan's own files go; None: ``output``. For a look without a run, a temporary one.
        is_reachable: see :func:`u2seg.engine.photo_run.run_features.choose_features`.

    Raises:
        FileNotFoundError, ValueError, KeyError, OSError: something stands in the way; the message says what to do.
    """
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
    kept, cost = _kept(output)
    features = choose_features(
        setup_cfg(base, [*opts, *as_opts({k: v for k, v in kept.items() if k.startswith("FEATURES.")})]),
        is_given="FEATURES.NAME" not in free or "FEATURES.NAME" in kept,
        on_gpu=on_gpu,
        is_reachable=is_reachable,
    )
    threads = divide_cores(machine.cores, network_on_cpu=features.network and not on_gpu)
    chosen = {**scaled_settings(photos, threads, on_gpu=on_gpu), **features.settings, **kept}
    chosen = {key: value for key, value in chosen.items() if key in free}
    if minutes is None and "SOLVER.MAX_ITER" in free:
        minutes = DEFAULT_MINUTES
    plan = RunPlan(
        directory / "config.yaml", base, opts, chosen, photos, machine, output, features, threads, minutes, num_gpus
    )
    plan = _with_datasets(replace(plan, ground_truth=ground_truth, cost=cost), name, cfg)
    return _with_costs(_checked(plan))


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
    *("MASKS.MIN_AREA", "MASKS.REFINEMENT", "MASKS.CRF.BILATERAL_SXY"),
)


def _choosable_keys() -> set[str]:
    one_photo = Photos(Path(), [""], (64, 64), [])
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


def training_length(minutes: float, spent_seconds: float, iteration_seconds: float) -> dict[str, object]:
    """Returns the schedule that fills what is left of a run's time, by key.

    Args:
        minutes: for the whole run.
        spent_seconds: used up by the labels. Training gets a third of the time even where they took more than two.
        iteration_seconds: of a training step.
    """
    left = minutes * 60 * (1 - _FINISHING_SHARE) - spent_seconds
    seconds = max(left, minutes * 60 * _TRAINING_SHARE)
    iterations = max(_MIN_ITERATIONS, int(seconds / iteration_seconds))
    return {
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.WARMUP_ITERS": max(1, iterations // 10),
        # Every minute or two: what a kill costs at most.
        "SOLVER.CHECKPOINT_PERIOD": max(10, round(60 / iteration_seconds)),
    }


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
            f"MODEL.WEIGHTS is {weights!r}, and there is no such file; MODEL.WEIGHTS '' starts at random"
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


def _with_costs(plan: RunPlan) -> RunPlan:
    """Returns the plan with what it will cost, measured; refuses a disk that is too full."""
    from u2seg.modeling.build import resolve_norms

    cfg = setup_cfg(plan.config_file)
    resolve_norms(cfg)
    cfg.MODEL.DEVICE = "cpu"
    one = checkpoint_bytes(cfg)
    unreadable = {failure.file_name for failure in plan.photos.unreadable}
    names = [name for name in plan.photos.names if name not in unreadable]
    step = max(1, len(names) // SAMPLE_PHOTOS)
    cost = plan.cost or run_in_process(
        plan.threads.numerical,
        measure_labels,
        str(plan.config_file),
        (),
        str(plan.photos.root),
        names[::step][:SAMPLE_PHOTOS],
        str(plan.log),
    )
    plan = replace(plan, cost=cost, checkpoint_bytes=one)
    plan.write_config({})
    parent = next(path for path in (plan.output, *plan.output.absolute().parents) if path.is_dir())
    needed, free = disk_bytes(plan), shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            f"{parent} has {_mib(free)} free, and this run needs about {_mib(needed)}, most of it for two checkpoints of {_mib(one)}; free "
            "some space or choose another --output"
        )
    return plan


def disk_bytes(plan: RunPlan) -> int:
    """Returns what a run needs on the disk: labels, page and two checkpoints, since one is written before the last is deleted."""
    return plan.label_cost.bytes_per_photo * len(plan.photos.names) + 2 * plan.checkpoint_bytes + _SPARE_BYTES


# --- the screen ------------------------------------------------------------------------------------------------------------------


def format_plan(plan: RunPlan) -> str:
    """Returns the plan as one screen of text: what was found, what will be done, what it will cost."""
    cfg = setup_cfg(plan.config_file)
    machine, photos, count = plan.machine, plan.photos, len(plan.photos.names)
    gpu = f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''}" if machine.gpus else "no GPU"
    free = shutil.disk_usage(next(p for p in (plan.output, *plan.output.absolute().parents) if p.is_dir())).free
    memory = f"{machine.memory_bytes / 2**30:.1f} GiB of memory free, " if machine.memory_bytes else ""
    unreadable = f"; {len(photos.unreadable)} cannot be read" if photos.unreadable else ""
    scores = "none (no --ground-truth)"
    if plan.num_scored:
        scores = f"{plan.num_scored} photos have ground truth in {plan.ground_truth}; only scoring reads it"
    elif cfg.DATASETS.TEST:
        scores = f"on {', '.join(cfg.DATASETS.TEST)}, as {plan.base} says"
    clusters = "the square root of the number of masks"
    if not plan.is_free("CLUSTERS.NUM_CLUSTERS"):
        clusters = str(cfg.CLUSTERS.NUM_CLUSTERS)
    length = f"{cfg.SOLVER.MAX_ITER} iterations"
    if plan.minutes is not None and plan.is_free("SOLVER.MAX_ITER"):
        length = "as many iterations as fit"
    threads = plan.threads
    lines = [
        *_entry("photos", f"{count} in {photos.root}, about {photos.size[1]}x{photos.size[0]} pixels{unreadable}"),
        *_entry("machine", f"{machine.cores} cores, {memory}{gpu}, {free / 2**30:.1f} GiB of disk free"),
        *_entry("features", plan.features.description),
        *_entry("scores", scores),
        "",
        *_entry("settings", f"{plan.base}, fitted to these photos: {plan.output / plan.config_file.name}"),
        *_entry(
            "labels",
            f"{cfg.MASKS.GENERATOR} masks at {cfg.FEATURES.IMAGE_SIZE[1]}x{cfg.FEATURES.IMAGE_SIZE[0]} pixels; thing clusters: "
            f"{clusters}; stuff clusters: {cfg.SEMANTICS.NUM_CLUSTERS}",
        ),
        *_entry(
            "training",
            f"{cfg.MODEL.META_ARCHITECTURE} with ResNet-{cfg.MODEL.RESNETS.DEPTH} on {cfg.MODEL.DEVICE}, batches of "
            f"{cfg.SOLVER.IMS_PER_BATCH}, short side {cfg.INPUT.MIN_SIZE_TEST} pixels, {length}",
        ),
        *_entry(
            "threads",
            f"labels: {threads.decoding} decoding processes, {threads.refining} refining, {threads.numerical} numerical; training: "
            f"{threads.loading} loading processes, {threads.training} numerical",
        ),
        "",
        *_cost_table(plan),
    ]
    return "\n".join(lines)


def _cost_table(plan: RunPlan) -> list[str]:
    count = len(plan.photos.names)
    labels = label_seconds(plan)
    rows = [
        (
            "labels",
            f"about {format_seconds(labels)}",
            f"{plan.label_cost.memory_bytes / 2**30:.1f} GiB",
            _mib(plan.label_cost.bytes_per_photo * count),
        )
    ]
    training, total = "by SOLVER.MAX_ITER", ""
    if plan.minutes is not None:
        seconds = plan.minutes * 60
        left = max(seconds * (1 - _FINISHING_SHARE) - labels, seconds * _TRAINING_SHARE)
        training, total = f"about {format_seconds(left)}", format_seconds(labels + left + seconds * _FINISHING_SHARE)
    rows.append(
        ("training", training, f"{_TRAINING_MEMORY_BYTES / 2**30:.1f} GiB", f"{_mib(2 * plan.checkpoint_bytes)}")
    )
    lines = [f"  {'':10s}{'time':20s}{'memory':12s}disk", *(f"  {a:10s}{b:20s}{c:12s}{d}" for a, b, c, d in rows)]
    lines.append(
        f"  {'in all':10s}{total and f'about {total}':20s}{'':12s}{_mib(disk_bytes(plan))} with page and predictions"
    )
    lines.append(
        f"  A checkpoint takes {_mib(plan.checkpoint_bytes)}; the last one is kept. Labels: timed on {SAMPLE_PHOTOS} photos."
    )
    if plan.minutes is not None and labels > plan.minutes * 60 * (1 - _FINISHING_SHARE - _TRAINING_SHARE):
        lines.append(
            f"  The labels leave little of {plan.minutes:g} minutes: training gets a third of them nevertheless (--minutes)."
        )
    return lines


def label_seconds(plan: RunPlan) -> float:
    """Returns how long the labels will take, by the photos that were timed."""
    return plan.label_cost.start_seconds + plan.label_cost.seconds_per_photo * len(plan.photos.names)


def _entry(name: str, text: str) -> list[str]:
    return textwrap.wrap(text, 110, initial_indent=f"  {name:10s}", subsequent_indent=" " * 12, break_long_words=False)


def _mib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{max(1, round(count / 2**20))} MiB"


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


def as_opts(settings: Mapping[str, object]) -> list[str]:
    """Returns settings as KEY VALUE ..., for a command line or ``setup_cfg``."""
    return [word for key, value in settings.items() for word in (key, repr(value))]


def _pairs(base: str, opts: Sequence[str]) -> list[tuple[str, object]]:
    cfg = setup_cfg(base, list(opts))
    return [(key, value_of(cfg, key)) for key in opts[::2]]


def _kept(directory: Path) -> tuple[dict[str, object], LabelCost | None]:
    """Returns what an earlier call of the same run chose and measured."""
    path = directory / _CHOSEN
    kept = read_json(path) if path.is_file() else {"settings": {}, "cost": None}
    return kept["settings"], kept["cost"] and LabelCost(**kept["cost"])


def _base_name(base: str) -> str:
    """Returns how the run's configuration names its base: a shipped one by its name, another by its path."""
    return str(Path(find_config_file(base)).resolve()) if Path(base).is_file() else base.removeprefix("configs/")


def new_config(images: str | Path, output: str | Path | None = None) -> str:
    """Returns a short configuration file for a directory of photos, with comments.

    Args:
        images: directory of photos.
        output: where runs with it go; None: ``output/`` and the directory's name.

    Raises:
        FileNotFoundError: no such directory, or no image in it.
    """
    count = len(list_images(images))
    output = Path(output or Path("output") / Path(images).resolve().name)
    quoted = {key: json.dumps(str(path)) for key, path in (("IMAGES", images), ("LABELS", output / "labels"))}
    return _NEW_CONFIG.format(
        count=count,
        images=quoted["IMAGES"],
        labels=quoted["LABELS"],
        model=json.dumps(str(output / "model")),
        output=output,
    )


_NEW_CONFIG = """\
# Settings for the {count} photos in {images}. Everything not written here is as in quick_schedules/photos.yaml.
#   u2seg run {images} --config-file THIS_FILE --output {output}     labels, model, page; fits what you leave out to the photos
#   u2seg train --config-file THIS_FILE     trains on the labels once more
_BASE_: quick_schedules/photos.yaml

# What labels are made from. With DINO's weights, one line is enough; `u2seg run` does the rest:
# FEATURES:
#   VIT: {{WEIGHTS: dino_deitsmall8_pretrain.pth}}

# Uncomment to decide yourself; `u2seg run` takes the square root of the number of masks.
# CLUSTERS:
#   NUM_CLUSTERS: 20
# SEMANTICS:
#   NUM_CLUSTERS: 12

# Uncomment to set the length of the training; `u2seg run` fills the time that --minutes gives it.
# SOLVER:
#   MAX_ITER: 1000

DATASETS:
  TRAIN: ["photos"]
  BY_PATH:
    photos: {{FORMAT: pseudo_labels, ROOT: {labels}, IMAGES: {images}}}
OUTPUT_DIR: {model}
"""
