"""Weights read from files without running code that is in them."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit; the message says what was expected, what came, and what to do."""


def read_weights(path: str) -> dict[str, Tensor]:
    """Returns the model's tensors in a checkpoint, by name.

    Nothing but tensors, arrays and plain values is unpickled, so that a file from a stranger cannot run code.

    Args:
        path: ``.pth`` as Detectron2 saves it (``{"model": ...}``) or a bare state dict; ``.pkl`` of Detectron2's model zoo format;
            a file or anything that Detectron2's ``PathManager`` reads.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it holds no weights, or more than weights.
    """
    local = Path(PathManager.get_local_path(path))
    if not local.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content = _unpickle_arrays(local) if local.suffix == ".pkl" else _load_tensors(local)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is no checkpoint that can be read safely: {reason}") from error
    weights = content.get("model", content) if isinstance(content, Mapping) else {}
    tensors = {
        key.removeprefix("module."): torch.as_tensor(value)
        for key, value in weights.items()
        if isinstance(value, (Tensor, np.ndarray))
    }
    if not tensors:
        raise CheckpointError(f"{path} holds no weights; expected a state dict, or one under the key 'model'")
    return tensors


def _load_tensors(path: Path) -> Any:
    """Reads a .pth file of tensors, arrays and plain values: what trainers leave beside the weights holds NumPy's numbers."""
    if not hasattr(torch.serialization, "safe_globals"):  # PyTorch before 2.5 reads tensors alone
        return torch.load(path, "cpu", weights_only=True)
    allowed: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?"))]
    module = getattr(np, "_core", None) or np.core
    allowed += [module.multiarray.scalar, module.multiarray._reconstruct]
    # NumPy 1 wrote the same functions under another name, which those who saved with it left in their files.
    named = [(function, f"numpy.core.multiarray.{function.__name__}") for function in allowed[-2:]]
    with torch.serialization.safe_globals([*allowed, *named]):
        return torch.load(path, "cpu", weights_only=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain values, and refuses everything else."""

    _ALLOWED = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}; only arrays and plain values are read")
        return super().find_class(module, name)


def _unpickle_arrays(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()
