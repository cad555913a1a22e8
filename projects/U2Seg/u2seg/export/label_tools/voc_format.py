"""Pascal VOC's layout: boxes in XML, and PNGs of classes and of objects."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from u2seg.export.label_tools.labeled_images import (
    Category,
    LabeledImage,
    checked_names,
    copy_image,
    flat_name,
    flat_stem,
    require_different_stems,
)
from u2seg.structures.mask_boxes import mask_box
from u2seg.utils.files import atomic_path

_MAX_INDEX = 254  # 255 is VOC's border, which has no class


def write_voc(images: Iterable[LabeledImage], categories: Sequence[Category], output: Path) -> None:
    """Writes ``JPEGImages`` (copies), ``Annotations``, ``SegmentationClass``, ``SegmentationObject``, ``ImageSets`` and ``labelmap.txt``.

    Background is 0, categories count from 1 in their order. Boxes count pixels from 1, both corners inside.

    Raises:
        ValueError: more than 254 categories, or more than 254 regions in an image: the PNGs have 8 bits.
    """
    names = checked_names(categories)
    _require_bytes(len(names), "categories")
    palette = _palette()
    stems = []
    for image in require_different_stems(images, "VOC"):
        _require_bytes(len(image.regions), f"regions in {image.name}")
        stem = flat_stem(image.name)
        stems.append(stem)
        copy_image(image, output / "JPEGImages")
        _write_xml(image, output / "Annotations" / f"{stem}.xml")
        classes, objects = np.zeros(image.size, np.uint8), np.zeros(image.size, np.uint8)
        for number, region in enumerate(image.regions, start=1):
            classes[region.mask] = names.index(region.category) + 1
            objects[region.mask] = number
        _write_png(classes, palette, output / "SegmentationClass" / f"{stem}.png")
        _write_png(objects, palette, output / "SegmentationObject" / f"{stem}.png")
    for task in ("Main", "Segmentation"):
        _write_text(output / "ImageSets" / task / "train.txt", "".join(f"{stem}\n" for stem in stems))
    colors = ["background:0,0,0::", *(f"{n}:{','.join(map(str, palette[i]))}::" for i, n in enumerate(names, start=1))]
    _write_text(output / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "\n".join(colors) + "\n")


def _require_bytes(count: int, what: str) -> None:
    if count > _MAX_INDEX:
        raise ValueError(f"VOC's PNGs number at most {_MAX_INDEX} of a kind, got {count} {what}")


def _palette() -> np.ndarray:
    """Returns VOC's colors, uint8 (256, 3): the bits of a number, taken in turn for red, green and blue, highest first."""
    numbers = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            colors[:, channel] |= (((numbers >> (3 * level + channel)) & 1) << (7 - level)).astype(np.uint8)
    return colors


def _write_xml(image: LabeledImage, path: Path) -> None:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = "JPEGImages"
    ElementTree.SubElement(root, "filename").text = flat_name(image.name)
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", image.size[1]), ("height", image.size[0]), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "1"
    for region in image.regions:
        entry = ElementTree.SubElement(root, "object")
        for key, text in (("name", region.category), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            ElementTree.SubElement(entry, key).text = text
        left, top, right, bottom = mask_box(region.mask)
        box = ElementTree.SubElement(entry, "bndbox")
        for key, value in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
            ElementTree.SubElement(box, key).text = str(value)
    ElementTree.indent(root)
    with atomic_path(path) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def _write_png(values: np.ndarray, palette: np.ndarray, path: Path) -> None:
    png = Image.fromarray(values)
    png.putpalette(palette.ravel().tolist())  # its mode is "P" from here on
    with atomic_path(path) as temporary:
        png.save(temporary, format="PNG")


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
