"""Random panoptic maps in COCO's files, and the official tools as oracles."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from u2seg.data.formats.coco_panoptic import write_panoptic_png


def categories(num_things: int, num_stuff: int, first: int = 1) -> list[dict]:
    """COCO categories with gaps in their ids, things first."""
    ids = [first + 3 * index for index in range(num_things + num_stuff)]
    return [{"id": i, "name": f"c{i}", "isthing": int(n < num_things), "supercategory": "x"} for n, i in enumerate(ids)]


def random_map(rng, size, num_segments, cats, *, void=0.1, crowds=False):
    """A map of blocks: (ids int32 (H, W), segments_info); stuff categories occur once at most, as in COCO."""
    height, width = size
    seeds = rng.uniform(0, 1, (num_segments, 2)) * [height, width]
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
    nearest = np.abs(grid[:, :, None] - seeds).max(-1).argmin(-1)
    ids = rng.choice(np.arange(1, 1 << 20), num_segments, replace=False)
    things = [c["id"] for c in cats if c["isthing"]]
    stuff = list(rng.permutation([c["id"] for c in cats if not c["isthing"]]))
    segment_map, infos = np.zeros(size, np.int32), []
    for index, identifier in enumerate(ids):
        if rng.random() < void or not (nearest == index).any():
            continue
        use_stuff = stuff and rng.random() < 0.4
        category = int(stuff.pop()) if use_stuff else int(rng.choice(things))
        area = int((nearest == index).sum())
        segment_map[nearest == index] = identifier
        crowd = int(crowds and not use_stuff and rng.random() < 0.2)
        infos.append({"id": int(identifier), "category_id": category, "iscrowd": crowd, "area": area})
    return segment_map, infos


def perturbed(rng, segment_map, infos, cats, strength=0.3):
    """A prediction made from a ground truth: shifted, with segments dropped, merged into others, and renamed."""
    shift = rng.integers(-3, 4, 2)
    moved = np.roll(segment_map, tuple(shift), (0, 1))
    result, kept = np.zeros_like(moved), []
    by_kind = {kind: [c["id"] for c in cats if c["isthing"] == kind] for kind in (0, 1)}
    isthing = {c["id"]: c["isthing"] for c in cats}
    used_stuff = set()
    for info in infos:
        pixels = moved == info["id"]
        if rng.random() < strength / 2 or not pixels.any():
            continue
        category = info["category_id"]
        if rng.random() < strength:
            category = int(rng.choice(by_kind[isthing[category]]))
        if not isthing[category]:
            if category in used_stuff:
                continue
            used_stuff.add(category)
        if rng.random() < strength:
            pixels &= rng.random(pixels.shape) < 0.8
            if not pixels.any():
                continue
        identifier = len(kept) + 1
        result[pixels] = identifier
        kept.append(
            {"id": identifier, "category_id": category, "iscrowd": 0, "score": float(rng.choice([0.3, 0.5, 0.9]))}
        )
    infos = [{**info, "area": int((result == info["id"]).sum())} for info in kept]
    return result, infos


def write_coco_panoptic(directory: Path, name: str, maps, cats, first_id: int = 1) -> tuple[Path, Path]:
    """Writes maps [(ids, infos), ...] as COCO panoptic files; returns (json, png directory)."""
    pngs = directory / name
    annotations, images = [], []
    for number, (segment_map, infos) in enumerate(maps, first_id):
        write_panoptic_png(pngs / f"{number:012d}.png", segment_map)
        annotations.append({"image_id": number, "file_name": f"{number:012d}.png", "segments_info": infos})
        images.append(
            {
                "id": number,
                "file_name": f"{number:012d}.jpg",
                "height": segment_map.shape[0],
                "width": segment_map.shape[1],
            }
        )
    path = directory / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": cats}))
    return path, pngs


def official_pq(gt_json, gt_directory, predicted_json, predicted_directory) -> dict:
    """panopticapi's own numbers, one process (its pool costs more than the work)."""
    from panopticapi.evaluation import pq_compute_single_core

    gt, predicted = json.loads(Path(gt_json).read_text()), json.loads(Path(predicted_json).read_text())
    by_image = {annotation["image_id"]: annotation for annotation in predicted["annotations"]}
    pairs = [(annotation, by_image[annotation["image_id"]]) for annotation in gt["annotations"]]
    cats = {category["id"]: category for category in gt["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        stat = pq_compute_single_core(0, pairs, str(gt_directory), str(predicted_directory), cats)
        result = {}
        for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
            average, _ = stat.pq_average(cats, isthing)
            result |= {f"{key.upper()}{suffix}": 100 * average[key] for key in ("pq", "sq", "rq")}
    return result


def official_coco_eval(
    gt: dict, detections: list[dict], kind: str, max_detections=(1, 10, 100), use_cats=True
) -> COCOeval:
    """pycocotools' COCOeval after accumulate()."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = gt
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(detections), kind)
        evaluation.params.maxDets = list(max_detections)
        evaluation.params.useCats = int(use_cats)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation
