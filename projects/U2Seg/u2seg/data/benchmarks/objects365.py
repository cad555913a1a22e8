"""Makes a COCO instances JSON of Objects365 v2's validation set whose file names fit the unpacked images.

    u2seg prepare objects365 --objects365 DIR

DIR holds zhiyuan_objv2_val.json and val/patch*/*.jpg. Objects365 names images ``images/v1/patch8/objects365_v1_00420917.jpg``; the
last two parts are where the archives put them below val/. Writes DIR/annotations/objects365_v2_val.json.
"""

import argparse
from pathlib import Path

from u2seg.data.formats.coco_schema import read_instances_json
from u2seg.data.formats.coco_writer import box_annotation, image_record, write_instances
from u2seg.data.formats.expected_files import require_tree

DATASETS = {
    "objects365_v2_val_boxes": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/objects365/val",
        "INSTANCES_JSON": "datasets/objects365/annotations/objects365_v2_val.json",
        "PREPARED_BY": "u2seg prepare objects365",
    }
}

SOURCE = "zhiyuan_objv2_val.json"


def prepare(objects365: Path) -> Path:
    """Returns the COCO JSON that it writes.

    Raises:
        DatasetFilesError: files are missing.
        ValueError: the annotations are not in COCO's format.
    """
    require_tree(
        objects365,
        {SOURCE: "annotations", "val/": "directories patch*/ of images"},
        "Download them from objects365.org.",
    )
    content = read_instances_json(objects365 / SOURCE)
    images = [
        image_record(image["id"], "/".join(image["file_name"].split("/")[-2:]), image["height"], image["width"])
        for image in content["images"]
    ]
    annotations = [
        box_annotation(a["image_id"], a["category_id"], a["bbox"], crowd=bool(a.get("iscrowd", 0)))
        for a in content["annotations"]
    ]
    categories = [{"id": category["id"], "name": category["name"]} for category in content["categories"]]
    return write_instances(objects365 / "annotations" / "objects365_v2_val.json", images, annotations, categories)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--objects365", type=Path, required=True)


run = prepare
