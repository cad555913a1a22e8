"""A page in the browser on which a trained model segments images that are dropped on it; needs the extra ``serve`` (gradio)."""

import shutil
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances

from u2seg.checkpoint.loading import take_class_counts
from u2seg.config import setup_cfg
from u2seg.data.formats.coco_panoptic import write_panoptic_png
from u2seg.predictor import Prediction, Predictor, coco_results, named_categories, panoptic_record
from u2seg.utils.files import write_json
from u2seg.utils.hub_files import HUB_PREFIX
from u2seg.utils.image_io import ImageReadError, read_image_rgb

LOOPBACK = "127.0.0.1"
PANOPTIC_PNG, PANOPTIC_JSON = "panoptic.png", "panoptic.json"
# In a model's directory, in this order: the averaged or half-precision weights of a release, then those of a training.
_WEIGHTS = ("model.safetensors", "model_final.pth")
_KEPT_ANSWERS = 32  # whose files are kept; more than are asked for at a time
_COLUMNS = ("segment", "class", "kind", "score", "area, %")


@dataclass(frozen=True)
class Views:
    """What the page shows of one image.

    Attributes:
        panoptic, instances: drawn over the image, uint8 (H', W', 3).
        semantic: the same; None for a model without a semantic head.
        table: a row for each segment, largest first: number, class, "thing" or "stuff", score, share of the image in percent.
        files: paths of the panoptic PNG and of the JSON that describes it.
    """

    panoptic: np.ndarray
    instances: np.ndarray
    semantic: np.ndarray | None
    table: list[list[object]]
    files: tuple[Path, Path]


def open_model(model: str, label_map: str | None = None, opts: list[str] | tuple = ()) -> Predictor:
    """Returns the predictor of a model's directory.

    Args:
        model: a training's ``OUTPUT_DIR`` or a released model: a directory with ``config.yaml`` and ``model_final.pth`` or
            ``model.safetensors``; or the latter on the Hugging Face Hub, ``hf://org/name``.
        label_map: JSON of a label map that scoring saved, for names.
        opts: configuration, KEY VALUE ...; ``MODEL.WEIGHTS`` among it stands for other weights than the directory's.

    Raises:
        FileNotFoundError: a file is missing.
    """
    if model.startswith(HUB_PREFIX):
        root, weights = model.rstrip("/"), _WEIGHTS[0]
    else:
        root = model
        found = [name for name in _WEIGHTS if (Path(model) / name).is_file()]
        if not found or not (Path(model) / "config.yaml").is_file():
            raise FileNotFoundError(f"{model} holds no model: expected config.yaml and {' or '.join(_WEIGHTS)}")
        weights = found[0]
    cfg = setup_cfg(f"{root}/config.yaml", ["MODEL.WEIGHTS", f"{root}/{weights}", *opts])
    take_class_counts(cfg, cfg.MODEL.WEIGHTS)
    return Predictor(cfg, label_map)


def make_views(predictor: Predictor, image_rgb: np.ndarray, found: Prediction, threshold: float, output: Path) -> Views:
    """Returns the drawings, the table and the files of a prediction in which only confident instances count.

    Args:
        predictor: the model.
        image_rgb: uint8 (H, W, 3).
        found: its prediction.
        threshold: smallest score, 0..1, of an instance that is shown.
        output: directory for the files.
    """
    instances: Any = found.instances
    confident = instances[instances.scores >= threshold]
    combine = predictor.cfg.MODEL.PANOPTIC_FPN.COMBINE
    semantic = found.semantic_map if found.semantic_map is not None else np.zeros(image_rgb.shape[:2], np.int64)
    panoptic, segments = combine_semantic_and_instance_outputs(
        confident, torch.from_numpy(semantic), combine.OVERLAP_THRESH, combine.STUFF_AREA_LIMIT, threshold
    )
    shown = Prediction(panoptic.numpy().astype(np.int32), segments, confident, found.semantic_map)
    stuff_map = None if found.semantic_map is None else _semantic_view(predictor, image_rgb, found.semantic_map)
    return Views(
        predictor.draw(image_rgb, shown),
        predictor.draw_segments(image_rgb, *_stacked(confident, image_rgb.shape[:2])),
        stuff_map,
        _table(predictor, shown),
        _write_files(predictor, shown, output),
    )


def _stacked(instances: Instances, size: tuple[int, int]) -> tuple[np.ndarray, list[dict]]:
    """Returns a map of all instances, the most confident on top, and their segments: also what a panoptic map leaves out."""
    panoptic_map, segments = np.zeros(size, np.int32), []
    for number, index in enumerate(instances.scores.argsort().tolist(), start=1):
        panoptic_map[instances.pred_masks[index].numpy()] = number
        score, category = float(instances.scores[index]), int(instances.pred_classes[index])
        segments.append({"id": number, "isthing": True, "category_id": category, "score": score})
    return panoptic_map, segments


def _semantic_view(predictor: Predictor, image_rgb: np.ndarray, semantic_map: np.ndarray) -> np.ndarray:
    # Class 0 is "some thing", which the instances show: void here.
    segments = [{"id": int(c), "isthing": False, "category_id": int(c)} for c in np.unique(semantic_map) if c]
    return predictor.draw_segments(image_rgb, semantic_map.astype(np.int32), segments)


def _table(predictor: Predictor, shown: Prediction) -> list[list[object]]:
    style, total = predictor.style, shown.panoptic_map.size
    rows: list[list[object]] = []
    for segment in shown.segments_info:
        names = style.thing_names if segment["isthing"] else style.stuff_names
        area = 100 * float((shown.panoptic_map == segment["id"]).sum()) / total
        score = f"{segment['score']:.2f}" if "score" in segment else ""
        kind = "thing" if segment["isthing"] else "stuff"
        rows.append([segment["id"], names[segment["category_id"]], kind, score, round(area, 1)])
    return sorted(rows, key=lambda row: -float(str(row[-1])))


def _write_files(predictor: Predictor, shown: Prediction, output: Path) -> tuple[Path, Path]:
    height, width = shown.panoptic_map.shape
    png, path = output / PANOPTIC_PNG, output / PANOPTIC_JSON
    write_panoptic_png(png, shown.panoptic_map)
    write_json(
        path,
        {
            "images": [{"id": 1, "file_name": "image", "height": height, "width": width}],
            "annotations": [panoptic_record(shown, 1, PANOPTIC_PNG, predictor.label_space)],
            "categories": named_categories(predictor),
            "detections": coco_results(shown, 1, predictor.label_space),
        },
    )
    return png, path


def build_app(predictor: Predictor) -> Any:
    """Returns the page, a ``gradio.Blocks`` that is not running.

    Raises:
        ModuleNotFoundError: gradio is not installed.
    """
    gradio = _gradio()
    workspace = tempfile.TemporaryDirectory(prefix="u2seg-")  # removed with the functions below, which hold it
    directories: deque[Path] = deque()
    has_semantic = predictor.cfg.MODEL.META_ARCHITECTURE == "PanopticFPN"

    def predict(path: str | None, threshold: float) -> tuple[Any, ...]:
        if path is None:
            return None, None, None, None, [], None, None
        try:
            image_rgb = read_image_rgb(path)
        except ImageReadError as error:
            raise gradio.Error(
                f"This file is not an image that can be read: {_without_path(str(error), path)}"
            ) from error
        return show((image_rgb, predictor(image_rgb)), threshold)

    def show(state: tuple[np.ndarray, Prediction] | None, threshold: float) -> tuple[Any, ...]:
        if state is None:
            return None, None, None, None, [], None, None
        # Gradio copies the files to its cache, from which alone it serves, when this function has returned.
        directories.append(Path(tempfile.mkdtemp(dir=workspace.name)))
        if len(directories) > _KEPT_ANSWERS:
            shutil.rmtree(directories.popleft())
        views = make_views(predictor, *state, threshold, directories[-1])
        return state, views.panoptic, views.instances, views.semantic, views.table, *map(str, views.files)

    with gradio.Blocks(title="U2Seg", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gradio.Markdown("# U2Seg\nDrop an image. It stays on the machine that serves this page.")
        state = gradio.State()
        buttons = ["download", "fullscreen"]  # and not "share", which would upload the image
        with gradio.Row():
            with gradio.Column(scale=1):
                image = gradio.Image(type="filepath", label="Image", sources=["upload", "clipboard"], elem_id="image")
                threshold = gradio.Slider(
                    0, 1, value=0.5, step=0.05, label="Smallest score of a thing", elem_id="score"
                )
                png = gradio.DownloadButton("Panoptic PNG", elem_id="png")
                record = gradio.DownloadButton("JSON", elem_id="json")
            with gradio.Column(scale=2), gradio.Tabs():
                with gradio.Tab("Panoptic"):
                    panoptic = gradio.Image(
                        label="Things and stuff", interactive=False, buttons=buttons, elem_id="panoptic"
                    )
                with gradio.Tab("Instances"):
                    instances = gradio.Image(
                        label="Things, overlapping", interactive=False, buttons=buttons, elem_id="instances"
                    )
                with gradio.Tab("Semantic", visible=has_semantic):
                    semantic = gradio.Image(label="Stuff", interactive=False, buttons=buttons, elem_id="semantic")
        table = gradio.Dataframe(headers=list(_COLUMNS), label="Segments", interactive=False, elem_id="segments")
        outputs = [state, panoptic, instances, semantic, table, png, record]
        image.change(predict, [image, threshold], outputs, show_progress="minimal")
        threshold.release(show, [state, threshold], outputs, show_progress="hidden")
    return app


def start_server(
    predictor: Predictor, *, host: str = LOOPBACK, port: int = 7860, max_megabytes: int = 20
) -> tuple[Any, str]:
    """Serves the page from a thread of its own; returns the ``gradio.Blocks`` that runs, and its address.

    Args:
        predictor: the model.
        host: address to listen on; by default nobody but this machine can open the page.
        port: of the address.
        max_megabytes: size of the largest file that is accepted.

    Raises:
        ModuleNotFoundError: gradio is not installed.
        OSError: the port is taken.
    """
    gradio = _gradio()
    app = build_app(predictor)
    _, address, _ = app.queue(max_size=16).launch(
        server_name=host,
        server_port=port,
        max_file_size=f"{max_megabytes}mb",
        allowed_paths=[],
        share=False,
        quiet=True,
        show_error=True,
        enable_monitoring=False,
        state_session_capacity=4,
        ssr_mode=False,
        footer_links=[],
        # Gradio's own themes ask Google for fonts.
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        prevent_thread_lock=True,
    )
    return app, str(address)


def _gradio() -> Any:
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ModuleNotFoundError(
            "u2seg serve needs gradio, which is not installed: pip install 'u2seg[serve]'", name="gradio"
        ) from None
    return gradio


def _without_path(message: str, path: str) -> str:
    """Returns an error's text without the directory in which the upload lies."""
    return message.replace(path, Path(path).name)
