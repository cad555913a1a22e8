"""Checkpoints that are written whole or not at all, and never with weights that are not finite."""

import os
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from u2seg.utils.files import atomic_path


class AtomicCheckpointer(DetectionCheckpointer):
    """Saves as Detectron2's checkpointer does, but under a temporary name that is renamed when the file is complete and on disk.

    A kill at any moment leaves the previous checkpoint and its ``last_checkpoint`` mark as they were.
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

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the checkpoint that ``--resume`` goes on from."""
        with atomic_path(Path(self.save_dir) / "last_checkpoint") as temporary:
            temporary.write_text(last_filename_basename)


def save_to_disk(data: dict, path: Path) -> None:
    """Writes ``data`` by ``torch.save`` and waits until it has reached the disk."""
    with path.open("wb") as file:
        torch.save(data, file)
        file.flush()
        os.fsync(file.fileno())


def require_finite(weights: dict[str, torch.Tensor], what: str) -> None:
    """Raises FloatingPointError, naming the tensors, where a floating-point one holds NaN or infinity."""
    bad = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise FloatingPointError(
            f"{what} is not written: {', '.join(bad[:5])}{more} hold NaN or infinity. The last good one is kept; go on from it "
            "with a lower SOLVER.BASE_LR, a longer warm-up or SOLVER.CLIP_GRADIENTS."
        )
