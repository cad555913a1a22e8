"""A trained model as one file for other runtimes, ONNX or TorchScript, traced by Detectron2's adapter."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.export import TracingAdapter
from torch import Tensor, nn

from u2seg.modeling.stable_order import StableOrder
from u2seg.predictor import Predictor, resized_for_model
from u2seg.utils.files import atomic_path, write_json
from u2seg.version import __version__

FORMATS = {"onnx": ".onnx", "torchscript": ".ts"}
INPUT = "image"
# By name, in the order in which the adapter returns them; models without a semantic head lack the last one.
OUTPUTS = ("boxes", "classes", "masks", "scores", "semantic")
# RoiAlign with aligned corners is part of ONNX since 16; runtimes of 2022 and later read 17.
OPSET = 17
# What a model must have to be traced: the parts of Detectron2's detectors.
_PARTS = ("backbone", "proposal_generator", "roi_heads", "preprocess_image")


class ExportError(ValueError):
    """A model that cannot be exported; the message says why."""


def export_model(predictor: Predictor, path: str | Path, images: Iterable[np.ndarray]) -> Path:
    """Writes a model without its post-processing, and beside it a JSON file that says how it is used; returns the model's path.

    The file takes one image, float32 (3, H, W) of any size, 0..255, channels in ``INPUT.FORMAT``'s order, already resized. It gives
    ``boxes`` float32 (N, 4), XYXY in pixels of that image; ``classes`` int64 (N,); ``masks`` float32 (N, 1, M, M), probabilities inside
    the boxes; ``scores`` float32 (N,); and, of a Panoptic-FPN, ``semantic`` float32 (1, S + 1, H', W'), the logits of the image padded
    to a multiple of the network's stride. :class:`u2seg.export.ExportedModel` does the rest.

    Args:
        predictor: the trained model, on the CPU.
        path: the file to write, ``.onnx`` or ``.ts`` (TorchScript).
        images: uint8 (H, W, 3) in RGB, of the kind that the model is for. It is traced on the first one in which it finds something:
            heads that see nothing cannot be followed.

    Raises:
        ExportError: the model has no box heads, is not on the CPU, or finds nothing in any of the images; or the file's name ends in
            neither of the two.
        ModuleNotFoundError: ``.onnx`` without the package ``onnx``.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "onnx":
        require_package("onnx")
    _require_exportable(predictor.model)
    adapter = _adapter(predictor, images)
    with atomic_path(path) as temporary, _quiet_tracing():
        if kind == "onnx":
            _write_onnx(adapter, temporary, with_semantic=_has_semantic_head(predictor.model))
        else:
            # ONNX's operator for topk orders equal scores as this does; TorchScript's leaves it open.
            with StableOrder():
                traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
            traced.save(str(temporary))
    write_json(settings_path(path), _settings(predictor, kind))
    return path


def format_of(path: Path) -> str:
    """Returns "onnx" or "torchscript", by the end of a file's name.

    Raises:
        ExportError: it ends in something else.
    """
    for kind, suffix in FORMATS.items():
        if path.suffix == suffix:
            return kind
    raise ExportError(f"{path} must end in {' or '.join(FORMATS.values())}, by which the format is known")


def settings_path(path: Path) -> Path:
    """Returns the JSON file that stands beside an exported model."""
    return path.with_suffix(".json")


def require_package(name: str) -> None:
    """Imports a package of the extra ``export``.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how it is.
    """
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(
            f"ONNX files need the package {name}, which is not installed: pip install 'u2seg[export]' or pip install {name}",
            name=name,
        ) from None


def _require_exportable(model: nn.Module) -> None:
    missing = [part for part in _PARTS if not hasattr(model, part)]
    if missing:
        raise ExportError(
            f"{type(model).__name__} cannot be exported: it has no {' and no '.join(missing)}. Panoptic-FPN and Mask R-CNN, with "
            "cascade heads or without, can be"
        )
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ExportError(f"a model is exported from the CPU, got one on {device}; set MODEL.DEVICE cpu")


def _has_semantic_head(model: nn.Module) -> bool:
    return hasattr(model, "sem_seg_head")


def _raw_outputs(model: Any, inputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns what the heads say of one image, before anything is pasted, resized or merged."""
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features, None)
    detections, _ = model.roi_heads(images, features, proposals, None)
    found = detections[0]
    outputs = {
        "boxes": found.pred_boxes.tensor,
        "classes": found.pred_classes,
        "masks": found.pred_masks,
        "scores": found.scores,
    }
    if _has_semantic_head(model):
        outputs["semantic"], _ = model.sem_seg_head(features, None)
    return outputs


def _adapter(predictor: Predictor, images: Iterable[np.ndarray]) -> TracingAdapter:
    """Returns the adapter around the model, with the first image in which it finds something."""
    tried = 0
    for image_rgb in images:
        tried += 1
        inputs = [{"image": model_input(image_rgb, input_settings(predictor))}]
        with torch.no_grad():
            found = len(_raw_outputs(predictor.model, inputs)["scores"])
        if found:
            # The adapter is a module of its own: in training mode it would take the model with it.
            return TracingAdapter(predictor.model, inputs, _raw_outputs).eval()
    raise ExportError(
        f"the model finds nothing in {tried} images, so its mask head cannot be traced; give images of the kind that it is for, or "
        "lower MODEL.ROI_HEADS.SCORE_THRESH_TEST"
    )


def input_settings(predictor: Predictor) -> dict[str, Any]:
    """Returns how an image is made ready for the model, as the JSON file says it."""
    cfg = predictor.cfg.INPUT
    return {"channels": cfg.FORMAT, "shorter_side": cfg.MIN_SIZE_TEST, "longest_side": cfg.MAX_SIZE_TEST}


def model_input(image_rgb: np.ndarray, settings: dict[str, Any]) -> Tensor:
    """Returns an image as the model takes it, float32 (3, H, W), 0..255.

    Args:
        image_rgb: uint8 (H, W, 3).
        settings: of :func:`input_settings`.
    """
    pixels = image_rgb if settings["channels"] == "RGB" else image_rgb[:, :, ::-1]
    pixels = resized_for_model(pixels, settings["shorter_side"], settings["longest_side"])
    return torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1).copy())


def _settings(predictor: Predictor, kind: str) -> dict[str, Any]:
    rule = predictor.cfg.MODEL.PANOPTIC_FPN.COMBINE
    return {
        "u2seg": __version__,
        "format": kind,
        "input": input_settings(predictor),
        "combine": {
            "overlap": rule.OVERLAP_THRESH,
            "stuff_area": rule.STUFF_AREA_LIMIT,
            "instance_score": rule.INSTANCES_CONFIDENCE_THRESH,
        },
        "thing_classes": predictor.style.thing_names,
        "stuff_classes": predictor.style.stuff_names,
    }


def _write_onnx(adapter: TracingAdapter, path: Path, *, with_semantic: bool) -> None:
    names = list(OUTPUTS if with_semantic else OUTPUTS[:-1])
    # A dimension that is not named is fixed. The semantic map is as large as the padded image.
    sizes = {name: {0: "instances"} for name in ("boxes", "classes", "masks", "scores")}
    sizes |= {INPUT: {1: "height", 2: "width"}, "semantic": {2: "padded_height", 3: "padded_width"}}
    torch.onnx.export(
        adapter,
        adapter.flattened_inputs,
        str(path),
        input_names=[INPUT],
        output_names=names,
        dynamic_axes={name: axes for name, axes in sizes.items() if name in (INPUT, *names)},
        opset_version=OPSET,
        # The exporter by torch.export cannot follow shapes that depend on the proposals.
        dynamo=False,
    )


class _quiet_tracing(warnings.catch_warnings):
    """A block without the warnings of a trace: what they warn of is what the check against the eager model looks for."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
