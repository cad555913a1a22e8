"""Makes a COCO panoptic dataset of Cityscapes' fine annotations.

    u2seg prepare cityscapes --cityscapes DIR [--split val] [--classes 19|27]

DIR holds gtFine/ and leftImg8bit/. With 19 classes (8 things, 11 stuff) the labels that Cityscapes' own benchmark ignores are void;
with 27 (10 things, 17 stuff) those from 7 (road) on are scored, as STEGO and CUPS do, caravans and trailers being things. Regions
that the annotators marked as a group of things are crowds. Writes DIR/panoptic<classes>/annotations/*.json and
panoptic_<split>/*.png.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from u2seg.data.formats.coco_writer import PanopticWriter
from u2seg.data.formats.expected_files import require_tree
from u2seg.utils.progress import track

DATASETS = {
    f"cityscapes_val_panoptic{classes}": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/cityscapes/leftImg8bit/val",
        "INSTANCES_JSON": f"datasets/cityscapes/panoptic{classes}/annotations/instances_val.json",
        "PANOPTIC_JSON": f"datasets/cityscapes/panoptic{classes}/annotations/panoptic_val.json",
        "PANOPTIC_ROOT": f"datasets/cityscapes/panoptic{classes}/panoptic_val",
        "PREPARED_BY": f"u2seg prepare cityscapes --classes {classes}",
    }
    for classes in (19, 27)
}

# Cityscapes' label ids from 7 on; True: scored in the 19 classes.
LABELS = {
    7: ("road", True),
    8: ("sidewalk", True),
    9: ("parking", False),
    10: ("rail track", False),
    11: ("building", True),
    12: ("wall", True),
    13: ("fence", True),
    14: ("guard rail", False),
    15: ("bridge", False),
    16: ("tunnel", False),
    17: ("pole", True),
    18: ("polegroup", False),
    19: ("traffic light", True),
    20: ("traffic sign", True),
    21: ("vegetation", True),
    22: ("terrain", True),
    23: ("sky", True),
    24: ("person", True),
    25: ("rider", True),
    26: ("car", True),
    27: ("truck", True),
    28: ("bus", True),
    29: ("caravan", False),
    30: ("trailer", False),
    31: ("train", True),
    32: ("motorcycle", True),
    33: ("bicycle", True),
}
THINGS = set(
    range(24, 34)
)  # person to bicycle, caravan and trailer among them: all that Cityscapes numbers by instance


def categories(classes: int) -> list[dict]:
    """Returns the COCO panoptic categories, with Cityscapes' label ids, for 19 or 27 classes."""
    return [
        {"id": label, "name": name, "isthing": int(label in THINGS)}
        for label, (name, in_19) in LABELS.items()
        if in_19 or classes == 27
    ]


def prepare(cityscapes: Path, split: str = "val", classes: int = 19) -> Path:
    """Returns the COCO panoptic JSON that it writes.

    Args:
        cityscapes: directory with ``gtFine`` and ``leftImg8bit``.
        split: "train" or "val".
        classes: 19 or 27.

    Raises:
        DatasetFilesError: files are missing.
    """
    expected = {
        f"gtFine/{split}/": "directories of cities with *_gtFine_instanceIds.png",
        f"leftImg8bit/{split}/": "images",
    }
    require_tree(
        cityscapes,
        expected,
        "Unpack gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip (cityscapes-dataset.com).",
    )
    files = sorted((cityscapes / "gtFine" / split).glob("*/*_gtFine_instanceIds.png"))
    if not files:
        require_tree(
            cityscapes, {f"gtFine/{split}/CITY/CITY_*_gtFine_instanceIds.png": "id PNGs"}, "The directory has none."
        )
    cats = categories(classes)
    scored = {category["id"] for category in cats}
    writer = PanopticWriter(cityscapes / f"panoptic{classes}", split, cats)
    for file in track(files, "panoptic maps"):
        segment_map, segments = panoptic_of(np.asarray(Image.open(file)).astype(np.int32), scored)
        stem = file.name.removesuffix("_gtFine_instanceIds.png")
        writer.add(f"{file.parent.name}/{stem}_leftImg8bit.png", segment_map, segments)
    return writer.close()


def panoptic_of(instance_ids: np.ndarray, scored: set[int]) -> tuple[np.ndarray, list[dict]]:
    """Returns the segment map, int32 (height, width), and its segments.

    Args:
        instance_ids: int (height, width): 1000 * label + number for single things, the label alone for stuff and groups.
        scored: labels that are not void.
    """
    segment_map = np.zeros_like(instance_ids)
    segments: list[dict] = []
    for identifier in np.unique(instance_ids).tolist():
        label, single = (identifier // 1000, True) if identifier >= 1000 else (identifier, False)
        if label not in scored:
            continue
        segment_map[instance_ids == identifier] = identifier
        segments.append({"id": identifier, "category_id": label, "iscrowd": int(label in THINGS and not single)})
    return segment_map, segments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--cityscapes", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--classes", type=int, choices=(19, 27), default=19)


run = prepare
