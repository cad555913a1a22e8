"""Makes a COCO instances JSON of LVIS v1's validation set, for class-agnostic scores.

    u2seg prepare lvis --lvis DIR/lvis_v1_val.json --output DIR/lvis_v1_val_coco_format.json

LVIS' own file names no image file and no crowd. Images get their path below COCO's directory from ``coco_url`` (some of LVIS' are
COCO's training images). LVIS does not annotate every object of an image: only AR is comparable with fully annotated sets.
"""

import argparse
from pathlib import Path
from urllib.parse import urlparse

from u2seg.data.formats.coco_writer import write_instances
from u2seg.utils.files import read_json

DATASETS = {
    "lvis_v1_val_boxes_masks": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/coco",
        "INSTANCES_JSON": "datasets/lvis/lvis_v1_val_coco_format.json",
        "PREPARED_BY": "u2seg prepare lvis",
    }
}


def prepare(lvis: Path, output: Path) -> Path:
    """Returns the COCO JSON that it writes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not LVIS'.
    """
    content = read_json(lvis)
    for image in content["images"]:
        if "coco_url" not in image:
            raise ValueError(f"{lvis} is no LVIS v1 file: image {image.get('id')} has no coco_url")
    images = [
        {key: image[key] for key in ("id", "height", "width")}
        | {"file_name": "/".join(urlparse(image["coco_url"]).path.split("/")[-2:])}
        for image in content["images"]
    ]
    keys = ("image_id", "category_id", "bbox", "area", "segmentation")
    annotations = [{**{key: a[key] for key in keys}, "iscrowd": 0} for a in content["annotations"]]
    categories = [{"id": category["id"], "name": category["name"]} for category in content["categories"]]
    return write_instances(output, images, annotations, categories)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--lvis", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)


run = prepare
