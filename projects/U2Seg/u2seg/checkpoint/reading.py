"""Checkpoints read from files without running code that is in them: the one place where such a file is opened."""

import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from u2seg.utils import hub_files as _hub_files  # noqa: F401 - registers hf:// and hf-hub: with PathManager


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit; the message says what was expected, what came, and what to do."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns all that a checkpoint holds: the weights, and what a trainer left beside them.

    Nothing but tensors, arrays and plain values is unpickled, so that a file from a stranger cannot run code.

    Args:
        path: ``.pth`` or another of PyTorch's files; ``.pkl`` of Detectron2's model zoo format; ``.safetensors``; a file or anything
            that Detectron2's ``PathManager`` reads, such as ``hf://org/name/model.safetensors`` of the Hugging Face Hub.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it holds something else, or is damaged.
    """
    local = Path(PathManager.get_local_path(str(path)))
    if not local.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content = _reader_of(local)(local)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is no checkpoint that can be read safely: {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors")
    return dict(content)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the model's tensors in a checkpoint, by name.

    Args:
        path: see :func:`read_checkpoint`; ``{"model": state dict}`` as Detectron2 saves it, or a bare state dict.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it holds no weights, or more than weights, or a weight that is NaN or infinite.
    """
    content = read_checkpoint(path)
    weights = content.get("model", content)
    tensors = {
        str(key).removeprefix("module."): torch.as_tensor(value)
        for key, value in (weights.items() if isinstance(weights, Mapping) else ())
        if isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")
    }
    if not tensors:
        raise CheckpointError(f"{path} holds no weights; expected a state dict, or one under the key 'model'")
    refuse_non_finite(tensors, path)
    return tensors


def refuse_non_finite(weights: Mapping[str, Any], path: str | Path) -> None:
    """Refuses a checkpoint of a training that diverged: every score and every prediction with it would be worthless.

    Raises:
        CheckpointError: a weight is NaN or infinite; the message names the tensors.
    """
    bad = non_finite_names({key: value for key, value in weights.items() if isinstance(value, Tensor)})
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise CheckpointError(
            f"{path} holds NaN or infinity in {', '.join(bad[:5])}{more}: its training diverged. Use an earlier checkpoint, or train again"
        )


def non_finite_names(weights: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of the floating-point tensors that hold NaN or infinity."""
    return [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]


def _reader_of(path: Path) -> Callable[[Path], Any]:
    if path.suffix == ".pkl":
        return _unpickle_arrays
    return _load_safetensors if path.suffix == ".safetensors" else _load_tensors


# What the three readers raise on files that are damaged or hold something else.
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    OSError,
    MemoryError,
    OverflowError,
)


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError  # comes with timm
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"not a safetensors file: {error}") from error


def _load_tensors(path: Path) -> Any:
    """Reads a .pth file of tensors, arrays and plain values: what trainers leave beside the weights holds NumPy's numbers."""
    if tarfile.is_tarfile(path):
        # Before 2.6, PyTorch ran code from such files even with weights_only (CVE-2025-32434); nothing has written them since 2017.
        raise CheckpointError(
            "it is a tar archive, the format of PyTorch before 0.1.10; load and save it with a newer one"
        )
    # weights_only is said, since it is PyTorch's default only from 2.6 on.
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
