"""One training step: forward, backward, optimizer, for any precision and any number of accumulated batches."""

import contextlib
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

_MODEL = 4  # what the random numbers are for; u2seg.data.build uses the numbers below


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite; the message names the images, the learning rate and the last good checkpoint."""


class TrainingStep(SimpleTrainer):
    """Runs training steps; Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, with gradient accumulation.

    The random numbers that the model draws depend on the seed, the iteration and the process, so that a resumed training repeats
    them. A loss that is not finite stops the training before any weight changes.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        accumulation_steps: int = 1,
        precision: torch.dtype | None = None,
        last_checkpoint: Callable[[], str] = lambda: "",
    ):
        """Keeps the parts.

        Args:
            model: returns a dict of losses for a batch.
            data_loader: endless.
            optimizer: of the model's parameters.
            seed: of the model's random numbers.
            accumulation_steps: batches whose gradients are averaged into one step.
            precision: torch.bfloat16 or torch.float16 for mixed precision; None: single precision.
            last_checkpoint: returns the path of the last checkpoint, for the message of an error.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.accumulation_steps = accumulation_steps
        self.precision = precision
        self.last_checkpoint = last_checkpoint
        self.device_type = next(model.parameters()).device.type
        # Only float16 has too small a range to go without scaling.
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=precision is torch.float16)

    def run_step(self) -> None:
        """Runs one optimizer step."""
        self.optimizer.zero_grad(set_to_none=True)
        data_time = 0.0
        total: dict[str, float] = {}
        for step in range(self.accumulation_steps):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            with self._gradients_synced(last=step + 1 == self.accumulation_steps):
                for key, value in self._accumulate(data, step).items():
                    total[key] = total.get(key, 0.0) + value
        self.after_backward()
        self._write_metrics({key: torch.as_tensor(value) for key, value in total.items()}, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _accumulate(self, data: list[dict], step: int) -> dict[str, float]:
        """Adds the gradients of one batch; returns its losses, divided by the number of batches."""
        state = np.random.SeedSequence((self.seed, _MODEL, self.iter, step, comm.get_rank())).generate_state(2)
        torch.manual_seed(int(state[0]) << 32 | int(state[1]))
        with self._autocast():
            try:
                losses = self.model(data)
            except FloatingPointError as error:  # Detectron2's RPN finds NaN before there is a loss
                raise self._diverged(data, str(error).rstrip(".")) from error
            if isinstance(losses, torch.Tensor):
                losses = {"total_loss": losses}
            total = sum(losses.values())
        # One transfer for all losses, and before anything is changed.
        values = torch.stack([value.detach().float() for value in losses.values()]).cpu().numpy()
        if not np.isfinite(values).all():
            bad = ", ".join(f"{key} {value}" for key, value in zip(losses, values.tolist()) if not np.isfinite(value))
            raise self._diverged(data, bad)
        self.grad_scaler.scale(total / self.accumulation_steps).backward()
        return {key: float(value) / self.accumulation_steps for key, value in zip(losses, values)}

    def _diverged(self, data: list[dict], what: str) -> NonFiniteLossError:
        images = ", ".join(f"{record.get('image_id', '?')} ({record.get('file_name', '?')})" for record in data)
        rates = sorted({group["lr"] for group in self.optimizer.param_groups})
        return NonFiniteLossError(
            f"iteration {self.iter}: {what}. Images: {images}. Learning rate: {', '.join(f'{rate:g}' for rate in rates)}. "
            f"Last good checkpoint: {self.last_checkpoint() or 'none'}; no weight was changed and nothing overwritten. Go on from "
            "it (--resume) with a lower SOLVER.BASE_LR, a longer warm-up or SOLVER.CLIP_GRADIENTS, or look at these images."
        )

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.precision)

    def _gradients_synced(self, last: bool) -> contextlib.AbstractContextManager:
        if not last and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def state_dict(self) -> dict:
        """Returns what a resumed training needs."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes over what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty where the run that is resumed did not scale
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def resolve_precision(cfg: CfgNode) -> torch.dtype | None:
    """Returns the lower precision that ``SOLVER.AMP`` asks for on the machine at hand; None: single precision throughout.

    Raises:
        ValueError: ``SOLVER.AMP.PRECISION`` is not known, or is float16 on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name, device = cfg.SOLVER.AMP.PRECISION, cfg.MODEL.DEVICE.split(":")[0]
    if name == "auto":
        if device == "cpu":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name == "fp16" and device == "cpu":
        raise ValueError(
            "SOLVER.AMP.PRECISION fp16 needs a GPU; use bf16, or auto, which trains in single precision on a CPU"
        )
    known = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in known:
        raise ValueError(f"SOLVER.AMP.PRECISION must be auto, bf16 or fp16, got {name!r}")
    return known[name]
