"""The evaluator of universal segmenters: one inference pass, all tasks, every protocol."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from u2seg.data.datasets.registration import require_dataset_files
from u2seg.evaluation.matching.label_map import save_label_map
from u2seg.evaluation.registries import EVALUATOR_REGISTRY, PROTOCOL_REGISTRY
from u2seg.evaluation.score_table import RECORD, format_table, to_csv, to_latex
from u2seg.evaluation.scoring import Evaluation, ScoreSettings, detectron2_results, evaluate_tables
from u2seg.evaluation.tables.ground_truth import InstanceGroundTruth, PanopticGroundTruth
from u2seg.evaluation.tables.image_tables import (
    MapSegment,
    Regions,
    boundary_rows,
    head_blocks,
    image_tables,
    instance_blocks,
    label_map_of,
    panoptic_blocks,
)
from u2seg.evaluation.tables.segment_tables import SegmentTables, TableSpace, concatenate_tables, save_tables
from u2seg.utils.files import atomic_path, file_digest, write_json
from u2seg.version import __version__

TABLES = "tables.npz"
PROVENANCE = "provenance.json"
PARTIAL = "partial/"  # begins the returned tasks where images of the dataset are missing
JOIN_EVERY = 50  # images; many small arrays left alone keep the heap from shrinking
logger = logging.getLogger(__name__)


class RecordingEvaluator(DatasetEvaluator):
    """An evaluator whose files say which weights it scored. It does not see the model, so whoever starts the evaluation says it.

    Attributes:
        weights: ``weights``, a checkpoint or the moment of a training, and ``weights_sha256``; empty where nobody said it. See
            :func:`weights_of_file` and :func:`weights_in_memory`.
    """

    weights: Mapping[str, str] = MappingProxyType({})


class PanopticEvaluator(RecordingEvaluator):
    """Scores stock Panoptic-FPN outputs (``panoptic_seg``, ``instances``, ``sem_seg``; whichever a model gives) in one pass.

    Each image is reduced to segment tables when it is processed. :meth:`evaluate` gathers them over processes, computes the
    scores of every protocol, writes them, and returns them from the main process. Ground truth: what the dataset's metadata
    names, ``panoptic_json`` with ``panoptic_root`` and ``json_file`` (COCO's formats), both or either.
    """

    @configurable
    def __init__(
        self,
        dataset_name: str,
        output_dir: str | Path | None = None,
        *,
        num_things: int,
        num_stuff: int,
        settings: ScoreSettings,
        boundary_ratio: float = 0.0,
        keep_tables: bool = True,
    ):
        """Reads the ground truth's JSON files; images' PNGs are read as they come.

        Args:
            dataset_name: in Detectron2's catalogs.
            output_dir: where results are written; None writes nothing.
            num_things: K, thing clusters of the model.
            num_stuff: S, stuff clusters of the model.
            settings: protocols and the rest; ``fit_on`` may also name a dataset scored before this one into the same parent
                directory.
            boundary_ratio: half-width of boundaries as a share of the diagonal, for boundary IoU; 0 for none.
            keep_tables: whether the tables are saved beside the scores.

        Raises:
            ValueError: the metadata names no ground truth.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._dataset = dataset_name
        self._output = None if output_dir is None else Path(output_dir)
        self._panoptic = _panoptic_gt(metadata)
        space = self._panoptic.space if self._panoptic else metadata.get("label_space")
        json_file = metadata.get("json_file")
        self._instances = InstanceGroundTruth(json_file, space) if json_file else None
        with_gt = self._panoptic or self._instances
        if with_gt is None:
            raise ValueError(
                f"dataset {dataset_name!r} has no ground truth to score against: its metadata needs panoptic_json and "
                "panoptic_root, or json_file. Pseudo-labels have these files if they were made with PANOPTIC_LABELS.FORMAT coco"
            )
        self._categories = with_gt.space
        self._image_ids = with_gt.annotations if isinstance(with_gt, PanopticGroundTruth) else with_gt.sizes
        self._num_things, self._num_stuff = num_things, num_stuff
        self._settings = settings
        self._boundary_ratio = boundary_ratio
        self._keep_tables = keep_tables
        self.reset()

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None) -> dict[str, Any]:
        """Returns the constructor's arguments that a configuration asks for.

        Args:
            cfg: with this project's keys; reads ``TEST`` and the class counts of the heads.
            dataset_name: in Detectron2's catalogs.
            output_dir: results go to ``output_dir/<dataset_name>``, or to ``output_dir`` itself where it is named like the
                dataset; None for ``cfg.OUTPUT_DIR/inference``.
        """
        require_dataset_files(dataset_name)
        parent = Path(cfg.OUTPUT_DIR) / "inference" if output_dir is None else Path(output_dir)
        return {
            "dataset_name": dataset_name,
            "output_dir": parent if parent.name == dataset_name else parent / dataset_name,
            "num_things": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "num_stuff": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - 1,
            "settings": ScoreSettings.of_config(cfg),
            "boundary_ratio": cfg.TEST.BOUNDARY_RATIO,
            "keep_tables": cfg.TEST.SAVE_TABLES,
        }

    def reset(self) -> None:
        """Forgets all images."""
        self._parts: list[SegmentTables] = []  # of many images each
        self._latest: list[SegmentTables] = []  # of one image each

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Reduces images to tables.

        Args:
            inputs: dicts with ``image_id``.
            outputs: what the model made of them, in the same order.
        """
        for image, output in zip(inputs, outputs):
            try:
                self._latest.append(self._tables_of(image["image_id"], output))
            except ValueError as error:
                raise ValueError(f"image {image['image_id']} of {self._dataset!r}: {error}") from error
            if len(self._latest) >= JOIN_EVERY:
                self._join_latest()

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns task -> metric -> 0..100 from the main process, None from the others.

        A task's own key holds the first protocol's scores, see :func:`u2seg.evaluation.scoring.detectron2_results`. Where fewer
        images were processed than the ground truth has, every key begins with "partial/": these are not the dataset's scores.

        Raises:
            ValueError: no image was processed, or one more than once.
        """
        comm.synchronize()
        self._join_latest()
        own = [concatenate_tables(self._parts)] if self._parts else []
        gathered = [part for parts in comm.gather(own) for part in parts]
        if not comm.is_main_process():
            return None
        if not gathered:
            raise ValueError(f"no image of {self._dataset!r} was processed; its loader gave none")
        tables = concatenate_tables(gathered)
        tables = replace(tables, record=self._record(tables))
        if self._output and self._keep_tables:
            save_tables(self._output / TABLES, tables)
        elif self._output:
            (self._output / TABLES).unlink(missing_ok=True)  # of an earlier evaluation
        settings = replace(self._settings, fit_on=self._fit_tables())
        evaluation = evaluate_tables(tables, settings)
        record = {**tables.record, **tables_summary(tables), "fitted_on": self._fitted_on()}
        if self._output:
            write_evaluation(self._output, evaluation, record, settings.label_map)
        if not record["complete"]:
            logger.warning(
                "Only %d of the %d images of %s were scored: what follows is NOT the score of %s",
                record["images"],
                record["dataset_images"],
                self._dataset,
                self._dataset,
            )
        logger.info(
            "Scores on %s%s, label maps fitted on %s%s\n%s",
            "" if record["complete"] else f"{record['images']} of the {record['dataset_images']} images of ",
            self._dataset,
            self._fitted_on(),
            f", in {self._output}" if self._output else "",
            format_table(evaluation.results, evaluation.intervals),
        )
        results = detectron2_results(
            evaluation.results, self._settings.row_name(next(iter(self._settings.protocols), ""))
        )
        return results if record["complete"] else {f"{PARTIAL}{task}": row for task, row in results.items()}

    def _join_latest(self) -> None:
        if self._latest:
            self._parts.append(concatenate_tables(self._latest))
            self._latest = []

    def _fit_tables(self) -> Path | str:
        """Returns the file of tables on which label maps are fitted, "" for the scored ones."""
        if not self._settings.fit_on:
            return ""
        path = Path(self._settings.fit_on)
        if path.suffix != ".npz":
            if self._output is None:
                raise ValueError(
                    "fitting on another dataset needs an output directory, where that dataset's tables lie"
                )
            path = self._output.parent / path / TABLES
        if not path.is_file():
            raise FileNotFoundError(
                f"TEST.LABEL_MAP.FIT_ON is {str(self._settings.fit_on)!r}, but {path} is not there; put that dataset before "
                f"{self._dataset!r} in DATASETS.TEST and keep TEST.SAVE_TABLES on, or name a file of tables"
            )
        return path

    def _fitted_on(self) -> str:
        if self._settings.label_map:
            return f"the saved map {self._settings.label_map}"
        return str(self._settings.fit_on) or f"{self._dataset} (the scored images themselves)"

    def _record(self, tables: SegmentTables) -> dict:
        expected = set(self._image_ids)
        return {
            **self.weights,
            "dataset_images": len(expected),
            "complete": expected <= set(tables.images["id"].tolist()),
            "max_detections": list(self._settings.max_detections),
        }

    def _tables_of(self, image_id: int, output: Mapping) -> SegmentTables:
        blocks: dict[str, np.ndarray] = {}
        tasks: list[str] = []
        size, predicted, head = None, None, None
        if self._panoptic:
            gt_map, gt = self._panoptic.read(image_id)
            size = gt_map.shape
            if output.get("panoptic_seg") is not None:
                predicted = self._predicted_map(output["panoptic_seg"])
                blocks |= panoptic_blocks(gt_map, gt, *predicted)
                tasks.append("panoptic")
            if output.get("sem_seg") is not None:
                head = largest_channel(output["sem_seg"])
                blocks |= head_blocks(gt_map, {segment.id: segment.label for segment in gt}, head)
                tasks.append("semantic")
            if self._boundary_ratio and tasks:
                blocks |= self._boundary_blocks(gt_map, gt, predicted, head)
                tasks.append("boundary")
        if self._instances and output.get("instances") is not None:
            objects = self._instances.read(image_id)
            detections = self._detections(output["instances"])
            size = size or output["instances"].image_size
            blocks |= instance_blocks(detections, objects)
            tasks += ["box", "mask"] if detections.masks is not None and objects.masks is not None else ["box"]
        if size is None or not tasks:
            raise ValueError(
                f"nothing to score; the model gave {sorted(output)}, the ground truth of {self._dataset!r} "
                f"has {'panoptic maps' if self._panoptic else 'no panoptic map'} and "
                f"{'instances' if self._instances else 'no instances'}"
            )
        space = TableSpace(self._dataset, self._num_things, self._num_stuff, self._categories, tuple(tasks))
        return image_tables(space, image_id, tuple(size), **blocks)

    def _boundary_blocks(
        self,
        gt_map: np.ndarray,
        gt: list[MapSegment],
        predicted: tuple[np.ndarray, list[MapSegment]] | None,
        head: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        labels, blocks = label_map_of(gt_map, gt), {}
        if predicted is not None:
            blocks["panoptic_boundary"] = boundary_rows(labels, label_map_of(*predicted), self._boundary_ratio)
        if head is not None:
            blocks["head_boundary"] = boundary_rows(labels, head, self._boundary_ratio)
        return blocks

    def _predicted_map(self, panoptic_seg: tuple[torch.Tensor, list[dict]]) -> tuple[np.ndarray, list[MapSegment]]:
        segment_map, segments = panoptic_seg
        if segments is None:
            raise ValueError(
                "panoptic_seg must come with segments_info, a list of dicts with id, category_id and isthing; got None, the form "
                "in which ids encode categories"
            )
        listed = [
            MapSegment(
                int(info["id"]),
                self._joint_cluster(info["category_id"], info["isthing"]),
                float(info.get("score", 1.0)),
            )
            for info in segments
        ]
        return segment_map.cpu().numpy(), listed

    def _joint_cluster(self, contiguous_id: int, isthing: bool) -> int:
        """Returns the joint cluster label of a contiguous id: things 0..K-1, stuff 1..S."""
        first, count = (0, self._num_things) if isthing else (1, self._num_stuff)
        if not first <= contiguous_id < first + count:
            raise ValueError(
                f"{'thing' if isthing else 'stuff'} ids must lie in {first}..{first + count - 1}, the model gave {contiguous_id}; "
                "MODEL.ROI_HEADS.NUM_CLASSES and MODEL.SEM_SEG_HEAD.NUM_CLASSES do not fit the model"
            )
        return contiguous_id if isthing else self._num_things + contiguous_id - 1

    def _detections(self, instances: Instances) -> Regions:
        instances = instances.to("cpu")
        labels = instances.pred_classes.numpy().astype(np.int64)
        if labels.size and labels.max() >= self._num_things:
            self._joint_cluster(int(labels.max()), isthing=True)
        boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        return Regions(
            labels=labels,
            boxes_xywh=boxes.numpy().astype(np.float64),
            masks=instances.pred_masks.numpy().astype(bool, copy=False) if instances.has("pred_masks") else None,
            scores=instances.scores.numpy().astype(np.float64),
        )


@EVALUATOR_REGISTRY.register()
def u2seg_panoptic(dataset_name: str, cfg: CfgNode, output_dir: str | Path | None = None) -> PanopticEvaluator:
    """Returns the evaluator of datasets with ``evaluator_type`` "u2seg_panoptic", as a configuration asks for it."""
    return PanopticEvaluator(cfg, dataset_name, output_dir)


# Detectron2's own names for datasets with COCO ground truth: scored here, they take clusters and need no second pass.
for _evaluator_type in ("coco", "coco_panoptic_seg"):
    EVALUATOR_REGISTRY.register(_evaluator_type)(u2seg_panoptic)


def tables_summary(tables: SegmentTables) -> dict:
    """Returns what the record of an evaluation says of any tables."""
    return {
        "dataset": tables.space.dataset,
        "images": len(tables.images),
        "thing_clusters": tables.space.num_things,
        "stuff_clusters": tables.space.num_stuff,
        "u2seg": __version__,
    }


def write_evaluation(
    directory: str | Path, evaluation: Evaluation, record: dict, used_label_map: str | Path = ""
) -> None:
    """Writes the scores (``metrics.json``, ``.csv``, ``.tex``), ``per_category.json``, ``provenance.json``, label maps, intervals.

    The label maps and intervals of an earlier evaluation are deleted.

    Args:
        directory: to write to.
        evaluation: the scores.
        record: what was scored by what: ``dataset``, ``images``, ``dataset_images``, ``complete``, ``fitted_on``, ``weights`` and so
            on. ``metrics.json`` holds those and the checkpoint beside the tasks, as :data:`u2seg.evaluation.score_table.RECORD`.
        used_label_map: the saved label map that was used, which is kept; empty for none.
    """
    directory = Path(directory)
    intervals = directory / "intervals.json"
    for stale in (intervals, *(_label_map_path(directory, protocol) for protocol, _ in PROTOCOL_REGISTRY)):
        if stale.resolve() != Path(used_label_map).resolve():
            stale.unlink(missing_ok=True)
    short = short_record(record)
    write_json(directory / "metrics.json", {**evaluation.results, RECORD: short})
    write_json(directory / "per_category.json", evaluation.per_category)
    write_json(directory / PROVENANCE, {**record, "protocols": evaluation.notes})
    if evaluation.intervals:
        write_json(intervals, evaluation.intervals)
    for name, text in (
        ("metrics.csv", to_csv(evaluation.results, short)),
        ("metrics.tex", to_latex(evaluation.results)),
    ):
        with atomic_path(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for protocol, label_map in evaluation.label_maps.items():
        label_map.provenance.update({**record, "protocol": protocol})
        save_label_map(_label_map_path(directory, protocol), label_map, evaluation.space)


def _label_map_path(directory: Path, protocol: str) -> Path:
    return directory / f"label_map_{protocol}.json"


def short_record(record: dict) -> dict:
    """Returns what ``metrics.json`` and the CSV say of where the scores come from; ``checkpoint`` is empty where none is known."""
    names = ("dataset", "images", "dataset_images", "complete", "fitted_on")
    return {**{name: record[name] for name in names if name in record}, "checkpoint": record.get("weights", "")}


def largest_channel(logits: torch.Tensor) -> np.ndarray:
    """Returns the channel of the largest value at each pixel, uint8 (height, width), the first of equals.

    On a CPU channel by channel, which reads memory in its order and is several times faster than ``argmax`` over the first axis.

    Args:
        logits: float (channels, height, width), at most 255 channels.
    """
    if logits.device.type != "cpu":
        return logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
    planes = logits.numpy()
    largest, channel = planes[0].copy(), np.zeros(planes.shape[1:], np.uint8)
    for index, plane in enumerate(planes[1:], 1):
        np.copyto(channel, index, where=plane > largest)
        np.maximum(largest, plane, out=largest)
    return channel


def weights_of_file(path: str | Path) -> dict[str, str]:
    """Returns the record of weights that were loaded from a file, as ``MODEL.WEIGHTS`` names it; see :class:`RecordingEvaluator`."""
    return {
        "weights": str(path),
        "weights_sha256": file_digest(PathManager.get_local_path(str(path).partition("?")[0])),
    }


def weights_in_memory(name: str, weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Returns the record of weights that no file holds, those of a training that goes on; their SHA-256 is of all tensors.

    Args:
        name: says which they are.
        weights: a model's ``state_dict``.
    """
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {"weights": name, "weights_sha256": digest.hexdigest()}


def _panoptic_gt(metadata: Metadata) -> PanopticGroundTruth | None:
    if not metadata.get("panoptic_json"):
        return None
    return PanopticGroundTruth(metadata.panoptic_json, metadata.panoptic_root, metadata.get("label_space"))
