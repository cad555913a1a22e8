"""Images and COCO ground truth drawn from a seed, varied enough to stand in for photos."""

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from pycocotools import mask as mask_utils
from u2seg.data.formats.coco_panoptic import write_panoptic_png

CATEGORIES = [{key: category[key] for key in ("id", "name", "isthing")} for category in COCO_CATEGORIES]


def synthetic_photo(seed: int, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """Returns an image, uint8 (height, width, 3), RGB: shaded shapes before a ground of soft colors, then blur and noise."""
    rng = np.random.default_rng([seed, 1])
    height, width = size
    image = cv2.resize(
        rng.uniform(0, 255, (3, 4, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    ramp = np.linspace(-30, 30, width, dtype=np.float32)[None, :, None]
    for shape in _shapes(rng, size, count=6):
        image[shape] = rng.uniform(0, 255, 3)
        image += ramp * rng.normal(0, 1) * shape[..., None]
    image = cv2.GaussianBlur(image, (0, 0), 1.0) + rng.normal(0, 6, image.shape)
    return image.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class SyntheticCoco:
    """Where a small dataset in COCO's layout lies."""

    panoptic_json: Path
    panoptic_directory: Path
    instances_json: Path


def write_synthetic_coco(
    root: Path, count: int = 10, size: tuple[int, int] = (240, 320), seed: int = 0
) -> SyntheticCoco:
    """Writes the ground truth of ``count`` images, with COCO's own 133 categories.

    Objects overlap, reach all three of COCO's area ranges, and are polygons in the instances file, where crowds are run
    lengths; in the panoptic map the later object lies before the earlier one. One image has no object, one no stuff.
    """
    rng = np.random.default_rng([seed, 2])
    things = [category["id"] for category in CATEGORIES if category["isthing"]][:12]
    stuff = [category["id"] for category in CATEGORIES if not category["isthing"]][:9]
    files = SyntheticCoco(root / "panoptic.json", root / "panoptic", root / "instances.json")
    images, panoptic, instances = [], [], []
    for number in range(1, count + 1):
        segment_map, segments = np.zeros(size, np.int32), []
        if number != 1:
            _add_stuff(rng, segment_map, segments, stuff)
        for shape in _shapes(rng, size, count=0 if number == 2 else int(rng.integers(3, 13))):
            category, crowd = int(rng.choice(things)), int(rng.random() < 0.15)
            segment_map[shape] = 1000 * number + len(segments)
            segments.append({"id": 1000 * number + len(segments), "category_id": category, "iscrowd": crowd})
            instances.append({"id": len(instances) + 1, "image_id": number, **_instance(shape, category, crowd)})
        for segment in segments:
            segment["area"] = int((segment_map == segment["id"]).sum())
        name = f"{number:012d}"
        write_panoptic_png(files.panoptic_directory / f"{name}.png", segment_map)
        images.append({"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        seen = [segment for segment in segments if segment["area"]]
        panoptic.append({"image_id": number, "file_name": f"{name}.png", "segments_info": seen})
    for path, rows, categories in (
        (files.panoptic_json, panoptic, CATEGORIES),
        (files.instances_json, instances, [category for category in CATEGORIES if category["isthing"]]),
    ):
        path.write_text(json.dumps({"info": {}, "images": images, "annotations": rows, "categories": categories}))
    return files


def _add_stuff(rng, segment_map: np.ndarray, segments: list[dict], stuff: list[int]) -> None:
    """Lays three horizontal bands on the map, the last of them void."""
    height = len(segment_map)
    edges = [0, *sorted(rng.integers(height // 4, height, 2))]
    for top, bottom, category in zip(edges, edges[1:], rng.permutation(stuff)):
        identifier = 500 + len(segments)
        segment_map[top:bottom] = identifier
        segments.append({"id": identifier, "category_id": int(category), "iscrowd": 0})


def _shapes(rng, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Returns filled convex polygons of all sizes, bool (height, width) each."""
    shapes = []
    for _ in range(count):
        radius = min(size) * float(np.exp(rng.uniform(np.log(0.04), np.log(0.4))))
        center = rng.uniform(0.1, 0.9, 2) * [size[1], size[0]]
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 20))))
        points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.5, 1, 2)
        canvas = np.zeros(size, np.uint8)
        cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1)
        shapes.append(canvas.astype(bool))
    return [shape for shape in shapes if shape.sum() > 12]


def _instance(mask: np.ndarray, category: int, crowd: int) -> dict:
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    if crowd:
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    else:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        segmentation = [contour.ravel().tolist() for contour in contours if len(contour) > 2]
    return {
        "category_id": category,
        "iscrowd": crowd,
        "area": float(mask.sum()),
        "bbox": [float(value) for value in mask_utils.toBbox(rle)],
        "segmentation": segmentation,
    }
