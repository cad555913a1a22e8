"""What a run is configured with, as it is kept on the disk: its YAML file, and what was chosen and measured for later calls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from u2seg.config import find_config_file, setup_cfg
from u2seg.config.config_file import own_values
from u2seg.engine.photo_run.run_estimates import RunCost
from u2seg.engine.photo_run.run_features import FeatureChoice
from u2seg.engine.photo_run.run_photos import Photos
from u2seg.engine.photo_run.run_scaling import scaled_settings
from u2seg.engine.photo_run.run_threads import divide_cores
from u2seg.utils.files import read_json, write_json

PHOTOS_CONFIG = "quick_schedules/photos.yaml"
_RECORD = "chosen_settings.json"
# The length of the training, which is chosen anew where a run is asked for another one.
LENGTH_KEYS = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD")
# What may differ from call to call, since it changes no result: another machine gets values of its own.
_MACHINE_KEYS = ("MODEL.DEVICE", "FEATURES.DEVICE", "MASKS.NUM_WORKERS", "MASKS.NUM_THREADS", "DATALOADER.NUM_WORKERS")
# What a run may choose beside the settings that are scaled.
_LATER_KEYS = (
    *LENGTH_KEYS,
    *("CLUSTERS.NUM_CLUSTERS", "CLUSTERS.NORMALIZE", "FEATURES.NAME", "FEATURES.VIT.ARCH", "MASKS.GENERATOR"),
    *("MASKS.MIN_AREA", "MASKS.MAX_AREA", "MASKS.MAX_CORNERS", "MASKS.REFINEMENT", "MASKS.CRF.BILATERAL_SXY"),
    "SEMANTICS.PROVIDER",
)


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run: a base, the user's own values, and what was chosen for the photos and the machine.

    Attributes:
        path: YAML file that it is written to.
        base: the configuration that it builds on.
        opts: the user's own values beside it, by key.
        free: keys that the user leaves to the run.
        chosen: what the run chose, by key.
        datasets: values of keys below ``DATASETS``.
        model_directory: ``OUTPUT_DIR``.
    """

    path: Path
    base: str
    opts: Mapping[str, object]
    free: frozenset[str]
    chosen: Mapping[str, object]
    datasets: Mapping[str, object]
    model_directory: Path

    @cached_property
    def cfg(self) -> CfgNode:
        """All values, as the file gives them; it has to be written."""
        return setup_cfg(self.path)

    def is_free(self, key: str) -> bool:
        """Returns whether neither the user nor this run has chosen a value for a key."""
        return key in self.free and key not in self.chosen

    def choose(self, settings: Mapping[str, object]) -> "RunConfig":
        """Returns the configuration with more settings chosen, of those that neither the user nor the run chose before."""
        return replace(self, chosen={**self.chosen, **{k: v for k, v in settings.items() if self.is_free(k)}})

    def write(self) -> None:
        """Writes the file."""
        values: dict[str, Any] = {"_BASE_": _base_name(self.base), **nested({**self.chosen, **self.opts})}
        values["DATASETS"] = {**values.get("DATASETS", {}), **self.datasets}
        values["OUTPUT_DIR"] = str(self.model_directory)
        header = (
            f"# The settings of one run, written by `u2seg run`: {self.base} with what was chosen for these photos.\n"
        )
        self.path.write_text(header + yaml.safe_dump(plain(values), sort_keys=False), encoding="utf-8")


def _base_name(base: str) -> str:
    """Returns how the run's configuration names its base: a shipped one by its name, another by its path."""
    return str(Path(find_config_file(base)).resolve()) if Path(base).is_file() else base.removeprefix("configs/")


def free_keys(base: str, opts: Sequence[str] = ()) -> frozenset[str]:
    """Returns the keys that a run may choose: those of which neither the user's file nor ``opts`` says anything.

    Args:
        base: the user's file. What it builds on counts too, down to what ``photos.yaml`` itself builds on.
        opts: KEY VALUE ..., which are never free.
    """
    one_photo = Photos(Path(), [""], (64, 64), [], 1)
    scaled = scaled_settings(one_photo, divide_cores(2, network_on_cpu=False), on_gpu=False)
    own = own_values(find_config_file(base), find_config_file(PHOTOS_CONFIG))
    cfg, default = setup_cfg(base, list(opts)), setup_cfg(PHOTOS_CONFIG)
    return frozenset(
        key
        for key in {*_LATER_KEYS, *scaled} - set(opts[::2])
        # A file that does not build on photos.yaml differs from it by what it leaves out as well.
        if not _is_set(own, key) and value_of(cfg, key) == value_of(default, key)
    )


def _is_set(values: Mapping[str, Any], key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


@dataclass(frozen=True)
class RunRecord:
    """What one call of a run chose and measured, for the later ones.

    Attributes:
        settings: chosen, by key.
        features: of the labels; they stay, even if better ones could be had now. None: none were chosen yet.
        cost: as measured; None: nothing was measured.
        measured_with: what the cost depends on: version, machine, settings of the training.
        trained_as: what the training was asked for; None: none was begun.
        minutes: that the run was given; None: an earlier version did not say, or ``SOLVER.MAX_ITER`` counts.
    """

    settings: dict[str, object] = field(default_factory=dict)
    features: FeatureChoice | None = None
    cost: RunCost | None = None
    measured_with: dict[str, object] = field(default_factory=dict)
    trained_as: dict[str, Any] | None = None
    minutes: float | None = None

    def write(self, directory: Path) -> None:
        """Writes the record into the directory of a run."""
        write_json(directory / _RECORD, {**asdict(self), "settings": plain(self.settings)})


def read_record(directory: Path) -> RunRecord:
    """Returns the record in the directory of a run, an empty one where there is none.

    Settings that may differ from machine to machine are left out, and what a version of other fields wrote.
    """
    path = directory / _RECORD
    kept = read_json(path) if path.is_file() else {}
    features, cost = kept.get("features"), kept.get("cost")
    if features:
        features = FeatureChoice(**{f.name: features[f.name] for f in fields(FeatureChoice) if f.name in features})
    if cost and cost.keys() == {f.name for f in fields(RunCost)}:
        # JSON knows no numbers as keys.
        seconds = {int(count): value for count, value in cost["iteration_seconds"].items()}
        cost = RunCost(**{**cost, "iteration_seconds": seconds})
    else:
        cost = None
    settings = {key: value for key, value in kept.get("settings", {}).items() if key not in _MACHINE_KEYS}
    return RunRecord(
        settings, features, cost, kept.get("measured_with", {}), kept.get("trained_as"), kept.get("minutes")
    )


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
