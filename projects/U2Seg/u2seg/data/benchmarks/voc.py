"""Makes COCO files of PASCAL VOC: the boxes of VOC 2007, or the segmentation of VOC 2012.

    u2seg prepare voc boxes --voc DIR/VOC2007 [--splits trainval,test] [--difficult-as-crowd]
    u2seg prepare voc segments --voc DIR/VOC2012 [--split val]

``boxes`` writes annotations/voc_2007_<splits>.json, with VOC's 20 classes; the 9963 images of trainval + test are what CutLER and
U2Seg score. Objects marked difficult are objects like others, as plain conversions have them, or crowds, which cost nothing.
``segments`` writes annotations/{panoptic,instances}_<split>.json and panoptic_<split>/: 20 things, the background as stuff,
VOC's white contours as void.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from u2seg.data.formats.coco_writer import PanopticWriter
from u2seg.data.formats.expected_files import require_tree
from u2seg.data.formats.voc_xml import VOC_CLASSES, write_voc_boxes
from u2seg.utils.command_line import comma_separated
from u2seg.utils.files import confined_path
from u2seg.utils.progress import track

DATASETS = {
    "voc_2007_trainval_test_boxes": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/VOC2007/JPEGImages",
        "INSTANCES_JSON": "datasets/VOC2007/annotations/voc_2007_trainval_test.json",
        "PREPARED_BY": "u2seg prepare voc boxes",
    },
    "voc_2012_val_panoptic": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/VOC2012/JPEGImages",
        "INSTANCES_JSON": "datasets/VOC2012/annotations/instances_val.json",
        "PANOPTIC_JSON": "datasets/VOC2012/annotations/panoptic_val.json",
        "PANOPTIC_ROOT": "datasets/VOC2012/panoptic_val",
        "PREPARED_BY": "u2seg prepare voc segments",
    },
}

BACKGROUND_ID, VOID = 21, 255
DOWNLOAD = "Unpack VOC's archives (host.robots.ox.ac.uk/pascal/VOC), so that DIR holds JPEGImages and the rest."


def prepare_boxes(voc: Path, splits: list[str], difficult_as_crowd: bool = False) -> Path:
    """Returns the COCO JSON that it writes from VOC's XML files.

    Args:
        voc: directory with ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``.
        splits: names of the lists in ``ImageSets/Main``, joined.
        difficult_as_crowd: whether objects marked difficult become crowds.

    Raises:
        DatasetFilesError: files are missing.
        ValueError: a file that is not a VOC annotation, or an object of an unknown class.
    """
    output = f"annotations/voc_2007_{'_'.join(splits)}.json"
    return write_voc_boxes(voc, splits, VOC_CLASSES, output, DOWNLOAD, difficult_as_crowd=difficult_as_crowd)


def prepare_segments(voc: Path, split: str) -> Path:
    """Returns the COCO panoptic JSON that it writes from VOC's palette PNGs.

    Args:
        voc: directory with ``SegmentationClass``, ``SegmentationObject``, ``JPEGImages`` and ``ImageSets/Segmentation``.
        split: name of the list in ``ImageSets/Segmentation``.

    Raises:
        DatasetFilesError: files are missing.
    """
    names_file = f"ImageSets/Segmentation/{split}.txt"
    expected = {"SegmentationClass/": "class PNGs", "SegmentationObject/": "object PNGs", "JPEGImages/": "images"}
    require_tree(voc, {**expected, names_file: f"names of {split}"}, DOWNLOAD)
    things = [{"id": number, "name": name, "isthing": 1} for number, name in enumerate(VOC_CLASSES, 1)]
    writer = PanopticWriter(voc, split, [*things, {"id": BACKGROUND_ID, "name": "background", "isthing": 0}])
    for name in track((voc / names_file).read_text().split(), "panoptic maps"):
        classes, objects = (
            np.asarray(Image.open(confined_path(voc / directory, f"{name}.png", voc / names_file))).astype(np.int32)
            for directory in ("SegmentationClass", "SegmentationObject")
        )
        segment_map = np.where((classes == VOID) | (objects == VOID), 0, objects)
        background = (classes == 0) & (objects == 0)
        segment_map[background] = VOID  # an id that no object has
        ids = [int(identifier) for identifier in np.unique(segment_map) if identifier]
        segments = [
            {"id": i, "category_id": BACKGROUND_ID if i == VOID else _class_of(classes[segment_map == i]), "iscrowd": 0}
            for i in ids
        ]
        writer.add(f"{name}.jpg", segment_map, segments)
    return writer.close()


def _class_of(values: np.ndarray) -> int:
    return int(np.bincount(values[(values > 0) & (values != VOID)]).argmax())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    commands = parser.add_subparsers(dest="task", required=True)
    boxes, segments = commands.add_parser("boxes"), commands.add_parser("segments")
    for command in (boxes, segments):
        command.add_argument("--voc", type=Path, required=True)
    boxes.add_argument("--splits", type=comma_separated(), default=["trainval", "test"], metavar="A,B,...")
    boxes.add_argument("--difficult-as-crowd", action="store_true")
    segments.add_argument("--split", default="val")


def run(task: str, **arguments: Any) -> Path:
    """Returns the file that the chosen conversion writes: :func:`prepare_boxes` or :func:`prepare_segments`."""
    tasks: dict[str, Callable[..., Path]] = {"boxes": prepare_boxes, "segments": prepare_segments}
    return tasks[task](**arguments)
