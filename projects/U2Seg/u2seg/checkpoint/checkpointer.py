"""Checkpoints that are written whole or not at all, never with weights that are not finite, and read without running code."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer

from u2seg.checkpoint.reading import CheckpointError, non_finite_names, read_checkpoint, refuse_non_finite
from u2seg.utils.files import atomic_path, confined_path

# Beside the checkpoints of a run, as Detectron2 has it: the name of the one that ``--resume`` goes on from.
LAST_CHECKPOINT = "last_checkpoint"


def last_checkpoint(run_directory: str | Path) -> Path | None:
    """Returns the checkpoint that a run goes on from; None where it has none yet. Whether the file is there is not looked up.

    Raises:
        u2seg.utils.files.UnsafeNameError: the run names a file outside its directory.
    """
    mark = Path(run_directory) / LAST_CHECKPOINT
    if not mark.is_file():
        return None
    return confined_path(run_directory, mark.read_text(encoding="utf-8").strip(), mark)


def iterations_behind(checkpoint: Path) -> int | None:
    """Returns how many iterations a checkpoint has behind it, by its name; None for a name without a number.

    Example:
        >>> iterations_behind(Path("model_0000239.pth"))
        240
    """
    number = re.fullmatch(r"model_(\d+)\.pth", checkpoint.name)
    return int(number[1]) + 1 if number else None


class AtomicCheckpointer(DetectionCheckpointer):
    """Saves as Detectron2's checkpointer does, but under a temporary name that is renamed when the file is complete and on disk.

    A kill at any moment leaves the previous checkpoint and its ``last_checkpoint`` mark as they were. Every file is read by
    :func:`u2seg.checkpoint.read_checkpoint`: Detectron2's own checkpointer runs the code that a ``.pkl`` holds.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``name``.pth and marks it as the last one.

        Raises:
            FloatingPointError: a weight is not finite; nothing is written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        weights = self.model.state_dict()
        require_finite(weights, f"checkpoint {name!r}")
        data = {"model": weights, **{key: part.state_dict() for key, part in self.checkpointables.items()}, **kwargs}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_path(path) as temporary:
            save_to_disk(data, temporary)
        self.tag_last_checkpoint(path.name)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint as Detectron2's checkpointer does; an empty path loads nothing.

        Raises:
            FileNotFoundError: no such file.
            CheckpointError: see :func:`u2seg.checkpoint.read_checkpoint`.
        """
        if path and not Path(self.path_manager.get_local_path(path.partition("?")[0])).is_file():
            raise FileNotFoundError(f"no checkpoint at {path}; MODEL.WEIGHTS or the run's last_checkpoint names it")
        return super().load(path, *args, **kwargs)

    def get_checkpoint_file(self) -> str:
        """Returns what :func:`last_checkpoint` does, as text; empty where there is none."""
        return str(last_checkpoint(self.save_dir) or "")

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Returns a checkpoint as Detectron2's ``load`` takes it; the base class calls it with a local path.

        Raises:
            CheckpointError: see :func:`u2seg.checkpoint.read_checkpoint`; or the file holds no weights.
        """
        checkpoint = _in_detectron2_form(read_checkpoint(filename))
        weights = checkpoint["model"]
        strange = [key for key, value in _items(weights) if not _is_numeric(value)]
        if not _items(weights) or strange:
            what = f"{strange[0]!r} is a {type(weights[strange[0]]).__name__}" if strange else "it holds none"
            raise CheckpointError(f"{filename} must hold tensors, or tensors under the key 'model', by name; {what}")
        refuse_non_finite(weights, filename)
        query = parse_qs(self._parsed_url_during_load.query) if self._parsed_url_during_load is not None else {}
        if query == {"matching_heuristics": ["True"]}:
            checkpoint["matching_heuristics"] = True
        elif query:
            raise CheckpointError(f"{filename}: after ? only matching_heuristics=True is understood, got {query}")
        return checkpoint

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the checkpoint that ``--resume`` goes on from."""
        with atomic_path(Path(self.save_dir) / LAST_CHECKPOINT) as temporary:
            temporary.write_text(last_filename_basename)


def _is_numeric(value: object) -> bool:
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _items(weights: object) -> list[tuple]:
    return list(weights.items()) if isinstance(weights, Mapping) else []


def _in_detectron2_form(content: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's content with the weights under ``model``, whoever wrote it.

    Beside Detectron2's own there are pycls' files (weights under ``model_state``) and Caffe2's (arrays by name, or under ``blobs``, with
    the optimizer's as ``*_momentum``); their names are matched by heuristics.
    """
    if "model" in content:
        return content
    if "model_state" in content:
        weights = {k: v for k, v in _items(content["model_state"]) if not k.endswith("num_batches_tracked")}
        return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    blobs = content.get("blobs", content)
    if all(isinstance(value, np.ndarray) for _, value in _items(blobs)):
        weights = {k: v for k, v in _items(blobs) if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    return {"model": content}


def save_to_disk(data: dict, path: Path) -> None:
    """Writes ``data`` by ``torch.save`` and waits until it has reached the disk."""
    with path.open("wb") as file:
        torch.save(data, file)
        file.flush()
        os.fsync(file.fileno())


def require_finite(weights: dict[str, torch.Tensor], what: str) -> None:
    """Raises FloatingPointError, naming the tensors, where a floating-point one holds NaN or infinity."""
    bad = non_finite_names(weights)
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise FloatingPointError(
            f"{what} is not written: {', '.join(bad[:5])}{more} hold NaN or infinity. The last good one is kept; go on from it "
            "with a lower SOLVER.BASE_LR, a longer warm-up or SOLVER.CLIP_GRADIENTS."
        )
