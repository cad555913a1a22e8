"""Makes a COCO instances JSON of the boxes of Open Images V6's validation set.

    u2seg prepare openimages --openimages DIR

DIR holds validation-annotations-bbox.csv and validation/<ImageID>.jpg. Coordinates in the CSV are shares of the image's width and
height, which are read from the images as they are shown (upright by their EXIF orientation); that the annotators saw them so is
an assumption. A box of a group (IsGroupOf) becomes a crowd; occluded, truncated, inside and depicted objects are objects like others.
Categories are named by their LabelName ("/m/01g317"): CutLER's scores know no classes. Images without a box are not in the CSV,
and are left out. Writes DIR/annotations/openimages_v6_val.json.
"""

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

from u2seg.data.formats.coco_writer import box_annotation, image_record, write_instances
from u2seg.data.formats.expected_files import require_tree
from u2seg.utils.image_io import ImageReadError, image_size
from u2seg.utils.progress import track

DATASETS = {
    "openimages_v6_val_boxes": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/openimages/validation",
        "INSTANCES_JSON": "datasets/openimages/annotations/openimages_v6_val.json",
        "PREPARED_BY": "u2seg prepare openimages",
    }
}

SOURCE = "validation-annotations-bbox.csv"
COORDINATES = ("XMin", "XMax", "YMin", "YMax")
COLUMNS = ("ImageID", "LabelName", *COORDINATES, "IsGroupOf")
DOWNLOAD = "Download it from storage.googleapis.com/openimages/web (V6, validation)."


def prepare(openimages: Path) -> Path:
    """Returns the COCO JSON that it writes.

    Raises:
        DatasetFilesError: files are missing.
        ValueError: the CSV lacks columns, or holds a row that is not a box; or a file is not an image.
    """
    require_tree(openimages, {SOURCE: "boxes", "validation/": "images"}, DOWNLOAD)
    boxes = read_boxes(openimages / SOURCE)
    names = sorted({box.image_name for box in boxes})
    present = {path.stem for path in (openimages / "validation").glob("*.jpg")}
    missing = [name for name in names if name not in present]
    if missing:
        what = f"the first of {len(missing)} images, of {len(names)} with boxes, that are not there"
        require_tree(openimages, {SOURCE: "boxes", f"validation/{missing[0]}.jpg": what}, DOWNLOAD)
    images = {
        name: image_record(number, f"{name}.jpg", *_size(openimages / "validation" / f"{name}.jpg"))
        for number, name in enumerate(track(names, "annotations"), 1)
    }
    labels = {label: number for number, label in enumerate(sorted({box.label for box in boxes}), 1)}
    annotations = [
        box_annotation(
            images[box.image_name]["id"], labels[box.label], box.pixels_xywh(images[box.image_name]), crowd=box.is_group
        )
        for box in boxes
    ]
    categories = [{"id": number, "name": label} for label, number in labels.items()]
    output = openimages / "annotations" / "openimages_v6_val.json"
    return write_instances(output, list(images.values()), annotations, categories)


class Box(NamedTuple):
    """One row of the CSV; ``sides`` are left, right, top, bottom, shares of the image's width and height."""

    image_name: str
    label: str
    sides: tuple[float, ...]
    is_group: bool

    def pixels_xywh(self, image: dict) -> tuple[float, float, float, float]:
        """Returns the box in pixels of an entry of COCO's ``images``."""
        (x0, x1, y0, y1), width, height = self.sides, image["width"], image["height"]
        return x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height


def read_boxes(path: Path) -> list[Box]:
    """Returns the rows of a CSV of boxes.

    Raises:
        ValueError: columns are missing, or a row is not a box.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path} lacks the columns {', '.join(missing)}; expected Open Images' boxes, with {', '.join(COLUMNS)}"
            )
        return [_box(row, f"{path}, line {reader.line_num}") for row in reader]


def _size(path: Path) -> tuple[int, int]:
    try:
        return image_size(path)
    except ImageReadError as error:
        raise ImageReadError(f"{path}: {error}; download it again") from error


def _box(row: dict, where: str) -> Box:
    numbers = (*COORDINATES, "IsGroupOf")
    try:
        *sides, group = (float(row[column]) for column in numbers)
    except (TypeError, ValueError) as error:  # TypeError: a row that ends early
        got = ", ".join(str(row[column]) for column in numbers)
        raise ValueError(
            f"{where}: {', '.join(numbers)} must be numbers, got {got}; download the file again"
        ) from error
    return Box(row["ImageID"], row["LabelName"], tuple(sides), group == 1)  # 0: no group; -1: unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--openimages", type=Path, required=True)


run = prepare
