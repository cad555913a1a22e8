"""Where a training's losses and scores go beside the console, ``metrics.json`` and TensorBoard's file: Weights & Biases, MLflow."""

import importlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage
from yaml import safe_load

from u2seg.utils.registry import NamedRegistry, get_registered

LOG_WRITER_REGISTRY = NamedRegistry("LOG_WRITER")
LOG_WRITER_REGISTRY.__doc__ = """
What writes a training's scalars somewhere: called as ``(cfg)``, returns a Detectron2 ``EventWriter``, or None where Detectron2 writes
already. Chosen by ``LOG_TO``, ``--log-to`` on the command line.
"""
_WINDOW = 20  # iterations whose median is written, as Detectron2's own writers do


def build_log_writers(cfg: CfgNode) -> list[EventWriter]:
    """Returns the writers that ``LOG_TO`` names.

    Raises:
        UnknownNameError: an unknown name.
        ModuleNotFoundError: a package is not installed; the message says how it is.
    """
    found = [get_registered(LOG_WRITER_REGISTRY, name, "LOG_TO")(cfg) for name in cfg.LOG_TO]
    return [writer for writer in found if writer is not None]


class ScalarWriter(EventWriter):
    """Passes each scalar on once, the scalars of an iteration together."""

    def __init__(self, log: Callable[[dict[str, float], int], None], close: Callable[[], None]):
        """Takes where the scalars go.

        Args:
            log: called with name -> value and the iteration.
            close: called at the end.
        """
        self._log, self._close = log, close
        self._last_write = -1

    def write(self) -> None:
        """Passes on what is new since the last call."""
        by_iteration: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last_write:
                by_iteration[iteration][name] = float(value)
        for iteration, values in sorted(by_iteration.items()):
            self._log(values, iteration)
            self._last_write = iteration

    def close(self) -> None:
        """Ends the run there."""
        self._close()


@LOG_WRITER_REGISTRY.register("tensorboard")
def tensorboard_writer(cfg: CfgNode) -> None:
    """Returns None: Detectron2 writes TensorBoard's file in every ``OUTPUT_DIR``."""


@LOG_WRITER_REGISTRY.register("wandb")
def wandb_writer(cfg: CfgNode) -> ScalarWriter:
    """Returns a writer to Weights & Biases; a resumed training goes on in the same run. ``WANDB_*`` variables apply."""
    wandb = _import("wandb")
    mark = Path(cfg.OUTPUT_DIR) / "wandb_run"
    run = wandb.init(
        project="u2seg",
        name=Path(cfg.OUTPUT_DIR).absolute().name,
        dir=cfg.OUTPUT_DIR,
        config=_settings(cfg),
        id=mark.read_text(encoding="utf-8") if mark.is_file() else None,
        resume="allow",
    )
    mark.write_text(run.id, encoding="utf-8")
    return ScalarWriter(lambda values, iteration: run.log(values, step=iteration), run.finish)


@LOG_WRITER_REGISTRY.register("mlflow")
def mlflow_writer(cfg: CfgNode) -> ScalarWriter:
    """Returns a writer to MLflow; a resumed training goes on in the same run. ``MLFLOW_TRACKING_URI`` and the like apply."""
    mlflow: Any = _import("mlflow")
    mark = Path(cfg.OUTPUT_DIR) / "mlflow_run"
    known = mark.read_text(encoding="utf-8") if mark.is_file() else None
    if known is None:
        mlflow.set_experiment("u2seg")
    run = mlflow.start_run(run_id=known, run_name=None if known else Path(cfg.OUTPUT_DIR).absolute().name)
    mark.write_text(run.info.run_id, encoding="utf-8")
    if known is None:
        mlflow.log_dict(_settings(cfg), "config.yaml")
    return ScalarWriter(
        lambda values, iteration: mlflow.log_metrics(_mlflow_names(values), step=iteration), mlflow.end_run
    )


def _mlflow_names(values: dict[str, float]) -> dict[str, float]:
    """Returns the scalars under names that MLflow takes: letters, digits and ``_-./ :`` alone."""
    return {"".join(c if c.isalnum() or c in "_-./ :" else "_" for c in name): value for name, value in values.items()}


def _settings(cfg: CfgNode) -> dict[str, Any]:
    return safe_load(cfg.dump())


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"--log-to {name} needs the package {name}, which is not installed: pip install 'u2seg[{name}]'", name=name
        ) from None
