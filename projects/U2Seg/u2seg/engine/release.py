"""A trained model as it is handed to others: small weights, the settings that they need, a model card."""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor

from u2seg.checkpoint.checkpointer import LAST_CHECKPOINT, last_checkpoint
from u2seg.checkpoint.reading import CheckpointError, read_checkpoint, read_weights
from u2seg.config.config_file import read_config_file
from u2seg.engine.model_card import is_detector, model_card
from u2seg.engine.training_record import AVERAGED, FINAL
from u2seg.utils.files import atomic_path, file_digest

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
BACKBONE_PREFIX = "backbone."

# What a model needs where it is used. The rest of a run's settings describes its training, and names directories.
_SECTIONS = ("MODEL", "INPUT", "VERSION")


@dataclass(frozen=True)
class Release:
    """What was written.

    Attributes:
        directory: holds ``model.safetensors``, ``config.yaml`` and ``README.md``, the model card.
        num_bytes: size of the weights.
        sha256: of the weights.
    """

    directory: Path
    num_bytes: int
    sha256: str


def write_release(run_directory: str | Path, output: str | Path, *, license_id: str = "other") -> Release:
    """Returns what was written of a training for others: weights in half precision, settings and a model card.

    Kernels and matrices are written as float16, vectors (biases and norms) as they are. Of pretraining, the backbone alone is written.
    The weights are the averaged ones where the training kept an average: those that were scored.

    Args:
        run_directory: ``OUTPUT_DIR`` of a training; of one that has not finished, its last checkpoint is taken.
        output: directory to write; its name is the model's name.
        license_id: license of the weights, as the Hub spells it.

    Raises:
        FileNotFoundError: the directory holds no training, or no checkpoint.
        CheckpointError: a checkpoint that cannot be read.
    """
    from safetensors.torch import save_file

    run, output = Path(run_directory), Path(output)
    # First, since it refuses a directory that holds no training.
    card = model_card(run, output.name, license_id=license_id)
    cfg = read_config_file(run / CONFIG)
    weights = trained_weights(run)
    if not is_detector(cfg):
        weights = {name: value for name, value in weights.items() if name.startswith(BACKBONE_PREFIX)}
    output.mkdir(parents=True, exist_ok=True)
    with atomic_path(output / WEIGHTS) as temporary:
        save_file({name: _smaller(value) for name, value in weights.items()}, temporary)
    with atomic_path(output / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(_portable(cfg)), encoding="utf-8")
    with atomic_path(output / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return Release(output, (output / WEIGHTS).stat().st_size, file_digest(output / WEIGHTS))


def trained_weights(run_directory: str | Path) -> dict[str, Tensor]:
    """Returns the weights that a training is judged by: averaged ones if there are any, else the model's own.

    Args:
        run_directory: ``OUTPUT_DIR``; finished or not.

    Raises:
        FileNotFoundError: no checkpoint is there.
        CheckpointError: one that cannot be read.
    """
    run = Path(run_directory)
    for name in (AVERAGED, f"{FINAL}.pth"):
        if (run / name).is_file():
            return read_weights(run / name)
    last = last_checkpoint(run)
    if last is None:
        raise FileNotFoundError(f"{run} holds no checkpoint: expected {AVERAGED}, {FINAL}.pth or {LAST_CHECKPOINT}")
    averaged = read_checkpoint(last).get("ema")
    if averaged is None:
        return read_weights(last)
    if not isinstance(averaged, dict) or "weights" not in averaged:
        raise CheckpointError(f"{last} holds averaged weights in an unknown form; expected a dictionary with 'weights'")
    return dict(averaged["weights"])


def _smaller(value: Tensor) -> Tensor:
    """Returns a tensor as it is written: contiguous, kernels and matrices as float16 if all of their values fit."""
    value = value.contiguous()
    if value.dtype != torch.float32 or value.dim() < 2:
        return value
    half = value.half()
    return half if bool(half.isfinite().all()) else value


def _portable(cfg: dict) -> dict:
    """Returns the settings without those that name files or datasets of the machine where the model was trained."""
    kept = {name: cfg[name] for name in _SECTIONS if name in cfg}
    kept["MODEL"] = {**kept["MODEL"], "WEIGHTS": "", "DEVICE": "cpu"}
    # A model that predicts needs the numbers of its clusters, and no training set to count them.
    things, stuff = cfg["MODEL"]["ROI_HEADS"]["NUM_CLASSES"], cfg["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] - 1
    kept["DATASETS"] = {"TRAIN": [], "TEST": []}
    if is_detector(cfg):
        kept["CLUSTERS"] = {"NUM_CLUSTERS": things}
        kept["SEMANTICS"] = {"NUM_CLUSTERS": stuff}
    return kept
