"""Makes COCO-Stuff-27 as STEGO and PiCIE score it: 320 x 320 center crops with 27 coarse classes.

    u2seg prepare cocostuff27 --coco DIR --pixelmaps DIR/stuffthingmaps/val2017 --output DIR/cocostuff27 [--list NAMES.txt]

--pixelmaps holds COCO-Stuff's 8-bit PNGs (class - 1, 255 unlabeled; stuffthingmaps_trainval2017.zip). --list names the images,
one a line; the literature's is Coco164kFull_Stuff_Coarse_7.txt; without it all are taken. Image and map are resized to a short
side of 320 by nearest neighbor, image too, and cropped at the center. Written: val/*.png and a COCO panoptic dataset in which
every class is one stuff segment, for ``TEST.PROTOCOLS "('stego',)"``.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from u2seg.data.datasets.coco_supercategories import thing_supercategory
from u2seg.data.formats.coco_writer import PanopticWriter
from u2seg.data.formats.expected_files import require_tree
from u2seg.utils.image_io import read_image_rgb
from u2seg.utils.progress import track

DATASETS = {
    "cocostuff27_val": {
        "FORMAT": "evaluation_only",
        "IMAGES": "datasets/cocostuff27/val",
        "PANOPTIC_JSON": "datasets/cocostuff27/annotations/panoptic_val.json",
        "PANOPTIC_ROOT": "datasets/cocostuff27/panoptic_val",
        "PREPARED_BY": "u2seg prepare cocostuff27",
    }
}

SIZE, UNLABELED = 320, 255
# COCO-Stuff's stuff classes 92..182 by coarse class. Source: COCO-Stuff's label hierarchy.
STUFF = {
    "textile": (92, 93, 104, 105, 109, 131, 137, 141, 152, 167, 168),
    "plant": (94, 97, 119, 124, 129, 134, 142, 163, 169),
    "building": (95, 96, 128, 151, 158, 166),
    "furniture-stuff": (98, 107, 108, 110, 112, 123, 130, 133, 156, 161, 165),
    "structural": (99, 113, 138, 146, 164),
    "raw-material": (100, 132, 139, 143),
    "floor": (101, 114, 115, 116, 117, 118),
    "ceiling": (102, 103),
    "sky": (106, 157),
    "ground": (111, 125, 126, 136, 140, 144, 145, 147, 149, 154, 159),
    "water": (120, 148, 155, 178, 179),
    "food-stuff": (121, 122, 153, 170),
    "solid": (127, 135, 150, 160, 162, 182),
    "wall": (171, 172, 173, 174, 175, 176, 177),
    "window": (180, 181),
}
THINGS = [
    *("electronic", "appliance", "food", "furniture", "indoor", "kitchen"),
    *("accessory", "animal", "outdoor", "person", "sports", "vehicle"),
]
NAMES = [*THINGS, *STUFF]


def coarse_ids() -> np.ndarray:
    """Returns the coarse class, 1..27, of each value of a pixel map, int32 (256,); 0 for unlabeled."""
    lookup = np.zeros(256, np.int32)
    for identifier in range(1, 92):
        lookup[identifier - 1] = NAMES.index(thing_supercategory(identifier)) + 1
    for name, ids in STUFF.items():
        lookup[np.array(ids) - 1] = NAMES.index(name) + 1
    return lookup


def center_crop(image: Image.Image) -> Image.Image:
    """Returns the SIZE x SIZE center of an image whose short side was resized to SIZE by nearest neighbor.

    The long side is cut to whole pixels and the margin rounded to the nearest, halves to the even, as torchvision's ``Resize`` and
    ``CenterCrop`` do, on which the literature's scores stand.
    """
    short = min(image.size)
    size = [SIZE * side // short for side in image.size]
    left, top = (round((side - SIZE) / 2) for side in size)
    return image.resize(size, Image.Resampling.NEAREST).crop((left, top, left + SIZE, top + SIZE))


def prepare(coco: Path, pixelmaps: Path, output: Path, names: Path | None = None) -> Path:
    """Returns the COCO panoptic JSON that it writes.

    Args:
        coco: directory with ``val2017``.
        pixelmaps: directory of the 8-bit PNGs.
        output: directory for images and annotations.
        names: file with one image name a line; None takes all maps.

    Raises:
        DatasetFilesError: files are missing.
    """
    require_tree(coco, {"val2017/": "images"}, "They are COCO's validation images (cocodataset.org).")
    require_tree(pixelmaps.parent, {f"{pixelmaps.name}/": "pixel maps"}, "Unpack stuffthingmaps_trainval2017.zip.")
    stems = (
        [Path(line).stem for line in names.read_text().split()]
        if names
        else sorted(p.stem for p in pixelmaps.glob("*.png"))
    )
    categories = [{"id": number, "name": name, "isthing": 0} for number, name in enumerate(NAMES, 1)]
    writer, lookup = PanopticWriter(output, "val", categories), coarse_ids()
    (output / "val").mkdir(parents=True, exist_ok=True)
    for stem in track(stems, "semantic maps"):
        center_crop(Image.fromarray(read_image_rgb(coco / "val2017" / f"{stem}.jpg"))).save(
            output / "val" / f"{stem}.png"
        )
        labels = lookup[np.asarray(center_crop(Image.open(pixelmaps / f"{stem}.png")))]
        present = [int(label) for label in np.unique(labels) if label]
        writer.add(f"{stem}.png", labels, [{"id": label, "category_id": label, "iscrowd": 0} for label in present])
    return writer.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--pixelmaps", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--list", type=Path, dest="names")


run = prepare
