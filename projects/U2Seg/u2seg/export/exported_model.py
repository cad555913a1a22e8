"""An exported model in use: the runtime, the post-processing, and the comparison with the model that it was made from."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from u2seg.export.tracing import (
    INPUT,
    OUTPUTS,
    format_of,
    model_input,
    require_package,
    settings_path,
)
from u2seg.predictor import Prediction, Predictor
from u2seg.utils.files import read_json


class ExportedModel:
    """A model from a file that :func:`u2seg.export.export_model` wrote: takes an image, returns what the predictor does.

    ``.onnx`` runs in ONNX Runtime and ``.ts`` in TorchScript, both on the CPU.
    """

    def __init__(self, path: str | Path):
        """Loads the model and the JSON file beside it.

        Args:
            path: the exported file. ONNX Runtime gets as many threads as PyTorch has.

        Raises:
            FileNotFoundError: one of the two files is missing.
            ModuleNotFoundError: ``.onnx`` without the package ``onnxruntime``.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no exported model at {path}; `u2seg export` writes one")
        self.settings: dict[str, Any] = read_json(settings_path(path))
        self._run = _onnx_session(path) if format_of(path) == "onnx" else _torchscript(path)

    def __call__(self, image_rgb: np.ndarray) -> Prediction:
        """Returns the prediction for one image, uint8 (H, W, 3) in RGB."""
        image = model_input(image_rgb, self.settings["input"])
        outputs = dict(zip(OUTPUTS, self._run(image)))
        return _prediction(outputs, tuple(image.shape[1:]), image_rgb.shape[:2], self.settings["combine"])


def _onnx_session(path: Path) -> Any:
    require_package("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(value) for value in session.run(None, {INPUT: image.numpy()})]


def _torchscript(path: Path) -> Any:
    model = torch.jit.load(str(path), map_location="cpu")

    def run(image: Tensor) -> tuple[Tensor, ...]:
        # The optimizer would compile anew for each image size, for seconds.
        with torch.no_grad(), torch.jit.optimized_execution(False):
            return model(image)

    return run


def _prediction(
    outputs: dict[str, Tensor], model_size: tuple[int, int], size: tuple[int, int], rule: dict[str, float]
) -> Prediction:
    """Returns the heads' raw outputs as Detectron2's Panoptic-FPN completes them.

    Args:
        outputs: by name, see :data:`u2seg.export.tracing.OUTPUTS`.
        model_size: (height, width) of the image as the model saw it.
        size: (height, width) of the image itself.
        rule: of the panoptic merge: "overlap", "stuff_area", "instance_score".
    """
    found = Instances(
        model_size,
        pred_boxes=Boxes(outputs["boxes"]),
        pred_classes=outputs["classes"],
        pred_masks=outputs["masks"],
        scores=outputs["scores"],
    )
    instances = detector_postprocess(found, *size)
    semantic = None
    if "semantic" in outputs:
        semantic = sem_seg_postprocess(outputs["semantic"][0], model_size, *size).argmax(dim=0)
    # Without a semantic head everything but the instances is void.
    stuff = semantic if semantic is not None else torch.zeros(size, dtype=torch.long)
    panoptic, segments = combine_semantic_and_instance_outputs(
        instances, stuff, rule["overlap"], rule["stuff_area"], rule["instance_score"]
    )
    return Prediction(
        panoptic.numpy().astype(np.int32), segments, instances, None if semantic is None else semantic.numpy()
    )


@dataclass(frozen=True)
class Agreement:
    """How far an exported model differs from the one that it was made from, at worst, over some images.

    Attributes:
        images: how many were compared, and ``sizes``, how many different sizes they have.
        detections: of the eager model, in all images.
        unmatched: detections that one of the two has and the other has not.
        box: largest difference of a box coordinate, pixels.
        score: largest difference of a score.
        mask_iou: smallest IoU of a detection's two masks; 1 where there is no detection.
        panoptic: smallest share of an image's pixels with the same class and the same segment.
        eager_ms, exported_ms: median milliseconds an image, pre- and post-processing included.
    """

    images: int
    sizes: int
    detections: int
    unmatched: int
    box: float
    score: float
    mask_iou: float
    panoptic: float
    eager_ms: float
    exported_ms: float

    @property
    def is_close(self) -> bool:
        """Whether boxes and scores agree to 1e-3, masks to an IoU of 0.99, and 99.5 % of each panoptic map."""
        return (
            self.unmatched == 0
            and self.box <= 1e-3
            and self.score <= 1e-3
            and self.mask_iou >= 0.99
            and self.panoptic >= 0.995
        )


def compare(predictor: Predictor, exported: ExportedModel, images: Sequence[np.ndarray]) -> Agreement:
    """Returns how far two models' predictions differ on some images.

    Args:
        predictor: the model.
        exported: made from it.
        images: uint8 (H, W, 3) in RGB.

    Raises:
        ValueError: no image.
    """
    if not images:
        raise ValueError("the exported model is compared on images, got none")
    rows, times, detections = [], [], 0
    exported(images[0])  # a runtime's first image is slower than all others
    for image in images:
        begin = time.perf_counter()
        first = predictor(image)
        middle = time.perf_counter()
        second = exported(image)
        times.append((middle - begin, time.perf_counter() - middle))
        detections += len(first.instances)
        rows.append((*_instance_differences(first, second), _same_pixels(first, second)))
    unmatched, boxes, scores, ious, pixels = zip(*rows)
    eager_ms, exported_ms = (1000 * median(column) for column in zip(*times))
    return Agreement(
        images=len(images),
        sizes=len({image.shape[:2] for image in images}),
        detections=detections,
        unmatched=sum(unmatched),
        box=max(boxes),
        score=max(scores),
        mask_iou=min(ious),
        panoptic=min(pixels),
        eager_ms=eager_ms,
        exported_ms=exported_ms,
    )


def _instance_differences(first: Prediction, second: Prediction) -> tuple[int, float, float, float]:
    """Returns unmatched detections, largest box and score differences, smallest mask IoU; pairs are those nearest in box and score."""
    a: Any = first.instances
    b: Any = second.instances
    if not len(a) or not len(b):
        return len(a) + len(b), 0.0, 0.0, 1.0
    box = (a.pred_boxes.tensor[:, None] - b.pred_boxes.tensor[None]).abs().amax(dim=2)
    score = (a.scores[:, None] - b.scores[None]).abs()
    other_class = a.pred_classes[:, None] != b.pred_classes[None]
    nearest = (box + score).masked_fill(other_class, torch.inf).argmin(dim=1)
    index = torch.arange(len(a))
    is_pair = ~other_class[index, nearest]
    unmatched = len(a) + len(b) - int(is_pair.sum()) - len(set(nearest[is_pair].tolist()))
    if not is_pair.any():
        return unmatched, 0.0, 0.0, 1.0
    index, nearest = index[is_pair], nearest[is_pair]
    masks, others = a.pred_masks[index], b.pred_masks[nearest]
    union = (masks | others).sum((1, 2))
    iou = torch.where(union > 0, (masks & others).sum((1, 2)) / union.clamp(min=1), 1.0)
    return unmatched, float(box[index, nearest].max()), float(score[index, nearest].max()), float(iou.min())


def _same_pixels(first: Prediction, second: Prediction) -> float:
    """Returns the share of pixels whose class is the same, and whose segments are the same ones."""
    same = _class_map(first) == _class_map(second)
    # Segment ids are numbers of an order; a segment is the same where it is the one that it shares most pixels with.
    for number in np.unique(first.panoptic_map):
        inside = first.panoptic_map == number
        partners, counts = np.unique(second.panoptic_map[inside], return_counts=True)
        same &= ~inside | (second.panoptic_map == partners[counts.argmax()])
    return float(same.mean())


def _class_map(prediction: Prediction) -> np.ndarray:
    """Returns int (H, W): 0 void, 2 c + 1 for thing class c, 2 c for stuff class c, which begin at 1."""
    values = {s["id"]: 2 * s["category_id"] + bool(s["isthing"]) for s in prediction.segments_info}
    lookup = np.zeros(int(prediction.panoptic_map.max(initial=0)) + 1, np.int64)
    for number, value in values.items():
        if number < len(lookup):
            lookup[number] = value
    return lookup[prediction.panoptic_map]
