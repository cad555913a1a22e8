"""What all label tools share: images whose regions have a mask and a category name."""

import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from u2seg.utils.files import atomic_path

CATEGORIES = "categories.json"


@dataclass(frozen=True)
class Category:
    """A class of regions: a cluster, or what a person made of it.

    Attributes:
        name: as the tool shows it; no two have the same.
        is_thing: whether its regions are objects that can be counted.
    """

    name: str
    is_thing: bool


@dataclass(frozen=True)
class Region:
    """One region of an image.

    Attributes:
        category: name of a :class:`Category`.
        mask: bool (H, W), at least one pixel.
        score: confidence 0..1; None where there is none.
    """

    category: str
    mask: np.ndarray
    score: float | None = None


@dataclass(frozen=True)
class LabeledImage:
    """An image and its regions.

    Attributes:
        name: its file name relative to the directory of the images, POSIX.
        path: where it lies.
        size: (height, width), pixels.
        regions: in the order in which they are painted: a later one covers the earlier ones.
    """

    name: str
    path: Path
    size: tuple[int, int]
    regions: Sequence[Region]


def flat_name(name: str) -> str:
    """Returns a file name without directories, for tools that know none: "a/b.jpg" becomes "a_b.jpg"."""
    return name.replace("/", "_")


def copy_image(image: LabeledImage, directory: Path) -> Path:
    """Copies an image into a directory under its flat name; returns the copy's path."""
    path = directory / flat_name(image.name)
    with atomic_path(path) as temporary:
        shutil.copyfile(image.path, temporary)
    return path


def flat_stem(name: str) -> str:
    """Returns the flat name without its suffix."""
    return PurePosixPath(flat_name(name)).stem


def require_different_stems(images: Iterable[LabeledImage], tool: str) -> list[LabeledImage]:
    """Returns the images, having checked that each gets a label file of its own in a tool that names it by the image's stem.

    Raises:
        ValueError: two would share one, ``a.jpg`` and ``a.png`` for example.
    """
    images = list(images)
    require_different_flat_stems([image.name for image in images], tool)
    return images


def require_different_flat_stems(names: Iterable[str], tool: str) -> None:
    """Checks what :func:`require_different_stems` does, by the images' names alone."""
    seen: dict[str, str] = {}
    for name in names:
        stem = flat_stem(name)
        if stem in seen:
            raise ValueError(
                f"{tool} names label files by the images' stems: {seen[stem]} and {name} would share {stem}"
            )
        seen[stem] = name


def require_masks_and_polygons(others: Collection[str], path: Path, name: str) -> None:
    """Refuses an image with shapes that are not read, rather than lose them in silence.

    Args:
        others: kinds of those shapes, as the tool calls them.
        path: the tool's export.
        name: of the image.

    Raises:
        ValueError: there are some.
    """
    if others:
        raise ValueError(
            f"{path}: the image {name} has shapes of the kind {', '.join(sorted(others))}; only masks and polygons are read. Draw them "
            "as masks or polygons, or delete them"
        )


def joined_polygon(mask: np.ndarray) -> np.ndarray:
    """Returns one polygon around all parts of a mask, int (N, 2) in x, y, through the centers of its border pixels; holes are filled.

    Parts are joined by lines there and back, so that a region of several parts stays one region.

    Args:
        mask: bool (H, W), at least one pixel.
    """
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    parts = [outline[:, 0] for outline in sorted(outlines, key=len, reverse=True)]
    polygon = parts[0]
    for part in parts[1:]:
        distances = ((polygon[:, None] - part[None]) ** 2).sum(2)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        ring = np.concatenate([part[there:], part[: there + 1]])
        polygon = np.concatenate([polygon[: here + 1], ring, polygon[here:]])
    if len(polygon) < 3:
        polygon = np.concatenate([polygon, polygon[::-1], polygon])[:4]  # a polygon has three points at least
    return polygon


def filled_polygon(points_xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the mask inside a polygon, bool (H, W), its border included.

    Args:
        points_xy: float (N, 2), pixels; whole numbers are pixel centers.
        size: (height, width).
    """
    mask = np.zeros(size, np.uint8)
    cv2.fillPoly(mask, [np.rint(points_xy).astype(np.int32).reshape(-1, 1, 2)], 1)
    return mask.astype(bool)


def checked_names(categories: Sequence[Category]) -> list[str]:
    """Returns the categories' names.

    Raises:
        ValueError: two are called alike, or one has no visible character or a line break.
    """
    names = [category.name for category in categories]
    both = sorted(
        {one.name for one in categories if one.is_thing} & {one.name for one in categories if not one.is_thing}
    )
    if both:
        raise ValueError(
            f"{', '.join(map(repr, both))}: name of a thing and of a stuff category, and label tools know a category by its name "
            "alone. Rename one of the two, or write things alone"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    odd = [name for name in names if not name.strip() or re.search(r"[\r\n]", name)]
    if twice or odd:
        raise ValueError(f"label tools know a category by its name: {', '.join(map(repr, twice or odd))} cannot be one")
    return names
