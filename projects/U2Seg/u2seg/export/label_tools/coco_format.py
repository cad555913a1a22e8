"""COCO's instances JSON, masks as run-length codes; the file that most tools read."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from u2seg.data.formats.coco_writer import image_record, write_instances
from u2seg.export.label_tools.labeled_images import Category, LabeledImage, Region, checked_names
from u2seg.structures.coco_segmentation import segmentation_mask
from u2seg.utils.files import read_json

INSTANCES = "instances.json"


def write_coco(images: Iterable[LabeledImage], categories: Sequence[Category], output: Path) -> None:
    """Writes ``instances.json``; file names are relative to the directory of the images."""
    names = checked_names(categories)
    records: list[dict] = []
    annotations: list[dict] = []
    for image_id, image in enumerate(images, start=1):
        records.append(image_record(image_id, image.name, *image.size))
        annotations += [_annotation(image_id, names.index(region.category) + 1, region) for region in image.regions]
    write_instances(
        output / INSTANCES,
        records,
        annotations,
        [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(names, start=1)],
    )


def read_coco(path: Path) -> Iterator[tuple[str, list[Region]]]:
    """Yields (the image's name, regions) from a COCO instances JSON; crowds are left out.

    Raises:
        ValueError: the file has another form, an annotation has a box alone or an unknown category, or an image has no size.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise ValueError(f"{path} is no COCO instances JSON: expected images, annotations and categories")
    bare = [annotation.get("id") for annotation in content["annotations"] if not annotation.get("segmentation")]
    if bare:
        raise ValueError(
            f"{path}: {len(bare)} annotations have no mask, the first one with id {bare[0]}; draw one, or delete them"
        )
    names = {one["id"]: one["name"] for one in content["categories"] if {"id", "name"} <= one.keys()}
    by_image: dict[int, list[dict]] = {}
    for number, annotation in enumerate(content["annotations"], start=1):
        if annotation.get("iscrowd"):
            continue
        if "image_id" not in annotation or annotation.get("category_id") not in names:
            raise ValueError(
                f"{path}: annotation number {number} (id {annotation.get('id')}) has image_id {annotation.get('image_id')} and category_id "
                f"{annotation.get('category_id')}; expected an image and a category of the file: {', '.join(map(str, names)) or 'none'}"
            )
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in content["images"]:
        if not {"file_name", "height", "width"} <= image.keys():
            raise ValueError(f"{path}: the image with id {image.get('id')} lacks its file_name, height or width")
        size = image["height"], image["width"]
        regions = [
            Region(
                names[one["category_id"]], segmentation_mask(one["segmentation"], size).astype(bool), one.get("score")
            )
            for one in by_image.get(image.get("id"), [])
        ]
        yield image["file_name"], [region for region in regions if region.mask.any()]


def _annotation(image_id: int, category_id: int, region: Region) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(region.mask))
    found = {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": int(mask_utils.area(rle)),
        "bbox": [float(value) for value in mask_utils.toBbox(rle)],
        "iscrowd": 0,
    }
    return found if region.score is None else {**found, "score": round(region.score, 6)}
