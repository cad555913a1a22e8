"""Class-agnostic quality of masks: COCO's AP and AR with all categories counted as one."""

import contextlib
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2seg.data.formats.class_agnostic import find_mask_directory
from u2seg.data.formats.coco_schema import compressed_counts, read_instances_json, read_results_json
from u2seg.data.formats.mask_shards import iter_records
from u2seg.structures.coco_segmentation import segmentation_rle
from u2seg.utils.files import read_json

if TYPE_CHECKING:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

# Name -> (is average precision, IoU threshold or None for .50:.05:.95, area range, most detections an image).
_METRICS = {
    "AP": (True, None, "all", 100),
    "AP50": (True, 0.5, "all", 100),
    "AP75": (True, 0.75, "all", 100),
    "APs": (True, None, "small", 100),
    "APm": (True, None, "medium", 100),
    "APl": (True, None, "large", 100),
    "AR1": (False, None, "all", 1),
    "AR10": (False, None, "all", 10),
    "AR100": (False, None, "all", 100),
}


def evaluate_masks(predictions: str | Path, ground_truth: str | Path) -> dict:
    """Returns class-agnostic AP and AR of masks, in per cent, as pycocotools computes them with ``useCats = 0``.

    Args:
        predictions: a label directory, or the directory ``masks`` in it; or a JSON file, either COCO results (a list) or a COCO dataset
            (``{"images", "annotations"}``, as MaskCut writes it). Annotations without ``score`` count as 1.
        ground_truth: COCO instances JSON.

    Returns:
        ``{"segm": {...}, "bbox": {...}, "counts": {...}}``, without ``segm`` where not every annotation of the ground truth has a
        mask; metrics AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, NaN where the
        ground truth has no object of that size; counts of ground-truth images and objects, of ground-truth images without a
        prediction, of predictions, and of predictions that were left out because their image is not in the ground truth.

    Raises:
        FileNotFoundError: the directory holds no masks.
        ValueError: none of the predictions belongs to an image of the ground truth, or a file is not what it should be; the
            message names the row and the field.
    """
    from pycocotools.coco import COCO

    gt = COCO()
    gt.dataset = read_instances_json(ground_truth)
    annotations = gt.dataset["annotations"]
    for annotation in annotations:  # COCO's format has it, pycocotools needs it, other exporters leave it out
        annotation.setdefault("iscrowd", 0)
    kinds = ("segm", "bbox") if all(annotation.get("segmentation") for annotation in annotations) else ("bbox",)
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
    detections, num_left_out = _only_known(_load_predictions(Path(predictions), gt), gt)
    # With useCats = 0, pycocotools still leaves out detections of a category that the ground truth does not list.
    detections = [{**detection, "category_id": min(gt.cats)} for detection in detections]
    if num_left_out and not detections:
        raise ValueError(
            f"none of the {num_left_out} predictions in {predictions} belongs to an image of {ground_truth}; "
            "expected the same image ids, or in a mask directory the same file names"
        )
    counts = {
        "images": len(gt.imgs),
        "objects": sum(not annotation["iscrowd"] for annotation in annotations),
        "images_without_prediction": len(gt.imgs.keys() - {detection["image_id"] for detection in detections}),
        "predictions": len(detections),
        "left_out": num_left_out,
    }
    return {**{kind: _score(gt, detections, kind) for kind in kinds}, "counts": counts}


def format_quality(results: dict) -> str:
    """Returns ``evaluate_masks``' result as a table."""
    from tabulate import tabulate

    rows = [[kind, *(results[kind][name] for name in _METRICS)] for kind in ("segm", "bbox") if kind in results]
    table = tabulate(rows, headers=["class-agnostic", *_METRICS], floatfmt=".2f")
    counts = results["counts"]
    boxes_only = (
        "" if "segm" in results else "boxes alone are scored: not every annotation of the ground truth has a mask\n"
    )
    return (
        f"{table}\n{boxes_only}"
        f"ground truth: {counts['objects']} objects in {counts['images']} images; "
        f"{counts['images_without_prediction']} of the images have no prediction\n"
        f"predictions: {counts['predictions']}; {counts['left_out']} more were left out: their images are not in the ground truth"
    )


def _load_predictions(path: Path, gt: "COCO") -> list[dict]:
    """Returns COCO results: dicts with image_id, category_id, segmentation (RLE or polygons) and score."""
    if path.is_dir():
        return _from_records(find_mask_directory(path), gt)
    annotations = read_results_json(path, {i: (image["height"], image["width"]) for i, image in gt.imgs.items()})
    _check_numbering(path, gt)
    return [
        _result(a["image_id"], _as_rle(a["segmentation"], a["image_id"], gt), a.get("score", 1)) for a in annotations
    ]


def _from_records(path: Path, gt: "COCO") -> list[dict]:
    ids = {image.get("file_name"): image["id"] for image in gt.imgs.values()}
    detections, num_records = [], 0
    for record in iter_records(path):
        num_records += 1
        image_id = ids.get(record.file_name, record.image_id)
        image = gt.imgs.get(image_id)
        if image and record.error is None and (record.height, record.width) != (image["height"], image["width"]):
            raise ValueError(
                f"{path}: the masks of {record.file_name} are {record.height} x {record.width}, the ground truth's image {image_id} "
                f"is {image['height']} x {image['width']}"
            )
        for index, (rle, score) in enumerate(zip(record.rles(), record.scores.tolist())):
            if compressed_counts(rle["counts"]).sum() != record.height * record.width:
                raise ValueError(
                    f"{path}: mask {index} of {record.file_name} does not cover its image; the shard is damaged"
                )
            if not math.isfinite(score):
                raise ValueError(
                    f"{path}: mask {index} of {record.file_name} has score {score}; expected a finite number"
                )
            detections.append(_result(image_id, rle, score))
    if not num_records:
        raise ValueError(f"{path} holds no masks; expected shard-*.parquet, as `u2seg masks` writes them")
    return detections


def _check_numbering(path: Path, gt: "COCO") -> None:
    """Refuses a COCO dataset that has an image of the ground truth under another id."""
    content = read_json(path)
    images = content.get("images", []) if isinstance(content, dict) else []
    ids = {image.get("file_name"): image["id"] for image in gt.imgs.values()}
    for index, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        if name is not None and ids.get(name, image.get("id")) != image.get("id"):
            raise ValueError(
                f"{path}: images[{index}] gives {name!r} the id {image.get('id')}, the ground truth has it under {ids[name]}; "
                "both must number their images alike"
            )


def _result(image_id: int, segmentation: dict, score: float) -> dict:
    return {"image_id": image_id, "category_id": 1, "segmentation": segmentation, "score": float(score)}


def _as_rle(segmentation: Any, image_id: int, gt: "COCO") -> dict:
    image = gt.imgs.get(image_id)
    if image is None:
        return {"size": [0, 0], "counts": b""}  # left out below
    return segmentation_rle(segmentation, (image["height"], image["width"]))


def _only_known(detections: list[dict], gt: "COCO") -> tuple[list[dict], int]:
    known = [detection for detection in detections if detection["image_id"] in gt.imgs]
    return known, len(detections) - len(known)


def _score(gt: "COCO", detections: list[dict], kind: str) -> dict[str, float]:
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        if detections and kind == "segm":
            results = gt.loadRes([dict(detection) for detection in detections])
        elif detections:
            boxes = [coco_mask.toBbox(detection["segmentation"]).tolist() for detection in detections]
            rows = [{key: value for key, value in d.items() if key != "segmentation"} for d in detections]
            results = gt.loadRes([{**row, "bbox": box} for row, box in zip(rows, boxes)])
        else:  # loadRes refuses an empty list
            results = COCO()
            results.dataset = {"images": list(gt.imgs.values()), "annotations": [], "categories": []}
            results.createIndex()
        evaluator = COCOeval(gt, results, kind)
        evaluator.params.useCats = 0
        evaluator.evaluate()
        evaluator.accumulate()
    return {name: _metric(evaluator, *rule) for name, rule in _METRICS.items()}


def _metric(evaluator: "COCOeval", is_precision: bool, iou: float | None, area: str, max_detections: int) -> float:
    params = evaluator.params
    area_index = params.areaRngLbl.index(area)
    limit_index = params.maxDets.index(max_detections)
    table = evaluator.eval["precision" if is_precision else "recall"][..., area_index, limit_index]
    if iou is not None:
        table = table[abs(params.iouThrs - iou) < 1e-9]
    valid = table[table > -1]
    return 100 * float(valid.mean()) if valid.size else float("nan")
