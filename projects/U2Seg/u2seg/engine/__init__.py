"""Training: the trainer, its steps and hooks, self-training, a whole run from photos to scores."""

from u2seg.engine.hooks import HOOK_REGISTRY
from u2seg.engine.launch import continue_training, run_self_training, run_training
from u2seg.engine.photo_run import run_hooks as _run_hooks  # noqa: F401  (registers)
from u2seg.engine.trainer import U2SegTrainer
from u2seg.engine.training_record import TrainingMismatchError
from u2seg.engine.training_step import NonFiniteLossError

__all__ = [
    "HOOK_REGISTRY",
    "NonFiniteLossError",
    "TrainingMismatchError",
    "U2SegTrainer",
    "continue_training",
    "run_self_training",
    "run_training",
]
