"""Reads COCO's JSON files and refuses what does not have their form, with the file, the row and the field in the message.

Only what a reader relies on is looked at; further fields are left alone. Every fault is a ValueError of one line.
"""

import json
import math
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import numpy as np

from u2seg.utils.files import read_json

MAX_SEGMENT_ID = (1 << 24) - 1  # three bytes of a panoptic PNG
_REQUIRED = object()
_IMAGE_NAME = "the name of a file below the image directory"


def read_panoptic_json(path: str | Path) -> dict:
    """Returns the content of a COCO panoptic JSON: ``categories``, ``annotations`` with ``segments_info``.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file is not of that form.
    """
    content = _object(path, "COCO panoptic JSON", ("annotations", "categories"))
    rows = [_Row(path, f"annotations[{index}]", annotation) for index, annotation in enumerate(content["annotations"])]
    for row in rows[:1]:
        if "segments_info" not in row.values and "bbox" in row.values:
            raise row.fault("has a bbox and no segments_info: this is an instances JSON, expected a panoptic one")
    kinds = _categories(path, content, is_panoptic=True)
    seen: set = set()
    for row in rows:
        image_id = row.field("image_id", _is_id, "an integer or a string")
        row.unique("image_id", image_id, seen)
        row.field("file_name", _is_file_name, "the name of a PNG below its directory")
        _segments(row, kinds)
    return content


def read_instances_json(path: str | Path) -> dict:
    """Returns the content of a COCO instances JSON: ``images``, ``categories``, ``annotations`` with boxes and perhaps masks.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file is not of that form.
    """
    content = _object(path, "COCO instances JSON", ("images", "annotations", "categories"))
    kinds = _categories(path, content, is_panoptic=False)
    sizes = image_sizes(path, content)
    seen: set = set()
    for index, annotation in enumerate(content["annotations"]):
        row = _Row(path, f"annotations[{index}]", annotation)
        if "segments_info" in row.values:
            raise row.fault("has segments_info: this is a panoptic JSON, expected an instances one")
        row.unique("id", row.field("id", _is_id, "an integer or a string"), seen)
        row.known("image_id", sizes, "the images")
        row.known("category_id", kinds, "the categories")
        row.field("bbox", _is_box, "four finite numbers x, y, width, height, the last two not negative")
        row.field("area", _is_area, "a finite number, not negative")
        row.field("iscrowd", _is_flag, "0 or 1", default=0)
        if row.values.get("segmentation"):
            _segmentation(row, sizes[annotation["image_id"]])
    return content


def read_results_json(path: str | Path, sizes: dict) -> list[dict]:
    """Returns the masks of COCO results (a list), or of a COCO dataset as MaskCut writes it (its ``annotations``).

    Args:
        path: the file.
        sizes: image id -> (height, width) of the ground truth. Masks of these images must have that size; those of other images
            are left as they are, for the caller to leave out.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file is not of that form.
    """
    content = _json(path)
    annotations = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(annotations, list):
        raise ValueError(f"{path} holds neither a list of COCO results nor a COCO dataset with 'annotations'")
    prefix = "annotations" if isinstance(content, dict) else "entry"
    for index, annotation in enumerate(annotations):
        row = _Row(path, f"{prefix}[{index}]", annotation)
        image_id = row.field("image_id", _is_id, "an integer or a string")
        row.field("score", _is_finite, "a finite number", default=1)
        row.field("segmentation", lambda value: isinstance(value, list | dict), "polygons or run lengths")
        if image_id in sizes:
            _segmentation(row, sizes[image_id])
    return annotations


def read_video_json(path: str | Path) -> dict:
    """Returns the content of a JSON in YouTube-VIS's video format.

    It has ``videos`` with ``id``, ``height``, ``width`` and ``file_names``, ``categories``, and ``annotations`` with ``video_id``,
    ``category_id`` and ``segmentations``, one a frame, None where the object is not seen.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file is not of that form.
    """
    content = _object(path, "JSON in video format", ("videos", "annotations", "categories"))
    kinds = _categories(path, content, is_panoptic=False)
    sizes = image_sizes(path, content, "videos")
    lengths = {}
    for index, video in enumerate(content["videos"]):
        row = _Row(path, f"videos[{index}]", video)
        names = row.field("file_names", lambda v: isinstance(v, list) and all(map(_is_file_name, v)), "a list of names")
        lengths[video["id"]] = len(names)
    for index, track in enumerate(content["annotations"]):
        row = _Row(path, f"annotations[{index}]", track)
        row.known("video_id", sizes, "the videos")
        row.known("category_id", kinds, "the categories")
        row.field("iscrowd", _is_flag, "0 or 1", default=0)
        frames, video = row.field("segmentations", lambda v: isinstance(v, list), "a list"), track["video_id"]
        if len(frames) != lengths[video]:
            raise row.fault(
                f"has {len(frames)} segmentations, its video {video} has {lengths[video]} frames; expected one a frame, null where "
                "the object is not seen"
            )
        for frame, segmentation in enumerate(frames):
            if segmentation:
                place = f"{row.place}.segmentations[{frame}]"
                _segmentation(_Row(path, place, {"segmentation": segmentation}), sizes[video])
    return content


def read_panoptic_categories(path: str | Path) -> list[dict]:
    """Returns the categories of a COCO panoptic JSON; its annotations are not looked at.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file has no such categories.
    """
    content = _object(path, "COCO panoptic JSON", ("categories",))
    _categories(path, content, is_panoptic=True)
    return content["categories"]


def read_instance_categories(path: str | Path) -> list[dict]:
    """Returns the categories of a COCO instances JSON; its annotations are not looked at.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file has no such categories.
    """
    content = _object(path, "COCO instances JSON", ("categories",))
    _categories(path, content, is_panoptic=False)
    return content["categories"]


def read_images(path: str | Path) -> list[dict]:
    """Returns the images of a COCO JSON, see :func:`loadable_images`; its annotations are not looked at.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file has no such images.
    """
    return loadable_images(path, _object(path, "COCO JSON", ("images",)))


def loadable_images(path: str | Path, content: dict) -> list[dict]:
    """Returns a COCO JSON's ``images``, ordered by id, each of which has an id, a size and the name of a file.

    Raises:
        ValueError: one lacks them, or an annotation is of an image that is not listed.
    """
    content = {"annotations": [], **content}
    if not isinstance(content.get("images"), list):
        raise ValueError(f"{path}: images is missing; a dataset is loaded by its list of images")
    sizes = image_sizes(path, content)
    for index, image in enumerate(content["images"]):
        _Row(path, f"images[{index}]", image).field("file_name", lambda value: isinstance(value, str), _IMAGE_NAME)
    for index, annotation in enumerate(content["annotations"]):
        _Row(path, f"annotations[{index}]", annotation).known("image_id", sizes, "the images")
    return sorted(content["images"], key=lambda image: (isinstance(image["id"], str), image["id"]))


def image_sizes(path: str | Path, content: dict, key: str = "images") -> dict:
    """Returns image id -> (height, width) of a COCO JSON's ``images``, or of the rows under another key.

    Raises:
        ValueError: an image without an id, a size or a file name, or an id that occurs twice.
    """
    sizes: dict = {}
    for index, image in enumerate(content[key]):
        row = _Row(path, f"{key}[{index}]", image)
        image_id = row.field("id", _is_id, "an integer or a string")
        row.unique("id", image_id, sizes)
        row.field("file_name", lambda value: isinstance(value, str) and value, _IMAGE_NAME, default="-")
        sizes[image_id] = tuple(row.field(side, _is_positive, "an integer above 0") for side in ("height", "width"))
    return sizes


def compressed_counts(counts: str | bytes) -> np.ndarray:
    """Returns the run lengths of COCO's compressed RLE, int64, background first.

    Source: pycocotools' string format: six bits a character from "0" on, five of value and one that says "more follows"; from the
    fourth run on, the difference to the run before the last.

    Raises:
        ValueError: characters that the format does not have, or an unfinished number.
    """
    raw = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    values = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(values):
        return values
    if values.min() < 0 or values.max() > 63 or values[-1] & 32:
        raise ValueError("counts are not compressed run lengths")
    last = np.flatnonzero(values & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    place = np.arange(len(values)) - np.repeat(first, last - first + 1)
    if place.max() > 6:
        raise ValueError("counts are not compressed run lengths")
    numbers = np.add.reduceat((values & 31) << (5 * place), first)
    numbers = np.where(values[last] & 16, numbers - (1 << (5 * (place[last] + 1))), numbers)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


class _Row:
    """One row of a file, for messages that say where a fault is."""

    def __init__(self, path: str | Path, place: str, values: Any):
        self.path, self.place, self.values = path, place, values
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {place} must be an object, got {_shown(values)}")

    def fault(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: {self.place} {what}")

    def field(self, name: str, is_right: Callable, expected: str, default: Any = _REQUIRED) -> Any:
        if name not in self.values:
            if default is not _REQUIRED:
                return default
            raise self.fault(f"has no {name!r}; expected {expected}")
        value = self.values[name]
        if not is_right(value):
            raise self.fault(f"has {name} {_shown(value)}; expected {expected}")
        return value

    def known(self, name: str, among: Container, what: str) -> None:
        value = self.field(name, _is_id, "an integer or a string")
        if value not in among:
            raise self.fault(f"has {name} {_shown(value)}, which {what} of this file lack")

    def unique(self, name: str, value: Any, seen: Container) -> None:
        if value in seen:
            raise self.fault(f"has {name} {_shown(value)}, which an earlier row has too")
        if isinstance(seen, set):
            seen.add(value)


def _json(path: str | Path) -> Any:
    try:
        return read_json(path)
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a directory; expected a JSON file") from error


def _object(path: str | Path, what: str, lists: tuple[str, ...]) -> dict:
    content = _json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {_shown(content)}; expected a {what}, an object with {', '.join(lists)}")
    for name in lists:
        if not isinstance(content.get(name), list):
            found = f"{name} is {_shown(content[name])}" if name in content else f"{name} is missing"
            raise ValueError(f"{path} is not a {what}: {found}; expected the lists {', '.join(lists)}")
    return content


def _categories(path: str | Path, content: dict, *, is_panoptic: bool) -> set:
    if not content["categories"]:
        raise ValueError(f"{path}: categories is empty; expected at least one")
    seen: set = set()
    for index, category in enumerate(content["categories"]):
        row = _Row(path, f"categories[{index}]", category)
        row.unique("id", row.field("id", _is_integer, "an integer"), seen)
        row.field("name", lambda value: isinstance(value, str), "a string")
        if is_panoptic:
            row.field("isthing", _is_flag, "1 for things, 0 for stuff, as panoptic files have it")
    return seen


def _segments(row: _Row, kinds: set) -> None:
    segments = row.field("segments_info", lambda value: isinstance(value, list), "a list of segments")
    seen: set = set()
    for index, values in enumerate(segments):
        segment = _Row(row.path, f"{row.place}.segments_info[{index}]", values)
        identifier = segment.field(
            "id", lambda v: _is_integer(v) and 0 < v <= MAX_SEGMENT_ID, f"an integer in 1..{MAX_SEGMENT_ID}"
        )
        segment.unique("id", identifier, seen)
        segment.known("category_id", kinds, "the categories")
        segment.field("iscrowd", _is_flag, "0 or 1", default=0)
        segment.field("area", lambda v: v is None or _is_area(v), "a finite number, not negative", default=None)
        segment.field("score", _is_finite, "a finite number", default=1)


def _segmentation(row: _Row, size: tuple[int, int]) -> None:
    segmentation = row.values["segmentation"]
    if isinstance(segmentation, list):
        if not segmentation or not all(map(_is_polygon, segmentation)):
            raise row.fault(
                "has a segmentation that is not a list of polygons, each of at least three finite x, y pairs"
            )
        return
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise row.fault("has a segmentation that is neither polygons nor run lengths with size and counts")
    if list(segmentation["size"] if isinstance(segmentation["size"], list) else []) != list(size):
        raise row.fault(
            f"has run lengths of size {_shown(segmentation['size'])}; its image has (height, width) {tuple(size)}"
        )
    counts = segmentation["counts"]
    if not isinstance(counts, list | str):
        raise row.fault(f"has counts {_shown(counts)}; expected a list of run lengths or a string")
    if isinstance(counts, list) and not all(map(_is_integer, counts)):
        raise row.fault("has counts that are not all integers")
    try:
        runs = compressed_counts(counts).tolist() if isinstance(counts, str) else counts
    except ValueError as error:
        raise row.fault(f"has {error}") from error
    if min(runs, default=0) < 0:
        raise row.fault("has a negative run length in counts")
    covered = sum(runs)
    if covered != size[0] * size[1]:
        raise row.fault(
            f"has run lengths that cover {covered} pixels; its image has {size[0]} x {size[1]} = {size[0] * size[1]}"
        )


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return (
            f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
            if len(value) > 4
            else str(value)[:60]
        )
    return json.dumps(value)[:60]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_id(value: Any) -> bool:
    return _is_integer(value) or isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return value in (0, 1) and isinstance(value, int)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_area(value: Any) -> bool:
    return _is_finite(value) and value >= 0


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value)) and min(value[2:]) >= 0


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and all(map(_is_finite, value))


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and not Path(value).is_absolute() and ".." not in Path(value).parts
