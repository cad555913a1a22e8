"""Datasets registered with Detectron2 by path, from the configuration: no code is edited to train on one's own images.

``DATASETS.BY_PATH`` maps a name, which ``DATASETS.TRAIN`` and ``DATASETS.TEST`` then use, to a description::

    DATASETS:
      BY_PATH:
        my_train: {FORMAT: pseudo_labels, ROOT: output/labels, IMAGES: datasets/my/train}
        my_val: {FORMAT: coco_panoptic, ROOT: datasets/my, SPLIT: val}

Paths are relative to the working directory; those that begin with ``datasets/`` follow ``$DETECTRON2_DATASETS`` where it is set,
as Detectron2's own datasets do.
"""

import functools
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from u2seg.data.datasets.label_splits import read_label_split
from u2seg.data.formats.coco_schema import (
    loadable_images,
    read_images,
    read_instance_categories,
    read_instances_json,
    read_panoptic_categories,
    read_panoptic_json,
)
from u2seg.data.formats.expected_files import DatasetFilesError, marked_tree, some_entries
from u2seg.data.formats.label_directory import panoptic_directory
from u2seg.data.formats.label_shards import label_shards, label_space_of_shards, png_places, read_label_shard
from u2seg.data.serialized_records import SerializedRecords
from u2seg.structures.label_space import LabelSpace
from u2seg.utils.files import confined_path
from u2seg.utils.image_io import image_ids, list_images
from u2seg.utils.registry import NamedRegistry

EVALUATOR_TYPE = "u2seg_panoptic"  # name in u2seg.evaluation's EVALUATOR_REGISTRY

_EVALUATION_KEYS = ("INSTANCES_JSON", "PANOPTIC_JSON", "PANOPTIC_ROOT")

# Datasets that this process registered, with their descriptions: only these may be registered anew.
_registered: dict[str, dict] = {}


@dataclass(frozen=True)
class DatasetFiles:
    """Where the files of one dataset lie.

    Attributes:
        images: directory of the images.
        panoptic_json: COCO panoptic JSON; None where there is none.
        panoptic_directory: directory of the panoptic PNGs; None where there is none.
        instances_json: COCO instances JSON; None where there is none.
        stuff_directory: directory of the 8-bit semantic targets, named as the panoptic PNGs; None where targets are to be derived from
            those.
        label_shards: directory of a panoptic stage whose labels are in shards, not in COCO's files; None elsewhere.
    """

    images: Path
    panoptic_json: Path | None = None
    panoptic_directory: Path | None = None
    instances_json: Path | None = None
    stuff_directory: Path | None = None
    label_shards: Path | None = None


def register_datasets(by_path: Mapping[str, Mapping], names: list[str] | None = None) -> None:
    """Registers the datasets that ``cfg.DATASETS.BY_PATH`` describes; registering the same name again replaces it.

    Args:
        by_path: name -> description, see the module's text.
        names: those to register; None registers all.

    Raises:
        DatasetFilesError: files are missing.
        ValueError: a description has an unknown format or key, or lacks one; or the name is one of Detectron2's own.
    """
    for name, description in by_path.items():
        if names is None or name in names:
            register_dataset(name, description)


def register_dataset(name: str, description: Mapping) -> None:
    """Registers one dataset; see :func:`register_datasets`."""
    description = _checked(name, description)
    if name in DatasetCatalog.list() and name not in _registered:
        raise ValueError(f"DATASETS.BY_PATH.{name}: Detectron2 has a dataset of that name already; choose another")
    kind = DATASET_FORMAT_REGISTRY.get(description["FORMAT"])
    metadata = {} if kind.opened_on_use else _metadata(description, files_of(name, description))
    if kind.metadata is not None:
        metadata.update(kind.metadata(resolved(description)))
    if name in _registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    _registered[name] = description
    DatasetCatalog.register(name, functools.partial(load_dicts, name, description))
    MetadataCatalog.get(name).set(**metadata)


def files_of(name: str, description: Mapping) -> DatasetFiles:
    """Returns where a described dataset's files lie, having checked that they exist.

    Raises:
        DatasetFilesError: some do not; the message shows the tree expected, marked with what was found.
    """
    files = DATASET_FORMAT_REGISTRY.get(description["FORMAT"]).files(description)
    _require_files(name, description, files)
    return files


def load_dicts(name: str, description: Mapping) -> list[dict] | SerializedRecords:
    """Returns the dataset in Detectron2's standard form: one dict an image, ordered by image id.

    Keys: ``file_name``, ``image_id``, ``height``, ``width`` (pixels; absent where no file says them: the loader reads them);
    ``annotations`` with ``bbox`` (XYWH, absolute), ``segmentation`` (RLE or polygons), ``category_id`` (contiguous 0..K-1),
    ``iscrowd``, ``id`` and, in pseudo-labels, ``score``; ``pan_seg_file_name`` and ``segments_info`` (``id``, ``category_id``
    contiguous, ``isthing``, ``iscrowd``); ``sem_seg_file_name`` where a semantic target exists as a file; ``image_class`` where
    whole images have classes: an index into the metadata's ``image_classes``, for scoring and monitoring, never for training.

    Labels in shards give :class:`u2seg.data.serialized_records.SerializedRecords`: the same dicts, held as bytes.
    """
    description = _checked(name, description)
    files = files_of(name, description)
    dicts = DATASET_FORMAT_REGISTRY.get(description["FORMAT"]).load(description, files)
    subset = description.get("SUBSET")
    if subset:
        dicts = _subset(name, dicts, _resolve(subset))
    return dicts


def require_dataset_files(name: str) -> None:
    """Checks that the files of a dataset are there; does nothing for one that this project did not register.

    Raises:
        DatasetFilesError: some are missing; the message shows the tree expected and says how they are made.
    """
    if name in _registered:
        files_of(name, _registered[name])


def label_space_of(name: str) -> LabelSpace | None:
    """Returns the label space of a registered dataset; None where it has no labels or Detectron2 brought it."""
    return MetadataCatalog.get(name).get("label_space")


# --- formats ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetFormat:
    """How the datasets of one format are described, found and read.

    Attributes:
        required: keys that a description must have beside ``FORMAT``.
        optional: keys that it may have.
        files: from a description, where its files are.
        load: from a description and its files, Detectron2's dicts, one for each image; a list, or where there may be very many,
            ``SerializedRecords``.
        metadata: from a description, more metadata than its files say; None: nothing.
        opened_on_use: whether a set of this format may be registered when its files are absent; they are then checked, and its
            categories read, when it is used.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    files: Callable[[Mapping], DatasetFiles]
    load: Callable[[Mapping, DatasetFiles], list[dict] | SerializedRecords]
    metadata: Callable[[Mapping], dict] | None = None
    opened_on_use: bool = False


DATASET_FORMAT_REGISTRY = NamedRegistry("DATASET_FORMAT")
DATASET_FORMAT_REGISTRY.__doc__ = """
Formats of datasets, :class:`DatasetFormat`, chosen by the key ``FORMAT`` of a description. A method with formats of its own, such as
LUSS, registers them here.
"""


def _pseudo_label_files(description: Mapping) -> DatasetFiles:
    directory = panoptic_directory(_resolve(description["ROOT"]))
    in_shards = not (directory / "panoptic.json").is_file() and bool(label_shards(directory))
    return DatasetFiles(
        images=_resolve(description["IMAGES"]),
        panoptic_json=None if in_shards else directory / "panoptic.json",
        panoptic_directory=None if in_shards else directory / "panoptic",
        instances_json=None if in_shards else directory / "instances.json",
        stuff_directory=None if in_shards else directory / "stuff",
        label_shards=directory if in_shards else None,
    )


def _coco_panoptic_files(description: Mapping) -> DatasetFiles:
    root, split = _resolve(description["ROOT"]), description["SPLIT"]
    stuff = root / f"panoptic_stuff_{split}"  # Detectron2's prepare_panoptic_fpn.py writes it; derived where absent
    return DatasetFiles(
        images=root / split,
        panoptic_json=root / "annotations" / f"panoptic_{split}.json",
        panoptic_directory=root / f"panoptic_{split}",
        instances_json=root / "annotations" / f"instances_{split}.json",
        stuff_directory=stuff if stuff.is_dir() else None,
    )


def _coco_instances_files(description: Mapping) -> DatasetFiles:
    return DatasetFiles(images=_resolve(description["IMAGES"]), instances_json=_resolve(description["JSON"]))


def _evaluation_files(description: Mapping) -> DatasetFiles:
    found = {key: _resolve(description[key]) if key in description else None for key in _EVALUATION_KEYS}
    return DatasetFiles(
        images=_resolve(description["IMAGES"]),
        panoptic_json=found["PANOPTIC_JSON"],
        panoptic_directory=found["PANOPTIC_ROOT"],
        instances_json=found["INSTANCES_JSON"],
    )


def _existing(path: Path | None) -> Path:
    """Returns a path that files of this format always have."""
    assert path is not None
    return path


def _load_evaluation_images(description: Mapping, files: DatasetFiles) -> list[dict]:
    """Returns the images without annotations: nothing may be trained on them."""
    source = _existing(files.instances_json or files.panoptic_json)
    return [_image_record(image, files.images, source) for image in read_images(source)]


def _evaluation_metadata(description: Mapping) -> dict:
    files = _evaluation_files(description)
    paths = {
        "image_root": files.images,
        "json_file": files.instances_json,
        "panoptic_json": files.panoptic_json,
        "panoptic_root": files.panoptic_directory,
    }
    return {"evaluator_type": EVALUATOR_TYPE, **{key: str(path) for key, path in paths.items() if path is not None}}


def image_files(description: Mapping) -> DatasetFiles:
    """Returns the files of a format that has images alone, below ``ROOT``."""
    return DatasetFiles(images=_resolve(description["ROOT"]))


def _load_pseudo_labels(description: Mapping, files: DatasetFiles) -> list[dict] | SerializedRecords:
    return _load_panoptic(description, files) if files.label_shards is None else _load_shards(description, files)


def _load_shards(description: Mapping, files: DatasetFiles) -> SerializedRecords:
    """Returns what :func:`_load_panoptic` returns for the JSON files of the same labels."""
    directory, ids = _existing(files.label_shards), array("q")
    categories = label_space_of_shards(directory).categories()
    space, to_contiguous = _label_space(description, categories), _thing_lookup(description, categories)

    def records() -> Iterator[dict]:
        numbers = count(1)
        for shard in label_shards(directory):
            for labels in read_label_shard(shard):
                ids.append(labels.image["id"])
                # As the annotations of an instances JSON are numbered.
                instances = [_instance({**row, "id": next(numbers)}, to_contiguous) for row in labels.instances]
                record = _panoptic_record(labels.image, labels.panoptic, instances, files, (to_contiguous, space))
                pngs = png_places(shard, labels) or _png_files(directory, labels.panoptic["file_name"], directory)
                yield {**record, "pan_seg_file_name": pngs[0], "sem_seg_file_name": pngs[1]}

    found = SerializedRecords(records())
    return found.select(np.argsort(np.frombuffer(ids, np.int64), kind="stable"))


def _load_panoptic(description: Mapping, files: DatasetFiles) -> list[dict]:
    source = _existing(files.panoptic_json)
    panoptic = read_panoptic_json(source)
    space = _label_space(description, panoptic["categories"])
    to_contiguous = _thing_lookup(description, panoptic["categories"])
    instances_json = _existing(files.instances_json)
    instances = _instances_by_image(instances_json, read_instances_json(instances_json), to_contiguous)
    segments = {annotation["image_id"]: annotation for annotation in panoptic["annotations"]}
    dicts = []
    for image in loadable_images(source, panoptic):
        annotation = segments.get(image["id"])
        if annotation is None:  # images of test splits carry no annotation
            continue
        found = instances.get(image["id"], [])
        record = _panoptic_record(image, annotation, found, files, (to_contiguous, space))
        png = annotation["file_name"]
        record["pan_seg_file_name"] = str(confined_path(_existing(files.panoptic_directory), png, source))
        if files.stuff_directory is not None:
            record["sem_seg_file_name"] = str(confined_path(files.stuff_directory, png, source))
        dicts.append(record)
    return dicts


def _png_files(directory: Path, name: str, source: Path) -> tuple[str, str]:
    """Returns the paths of an image's panoptic and stuff PNG in a panoptic stage's directory."""
    panoptic, stuff = (confined_path(directory / kind, name, source) for kind in ("panoptic", "stuff"))
    return str(panoptic), str(stuff)


def _panoptic_record(
    image: dict, annotation: dict, instances: list[dict], files: DatasetFiles, ids: tuple[dict[int, int], LabelSpace]
) -> dict:
    """Returns Detectron2's dict of an image, without the paths of its PNGs.

    Args:
        image: its row of a COCO file.
        annotation: its row of a panoptic JSON.
        instances: its instances in Detectron2's form.
        files: of the dataset.
        ids: thing's dataset id -> contiguous id, and the classes.
    """
    record = _image_record(image, files.images, _existing(files.panoptic_json or files.label_shards))
    record["annotations"] = instances
    record["segments_info"] = [_segment(segment, *ids) for segment in annotation["segments_info"]]
    return record


def _load_instances(description: Mapping, files: DatasetFiles) -> list[dict]:
    source = _existing(files.instances_json)
    content = read_instances_json(source)
    to_contiguous = _thing_lookup(description, [{**c, "isthing": 1} for c in content["categories"]])
    instances = _instances_by_image(source, content, to_contiguous)
    dicts = []
    for image in loadable_images(source, content):
        record = _image_record(image, files.images, source)
        record["annotations"] = instances.get(image["id"], [])
        dicts.append(record)
    return dicts


def _load_images(description: Mapping, files: DatasetFiles) -> list[dict]:
    names = list_images(files.images)
    return [{"file_name": str(files.images / name), "image_id": i} for name, i in zip(names, image_ids(names))]


for _name, _format in {
    "pseudo_labels": DatasetFormat(
        ("ROOT", "IMAGES"), ("CLASS_AGNOSTIC", "SUBSET"), _pseudo_label_files, _load_pseudo_labels
    ),
    "coco_panoptic": DatasetFormat(
        ("ROOT", "SPLIT"), ("CLASS_AGNOSTIC", "SUBSET"), _coco_panoptic_files, _load_panoptic
    ),
    "coco_instances": DatasetFormat(
        ("JSON", "IMAGES"), ("CLASS_AGNOSTIC", "SUBSET"), _coco_instances_files, _load_instances
    ),
    "evaluation_only": DatasetFormat(
        ("IMAGES",),
        (*_EVALUATION_KEYS, "PREPARED_BY", "SUBSET"),
        _evaluation_files,
        _load_evaluation_images,
        _evaluation_metadata,
        opened_on_use=True,
    ),
    "images": DatasetFormat(("ROOT",), ("SUBSET",), image_files, _load_images),
}.items():
    DATASET_FORMAT_REGISTRY.register(_name)(_format)


# --- records ---------------------------------------------------------------------------------------------------------------------


def _image_record(image: dict, directory: Path, source: Path) -> dict:
    return {
        "file_name": str(confined_path(directory, image["file_name"], source)),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
    }


def _instances_by_image(source: Path, content: dict, to_contiguous: dict[int, int]) -> dict[Any, list[dict]]:
    """Returns image id -> instances in Detectron2's form, from the content of a checked COCO instances JSON."""
    instances = defaultdict(list)
    for index, annotation in enumerate(content["annotations"]):
        if annotation["category_id"] not in to_contiguous:
            raise ValueError(
                f"{source}: annotations[{index}] has category_id {annotation['category_id']}, which is not a thing of the dataset's "
                "panoptic JSON; the two files must have the same categories"
            )
        if not annotation.get("segmentation"):
            raise ValueError(
                f"{source}: annotations[{index}] has no segmentation; training needs the mask of every object"
            )
        instances[annotation["image_id"]].append(_instance(annotation, to_contiguous))
    return instances


def _instance(annotation: dict, to_contiguous: dict[int, int]) -> dict:
    return {
        "id": annotation.get("id"),
        "bbox": annotation["bbox"],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": to_contiguous[annotation["category_id"]],
        "segmentation": annotation["segmentation"],
        "iscrowd": annotation.get("iscrowd", 0),
        **({"score": annotation["score"]} if "score" in annotation else {}),
    }


def _segment(segment: dict, to_contiguous: dict[int, int], space: LabelSpace) -> dict:
    category = segment["category_id"]
    isthing = category in to_contiguous
    return {
        **segment,
        "isthing": isthing,
        "category_id": to_contiguous[category] if isthing else space.semantic_target_of(category),
    }


def _subset(name: str, dicts: list[dict] | SerializedRecords, path: Path) -> list[dict] | SerializedRecords:
    """Returns the images that a split file names; ``u2seg prepare label_splits`` writes such files."""
    wanted = read_label_split(path)
    places = {record["image_id"]: index for index, record in enumerate(dicts) if record["image_id"] in wanted}
    if len(places) != len(wanted):
        missing = sorted(wanted - set(places))
        raise ValueError(
            f"DATASETS.BY_PATH.{name}: {len(missing)} of the {len(wanted)} images that {path} names are not in the dataset, "
            f"for example ids {missing[:5]}; the split belongs to another dataset"
        )
    indices = list(places.values())
    return (
        dicts.select(np.array(indices, np.int64))
        if isinstance(dicts, SerializedRecords)
        else [dicts[i] for i in indices]
    )


# --- label space and metadata ----------------------------------------------------------------------------------------------------


def _label_space(description: Mapping, categories: list[dict]) -> LabelSpace:
    space = LabelSpace.of_coco_categories(categories)
    if not description.get("CLASS_AGNOSTIC"):
        return space
    # One class takes the lowest thing id, so that stuff keeps its own.
    return LabelSpace(space.thing_dataset_ids[:1], space.stuff_dataset_ids, ("object",), space.stuff_names)


def _thing_lookup(description: Mapping, categories: list[dict]) -> dict[int, int]:
    lookup = LabelSpace.of_coco_categories(categories).thing_contiguous_ids
    return dict.fromkeys(lookup, 0) if description.get("CLASS_AGNOSTIC") else lookup


def _metadata(description: Mapping, files: DatasetFiles) -> dict:
    metadata: dict[str, Any] = {"image_root": str(files.images)}
    if files.label_shards is not None:
        space = _label_space(description, label_space_of_shards(files.label_shards).categories())
        metadata.update(space.metadata(), evaluator_type=EVALUATOR_TYPE, label_space=space)
    elif files.panoptic_json is not None:
        space = _label_space(description, read_panoptic_categories(files.panoptic_json))
        metadata.update(
            space.metadata(),
            evaluator_type=EVALUATOR_TYPE,
            label_space=space,
            panoptic_root=str(files.panoptic_directory),
            panoptic_json=str(files.panoptic_json),
            json_file=str(files.instances_json),
        )
    elif files.instances_json is not None:
        categories = [{**c, "isthing": 1} for c in read_instance_categories(files.instances_json)]
        space = _label_space(description, categories)
        metadata.update(space.metadata(), label_space=space, evaluator_type="coco", json_file=str(files.instances_json))
    return metadata


# --- checks ----------------------------------------------------------------------------------------------------------------------


def _checked(name: str, description: Mapping) -> dict:
    where = f"DATASETS.BY_PATH.{name}"
    kind = description.get("FORMAT")
    if kind not in DATASET_FORMAT_REGISTRY:
        known = ", ".join(sorted(name for name, _ in DATASET_FORMAT_REGISTRY))
        raise ValueError(f"{where}.FORMAT must be one of {known}, got {kind!r}")
    known = DATASET_FORMAT_REGISTRY.get(kind)
    given = {key for key in description if key != "FORMAT"}
    missing, unknown = set(known.required) - given, given - {*known.required, *known.optional}
    if missing or unknown:
        raise ValueError(
            f"{where}: format {kind} needs {', '.join(known.required)} and takes {', '.join(known.optional)}; "
            f"missing: {', '.join(sorted(missing)) or 'none'}; unknown: {', '.join(sorted(unknown)) or 'none'}"
        )
    return dict(description)


def _require_files(name: str, description: Mapping, files: DatasetFiles) -> None:
    wanted = [
        (files.images, "directory", "the images"),
        (files.panoptic_json, "file", "COCO panoptic annotations"),
        (files.panoptic_directory, "directory", "panoptic PNGs"),
        (files.instances_json, "file", "COCO instance annotations"),
        (files.stuff_directory, "directory", "8-bit semantic targets"),
    ]
    states = [(path, kind, what, _found(path, kind)) for path, kind, what in wanted if path is not None]
    if any(found != "found" for *_, found in states):
        tree = marked_tree(
            (found == "found", f"{path}{'/' if kind == 'directory' else ''}", f"{what}: {found}")
            for path, kind, what, found in states
        )
        made_by = description.get("PREPARED_BY")
        remedy = f"make the missing files with `{made_by}`" if made_by else "make the missing files"
        raise DatasetFilesError(
            f"Dataset {name!r} (DATASETS.BY_PATH.{name}, format {description['FORMAT']}) is not complete. Expected:\n{tree}\n"
            f"Correct its paths ($DETECTRON2_DATASETS stands for the first part of datasets/...), or {remedy} (datasets/README.md says how "
            "each set is prepared)."
        )


def _found(path: Path, kind: str) -> str:
    if path.is_dir() if kind == "directory" else path.is_file():
        return "found"
    parent = next(parent for parent in path.parents if parent.is_dir())
    if parent != path.parent:
        return f"missing; the first directory that exists is {parent}"
    return f"missing; {parent} holds {some_entries(parent)}"


def resolved(description: Mapping) -> dict:
    """Returns a description whose paths are resolved: below ``$DETECTRON2_DATASETS`` where they begin with ``datasets/``."""
    paths = {"ROOT", "IMAGES", "LISTS", "MASKS", *_EVALUATION_KEYS}
    return {key: str(_resolve(value)) if key in paths and value else value for key, value in description.items()}


def _resolve(path: str) -> Path:
    parts = Path(path).parts
    root = os.environ.get("DETECTRON2_DATASETS")
    if root and parts[:1] == ("datasets",):
        return Path(root, *parts[1:])
    return Path(path)
