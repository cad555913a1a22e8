"""Segment tables: the little that each image leaves behind in the inference pass, from which every score is computed.

Matching clusters to categories only renames and merges segments, so areas and pairwise intersections are all that PQ and mIoU
ever need, and the intersections over union of detections and objects are all that AP needs. No image is looked at again.

*Joint* labels number things and stuff in one row: thing clusters 0..K-1 then stuff clusters K..K+S-1; thing categories first,
then stuff categories, likewise.
"""

import io
import json
import zipfile
import zlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from u2seg.structures.label_space import LabelSpace
from u2seg.utils.files import atomic_path

VOID = -1  # in a label or a reference: ground truth that is not to be scored, or a pixel that was not predicted

IMAGES = np.dtype([("id", "i8"), ("height", "i4"), ("width", "i4")])
PREDICTED = np.dtype([("image", "i4"), ("label", "i4"), ("area", "i8"), ("score", "f8")])
GT = np.dtype([("image", "i4"), ("label", "i4"), ("area", "i8"), ("crowd", "?")])
OVERLAPS = np.dtype([("gt", "i4"), ("predicted", "i4"), ("pixels", "i8")])
DETECTIONS = np.dtype([("image", "i4"), ("label", "i4"), ("score", "f8"), ("box_xywh", "f8", 4), ("mask_area", "f8")])
OBJECTS = np.dtype([("image", "i4"), ("label", "i4"), ("area", "f8"), ("crowd", "?"), ("box_xywh", "f8", 4)])
IOUS = np.dtype([("detection", "i4"), ("object", "i4"), ("box", "f8"), ("mask", "f8")])
PIXELS = np.dtype([("image", "i4"), ("gt", "i4"), ("predicted", "i4"), ("pixels", "i8")])

# block -> its row type, and which of its columns point at rows of which other block.
BLOCKS = {
    "images": (IMAGES, {}),
    "predicted": (PREDICTED, {"image": "images"}),
    "gt": (GT, {"image": "images"}),
    "overlaps": (OVERLAPS, {"gt": "gt", "predicted": "predicted"}),
    "detections": (DETECTIONS, {"image": "images"}),
    "objects": (OBJECTS, {"image": "images"}),
    "ious": (IOUS, {"detection": "detections", "object": "objects"}),
    "head_pixels": (PIXELS, {"image": "images"}),
    "head_boundary": (PIXELS, {"image": "images"}),
    "panoptic_boundary": (PIXELS, {"image": "images"}),
}
TASKS = ("panoptic", "box", "mask", "semantic", "boundary")


@dataclass(frozen=True)
class TableSpace:
    """What the numbers in the tables mean.

    Attributes:
        dataset: name of the scored dataset.
        num_things: K, thing clusters.
        num_stuff: S, stuff clusters; the semantic head predicts 0..S, 0 being "thing".
        categories: the ground truth's classes.
        tasks: which of :data:`TASKS` the ground truth and the predictions allow.
    """

    dataset: str
    num_things: int
    num_stuff: int
    categories: LabelSpace
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = set(self.tasks) - set(TASKS)
        if unknown:
            raise ValueError(f"tasks must be among {', '.join(TASKS)}, got {', '.join(sorted(unknown))}")

    @property
    def num_clusters(self) -> int:
        """K + S, the number of joint cluster labels."""
        return self.num_things + self.num_stuff

    @property
    def num_categories(self) -> int:
        """The number of joint category labels."""
        return self.categories.num_things + self.categories.num_stuff

    @property
    def category_names(self) -> tuple[str, ...]:
        """Names by joint category label."""
        return self.categories.thing_names + self.categories.stuff_names

    def to_json(self) -> dict:
        """Returns the same as JSON values; :meth:`of_json` reads them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["categories"] = {field.name: getattr(self.categories, field.name) for field in fields(self.categories)}
        return values

    @classmethod
    def of_json(cls, values: dict) -> "TableSpace":
        """Returns the space that :meth:`to_json` wrote."""
        categories = LabelSpace(**{key: tuple(value) for key, value in values["categories"].items()})
        return cls(**{**values, "categories": categories, "tasks": tuple(values["tasks"])})


@dataclass(frozen=True)
class SegmentTables:
    """The tables of any number of images. Every block is a structured array; see the row types above.

    Attributes:
        space: what the labels mean.
        images: images.
        predicted: segments of the predicted panoptic maps; ``label`` is a joint cluster label, ``area`` in pixels.
        gt: ground-truth segments; ``label`` is a joint category label, ``area`` as the annotation file has it.
        overlaps: pixels in common of a ground-truth and a predicted segment of one image; -1 is void. Pixels void in both are
            not listed, nor are those whose ground-truth id the annotation file does not list.
        detections: thing detections; ``label`` is a thing cluster, ``mask_area`` in pixels (-1 without masks).
        objects: ground-truth instances; ``label`` is a thing category.
        ious: intersection over union of detections and objects of one image, for boxes and masks, where either is above 0; with
            a crowd the union is the detection alone, as pycocotools has it.
        head_pixels: pixels by joint ground-truth category (-1 void) and class of the semantic head (0 "thing", 1..S).
        head_boundary: as ``head_pixels``, where -1 is a pixel away from the borders of its map, void left out; see
            :func:`u2seg.evaluation.tables.image_tables.boundary_rows`.
        panoptic_boundary: the same with joint cluster labels as predictions.
        record: what the evaluation that made them knew: ``weights`` and ``weights_sha256``, ``dataset_images`` and ``complete``,
            ``max_detections``; empty for tables that were made of files.
    """

    space: TableSpace
    images: np.ndarray
    predicted: np.ndarray
    gt: np.ndarray
    overlaps: np.ndarray
    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray
    head_pixels: np.ndarray
    head_boundary: np.ndarray
    panoptic_boundary: np.ndarray
    # A dict. Under its own type, mypy would refuse the blocks where they are given as ** of a dict of arrays.
    record: Any = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory of all blocks, in bytes."""
        return sum(getattr(self, name).nbytes for name in BLOCKS)


def empty_tables(space: TableSpace) -> SegmentTables:
    """Returns tables of no image."""
    return SegmentTables(space, **{name: np.zeros(0, dtype) for name, (dtype, _) in BLOCKS.items()})


def concatenate_tables(parts: list[SegmentTables]) -> SegmentTables:
    """Returns the tables of all images of ``parts``, ordered by image id, so that how they were split leaves no trace.

    Raises:
        ValueError: no part, parts that mean different things by their labels, or an image that occurs twice.
    """
    if not parts:
        raise ValueError("expected at least one table, got none")
    space = parts[0].space
    for part in parts[1:]:
        if part.space != space:
            raise ValueError(f"tables of different spaces cannot be joined: {space} and {part.space}")
    joined = {name: _concatenate(parts, name) for name in BLOCKS}
    tables = SegmentTables(space, **joined)
    ids, counts = np.unique(tables.images["id"], return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"every image must be scored once; scored more often: ids {ids[counts > 1][:10].tolist()}")
    order = np.argsort(tables.images["id"], kind="stable")
    return tables if (np.diff(order) > 0).all() else _with_images_in_order(tables, order)


def _concatenate(parts: list[SegmentTables], name: str) -> np.ndarray:
    dtype, references = BLOCKS[name]
    block = np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0, dtype)
    lengths = [len(getattr(part, name)) for part in parts]
    for column, target in references.items():
        sizes = np.array([len(getattr(part, target)) for part in parts])
        offset = np.repeat(np.cumsum(sizes) - sizes, lengths)
        block[column] = np.where(block[column] >= 0, block[column] + offset, block[column])
    return block


def _with_images_in_order(tables: SegmentTables, order: np.ndarray) -> SegmentTables:
    """Returns the tables with their images, and what belongs to each, in another order; within an image nothing moves."""
    new_place = {"images": _inverse(order)}
    blocks = {"images": tables.images[order]}
    for name, (_, references) in BLOCKS.items():
        if name == "images":
            continue
        block = getattr(tables, name).copy()
        for column, target in references.items():
            if len(new_place[target]):
                block[column] = np.where(block[column] >= 0, new_place[target][block[column]], block[column])
        image = block["image"] if "image" in references else _image_of(blocks, block, references)
        rows = np.argsort(image, kind="stable")
        blocks[name], new_place[name] = block[rows], _inverse(rows)
    return SegmentTables(tables.space, **blocks)


def _image_of(blocks: dict[str, np.ndarray], block: np.ndarray, references: dict[str, str]) -> np.ndarray:
    image = np.full(len(block), -1, np.int64)
    for column, target in references.items():
        known = block[column] >= 0
        image[known] = blocks[target]["image"][block[column][known]]
    return image


def _inverse(order: np.ndarray) -> np.ndarray:
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    return inverse


def overlap_images(tables: SegmentTables) -> np.ndarray:
    """Returns the image of each row of ``overlaps``, int64 (rows,), as an index into ``images``."""
    blocks = {"gt": tables.gt, "predicted": tables.predicted}
    return _image_of(blocks, tables.overlaps, BLOCKS["overlaps"][1])


def with_stuff_groups(tables: SegmentTables, groups: dict[int, str]) -> SegmentTables:
    """Returns tables whose stuff categories are merged into groups.

    Args:
        tables: any.
        groups: dataset id of each stuff category -> name of its group; groups are numbered in order of first mention, and take
            the dataset ids 1, 2, ... behind the largest thing id.

    Raises:
        ValueError: a stuff category has no group.
    """
    categories = tables.space.categories
    missing = [i for i in categories.stuff_dataset_ids if i not in groups]
    if missing:
        raise ValueError(f"no group for the stuff categories with ids {missing}; groups cover {sorted(groups)}")
    names = list(dict.fromkeys(groups[i] for i in groups if i in categories.stuff_dataset_ids))
    first = max(categories.thing_dataset_ids, default=0) + 1
    grouped = LabelSpace(
        categories.thing_dataset_ids,
        tuple(range(first, first + len(names))),
        categories.thing_names,
        tuple(names),
    )
    things = np.arange(categories.num_things)
    stuff = np.array([names.index(groups[i]) for i in categories.stuff_dataset_ids], int) + categories.num_things
    lookup = np.concatenate([things, stuff, [VOID]]).astype(np.int32)  # index -1 stays void

    def relabeled(block: np.ndarray, column: str) -> np.ndarray:
        block = block.copy()
        block[column] = lookup[block[column]]
        return block

    return replace(
        tables,
        space=replace(tables.space, categories=grouped),
        gt=relabeled(tables.gt, "label"),
        head_pixels=relabeled(tables.head_pixels, "gt"),
        head_boundary=relabeled(tables.head_boundary, "gt"),
        panoptic_boundary=relabeled(tables.panoptic_boundary, "gt"),
    )


def save_tables(path: str | Path, tables: SegmentTables) -> Path:
    """Writes tables to one compressed ``.npz`` file, whole or not at all; returns its path."""
    path = Path(path)
    description = {**tables.space.to_json(), "record": tables.record}
    header = np.frombuffer(json.dumps(description, sort_keys=True).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=header, **{name: getattr(tables, name) for name in BLOCKS})
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return path


def load_tables(path: str | Path) -> SegmentTables:
    """Returns the tables of a file that :func:`save_tables` wrote.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file holds something else; the message says what.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} is a directory; expected a file of segment tables ({Path(path) / 'tables.npz'}?)")
    if not zipfile.is_zipfile(path):
        with open(path, "rb"):  # a missing file is told as that
            raise ValueError(f"{path} is no file of segment tables: expected an .npz that an evaluation saved")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = ({"header"} | set(BLOCKS)) - set(archive.files)
            if missing:
                raise ValueError(f"{path} is no file of segment tables: it lacks {', '.join(sorted(missing))}")
            header = json.loads(archive["header"].tobytes())
            blocks = {name: archive[name] for name in BLOCKS}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; make the tables again") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: header is not JSON: {error}") from error
    try:
        record = _checked_record(header.pop("record", {}))  # tables of version 0.1 lack it
        space = TableSpace.of_json(header)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: header does not describe segment tables: {error!r}") from error
    for name, (dtype, references) in BLOCKS.items():
        _check_block(f"{path}: {name}", blocks, name, dtype, references)
    _check_labels(path, space, blocks)
    return SegmentTables(space, **blocks, record=record)


def _checked_record(record: dict) -> dict:
    """Returns the record of a file, having checked the type of what is read from it."""
    types = {"weights": str, "weights_sha256": str, "dataset_images": int, "complete": bool, "max_detections": list}
    wrong = [name for name, value in record.items() if not isinstance(value, types.get(name, object))]
    limits = record.get("max_detections", [1])
    if wrong or not limits or not all(isinstance(limit, int) and limit > 0 for limit in limits):
        raise ValueError(f"record has an impossible {(wrong or ['max_detections'])[0]}")
    return record


def _check_block(where: str, blocks: dict, name: str, dtype: np.dtype, references: dict[str, str]) -> None:
    block = blocks[name]
    if block.dtype != dtype or block.ndim != 1:
        raise ValueError(f"{where} must be rows of {dtype.names}, got {block.dtype} of shape {block.shape}")
    for column, target in references.items():
        lowest = VOID if name == "overlaps" else 0
        if len(block) and not lowest <= block[column].min() <= block[column].max() < len(blocks[target]):
            raise ValueError(f"{where}: {column} points outside the {len(blocks[target])} rows of {target}")
    for column in dtype.names or ():
        values = block[column]
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
            raise ValueError(f"{where}[{row}] has {column} {values[row].tolist()}; expected finite numbers")


def _check_labels(path: str | Path, space: TableSpace, blocks: dict[str, np.ndarray]) -> None:
    clusters, categories, things = space.num_clusters, space.num_categories, space.categories.num_things
    head = space.num_stuff + 1
    for name, column, lowest, count in (
        ("predicted", "label", 0, clusters),
        ("gt", "label", 0, categories),
        ("detections", "label", 0, space.num_things),
        ("objects", "label", 0, things),
        ("head_pixels", "gt", VOID, categories),
        ("head_pixels", "predicted", VOID, head),
        ("head_boundary", "gt", VOID, categories),
        ("head_boundary", "predicted", VOID, head),
        ("panoptic_boundary", "gt", VOID, categories),
        ("panoptic_boundary", "predicted", VOID, clusters),
    ):
        values = blocks[name][column]
        outside = np.flatnonzero((values < lowest) | (values >= count))
        if len(outside):
            raise ValueError(
                f"{path}: {name}[{outside[0]}] has {column} {values[outside[0]]}; its header allows {lowest}..{count - 1}"
            )
