#!/usr/bin/env python
"""Makes a COCO instances JSON of LVIS v1's validation set, for class-agnostic scores.

    python datasets/prepare_lvis.py --lvis DIR/lvis_v1_val.json --output DIR/lvis_v1_val_coco_format.json

LVIS' own file names no picture file and no crowd. Pictures get their path below COCO's folder from ``coco_url`` (some of LVIS' are
COCO's training pictures). LVIS does not annotate every object of a picture: only AR is comparable with fully annotated sets.
"""

import argparse
from pathlib import Path
from urllib.parse import urlparse

from u2seg.data.conversion import write_instances
from u2seg.stages import read_json


def prepare(lvis: Path, output: Path) -> Path:
    """Returns the COCO JSON that it writes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not LVIS'.
    """
    content = read_json(lvis)
    for image in content["images"]:
        if "coco_url" not in image:
            raise ValueError(f"{lvis} is no LVIS v1 file: picture {image.get('id')} has no coco_url")
    images = [
        {key: image[key] for key in ("id", "height", "width")}
        | {"file_name": "/".join(urlparse(image["coco_url"]).path.split("/")[-2:])}
        for image in content["images"]
    ]
    keys = ("image_id", "category_id", "bbox", "area", "segmentation")
    annotations = [{**{key: a[key] for key in keys}, "iscrowd": 0} for a in content["annotations"]]
    categories = [{"id": category["id"], "name": category["name"]} for category in content["categories"]]
    return write_instances(output, images, annotations, categories)


def main() -> None:
    """Runs the conversion and prints the file that it wrote."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lvis", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    print(prepare(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
