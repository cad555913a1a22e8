"""What happens beside training: averaged weights, images of predictions."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from u2seg.checkpoint.checkpointer import require_finite, save_to_disk
from u2seg.data import build_mapper
from u2seg.engine.training_record import AVERAGED
from u2seg.utils.files import atomic_path
from u2seg.utils.image_io import png_names
from u2seg.utils.registry import NamedRegistry

if TYPE_CHECKING:
    from u2seg.visualization import ClassStyle

logger = logging.getLogger(__name__)

HOOK_REGISTRY = NamedRegistry("HOOK")
HOOK_REGISTRY.__doc__ = """
What else happens while a model trains, chosen by ``HOOKS``: an entry is called as ``(cfg, trainer)`` and returns a Detectron2
``HookBase``, or None where the configuration asks for nothing. It runs after the evaluation and before the writers.
"""


class AveragedWeights:
    """An exponential moving average of a model's weights, with warm-up.

    After update number t each average a moves to ``d a + (1 - d) w`` with ``d = min(decay, (1 + t) / (10 + t))``, so that the random
    start is forgotten; integer buffers are copied. Source: TensorFlow's ``ExponentialMovingAverage`` (the warm-up), CUPS (use).
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        """Starts from the model's weights.

        Args:
            model: whose weights are averaged.
            decay: d above, 0..1.
        """
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.decay = decay
        self.reset()

    def reset(self) -> None:
        """Starts anew from the model's weights as they are now."""
        self.updates = 0
        self.weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's weights as they are now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the averaged weights into the model while the block runs."""
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def state_dict(self) -> dict:
        """Returns what a resumed training needs."""
        return {"updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """Takes over what :meth:`state_dict` returned."""
        self.updates = state["updates"]
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)


class EMAHook(HookBase):
    """Updates the averaged weights after every step, and writes ``model_ema.pth`` at the end."""

    def __init__(self, average: AveragedWeights, output_dir: str):
        """Keeps the average and the run's directory."""
        self._average = average
        self._path = Path(output_dir) / AVERAGED

    def after_step(self) -> None:
        """Updates the average."""
        self._average.update()
        if self.trainer.iter + 1 == self.trainer.max_iter and comm.is_main_process():
            require_finite(self._average.weights, AVERAGED)
            with atomic_path(self._path) as temporary:
                save_to_disk({"model": self._average.weights}, temporary)


class VisualizationHook(HookBase):
    """Draws predictions on a few images every so often, into ``OUTPUT_DIR/samples`` and TensorBoard."""

    def __init__(self, cfg: CfgNode):
        """Reads period and number of images from ``cfg.TEST``."""
        self._cfg = cfg
        self._period = cfg.TEST.SAMPLE_PERIOD
        self._directory = Path(cfg.OUTPUT_DIR) / "samples"
        self._samples: list[dict] | None = None

    def after_step(self) -> None:
        """Draws the images where it is time to."""
        if (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter + 1 == self.trainer.max_iter:
            self._draw()

    def _draw(self) -> None:
        from u2seg.visualization import draw_panoptic

        if self._samples is None:
            self._samples = self._load()
        style = self._style()
        model = self.trainer.model
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for sample in self._samples:
                    panoptic_map, segments = model([sample])[0]["panoptic_seg"]
                    image = draw_panoptic(_rgb(sample, self._cfg), panoptic_map.cpu().numpy(), segments, style)
                    self._save(sample, image)
        finally:
            model.train(was_training)

    def _save(self, sample: dict, image: np.ndarray) -> None:
        from u2seg.visualization import save_image

        stem = Path(png_names([Path(sample["file_name"]).name])[0]).stem
        save_image(self._directory / f"{stem}_{self.trainer.iter + 1:07d}.png", image)
        self.trainer.storage.put_image(f"predictions/{stem}", image.transpose(2, 0, 1))

    def _load(self) -> list[dict]:
        mapper = build_mapper(self._cfg, False)
        return [mapper(record) for record in DatasetCatalog.get(self._dataset())[: self._cfg.TEST.NUM_SAMPLES]]

    def _style(self) -> "ClassStyle":
        from u2seg.visualization import ClassStyle

        # Clusters, not categories: what the model predicts is numbered by its training set.
        metadata = MetadataCatalog.get(self._cfg.DATASETS.TRAIN[0])
        return ClassStyle.of_names(metadata.get("thing_classes", []), metadata.get("stuff_classes", []))

    def _dataset(self) -> str:
        return (*self._cfg.DATASETS.TEST, *self._cfg.DATASETS.TRAIN)[0]


def _rgb(sample: dict, cfg: CfgNode) -> np.ndarray:
    """Returns the image of a test sample, uint8 (H, W, 3) in RGB, at the size of its prediction."""
    import cv2

    image = sample["image"].numpy().transpose(1, 2, 0)
    if cfg.INPUT.FORMAT == "BGR":
        image = image[:, :, ::-1]
    return cv2.resize(np.ascontiguousarray(image), (sample["width"], sample["height"]), interpolation=cv2.INTER_LINEAR)
