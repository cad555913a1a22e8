"""YOLO's segmentation labels: a text file an image, one line a region: class, then a polygon relative to the image's size."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import yaml

from u2seg.export.label_tools.labeled_images import (
    Category,
    LabeledImage,
    checked_names,
    copy_image,
    flat_stem,
    joined_polygon,
    require_different_stems,
)
from u2seg.utils.files import atomic_path


def write_yolo(images: Iterable[LabeledImage], categories: Sequence[Category], output: Path) -> None:
    """Writes ``data.yaml``, ``images/train`` (copies) and ``labels/train``.

    A region of several parts is one polygon, as Ultralytics' own converter from COCO makes it; holes are lost, since the format has
    none. Coordinates are those of pixel centers.
    """
    names = checked_names(categories)
    for image in require_different_stems(images, "YOLO"):
        copy_image(image, output / "images" / "train")
        lines = [_line(names.index(region.category), region.mask) for region in image.regions]
        with atomic_path(output / "labels" / "train" / f"{flat_stem(image.name)}.txt") as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))
    content = {"train": "images/train", "val": "images/train", "nc": len(names), "names": dict(enumerate(names))}
    with atomic_path(output / "data.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _line(index: int, mask: np.ndarray) -> str:
    height, width = mask.shape
    points = (joined_polygon(mask) + 0.5) / (width, height)
    return f"{index} " + " ".join(f"{value:.6f}" for value in points.ravel())
