"""Writes COCO's JSON files and panoptic PNGs from datasets in other formats."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from u2seg.data.formats.coco_panoptic import write_panoptic_png
from u2seg.utils.files import write_json


def image_record(image_id: int, file_name: str, height: int, width: int) -> dict:
    """Returns an entry of COCO's ``images``; ``file_name`` is relative to the image directory."""
    return {"id": image_id, "file_name": file_name, "height": int(height), "width": int(width)}


def box_annotation(image_id: int, category_id: int, box_xywh: Iterable[float], *, crowd: bool = False) -> dict:
    """Returns an entry of COCO's ``annotations`` without a mask: its area is the box's; ids are given when it is written."""
    x, y, width, height = (float(value) for value in box_xywh)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": int(crowd),
    }


def write_instances(path: str | Path, images: list[dict], annotations: list[dict], categories: list[dict]) -> Path:
    """Writes a COCO instances JSON, its annotations numbered from 1; returns its path."""
    numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)]
    write_json(path, {"images": images, "annotations": numbered, "categories": categories})
    return Path(path)


class PanopticWriter:
    """Writes a COCO panoptic dataset image by image: PNGs at once, the two JSON files at the end."""

    def __init__(self, root: str | Path, split: str, categories: list[dict]):
        """Describes the dataset; nothing is written yet.

        Args:
            root: PNGs go to ``root/panoptic_SPLIT``, JSON files to ``root/annotations``.
            split: name of the split.
            categories: COCO panoptic categories, with ``isthing``.
        """
        self._root, self._split, self._categories = Path(root), split, categories
        self._things = {category["id"] for category in categories if category["isthing"]}
        self._images: list[dict] = []
        self._panoptic: list[dict] = []
        self._instances: list[dict] = []

    def add(self, file_name: str, segment_map: np.ndarray, segments: list[dict]) -> None:
        """Writes one image.

        Args:
            file_name: of the image, relative to the image directory; its PNG gets the same name with "/" as "_".
            segment_map: int (height, width), segment ids, 0 void.
            segments: dicts with ``id``, ``category_id`` and ``iscrowd``.
        """
        image_id = len(self._images) + 1
        png = file_name.replace("/", "_").rsplit(".", 1)[0] + ".png"
        write_panoptic_png(self._root / f"panoptic_{self._split}" / png, segment_map)
        self._images.append(image_record(image_id, file_name, *segment_map.shape))
        infos = []
        for segment in segments:
            mask = np.asfortranarray((segment_map == segment["id"]).astype(np.uint8))
            rle = mask_utils.encode(mask)
            info = {**segment, "area": int(mask_utils.area(rle)), "bbox": [int(v) for v in mask_utils.toBbox(rle)]}
            infos.append(info)
            if segment["category_id"] in self._things:
                rle["counts"] = rle["counts"].decode("ascii")
                instance = {key: info[key] for key in ("category_id", "iscrowd", "area")}
                bbox = [float(v) for v in info["bbox"]]
                self._instances.append({**instance, "image_id": image_id, "bbox": bbox, "segmentation": rle})
        self._panoptic.append({"image_id": image_id, "file_name": png, "segments_info": infos})

    def close(self) -> Path:
        """Writes ``panoptic_SPLIT.json`` and ``instances_SPLIT.json``; returns the path of the first."""
        annotations = self._root / "annotations"
        path = annotations / f"panoptic_{self._split}.json"
        write_json(path, {"images": self._images, "annotations": self._panoptic, "categories": self._categories})
        things = [category for category in self._categories if category["isthing"]]
        write_instances(annotations / f"instances_{self._split}.json", self._images, self._instances, things)
        return path
