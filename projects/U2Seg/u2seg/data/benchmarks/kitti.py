"""Makes a COCO instances JSON of KITTI's object boxes.

    u2seg prepare kitti --kitti DIR

DIR holds training/image_2/*.png and training/label_2/*.txt (the 7481 images with labels, which CutLER scores). The class
DontCare marks regions in which nothing is scored: they become crowds of every class, that is, of class "DontCare" in the
class-aware file and of the one class in class-agnostic scoring. Writes DIR/annotations/kitti_trainval.json.
"""

import argparse
from pathlib import Path

from PIL import Image

from u2seg.data.formats.coco_writer import box_annotation, image_record, write_instances
from u2seg.data.formats.expected_files import require_tree
from u2seg.utils.progress import track

DATASETS = {
    "kitti_trainval_boxes": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/kitti/training/image_2",
        "INSTANCES_JSON": "datasets/kitti/annotations/kitti_trainval.json",
        "PREPARED_BY": "u2seg prepare kitti",
    }
}

CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc", "DontCare")


def prepare(kitti: Path) -> Path:
    """Returns the COCO JSON that it writes.

    Raises:
        DatasetFilesError: files are missing.
        ValueError: a line that is not a KITTI label.
    """
    expected = {"training/image_2/": "images", "training/label_2/": "label files"}
    require_tree(
        kitti, expected, "Unpack data_object_image_2.zip and data_object_label_2.zip (cvlibs.net/datasets/kitti)."
    )
    images, annotations = [], []
    for image_id, file in enumerate(track(sorted((kitti / "training/label_2").glob("*.txt")), "annotations"), 1):
        with Image.open(kitti / "training/image_2" / f"{file.stem}.png") as image:
            images.append(image_record(image_id, f"{file.stem}.png", image.height, image.width))
        for line in file.read_text().splitlines():
            fields = line.split()
            if len(fields) < 8 or fields[0] not in CLASSES:
                raise ValueError(f"{file} holds {line!r}; expected a class of {', '.join(CLASSES)} and 14 numbers")
            x0, y0, x1, y1 = map(float, fields[4:8])
            box, crowd = (x0, y0, x1 - x0, y1 - y0), fields[0] == "DontCare"
            annotations.append(box_annotation(image_id, CLASSES.index(fields[0]) + 1, box, crowd=crowd))
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    return write_instances(kitti / "annotations" / "kitti_trainval.json", images, annotations, categories)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--kitti", type=Path, required=True)


run = prepare
