"""A tiny COCO panoptic dataset of rectangles."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

CATEGORIES = [
    {"id": 1, "name": "box", "isthing": 1},
    {"id": 2, "name": "disc", "isthing": 1},
    {"id": 7, "name": "sky", "isthing": 0},
    {"id": 9, "name": "ground", "isthing": 0},
]


def _rle(mask: np.ndarray) -> dict:
    """Returns a mask as JSON-able RLE."""
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def write_coco_panoptic(root: Path, split: str = "train", count: int = 6, size=(48, 64), seed: int = 0) -> Path:
    """Writes images of rectangles over sky and ground in COCO's layout; every third image holds stuff alone."""
    rng = np.random.default_rng(seed)
    height, width = size
    images, panoptic, instances = [], [], []
    for directory in (root / split, root / f"panoptic_{split}", root / "annotations"):
        directory.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image_id = index + 1
        horizon = int(rng.integers(height // 3, height // 2))
        segments = np.where(np.arange(height)[:, None] < horizon, 1, 2) * np.ones((1, width), int)
        segments[:2] = 0  # void
        image = rng.integers(0, 40, (height, width, 3))
        image[segments == 1] += (90, 120, 200)
        image[segments == 2] += (60, 140, 60)
        info = [{"id": 1, "category_id": 7, "iscrowd": 0}, {"id": 2, "category_id": 9, "iscrowd": 0}]
        for number in range(0 if index % 3 == 2 else 2):
            y, x = int(rng.integers(4, height - 20)), int(rng.integers(2, width - 24))
            h, w = int(rng.integers(9, 16)), int(rng.integers(11, 20))
            category = 1 + (index + number) % 2
            segments[y : y + h, x : x + w] = 3 + number
            image[y : y + h, x : x + w] = (210, 40 + 60 * category, 30)
            info.append({"id": 3 + number, "category_id": category, "iscrowd": 0})
        kept = []
        for segment in info:
            mask = segments == segment["id"]
            if not mask.any():
                continue
            ys, xs = np.nonzero(mask)
            box = [float(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)]
            kept.append({**segment, "area": int(mask.sum()), "bbox": box})
            if segment["category_id"] <= 2:
                instances.append(
                    {**kept[-1], "id": len(instances) + 1, "image_id": image_id, "segmentation": _rle(mask)}
                )
        name = f"{image_id:06d}"
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / f"{name}.png")
        rgb = np.stack([segments % 256, segments // 256, np.zeros_like(segments)], axis=2).astype(np.uint8)
        Image.fromarray(rgb).save(root / f"panoptic_{split}" / f"{name}.png")
        images.append({"id": image_id, "file_name": f"{name}.png", "height": height, "width": width})
        panoptic.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": kept})
    things = [category for category in CATEGORIES if category["isthing"]]
    write = lambda kind, value: (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(value))  # noqa: E731
    write("panoptic", {"images": images, "annotations": panoptic, "categories": CATEGORIES})
    write("instances", {"images": images, "annotations": instances, "categories": things})
    return root
