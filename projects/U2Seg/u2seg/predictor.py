"""Predicting on any images with a trained model, and writing what COCO's and Detectron2's tools read."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from PIL import Image

from u2seg.checkpoint.loading import load_weights
from u2seg.data.formats.coco_panoptic import panoptic_annotation, write_panoptic_png
from u2seg.modeling.stable_order import StableOrder
from u2seg.structures.label_space import LabelSpace
from u2seg.structures.segments import Segment
from u2seg.utils.files import (
    atomic_path,
    fill_directory,
    list_digest,
    read_json,
    remove_partial_files,
    write_json,
)
from u2seg.utils.image_io import (
    ImageReadError,
    check_image_rgb,
    image_ids,
    list_images,
    png_names,
    read_image_rgb,
)
from u2seg.utils.manifest import FAILURES, MANIFEST, Failure
from u2seg.utils.progress import Progress
from u2seg.version import __version__
from u2seg.visualization import draw_panoptic, save_image
from u2seg.visualization.class_style import ClassStyle, style_from_label_map

VISUALIZATIONS, PANOPTIC, INSTANCES = "visualizations", "panoptic", "instances"
_PANOPTIC_JSON, _RESULTS_JSON = "panoptic.json", "coco_results.json"


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image.

    Attributes:
        panoptic_map: int32 (H, W), segment ids, 0 void.
        segments_info: a dict for each segment, as Detectron2 has them: ``id``, ``isthing``, ``category_id`` (contiguous: things 0..K-1,
            stuff 1..S), and for things ``score`` (0..1).
        instances: Detectron2 ``Instances`` on the CPU: ``pred_boxes``, ``scores``, ``pred_classes`` (0..K-1), ``pred_masks``
            (bool (N, H, W)); more of them than the panoptic map shows.
        semantic_map: int64 (H, W), the semantic head's classes, 0 "thing", 1..S; None for models without that head.
    """

    panoptic_map: np.ndarray
    segments_info: list[dict]
    instances: object
    semantic_map: np.ndarray | None = None


class Predictor:
    """A trained model that takes images: ``predictor(image_rgb)`` returns a :class:`Prediction`.

    Attributes:
        cfg: the configuration, completed and frozen.
        model: the Detectron2 model, in eval mode.
        label_space: the classes that it predicts: clusters, unless it was trained on something else.
        style: what they are called, and how they are colored, in images.
        digest: of everything that the predictions and their images depend on: configuration, weights, label map, names of classes.
    """

    def __init__(self, cfg: CfgNode, label_map: str | Path | None = None):
        """Builds the model of ``cfg`` and loads ``cfg.MODEL.WEIGHTS``.

        Neither training labels nor any dataset need be there. Where the training set's files are, classes and names come from
        them; else their numbers are ``CLUSTERS.NUM_CLUSTERS`` and ``SEMANTICS.NUM_CLUSTERS``
        (:func:`u2seg.checkpoint.loading.take_class_counts` sets these from a checkpoint).

        Args:
            cfg: Detectron2 configuration with this project's keys; it is not changed.
            label_map: JSON file of a label map that scoring saved: clusters then have the names and colors of their categories.

        Raises:
            ValueError: no weights are named, they do not fit, or the label map belongs to other counts of clusters.
            FileNotFoundError: a file is missing.
        """
        from u2seg.modeling import build_model

        self.cfg = _completed(cfg)
        self.model = build_model(self.cfg).eval()
        load_weights(self.model, self.cfg, self.cfg.MODEL.WEIGHTS)
        self.label_space = _label_space(self.cfg)
        self.style = (
            style_from_label_map(label_map, self.label_space)
            if label_map
            else ClassStyle.of_label_space(self.label_space)
        )
        self.digest = _digest(self.cfg, label_map, self.style)

    @torch.no_grad()
    def __call__(self, image_rgb: np.ndarray) -> Prediction:
        """Returns the prediction for one image, uint8 (H, W, 3) in RGB; ``u2seg.read_image_rgb`` reads such.

        Raises:
            ValueError: the image has another type or shape.
        """
        height, width = check_image_rgb(image_rgb).shape[:2]
        pixels = image_rgb if self.cfg.INPUT.FORMAT == "RGB" else image_rgb[:, :, ::-1]
        pixels = resized_for_model(pixels, self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)
        image = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1))
        with StableOrder():
            output = self.model([{"image": image, "height": height, "width": width}])[0]
        panoptic_map, segments = output["panoptic_seg"] if "panoptic_seg" in output else self._combine(output)
        semantic = output.get("sem_seg")
        return Prediction(
            panoptic_map.cpu().numpy().astype(np.int32),
            segments,
            output["instances"].to("cpu"),
            None if semantic is None else semantic.argmax(dim=0).cpu().numpy(),
        )

    def draw(self, image_rgb: np.ndarray, prediction: Prediction) -> np.ndarray:
        """Returns the image with its panoptic prediction drawn over it, uint8 (H', W', 3)."""
        return self.draw_segments(image_rgb, prediction.panoptic_map, prediction.segments_info)

    def draw_segments(self, image_rgb: np.ndarray, panoptic_map: np.ndarray, segments_info: list[dict]) -> np.ndarray:
        """Returns the image with segments of this model's classes drawn over it, pseudo-labels for example.

        Args:
            image_rgb: uint8 (H, W, 3).
            panoptic_map: int (H, W), segment ids.
            segments_info: ``id``, ``isthing``, ``category_id`` (contiguous) and, optionally, ``score`` of each segment.
        """
        return draw_panoptic(image_rgb, panoptic_map, segments_info, self.style)

    def _combine(self, output: dict) -> tuple[torch.Tensor, list[dict]]:
        """Returns the panoptic map of a model without a semantic head, by the rule of those that have one: things and void."""
        from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs

        instances, rule = output["instances"], self.cfg.MODEL.PANOPTIC_FPN.COMBINE
        no_stuff = torch.zeros(instances.image_size, dtype=torch.long, device=instances.scores.device)
        return combine_semantic_and_instance_outputs(
            instances, no_stuff, rule.OVERLAP_THRESH, rule.STUFF_AREA_LIMIT, rule.INSTANCES_CONFIDENCE_THRESH
        )


def resized_for_model(pixels: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    """Returns an image as large as a model takes it, as Detectron2's test loader makes it.

    Args:
        pixels: uint8 (H, W, 3).
        min_size: pixels of the shorter side, ``INPUT.MIN_SIZE_TEST``; 0 or less leaves the image as it is.
        max_size: pixels that the longer side may have, ``INPUT.MAX_SIZE_TEST``.
    """
    from detectron2.data.transforms import ResizeShortestEdge

    pixels = np.ascontiguousarray(pixels)
    if min_size <= 0:
        return pixels
    return ResizeShortestEdge([min_size, min_size], max_size).get_transform(pixels).apply_image(pixels)


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> list[Failure]:
    """Predicts on images and writes everything below ``output``; returns the images that could not be read.

    Written for an image called NAME: ``visualizations/NAME.jpg`` (drawn), ``panoptic/NAME.png`` and ``panoptic/NAME.json`` (COCO panoptic
    PNG and its annotation), ``instances/NAME.json`` (COCO results: all detections with boxes and masks). Written at the end:
    ``panoptic.json`` and ``coco_results.json`` with all images in one file, and ``failures.json``.

    Killed and called again with the same model and images, it goes on where it was; with others it deletes what it wrote and starts
    anew.

    Args:
        predictor: the model.
        inputs: image files and directories of them.
        output: directory to write to.
        on_failure: called with each image that cannot be read, as it is met.

    Raises:
        FileNotFoundError: an input directory holds no image.
        ValueError: ``output`` holds files that no prediction wrote and that would be replaced, pseudo-labels for example.
        u2seg.utils.write_errors.WriteError: the disk is full, or ``output`` is read-only or was deleted.
    """
    files = find_images(inputs)
    names = list(files)
    output = fill_directory(output)
    remove_partial_files(output)
    resumed = _same_run(output, predictor, files)
    failures, images, annotations, result_files = [], [], [], []
    rows = zip(names, image_ids(names), png_names(names))
    with Progress(len(names), "predictions") as bar:
        for name, image_id, png in bar.track(rows):
            record, results = (
                output / directory / Path(png).with_suffix(".json") for directory in (PANOPTIC, INSTANCES)
            )
            if not (resumed and results.is_file()):  # the results are written last
                try:
                    image_rgb = read_image_rgb(files[name])
                except ImageReadError as error:
                    failures.append(Failure(str(files[name]), str(error)))
                    on_failure(failures[-1])
                    continue
                prediction = predictor(image_rgb)
                save_image(
                    output / VISUALIZATIONS / Path(png).with_suffix(".jpg"), predictor.draw(image_rgb, prediction)
                )
                write_panoptic_png(output / PANOPTIC / png, prediction.panoptic_map)
                write_json(record, panoptic_record(prediction, image_id, png, predictor.label_space))
                write_json(results, coco_results(prediction, image_id, predictor.label_space))
            with Image.open(output / PANOPTIC / png) as panoptic_map:
                width, height = panoptic_map.size
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            annotations.append(read_json(record))
            result_files.append(results)
    panoptic = {"images": images, "annotations": annotations, "categories": named_categories(predictor)}
    write_json(output / _PANOPTIC_JSON, panoptic)
    _join_lists(result_files, output / _RESULTS_JSON)
    write_json(output / FAILURES, [{"file_name": f.file_name, "reason": f.reason} for f in failures])
    return failures


def _same_run(output: Path, predictor: Predictor, files: dict[str, Path]) -> bool:
    """Returns whether ``output`` was begun with the same model and images; if not, clears it and writes down with which it is now."""
    states = [f"{name} {path.stat().st_mtime_ns if path.is_file() else 0}" for name, path in files.items()]
    wanted = {"model": predictor.digest, "images": list_digest(states), "version": __version__}
    manifest = output / MANIFEST
    earlier = read_json(manifest) if manifest.is_file() else None
    if earlier == wanted:
        return True
    written = [output / name for name in (INSTANCES, VISUALIZATIONS, PANOPTIC, _PANOPTIC_JSON, _RESULTS_JSON)]
    foreign = [path for path in (manifest, *written) if path.exists()]
    is_ours = isinstance(earlier, dict) and earlier.keys() == wanted.keys()
    if foreign and not is_ours:
        raise ValueError(
            f"{output} holds {foreign[0].name}, which u2seg predict did not write and would replace; give another output directory"
        )
    # Before the manifest, or a kill would leave results of the other run that look like this one's.
    for path in written:
        for file in [path] if path.is_file() else path.rglob("*.*"):
            if file.suffix in (".json", ".png", ".jpg"):
                file.unlink()
    write_json(manifest, wanted)
    return False


def things_by_image(panoptic: dict) -> list[int]:
    """Returns the number of things in each image.

    Args:
        panoptic: content of a COCO panoptic JSON.
    """
    is_thing = {category["id"]: bool(category["isthing"]) for category in panoptic["categories"]}
    return [sum(is_thing[s["category_id"]] for s in row["segments_info"]) for row in panoptic["annotations"]]


def _join_lists(paths: Sequence[Path], joined: Path) -> None:
    """Writes one JSON list of the entries of many, one list in memory at a time."""
    with atomic_path(joined) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        first = True
        for path in paths:
            for entry in read_json(path):
                file.write(("" if first else ",") + "\n" + json.dumps(entry, sort_keys=True))
                first = False
        file.write("\n]\n")


def find_images(inputs: Sequence[str | Path]) -> dict[str, Path]:
    """Returns name -> path of all images among files and directories; names are paths relative to the deepest common directory.

    Files are taken whatever their suffix and need not exist; directories give the images that they hold at any depth.

    Raises:
        FileNotFoundError: a directory holds no image.
    """
    paths: dict[Path, None] = {}
    for given in map(Path, inputs):
        found = [given / name for name in list_images(given)] if given.is_dir() else [given]
        paths.update(dict.fromkeys(found))
    if not paths:
        return {}
    root = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    return {PurePosixPath(os.path.relpath(os.path.abspath(path), root)).as_posix(): path for path in paths}


def panoptic_record(prediction: Prediction, image_id: int, png_name: str, space: LabelSpace) -> dict:
    """Returns a prediction's annotation for a COCO panoptic JSON; things have an additional ``score``.

    Args:
        prediction: of one image.
        image_id: its id.
        png_name: file name of its panoptic PNG.
        space: gives the dataset ids.
    """
    areas = dict(zip(*(part.tolist() for part in np.unique(prediction.panoptic_map, return_counts=True))))
    infos = [info for info in prediction.segments_info if info["id"] in areas]
    segments = [
        Segment(info["id"], info["category_id"] - (0 if info["isthing"] else 1), info["isthing"], areas[info["id"]])
        for info in infos
    ]
    record = panoptic_annotation(image_id, png_name, prediction.panoptic_map, segments, space)
    for written, info in zip(record["segments_info"], infos):
        written["isthing"] = int(info["isthing"])
        if "score" in info:
            written["score"] = round(float(info["score"]), 6)
    return record


def coco_results(prediction: Prediction, image_id: int, space: LabelSpace) -> list[dict]:
    """Returns an image's detections as COCO results: ``image_id``, ``category_id`` (dataset id), ``bbox`` XYWH, ``score``, RLE."""
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json

    rows = instances_to_coco_json(prediction.instances, image_id)
    return [{**row, "category_id": space.thing_dataset_id(row["category_id"])} for row in rows]


def _digest(cfg: CfgNode, label_map: str | Path | None, style: ClassStyle) -> str:
    digest = hashlib.sha256(cfg.dump().encode())
    # The training set's names may change under the same configuration: `u2seg clusters rename`.
    digest.update(json.dumps([style.thing_names, style.stuff_names]).encode())
    for path in (cfg.MODEL.WEIGHTS, label_map):
        if path:
            digest.update(Path(PathManager.get_local_path(str(path))).read_bytes())
    return digest.hexdigest()[:16]


def _completed(cfg: CfgNode) -> CfgNode:
    """Returns a frozen copy of the configuration with everything that prediction needs and no dataset that it does not."""
    from u2seg.data import DatasetFilesError, register_datasets
    from u2seg.modeling import complete_config

    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS names no checkpoint; set it to the model that is to predict")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    with contextlib.suppress(DatasetFilesError):  # class names are then the clusters' numbers
        register_datasets(cfg.DATASETS.BY_PATH, list(cfg.DATASETS.TRAIN))
    complete_config(cfg, eval_only=True)
    cfg.freeze()
    return cfg


def _label_space(cfg: CfgNode) -> LabelSpace:
    """Returns the training set's classes where they are known, else clusters as many as the heads predict."""
    from u2seg.data import label_space_of

    known = label_space_of(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None
    if known is not None:
        return known
    # A model without a semantic head predicts no stuff; one class stands in, since a label space has at least one.
    num_stuff = max(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - 1, 1)
    return LabelSpace.of_clusters(cfg.MODEL.ROI_HEADS.NUM_CLASSES, num_stuff)


def named_categories(predictor: Predictor) -> list[dict]:
    """Returns the COCO panoptic ``categories`` of a model, by the names that its style gives them."""
    names = [*predictor.style.thing_names, *predictor.style.stuff_names[1:]]
    return [{**category, "name": name} for category, name in zip(predictor.label_space.categories(), names)]
