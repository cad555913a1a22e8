"""Class-agnostic masks of the mask stage, to be shown like panoptic labels of one thing class."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from u2seg.data.formats.class_agnostic import OBJECT, find_mask_directory
from u2seg.data.formats.mask_shards import iter_records
from u2seg.structures.label_space import LabelSpace
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.image_io import ImageReadError, read_image_rgb
from u2seg.visualization.label_page import PanopticLabels, has_panoptic_labels, load_panoptic_labels


@dataclass(frozen=True)
class MaskLabels(PanopticLabels):
    """Masks in place of panoptic PNGs; where masks overlap, the smaller one is seen.

    Attributes:
        records: image id -> its masks.
    """

    records: dict[int, ImageMasks]

    def read(self, annotation: dict) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image, uint8 (H, W, 3), and its mask numbers from 1, int32 (H, W); see the base class."""
        record = self.records[annotation["image_id"]]
        image_rgb = read_image_rgb(self.image_directory / record.file_name)
        if image_rgb.shape[:2] != (record.height, record.width):
            raise ImageReadError(f"it has size {image_rgb.shape[:2]}, its masks {(record.height, record.width)}")
        segments = np.zeros((record.height, record.width), np.int32)
        rles = record.rles()
        for index in sorted(range(len(rles)), key=lambda index: -int(mask_utils.area(rles[index]))):
            segments[mask_utils.decode(rles[index]).astype(bool)] = index + 1
        return image_rgb, segments


def load_labels(labels: str | Path, images: str | Path) -> PanopticLabels:
    """Returns panoptic labels, or the masks of a directory that has nothing but masks yet.

    Args:
        labels: as for :func:`load_panoptic_labels`; or a label directory after its mask stage, or the mask directory itself.
        images: directory of the images.

    Raises:
        FileNotFoundError: nothing of the kind is there.
        ValueError: as :func:`load_panoptic_labels`.
    """
    if has_panoptic_labels(labels):
        return load_panoptic_labels(labels, images)
    try:
        directory = find_mask_directory(labels)
    except FileNotFoundError:
        # The message that names all that may be there.
        return load_panoptic_labels(labels, images)
    records = {record.image_id: record for record in iter_records(directory) if record.error is None}
    return MaskLabels(
        directory,
        Path(images),
        {image_id: record.file_name for image_id, record in records.items()},
        [_annotation(records[image_id]) for image_id in sorted(records)],
        LabelSpace.of_coco_categories([OBJECT]),
        records,
    )


def _annotation(record: ImageMasks) -> dict:
    segments = [
        {"id": number, "category_id": OBJECT["id"], "score": score}
        for number, score in enumerate(record.scores.tolist(), 1)
    ]
    return {"image_id": record.image_id, "file_name": record.file_name, "segments_info": segments}
