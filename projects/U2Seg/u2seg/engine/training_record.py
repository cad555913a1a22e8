"""What a training in a directory was made with and how far it got: ``training.json``, by which a restart knows what is left to do."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from u2seg.checkpoint.checkpointer import iterations_behind, last_checkpoint
from u2seg.utils.files import read_json, write_json
from u2seg.version import __version__

RECORD = "training.json"
FINAL = "model_final"
AVERAGED = "model_ema.pth"  # the averaged weights at the end of a training

# Keys without influence on the weights, sections and single ones; so have those in whose names TEST is a word.
_NOT_TRAINED_BY = (
    "OUTPUT_DIR",
    "TEST",
    "MODEL.DEVICE",
    "MODEL.PANOPTIC_FPN.COMBINE",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "CUDNN_BENCHMARK",
    "LOG_TO",
    "VIS_PERIOD",
    "VERSION",
)
# What the label stages use, which guard their own directories.
_LABEL_STAGES = ("FEATURES", "MASKS", "CLUSTERS", "SEMANTICS", "PANOPTIC_LABELS", "SELF_TRAINING")


# Of the keys of a dataset's description, those that name no file.
_NO_PATHS = ("FORMAT", "SPLIT", "PREPARED_BY")


class TrainingMismatchError(ValueError):
    """A directory that holds a model trained with other settings than those asked for now; the message says which differ."""


def training_settings(cfg: CfgNode) -> dict[str, object]:
    """Returns the settings that a model's weights depend on, by key ("SOLVER.BASE_LR"), as JSON gives them back.

    Args:
        cfg: complete. Of ``DATASETS.BY_PATH`` the training sets alone count.
    """
    found = {}
    for key, value in _leaves(json.loads(json.dumps(cfg)), ""):
        by_path = key.removeprefix("DATASETS.BY_PATH.")
        if by_path != key and not by_path.startswith(tuple(f"{name}." for name in cfg.DATASETS.TRAIN)):
            continue
        if not _begins_with(key, (*_NOT_TRAINED_BY, *_LABEL_STAGES)) and "TEST" not in re.split(r"[._]", key):
            found[key] = _placed(key, value, cfg.OUTPUT_DIR)
    return found


def _placed(key: str, value: object, output_dir: str) -> object:
    """Returns a path as it is absolutely and as seen from ``OUTPUT_DIR``, every other value as it is; see :func:`_equal`."""
    in_description = key.startswith("DATASETS.BY_PATH.") and key.rpartition(".")[2] not in _NO_PATHS
    if not isinstance(value, str) or not value or "://" in value or not (in_description or key == "MODEL.WEIGHTS"):
        return value
    return {"path": os.path.abspath(value), "from_here": os.path.relpath(value, output_dir)}


def _equal(first: object, second: object) -> bool:
    """Returns whether two values are the same; a path is where the whole of it was moved with the directory, or was written otherwise."""
    if isinstance(first, dict) and isinstance(second, dict):
        return any(first[name] == second.get(name) for name in first)
    return first == second


def differences(cfg: CfgNode) -> list[str]:
    """Returns how the training settings of ``cfg`` differ from those of the model in its ``OUTPUT_DIR``, one line a key.

    A directory without a checkpoint does not fix the settings; a key that an older version did not have is no difference.
    """
    recorded = _record(cfg).get("settings", {})
    if not iterations_done(cfg):
        return []
    asked = training_settings(cfg)
    # A key of one of the two alone is that of another dataset: datasets alone come and go.
    shared = sorted(key for key in asked if key in recorded or (recorded and key.startswith("DATASETS.BY_PATH.")))
    return [
        f"{key}: asked for {_readable(asked[key])}, the model has {_readable(recorded.get(key))}"
        for key in shared
        if not _equal(asked[key], recorded.get(key))
    ]


def _readable(value: object) -> str:
    return repr(value["path"] if isinstance(value, dict) and "path" in value else value)


def iterations_done(cfg: CfgNode) -> int:
    """Returns how many iterations the last checkpoint in ``OUTPUT_DIR`` has behind it; 0 where there is none."""
    checkpoint = last_checkpoint(cfg.OUTPUT_DIR)
    if checkpoint is None:
        return 0
    if checkpoint.name == f"{FINAL}.pth":
        return int(_record(cfg).get("settings", {}).get("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER))
    return iterations_behind(checkpoint) or 0


def refuse_other_training(cfg: CfgNode) -> None:
    """Refuses to take a model for that of ``cfg`` which was trained, wholly or in part, with other settings.

    Raises:
        TrainingMismatchError: the settings differ; the message says which.
    """
    found = differences(cfg)
    if found:
        raise TrainingMismatchError(
            f"{cfg.OUTPUT_DIR} holds a model that was trained with other settings:\n  "
            + "\n  ".join(found)
            + "\nChoose another output directory, delete this one to train anew, or ask for the settings that made it."
        )


def refuse_untrained_changes(cfg: CfgNode) -> None:
    """Refuses settings that a finished training would pass over; one that still has iterations left goes on with them.

    Raises:
        TrainingMismatchError: the settings differ and no iteration is left; the message says which.
    """
    if iterations_done(cfg) >= cfg.SOLVER.MAX_ITER:
        refuse_other_training(cfg)


def begin(cfg: CfgNode) -> None:
    """Writes down what ``OUTPUT_DIR`` is trained with from now on; its result is not finished."""
    write_json(
        Path(cfg.OUTPUT_DIR) / RECORD, {"u2seg": __version__, "settings": training_settings(cfg), "finished": None}
    )


def finish(cfg: CfgNode) -> None:
    """Writes down that training and scoring are done."""
    write_json(Path(cfg.OUTPUT_DIR) / RECORD, {**_record(cfg), "finished": _scored_with(cfg)})


def is_finished(cfg: CfgNode) -> bool:
    """Returns whether ``OUTPUT_DIR`` holds the model of ``cfg``, trained to its end and scored as ``cfg`` asks."""
    return (
        (Path(cfg.OUTPUT_DIR) / f"{FINAL}.pth").is_file()
        and _record(cfg).get("finished") == _scored_with(cfg)
        and not differences(cfg)
    )


def _record(cfg: CfgNode) -> dict:
    path = Path(cfg.OUTPUT_DIR) / RECORD
    return read_json(path) if path.is_file() else {}


def _scored_with(cfg: CfgNode) -> str:
    """Returns a digest of the settings; other ones may mean other scores, so that these are to be computed again."""
    values = {
        k: v for k, v in _leaves(json.loads(json.dumps(cfg)), "") if not _begins_with(k, ("OUTPUT_DIR", *_LABEL_STAGES))
    }
    values = {k: v for k, v in values.items() if k not in ("MODEL.DEVICE", "DATALOADER.NUM_WORKERS")}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _begins_with(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _leaves(node: dict, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
