"""Checkpoints that hold objects of the program that wrote them: the tensors are read, every other object stays inert."""

import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathManager

from u2seg.checkpoint.reading import CheckpointError

# What builds tensors; torch's own weights-only reader trusts these as well.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
}


class InertObject(dict):
    """Stands for an object whose class is not looked up; it takes whatever a file wants to put into it, and forgets it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "InertObject":
        """Takes any arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        """Takes any arguments."""
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Takes any state."""

    def __hash__(self) -> int:  # type: ignore[override]  # a key of another object's dict, which is not read either
        """Returns a number of its own."""
        return id(self)

    def append(self, item: Any) -> None:
        """Takes what a list would."""

    def extend(self, items: Any) -> None:
        """Takes what a list would."""


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(module, name) if (module, name) in _ALLOWED else InertObject


def read_with_inert_objects(path: str | Path) -> dict[str, Any]:
    """Returns a checkpoint whose tensors and plain values are read, and every other object is an :class:`InertObject`.

    For files such as PyTorch Lightning's, which hold the settings of a training as objects of other libraries. No class and no function
    that the file names is imported or called, but the four that build tensors.

    Args:
        path: a file of ``torch.save`` in its present format, a zip archive; or anything that ``PathManager`` reads.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: it is no such file, or damaged.
    """
    local = Path(PathManager.get_local_path(str(path)))
    if not local.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if not zipfile.is_zipfile(local):
        raise CheckpointError(f"{path} is no zip archive of PyTorch's; load and save it with PyTorch 1.6 or newer")
    with zipfile.ZipFile(local) as archive:
        # By this file torch.load knows TorchScript, which it would hand to another reader.
        if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
            raise CheckpointError(f"{path} is a TorchScript program; expected a checkpoint")
    reader = types.SimpleNamespace(Unpickler=_InertUnpickler, __name__="inert")
    try:
        content = torch.load(local, "cpu", pickle_module=reader, weights_only=False)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is no checkpoint that can be read safely: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a dictionary")
    return content
