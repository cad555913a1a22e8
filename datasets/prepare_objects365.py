#!/usr/bin/env python
"""Makes a COCO instances JSON of Objects365 v2's validation set whose file names fit the unpacked pictures.

    python datasets/prepare_objects365.py --objects365 DIR

DIR holds zhiyuan_objv2_val.json and val/patch*/*.jpg. Objects365 names pictures ``images/v1/patch8/objects365_v1_00420917.jpg``; the
last two parts are where the archives put them below val/. Writes DIR/annotations/objects365_v2_val.json.
"""

import argparse
from pathlib import Path

from u2seg.data.conversion import box_annotation, image_record, require_tree, write_instances
from u2seg.stages import read_json

SOURCE = "zhiyuan_objv2_val.json"


def prepare(objects365: Path) -> Path:
    """Returns the COCO JSON that it writes.

    Raises:
        DatasetFilesError: files are missing.
    """
    require_tree(
        objects365, {SOURCE: "annotations", "val/": "folders patch*/ of pictures"}, "Download them from objects365.org."
    )
    content = read_json(objects365 / SOURCE)
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


def main() -> None:
    """Runs the conversion and prints the file that it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects365", type=Path, required=True)
    print(prepare(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
