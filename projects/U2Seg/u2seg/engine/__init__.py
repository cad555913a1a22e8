"""Training: the trainer, its steps, hooks, optimisers and checkpoints."""

from u2seg.engine.checkpoint import AtomicCheckpointer
from u2seg.engine.launch import run_self_training, run_training
from u2seg.engine.optimizers import OPTIMIZER_REGISTRY, build_optimizer
from u2seg.engine.setup import check_class_counts, checkpoint_class_counts, complete_config
from u2seg.engine.step import NonFiniteLossError
from u2seg.engine.trainer import U2SegTrainer

__all__ = [
    "OPTIMIZER_REGISTRY",
    "AtomicCheckpointer",
    "NonFiniteLossError",
    "U2SegTrainer",
    "build_optimizer",
    "check_class_counts",
    "checkpoint_class_counts",
    "complete_config",
    "run_self_training",
    "run_training",
]
