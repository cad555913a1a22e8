"""The LUSS evaluator: one pass over the images, any number of processes, every metric of ImageNet-S afterwards."""

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch import Tensor

from u2seg.evaluation.evaluator import RecordingEvaluator
from u2seg.evaluation.registries import EVALUATOR_REGISTRY
from u2seg.evaluation.score_table import RECORD, format_table
from u2seg.luss.data.id_maps import read_id_map, write_id_map
from u2seg.luss.evaluation.luss_counts import COUNTS, LUSS_IGNORE, OTHER, SWEEP_COUNTS, count_image, count_sweep
from u2seg.luss.evaluation.luss_metrics import MATCHERS, LussScores, full_label_map, match_clusters, score, sweep_scores
from u2seg.utils.files import read_json, write_json

logger = logging.getLogger(__name__)


class LussEvaluator(RecordingEvaluator):
    """Scores semantic maps by ImageNet-S's rules; any model that gives a map of ids can be scored.

    A model's output may hold ``sem_seg_labels`` (int (H, W): ids, 0 "other"), ``panoptic_seg`` (thing cluster k becomes id k + 1,
    stuff clusters follow) or ``sem_seg`` (logits, index = id), looked for in this order; and ``attention`` (float (H, W)) for a
    sweep of thresholds. All at the image's native size.
    """

    @configurable
    def __init__(
        self,
        gt_files: Mapping[str, str],
        class_names: list[str],
        *,
        matching: str,
        boundary_ratio: float,
        thresholds: np.ndarray,
        num_things: int,
        output_dir: str | Path | None,
        submission: bool,
        protocol: str,
        provenance: dict | None = None,
        submission_names: Mapping[str, str] | None = None,
    ):
        """Describes what to compare with, and how.

        Args:
            gt_files: image file -> id map of its ground truth; empty for a test split, whose ground truth is hidden.
            class_names: C names, in order of class id 1..C; unique.
            matching: key of ``MATCHERS``, or the path of a saved ``match.json``.
            boundary_ratio: see `boundary_width`.
            thresholds: float (T,), ascending, of the sweep.
            num_things: K of a panoptic model, after which stuff ids begin.
            output_dir: where files go; None writes none.
            submission: whether to write the predictions.
            protocol: how the model was trained, for the record.
            provenance: more values for the record: dataset, fitting split.
            submission_names: image file -> path of its PNG in a submission; others are named by directory and file.

        Raises:
            ValueError: names that repeat, or a hidden ground truth without a matching that can be had without it.
            FileNotFoundError: ``matching`` is neither a matcher nor a file.
        """
        if len(set(class_names)) != len(class_names):
            raise ValueError(
                "class names must be unique, or scores by class would hide one another: name them by synset"
            )
        if matching not in MATCHERS and not Path(matching).is_file():
            raise FileNotFoundError(
                f"TEST.LUSS.MATCHING must be one of {', '.join(MATCHERS)} or a match.json, got {matching!r}"
            )
        if not gt_files and matching in MATCHERS and matching != "none":
            raise ValueError(
                "this split has no ground truth to match with: set TEST.LUSS.MATCHING to the match.json of a validation run "
                "(or to none, if predictions are class ids)"
            )
        if submission and output_dir is None:
            raise ValueError("a submission needs an output directory (OUTPUT_DIR)")
        self.gt_files = gt_files
        self.class_names = class_names
        self.matching = matching
        self.boundary_ratio = boundary_ratio
        self.thresholds = np.asarray(thresholds, np.float64)
        self.num_things = num_things
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.submission = submission
        self.protocol = protocol
        self.provenance = provenance or {}
        self.submission_names = submission_names or {}
        self.reset()

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None) -> dict[str, Any]:
        """Returns the constructor's arguments for a registered dataset."""
        records = DatasetCatalog.get(dataset_name)
        gt_files, submission_names = (
            {record["file_name"]: record[key] for record in records if key in record}
            for key in ("sem_seg_file_name", "submission_name")
        )
        settings = cfg.TEST.LUSS
        first, last, count = settings.SWEEP
        record = {
            "dataset": dataset_name,
            "fitted_on": _fitted_on(settings.MATCHING, dataset_name),
        }
        return {
            "gt_files": gt_files,
            "class_names": list(MetadataCatalog.get(dataset_name).stuff_classes[1:]),
            "matching": settings.MATCHING,
            "boundary_ratio": settings.BOUNDARY_RATIO,
            "thresholds": np.linspace(first, last, int(count)),
            "num_things": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "output_dir": output_dir,
            "submission": settings.SUBMISSION,
            "protocol": _protocol_of(settings.MATCHING, dataset_name),
            "provenance": record,
            "submission_names": submission_names,
        }

    def reset(self) -> None:
        """Forgets all images."""
        self._counts: list[np.ndarray] = []
        self._sweep: list[np.ndarray] = []
        self._files: list[str] = []
        self._raw_maps: dict[str, str] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Counts one batch of images.

        Args:
            inputs: with ``file_name``.
            outputs: the model's; see the class.

        Raises:
            ValueError: a map of another size than the ground truth, a ground-truth id that no class has, an image that the dataset
                does not have, or an output without any map.
        """
        for one, output in zip(inputs, outputs):
            predicted = label_map_of(output, self.num_things)
            if self.submission:
                self._write_raw(one["file_name"], predicted)
            if not self.gt_files:
                continue
            gt = self._gt(one["file_name"])
            index = len(self._files)
            self._files.append(one["file_name"])
            self._counts.append(count_image(index, predicted, gt, self.boundary_ratio))
            attention = output.get("attention")
            if attention is not None and len(self.thresholds):
                clusters = _as_numpy(output.get("clusters", predicted))
                self._sweep.append(count_sweep(index, clusters, _as_numpy(attention), gt, self.thresholds))

    def evaluate(self) -> dict | None:
        """Returns ``{"luss": {name: value}}``, in 0..100, logs it and writes files; None in processes but the main one.

        The key is "partial/luss" where fewer images were processed than have ground truth: these are not the dataset's scores.
        """
        counts, sweep, raw_maps, num_images = self._gathered()
        if not comm.is_main_process():
            return None
        if not self.gt_files:
            self._finish_submission(raw_maps, self._saved_or_identity())
            return {}
        if not len(counts):
            raise RuntimeError("no image was scored: the evaluator's process() was never called")
        num_classes = len(self.class_names)
        num_clusters = max(num_classes, int(counts["predicted"].max(initial=0)))
        matched = self._matched(counts, num_clusters)
        result = score(counts, matched, num_classes)
        values = dict(result.scores)
        curve = self._curve(sweep, num_clusters)
        if curve:
            best = max(curve, key=lambda row: row["mIoU"])
            values["sweep-best-mIoU"], values["sweep-best-threshold"] = best["mIoU"], best["threshold"]
        row = self.matching if self.matching in MATCHERS else "saved match"
        complete = num_images == len(self.gt_files)
        self._write(result, {row: values}, matched, curve, num_images)
        self._finish_submission(raw_maps, full_label_map(matched))
        if not complete:
            logger.warning(
                "Only %d of the %d images with ground truth were scored: what follows is NOT the score of the dataset",
                num_images,
                len(self.gt_files),
            )
        logger.info("Scores of LUSS\n%s", format_table({"luss": {row: values}}))
        return {"luss" if complete else "partial/luss": values}

    def _gt(self, file_name: str) -> np.ndarray:
        if file_name not in self.gt_files:
            raise ValueError(f"{file_name} has no ground truth in this dataset; is the loader another dataset's?")
        path = self.gt_files[file_name]
        gt = read_id_map(path)
        largest = int(gt[gt != LUSS_IGNORE].max(initial=OTHER))
        if largest > len(self.class_names):
            raise ValueError(
                f"{path} holds class id {largest}; this dataset has ids 0..{len(self.class_names)} and {LUSS_IGNORE} (ignore)"
            )
        return gt

    def _gathered(self) -> tuple[np.ndarray, np.ndarray, dict[str, str], int]:
        """Returns all processes' counts with image numbers by file name, so that the number of processes changes nothing.

        With them come the files of raw predictions and the number of images.
        """
        own = (self._files, _concatenate(self._counts, COUNTS), _concatenate(self._sweep, SWEEP_COUNTS), self._raw_maps)
        parts = comm.gather(own, dst=0)
        if not comm.is_main_process():
            return own[1], own[2], own[3], len(self._files)
        number = {name: index for index, name in enumerate(sorted({name for part in parts for name in part[0]}))}
        tables: tuple[list, list] = ([], [])
        seen: set[str] = set()
        for files, *parts_of_rank, _ in parts:
            numbers = np.array([number[name] for name in files], np.int64)
            # A loader that pads its last batch may score an image twice: the first counts.
            fresh = np.array([name not in seen for name in files], bool)
            seen.update(files)
            for table, rows in zip(tables, parts_of_rank):
                kept = rows[fresh[rows["image"]]] if len(rows) else rows
                renamed = kept.copy()
                renamed["image"] = numbers[kept["image"]] if len(kept) else 0
                table.append(renamed)
        raw_maps = {name: path for *_, maps in parts for name, path in maps.items()}
        return _concatenate(tables[0], COUNTS), _concatenate(tables[1], SWEEP_COUNTS), raw_maps, len(number)

    def _matched(self, counts: np.ndarray, num_clusters: int) -> np.ndarray:
        if self.matching in MATCHERS:
            return match_clusters(self.matching, counts, num_clusters, len(self.class_names))
        return read_match(self.matching, len(self.class_names), num_clusters)

    def _saved_or_identity(self) -> np.ndarray:
        """Returns the class id of each predicted id where there is no ground truth; see `full_label_map`."""
        if self.matching in MATCHERS:
            return full_label_map(np.arange(len(self.class_names)))
        return full_label_map(read_match(self.matching, len(self.class_names)))

    def _curve(self, sweep: np.ndarray, num_clusters: int) -> list[dict[str, float]]:
        if not len(sweep) or self.matching not in MATCHERS:
            return []
        num_clusters = max(num_clusters, int(sweep["predicted"].max()))
        return sweep_scores(sweep, self.thresholds, num_clusters, len(self.class_names), MATCHERS[self.matching])

    def _record(self, num_images: int) -> dict:
        return {
            **self.provenance,
            **({"checkpoint": self.weights["weights"]} if self.weights else {}),
            "images": num_images,
            "dataset_images": len(self.gt_files),
            "complete": num_images == len(self.gt_files),
        }

    def _write(self, result: LussScores, values: dict, matched: np.ndarray, curve: list[dict], num_images: int) -> None:
        if self.output_dir is None:
            return
        rows = {
            name: {"IoU": 100 * float(iou), "b-IoU": 100 * float(boundary)}
            for name, iou, boundary in zip(["other", *self.class_names], result.class_iou, result.class_boundary_iou)
        }
        write_json(self.output_dir / "metrics.json", {"luss": values, RECORD: self._record(num_images)})
        write_json(self.output_dir / "classes.json", rows)
        write_json(self.output_dir / "match.json", match_as_json(matched))
        write_json(
            self.output_dir / "provenance.json",
            {
                "protocol": self.protocol,
                **self._record(num_images),
                "matching": self.matching,
                "boundary_ratio": self.boundary_ratio,
                "sweep": curve,
            },
        )

    def _write_raw(self, file_name: str, predicted: np.ndarray) -> None:
        assert self.output_dir is not None, "checked by the constructor"
        path = self.output_dir / "predictions" / self._submission_name(file_name)
        write_id_map(path, predicted)
        self._raw_maps[file_name] = str(path)

    def _submission_name(self, file_name: str) -> str:
        image = Path(file_name)
        return self.submission_names.get(file_name, f"{image.parent.name}/{image.stem}.png")

    def _finish_submission(self, raw_maps: dict[str, str], label_map: np.ndarray) -> None:
        """Gives the written maps their class ids, and packs them with the description that the server asks for."""
        if not self.submission:
            return
        assert self.output_dir is not None, "checked by the constructor"
        archive = self.output_dir / "submission.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
            packed.writestr("method.txt", f"Method: u2seg\nProtocol: {self.protocol}\nMatching: {self.matching}\n")
            for name, path in sorted((self._submission_name(file_name), path) for file_name, path in raw_maps.items()):
                ids = np.minimum(read_id_map(path), len(label_map) - 1)
                target = self.output_dir / "submission" / name
                write_id_map(target, np.maximum(label_map[ids], OTHER))
                packed.write(target, name)
        logger.info("Submission of %d predictions: %s", len(raw_maps), archive)


@EVALUATOR_REGISTRY.register("luss")
def build_luss_evaluator(dataset_name: str, cfg: CfgNode, output_dir: str) -> LussEvaluator:
    """Returns the evaluator of datasets with ``evaluator_type`` "luss"."""
    return LussEvaluator(cfg, dataset_name, output_dir)


def label_map_of(output: Mapping, num_things: int) -> np.ndarray:
    """Returns the ids of a model's output, int64 (H, W), 0 for "other"; see `LussEvaluator` for what is understood.

    Args:
        output: of one image.
        num_things: K of a panoptic model.

    Raises:
        ValueError: no map is in it.
    """
    if "sem_seg_labels" in output:
        return _as_numpy(output["sem_seg_labels"]).astype(np.int64)
    if "panoptic_seg" in output:
        segment_map, segments = output["panoptic_seg"]
        return _ids_of_panoptic(segment_map, segments, num_things)
    if "sem_seg" in output:
        return _as_numpy(output["sem_seg"].argmax(dim=0)).astype(np.int64)
    raise ValueError(
        f"LUSS needs sem_seg_labels, panoptic_seg or sem_seg in a model's output, got {', '.join(sorted(output)) or 'nothing'}"
    )


def _ids_of_panoptic(panoptic: Tensor, segments: list[dict], num_things: int) -> np.ndarray:
    segment_ids = _as_numpy(panoptic)
    lookup = np.zeros(max([int(segment_ids.max()), *(s["id"] for s in segments)], default=0) + 1, np.int64)
    for segment in segments:
        # Contiguous ids: things 0..K-1; stuff 1..S, since 0 stands for "thing" in the semantic head.
        lookup[segment["id"]] = (
            segment["category_id"] + 1 if segment["isthing"] else num_things + segment["category_id"]
        )
    return lookup[segment_ids]


def match_as_json(matched: np.ndarray) -> dict[str, int]:
    """Returns a matching as ``{predicted id: class id}``, ids from 1 and "0": 0; clusters without a class are left out."""
    return {"0": OTHER, **{str(i + 1): int(c) + 1 for i, c in enumerate(matched) if c >= 0}}


def read_match(path: str | Path, num_classes: int, num_clusters: int = 0) -> np.ndarray:
    """Returns the 0-based class of each cluster from a ``match.json``, -1 for none, int64 (at least ``num_clusters``,).

    Raises:
        ValueError: the file is not a match, or has a class id that is not in 0..``num_classes``.
    """
    content = read_json(path)
    pairs = {int(key): label for key, label in content.items() if key.isdecimal()} if isinstance(content, dict) else {}
    if not pairs or len(pairs) < len(content) or not all(label in range(num_classes + 1) for label in pairs.values()):
        raise ValueError(
            f'{path} must map predicted ids to class ids in 0..{num_classes}, such as {{"0": 0, "1": 3}}, '
            f"got {json.dumps(content)[:60]}"
        )
    matched = np.full(max(num_clusters, *pairs), -1, np.int64)
    for predicted, label in pairs.items():
        if predicted > OTHER:
            matched[predicted - 1] = label - 1
    return matched


def _fitted_on(matching: str, dataset_name: str) -> str:
    if matching == "none":
        return "nothing (predictions are class ids)"
    return dataset_name if matching in MATCHERS else f"the saved match {matching}"


def _protocol_of(matching: str, dataset_name: str) -> str:
    if matching == "none":
        return f"on {dataset_name}: predictions are class ids, nothing is matched"
    if matching in MATCHERS:
        return (
            f"on {dataset_name}: clusters matched by {matching} on image-level co-occurrence with its own ground truth"
        )
    return f"on {dataset_name}: clusters named by {json.dumps(Path(matching).name)} of another run"


def _concatenate(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _as_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
