"""One training of a small head on frozen features, by Detectron2's trainer and hooks; killed, it goes on where it was."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils.events import JSONWriter
from torch import nn

from u2seg.checkpoint.checkpointer import AtomicCheckpointer
from u2seg.utils.progress import Progress


@dataclass(frozen=True)
class HeadSchedule:
    """How long and how a head is trained.

    Attributes:
        name: of the training, for progress and for its directory.
        max_iter: iterations.
        checkpoint_period: iterations between checkpoints.
        seed: of the random numbers that the model draws.
        max_norm: to which the gradient of all parameters is clipped; 0: not at all.
        learning_rate: maps an iteration to the factor of the optimizer's learning rates.
    """

    name: str
    max_iter: int
    checkpoint_period: int
    seed: int
    max_norm: float = 0.0
    learning_rate: Callable[[int], float] = field(default=lambda iteration: 1.0)


def train_head(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_of: Callable[[int], Any],
    directory: Path,
    schedule: HeadSchedule,
    more_hooks: tuple[HookBase, ...] = (),
) -> None:
    """Trains ``model`` in place, or goes on from the directory's last checkpoint, or takes over the finished one.

    Args:
        model: returns a dict of losses for a batch, while it is in training mode; all that it learns is in its state.
        optimizer: of its parameters.
        batch_of: returns the batch of an iteration; equal iterations get equal batches.
        directory: for checkpoints and ``metrics.json``.
        schedule: see there.
        more_hooks: what else happens after a step, before the checkpoint.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    directory.mkdir(parents=True, exist_ok=True)
    trainer = _HeadTrainer(model, optimizer, batch_of, schedule)
    checkpointer = AtomicCheckpointer(model, str(directory), trainer=trainer)
    checkpointer.logger.disabled = True  # a line for each of a hundred checkpoints would break the bar
    trainer.register_hooks(
        [
            *more_hooks,
            _LearningRate(optimizer, schedule.learning_rate),
            hooks.PeriodicCheckpointer(
                checkpointer, schedule.checkpoint_period, max_iter=schedule.max_iter, max_to_keep=1
            ),
            hooks.PeriodicWriter([JSONWriter(str(directory / "metrics.json"))], period=20),
        ]
    )
    start_iter = 0
    try:
        if checkpointer.has_checkpoint():
            checkpointer.resume_or_load("", resume=True)
            start_iter = trainer.iter + 1
        if start_iter < schedule.max_iter:
            with Progress(schedule.max_iter, schedule.name, unit="iterations", initial=start_iter) as bar:
                trainer.bar = bar
                trainer.train(start_iter, schedule.max_iter)
    finally:
        checkpointer.logger.disabled = False
    model.eval()


class _HeadTrainer(SimpleTrainer):
    """Detectron2's trainer with the random numbers of an iteration drawn from the seed, and clipping of the whole gradient."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch_of: Callable[[int], Any],
        schedule: HeadSchedule,
    ):
        super().__init__(model, self._batches(batch_of), optimizer)
        self._schedule = schedule
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.bar: Progress | None = None

    def run_step(self) -> None:
        state = np.random.SeedSequence((self._schedule.seed, self.iter)).generate_state(2)
        torch.manual_seed(int(state[0]) << 32 | int(state[1]))
        super().run_step()

    def after_backward(self) -> None:
        super().after_backward()
        if self._schedule.max_norm:
            torch.nn.utils.clip_grad_norm_(self._parameters, self._schedule.max_norm)

    def after_step(self) -> None:
        super().after_step()
        if self.bar is not None:
            self.bar.update()

    def _batches(self, batch_of: Callable[[int], Any]) -> Iterator[Any]:
        while True:
            yield batch_of(self.iter)


class _LearningRate(HookBase):
    """Sets the learning rates before a step, from the iteration alone."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]):
        self._optimizer = optimizer
        self._factor = factor
        self._base = [group["lr"] for group in optimizer.param_groups]

    def before_step(self) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._base):
            group["lr"] = rate * self._factor(self.trainer.iter)
