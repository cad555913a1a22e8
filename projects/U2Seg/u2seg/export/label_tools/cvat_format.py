"""CVAT: its format "CVAT for images 1.1" to import, and the export of corrected labels."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from u2seg.export.label_tools.labeled_images import (
    Category,
    LabeledImage,
    Region,
    checked_names,
    filled_polygon,
    require_masks_and_polygons,
)
from u2seg.structures.mask_boxes import mask_box
from u2seg.utils.files import atomic_path
from u2seg.visualization.colors import cluster_color

ANNOTATIONS = "annotations.xml"
_IMAGE_TAG = "tag"  # belongs to an image as a whole


def write_cvat(images: Iterable[LabeledImage], categories: Sequence[Category], output: Path) -> None:
    """Writes ``annotations.xml``: masks, each with the labels that the task needs named in its head."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for index, (name, category) in enumerate(zip(checked_names(categories), categories)):
        label = ElementTree.SubElement(labels, "label")
        red, green, blue = cluster_color("thing" if category.is_thing else "stuff", index)
        for key, text in (("name", name), ("color", f"#{red:02x}{green:02x}{blue:02x}"), ("type", "any")):
            ElementTree.SubElement(label, key).text = text
        ElementTree.SubElement(label, "attributes")
    for index, image in enumerate(images):
        height, width = image.size
        attributes = {"id": str(index), "name": image.name, "width": str(width), "height": str(height)}
        entry = ElementTree.SubElement(root, "image", attributes)
        for order, region in enumerate(image.regions):
            ElementTree.SubElement(entry, "mask", _mask_attributes(region, order))
    ElementTree.indent(root)
    with atomic_path(output / ANNOTATIONS) as temporary:
        ElementTree.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)


def read_cvat(path: Path) -> Iterator[tuple[str, list[Region]]]:
    """Yields (the image's name, regions in the order in which they cover each other) from an export "CVAT for images 1.1".

    Masks and polygons are read; tags of whole images are left out.

    Raises:
        ValueError: the file has another form, an image has other shapes, boxes for example, or a shape lacks its label.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not XML: {error}") from error
    if root.tag != "annotations":
        raise ValueError(
            f"{path} is no export of CVAT: expected <annotations>, got <{root.tag}>; choose CVAT for images 1.1"
        )
    for image in root.iter("image"):
        name = image.attrib.get("name", "")
        if not {"name", "height", "width"} <= image.attrib.keys():
            raise ValueError(f"{path}: the image {name!r} lacks its name, height or width; choose CVAT for images 1.1")
        size = int(image.attrib["height"]), int(image.attrib["width"])
        shapes = [shape for shape in image if shape.tag != _IMAGE_TAG]
        require_masks_and_polygons({shape.tag for shape in shapes} - _READERS.keys(), path, name)
        _require_attributes(shapes, path, name)
        shapes.sort(key=lambda shape: int(shape.attrib.get("z_order", 0)))
        regions = [Region(shape.attrib["label"], _READERS[shape.tag](shape, size)) for shape in shapes]
        yield name, [region for region in regions if region.mask.any()]


def _require_attributes(shapes: Sequence[ElementTree.Element], path: Path, name: str) -> None:
    for number, shape in enumerate(shapes, start=1):
        missing = {"label", *_NEEDED[shape.tag]} - shape.attrib.keys()
        if missing:
            raise ValueError(
                f"{path}: shape {number} of the image {name}, a {shape.tag}, lacks its {', '.join(sorted(missing))}; choose CVAT for "
                "images 1.1"
            )


def _mask_attributes(region: Region, order: int) -> dict[str, str]:
    left, top, right, bottom = mask_box(region.mask)
    runs = encode_window(region.mask[top:bottom, left:right])
    place = {"left": left, "top": top, "width": right - left, "height": bottom - top, "z_order": order}
    return {
        "label": region.category,
        "source": "auto",
        "occluded": "0",
        "rle": ", ".join(map(str, runs)),
        **{key: str(value) for key, value in place.items()},
    }


def encode_window(mask: np.ndarray) -> list[int]:
    """Returns the lengths of a mask's runs, row by row; the first one is of pixels outside, and may be 0.

    >>> encode_window(np.array([[True, True], [False, True]]))
    [0, 2, 1, 1]
    """
    values = mask.ravel()
    borders = np.flatnonzero(np.diff(values)) + 1
    lengths = np.diff(np.concatenate([[0], borders, [len(values)]])).tolist()
    return [0, *lengths] if values[0] else lengths


def _mask(shape: ElementTree.Element, size: tuple[int, int]) -> np.ndarray:
    left, top, width, height = (int(float(shape.attrib[key])) for key in ("left", "top", "width", "height"))
    runs = [int(word) for word in shape.attrib["rle"].split(",")]
    if sum(runs) != width * height:
        raise ValueError(f"a CVAT mask of {width} x {height} pixels has runs for {sum(runs)}")
    window = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = window[: size[0] - top, : size[1] - left]
    return mask


def _polygon(shape: ElementTree.Element, size: tuple[int, int]) -> np.ndarray:
    points = [[float(value) for value in point.split(",")] for point in shape.attrib["points"].split(";")]
    # CVAT counts from a pixel's corner.
    return filled_polygon(np.array(points) - 0.5, size)


_READERS = {"mask": _mask, "polygon": _polygon}
_NEEDED = {"mask": ("left", "top", "width", "height", "rle"), "polygon": ("points",)}
