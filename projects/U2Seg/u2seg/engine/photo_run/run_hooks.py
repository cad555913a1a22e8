"""Hooks of a training that ``u2seg run`` starts: a progress line, and one checkpoint on the disk in place of many."""

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase
from detectron2.utils import comm

from u2seg.checkpoint.checkpointer import last_checkpoint
from u2seg.engine.hooks import HOOK_REGISTRY
from u2seg.utils.progress import Progress


@HOOK_REGISTRY.register()
class TrainingProgress(HookBase):
    """Shows iterations and the time left, from the main process."""

    def __init__(self, cfg: CfgNode, trainer: TrainerBase):
        """Keeps nothing; see the registry for the arguments."""
        self._progress: Progress | None = None

    def before_train(self) -> None:
        """Starts the clock."""
        if comm.is_main_process():
            total, first = self.trainer.max_iter, self.trainer.start_iter
            self._progress = Progress(total, "training", unit="iterations", initial=first).__enter__()

    def after_step(self) -> None:
        """Counts one iteration; after the last one the line is written, before scoring begins."""
        if self._progress is not None:
            self._progress.update()
            if self.trainer.iter + 1 >= self.trainer.max_iter:
                self._progress.__exit__(None, None, None)
                self._progress = None


@HOOK_REGISTRY.register()
class KeepLastCheckpoint(HookBase):
    """Deletes the numbered checkpoints that a newer one has replaced."""

    def __init__(self, cfg: CfgNode, trainer: TrainerBase):
        """Keeps the directory; see the registry for the arguments."""
        self._directory = Path(cfg.OUTPUT_DIR)

    def after_step(self) -> None:
        """Deletes; runs after the checkpointer."""
        last = last_checkpoint(self._directory)
        if not comm.is_main_process() or last is None:
            return
        for path in self._directory.glob("model_[0-9]*.pth"):
            if path.name != last.name:
                path.unlink()
