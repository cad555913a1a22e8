"""Label maps: which category each cluster stands for, with where that knowledge came from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from u2seg.evaluation.matching.assignment import NO_CATEGORY
from u2seg.evaluation.tables.segment_tables import SegmentTables, TableSpace, overlap_images
from u2seg.utils.files import read_json, write_json


@dataclass(frozen=True)
class PixelRows:
    """Pixels counted by image, true label and predicted label: int64 arrays (rows,); -1 is void or not predicted."""

    image: np.ndarray
    gt: np.ndarray
    predicted: np.ndarray
    pixels: np.ndarray


def panoptic_pixels(tables: SegmentTables) -> PixelRows:
    """Returns the pixels of the panoptic maps by joint category and joint cluster; crowds count as their category."""
    overlaps = tables.overlaps
    gt = np.append(tables.gt["label"], NO_CATEGORY)[overlaps["gt"]]
    predicted = np.append(tables.predicted["label"], NO_CATEGORY)[overlaps["predicted"]]
    return PixelRows(overlap_images(tables), gt, predicted, overlaps["pixels"])


def head_pixels(tables: SegmentTables) -> PixelRows:
    """Returns the pixels by joint category and class of the semantic head (0 "thing", 1..S)."""
    return _rows_of(tables.head_pixels)


def head_boundary(tables: SegmentTables) -> PixelRows:
    """Returns the same near borders; -1 is a pixel away from every border."""
    return _rows_of(tables.head_boundary)


def panoptic_boundary(tables: SegmentTables) -> PixelRows:
    """Returns the pixels near borders by joint category and joint cluster; -1 is a pixel away from every border."""
    return _rows_of(tables.panoptic_boundary)


def _rows_of(block: np.ndarray) -> PixelRows:
    return PixelRows(block["image"].astype(np.int64), block["gt"], block["predicted"], block["pixels"])


# What is taken as the semantic prediction -> its pixels, and those near borders.
PIXEL_SOURCES: dict[str, Callable[[SegmentTables], PixelRows]] = {"panoptic": panoptic_pixels, "head": head_pixels}
BOUNDARY_SOURCES: dict[str, Callable[[SegmentTables], PixelRows]] = {
    "panoptic": panoptic_boundary,
    "head": head_boundary,
}


@dataclass(frozen=True)
class SemanticMap:
    """How pixels are scored.

    Attributes:
        source: key of :data:`PIXEL_SOURCES`, what is taken as the semantic prediction.
        labels: int (predicted labels,), class of each predicted label, -1 for none: always wrong.
        gt: int (joint categories,), class of each category.
        names: of the classes.
        unmatched_vanish: whether pixels predicted as "none" are left out instead of wrong: a fault of U2Seg's release, and the
            rule of CUPS's release for pixels without a prediction.
        absent_classes_count: whether a class that is predicted but does not occur in the ground truth counts in the mean, as 0.
    """

    source: str
    labels: np.ndarray
    gt: np.ndarray
    names: tuple[str, ...]
    unmatched_vanish: bool = False
    absent_classes_count: bool = False


@dataclass(frozen=True)
class LabelMap:
    """What a protocol fitted.

    Attributes:
        panoptic: int (K + S,), joint category of each joint cluster, -1 for none; its first K entries serve detections too.
        error_category: int (K + S,), for clusters without a category: the one in which their segments and detections count as false
            positives; -1 for none.
        semantic: how pixels are scored; None where nothing semantic is.
        provenance: dataset, cluster counts, protocol, checkpoint digest and so on.
    """

    panoptic: np.ndarray
    error_category: np.ndarray
    semantic: SemanticMap | None = None
    provenance: dict = field(default_factory=dict)


def save_label_map(path: str | Path, label_map: LabelMap, space: TableSpace) -> None:
    """Writes a label map as JSON, with the names of the categories, whole or not at all."""
    names = space.category_names
    things, stuff = label_map.panoptic[: space.num_things], label_map.panoptic[space.num_things :]
    semantic = label_map.semantic
    write_json(
        path,
        {
            "provenance": label_map.provenance,
            "categories": space.to_json()["categories"],
            "thing_clusters": things.tolist(),
            "stuff_clusters": stuff.tolist(),
            "error_category": label_map.error_category.tolist(),
            "thing_names": [names[i] if i >= 0 else None for i in things],
            "stuff_names": [names[i] if i >= 0 else None for i in stuff],
            "semantic": semantic
            and {
                "source": semantic.source,
                "labels": semantic.labels.tolist(),
                "gt": semantic.gt.tolist(),
                "names": semantic.names,
                "unmatched_vanish": semantic.unmatched_vanish,
                "absent_classes_count": semantic.absent_classes_count,
            },
        },
    )


def load_label_map(path: str | Path, space: TableSpace) -> LabelMap:
    """Returns the label map of a file that :func:`save_label_map` wrote.

    Raises:
        FileNotFoundError: with the path.
        ValueError: it was fitted for other cluster counts or other categories than ``space`` has; the message says which.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no label map: expected an object, got a {type(values).__name__}")
    missing = {"thing_clusters", "stuff_clusters", "error_category", "semantic", "categories", "provenance"} - set(
        values
    )
    if missing:
        raise ValueError(f"{path} is no label map: it lacks {', '.join(sorted(missing))}")
    for name in ("thing_clusters", "stuff_clusters", "error_category"):
        _check_integers(path, name, values[name], space.num_categories)
    counts = len(values["thing_clusters"]), len(values["stuff_clusters"])
    if counts != (space.num_things, space.num_stuff):
        raise ValueError(
            f"{path} maps {counts[0]} thing and {counts[1]} stuff clusters, the predictions have {space.num_things} and "
            f"{space.num_stuff}; use a map fitted for this model"
        )
    if values["categories"] != _as_json(space.to_json()["categories"]):
        raise ValueError(
            f"{path} was fitted for other categories than those of dataset {space.dataset!r}; fit on a dataset with the same "
            "categories, or choose the same grouping of stuff"
        )
    if len(values["error_category"]) != space.num_clusters:
        raise ValueError(
            f"{path}: error_category has {len(values['error_category'])} entries; expected one for each of the "
            f"{space.num_clusters} clusters"
        )
    semantic = values["semantic"]
    if semantic is not None:
        _check_semantic(path, semantic, space)
    return LabelMap(
        np.array(values["thing_clusters"] + values["stuff_clusters"], np.int64),
        np.array(values["error_category"], np.int64),
        semantic
        and SemanticMap(
            semantic["source"],
            np.array(semantic["labels"], np.int64),
            np.array(semantic["gt"], np.int64),
            tuple(semantic["names"]),
            semantic["unmatched_vanish"],
            semantic.get("absent_classes_count", False),  # maps of version 0.1 lack it
        ),
        values["provenance"],
    )


def _check_integers(path: str | Path, name: str, values: Any, count: int) -> None:
    """Refuses what is no list of integers in -1..count-1."""
    if not isinstance(values, list):
        raise ValueError(f"{path}: {name} must be a list, got a {type(values).__name__}")
    for index, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or not NO_CATEGORY <= value < count:
            raise ValueError(f"{path}: {name}[{index}] is {value!r}; expected an integer in -1..{count - 1}")


def _check_semantic(path: str | Path, semantic: Any, space: TableSpace) -> None:
    """Refuses a semantic part that does not fit the clusters and categories of ``space``."""
    missing = {"source", "labels", "gt", "names", "unmatched_vanish"} - set(
        semantic if isinstance(semantic, dict) else ()
    )
    if missing:
        raise ValueError(f"{path}: semantic lacks {', '.join(sorted(missing))}")
    if semantic["source"] not in PIXEL_SOURCES:
        raise ValueError(
            f"{path}: semantic.source is {semantic['source']!r}; expected one of {', '.join(PIXEL_SOURCES)}"
        )
    if not isinstance(semantic["names"], list):
        raise ValueError(f"{path}: semantic.names must be a list, got a {type(semantic['names']).__name__}")
    predicted = space.num_clusters if semantic["source"] == "panoptic" else space.num_stuff + 1
    for name, count in (("labels", predicted), ("gt", space.num_categories)):
        _check_integers(path, f"semantic.{name}", semantic[name], len(semantic["names"]))
        if len(semantic[name]) != count:
            raise ValueError(f"{path}: semantic.{name} has {len(semantic[name])} entries; expected {count}")


def _as_json(categories: dict) -> dict:
    return {key: list(value) for key, value in categories.items()}
