"""Label Studio: tasks with brush labels to import, and the export of corrected ones."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlparse
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
from u2seg.utils.files import atomic_path, read_json, write_json
from u2seg.visualization.colors import cluster_color

TASKS, INTERFACE = "tasks.json", "label_config.xml"
LOCAL_FILES = "/data/local-files/?d="
_TAG, _IMAGE = "tag", "image"
# Bits of the lengths that a run may be written with; the shortest that holds it is taken.
_LENGTH_BITS = (3, 4, 8, 16)
_VALUE_BITS = 8
# Types of results that have a place in the image; others, "choices" for example, belong to it as a whole.
_SHAPE_TYPE = re.compile("(bitmask|brush|ellipse|keypoint|polygon|rectangle|vector)(labels)?")


def write_label_studio(images: Iterable[LabeledImage], categories: Sequence[Category], output: Path) -> None:
    """Writes ``tasks.json`` to import, each region a prediction to accept or correct, and the project's ``label_config.xml``.

    Args:
        images: the images; their directory must be mounted as Label Studio's local storage.
        categories: all that the interface offers.
        output: directory.
    """
    names = checked_names(categories)
    tasks = [
        {
            "data": {_IMAGE: LOCAL_FILES + quote(image.name)},
            "predictions": [{"model_version": "u2seg", "result": [_result(region) for region in image.regions]}],
        }
        for image in images
    ]
    write_json(output / TASKS, tasks)
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_IMAGE, value=f"${_IMAGE}", zoom="true")
    labels = ElementTree.SubElement(view, "BrushLabels", name=_TAG, toName=_IMAGE)
    for index, (name, category) in enumerate(zip(names, categories)):
        red, green, blue = cluster_color("thing" if category.is_thing else "stuff", index)
        ElementTree.SubElement(labels, "Label", value=name, background=f"#{red:02x}{green:02x}{blue:02x}")
    ElementTree.indent(view)
    with atomic_path(output / INTERFACE) as temporary:
        ElementTree.ElementTree(view).write(temporary, encoding="utf-8")


def read_label_studio(path: Path) -> Iterator[tuple[str, list[Region]]]:
    """Yields (the image's name as the task has it, regions) from Label Studio's JSON export or from a file of tasks.

    The newest annotation counts that was not cancelled; where there is none, the prediction. Brushes and polygons are read.

    Raises:
        ValueError: the file has another form, or an image has other shapes, boxes for example.
    """
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(
        isinstance(task, dict) and _IMAGE in task.get("data", {}) for task in tasks
    ):
        raise ValueError(
            f"{path} is no JSON export of Label Studio with images under data.{_IMAGE}; export as JSON, not JSON-MIN"
        )
    for task in tasks:
        done = [one for one in task.get("annotations", []) if not one.get("was_cancelled")]
        chosen = (done or task.get("predictions") or [{}])[-1]
        name = _image_name(task["data"][_IMAGE])
        shapes = [one for one in chosen.get("result", []) if _SHAPE_TYPE.fullmatch(one.get("type", ""))]
        require_masks_and_polygons({one["type"] for one in shapes} - _READERS.keys(), path, name)
        regions = [_region(one, path, name) for one in shapes]
        yield name, [region for region in regions if region.mask.any()]


def _result(region: Region) -> dict[str, Any]:
    height, width = region.mask.shape
    found: dict[str, Any] = {
        "type": "brushlabels",
        "from_name": _TAG,
        "to_name": _IMAGE,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(region.mask), "brushlabels": [region.category]},
    }
    return found if region.score is None else {**found, "score": round(region.score, 6)}


def _image_name(url: str) -> str:
    """Returns an image's name: behind ``?d=`` of local storage, else the whole path of the address."""
    # Not parsed as a query: in a name, "+" is no space, and "&" and "#" end nothing.
    _, is_local, local = url.partition("?d=")
    return PurePosixPath(unquote(local if is_local else urlparse(url).path).lstrip("/")).as_posix()


def _region(result: Mapping[str, Any], path: Path, name: str) -> Region:
    if not {"original_height", "original_width"} <= result.keys():
        raise ValueError(
            f"{path}: a region of the image {name} lacks original_height or original_width; export as JSON"
        )
    size = result["original_height"], result["original_width"]
    value = result["value"]
    labels = value.get(result["type"]) or []
    if not labels:
        raise ValueError(
            f"{path}: a region of the image {name} has no label; give it one in Label Studio, or delete it"
        )
    return Region(labels[0], _READERS[result["type"]](value, size), result.get("score"))


def _brush(value: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    return decode_brush(value["rle"], size)


def _polygon(value: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    height, width = size
    # Percent of the image's size; a pixel's center lies half a pixel inside.
    return filled_polygon(np.array(value["points"], float) * (width, height) / 100 - 0.5, size)


_READERS = {"brushlabels": _brush, "polygonlabels": _polygon}


def encode_brush(mask: np.ndarray) -> list[int]:
    """Returns a mask in Label Studio's run-length code, bytes 0..255.

    The code packs the RGBA values of all pixels, row by row: 32 bits count of values, 5 bits value size - 1, four times 4 bits length
    size - 1; then each run as one bit "repeated", two bits for the length's size, length - 1, value.

    Source: ``rle-pack`` of thi.ng/umbrella, which Label Studio uses.

    Args:
        mask: bool (H, W).
    """
    values = np.repeat(mask.ravel(), 4)
    borders = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], borders])
    lengths = np.diff(np.concatenate([starts, [len(values)]]))
    bits = [f"{len(values):032b}{_VALUE_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _LENGTH_BITS)]
    longest = 1 << _LENGTH_BITS[-1]
    for start, length in zip(starts.tolist(), lengths.tolist()):
        value = f"{255 if values[start] else 0:0{_VALUE_BITS}b}"
        while length:
            run = min(length, longest)
            place = next(i for i, size in enumerate(_LENGTH_BITS) if run <= 1 << size)
            bits.append(f"1{place:02b}{run - 1:0{_LENGTH_BITS[place]}b}{value}")
            length -= run
    joined = "".join(bits)
    joined += "0" * (-len(joined) % 8)
    return [int(joined[i : i + 8], 2) for i in range(0, len(joined), 8)]


def decode_brush(code: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Returns the mask of a run-length code of :func:`encode_brush`, bool (H, W): where a pixel is not transparent.

    Raises:
        ValueError: the code does not fill an image of this size, or its values have more than 8 bits.
    """
    bits = "".join(f"{byte:08b}" for byte in code)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(bits):
            raise ValueError(f"a brush's code ends early: expected {size[0]} x {size[1]} pixels")
        return int(bits[place - count : place], 2)

    count, value_bits = take(32), take(5) + 1
    length_bits = [take(4) + 1 for _ in range(4)]
    if count != 4 * size[0] * size[1]:
        raise ValueError(f"a brush's code holds {count} values; expected {4 * size[0] * size[1]}, four for each pixel")
    if value_bits > _VALUE_BITS:
        raise ValueError(f"a brush's code has values of {value_bits} bits; expected {_VALUE_BITS}")
    values = np.zeros(count, np.uint8)
    done = 0
    while done < count:
        repeated, length = take(1), take(length_bits[take(2)]) + 1
        values[done : done + length] = take(value_bits) if repeated else [take(value_bits) for _ in range(length)]
        done += length
    return values.reshape(*size, 4)[:, :, 3] > 0
