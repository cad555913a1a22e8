"""Data sets registered with Detectron2 by path, from the configuration: no code is edited to train on one's own pictures.

``DATASETS.BY_PATH`` maps a name, which ``DATASETS.TRAIN`` and ``DATASETS.TEST`` then use, to a description::

    DATASETS:
      BY_PATH:
        my_train: {FORMAT: pseudo_labels, ROOT: output/labels, IMAGES: datasets/my/train}
        my_val: {FORMAT: coco_panoptic, ROOT: datasets/my, SPLIT: val}

Paths are relative to the working directory; those that begin with ``datasets/`` follow ``$DETECTRON2_DATASETS`` where it is set,
as Detectron2's own data sets do.
"""

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from u2seg.data.class_folders import class_folder_metadata, class_folder_records
from u2seg.data.imagenet_s import (
    imagenet_s_metadata,
    imagenet_s_records,
    pseudo_label_metadata,
    pseudo_label_records,
)
from u2seg.data.label_splits import read_label_split
from u2seg.images import image_ids, list_images
from u2seg.label_space import LabelSpace
from u2seg.stages import read_json

EVALUATOR_TYPE = "u2seg_panoptic"  # name in u2seg.evaluation's EVALUATOR_REGISTRY

# Data sets that this process registered, with their descriptions: only these may be registered anew.
_registered: dict[str, dict] = {}


class DatasetFilesError(FileNotFoundError):
    """Files of a data set are not where its description says; the message shows the tree expected and what was found."""


@dataclass(frozen=True)
class DatasetFiles:
    """Where the files of one data set lie.

    Attributes:
        images: folder of the pictures.
        panoptic_json: COCO panoptic JSON; None where there is none.
        panoptic_folder: folder of the panoptic PNGs; None where there is none.
        instances_json: COCO instances JSON; None where there is none.
        stuff_folder: folder of the 8-bit semantic targets, named as the panoptic PNGs; None where targets are to be derived from
            those.
    """

    images: Path
    panoptic_json: Path | None = None
    panoptic_folder: Path | None = None
    instances_json: Path | None = None
    stuff_folder: Path | None = None


def register_datasets(by_path: Mapping[str, Mapping], names: list[str] | None = None) -> None:
    """Registers the data sets that ``cfg.DATASETS.BY_PATH`` describes; registering the same name again replaces it.

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
    """Registers one data set; see :func:`register_datasets`."""
    description = _checked(name, description)
    if name in DatasetCatalog.list() and name not in _registered:
        raise ValueError(f"DATASETS.BY_PATH.{name}: Detectron2 has a data set of that name already; choose another")
    files = files_of(name, description)
    of_format = _FORMATS[description["FORMAT"]].metadata
    metadata = _metadata(description, files)
    if of_format is not None:
        metadata.update(of_format(_resolved(description)))
    if name in _registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    _registered[name] = description
    DatasetCatalog.register(name, functools.partial(load_dicts, name, description))
    MetadataCatalog.get(name).set(**metadata)


def files_of(name: str, description: Mapping) -> DatasetFiles:
    """Returns where a described data set's files lie, having checked that they exist.

    Raises:
        DatasetFilesError: some do not; the message shows the tree expected, marked with what was found.
    """
    files = _FORMATS[description["FORMAT"]].files(description)
    _require_files(name, description, files)
    return files


def load_dicts(name: str, description: Mapping) -> list[dict]:
    """Returns the data set in Detectron2's standard form: one dict a picture, ordered by picture id.

    Keys: ``file_name``, ``image_id``, ``height``, ``width`` (pixels; absent where no file says them: the loader reads them);
    ``annotations`` with ``bbox`` (XYWH, absolute), ``segmentation`` (RLE or polygons), ``category_id`` (contiguous 0..K-1),
    ``iscrowd``, ``id`` and, in pseudo-labels, ``score``; ``pan_seg_file_name`` and ``segments_info`` (``id``, ``category_id``
    contiguous, ``isthing``, ``iscrowd``); ``sem_seg_file_name`` where a semantic target exists as a file; ``image_class`` where
    whole pictures have classes: an index into the metadata's ``image_classes``, for scoring and watching, never for training.
    """
    description = _checked(name, description)
    files = files_of(name, description)
    dicts = _FORMATS[description["FORMAT"]].load(description, files)
    subset = description.get("SUBSET")
    if subset:
        dicts = _subset(name, dicts, _resolve(subset))
    return dicts


def label_space_of(name: str) -> LabelSpace | None:
    """Returns the label space of a registered data set; None where it has no labels or Detectron2 brought it."""
    return MetadataCatalog.get(name).get("label_space")


# --- formats ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Format:
    required: tuple[str, ...]
    optional: tuple[str, ...]
    files: Callable[[Mapping], DatasetFiles]
    load: Callable[[Mapping, DatasetFiles], list[dict]]
    metadata: Callable[[Mapping], dict] | None = None  # beside what the files say


def _pseudo_label_files(description: Mapping) -> DatasetFiles:
    root = _resolve(description["ROOT"])
    # ROOT is a label run or its ``panoptic`` folder.
    folder = root if (root / "panoptic.json").is_file() else root / "panoptic"
    return DatasetFiles(
        images=_resolve(description["IMAGES"]),
        panoptic_json=folder / "panoptic.json",
        panoptic_folder=folder / "panoptic",
        instances_json=folder / "instances.json",
        stuff_folder=folder / "stuff",
    )


def _coco_panoptic_files(description: Mapping) -> DatasetFiles:
    root, split = _resolve(description["ROOT"]), description["SPLIT"]
    stuff = root / f"panoptic_stuff_{split}"  # Detectron2's prepare_panoptic_fpn.py writes it; derived where absent
    return DatasetFiles(
        images=root / split,
        panoptic_json=root / "annotations" / f"panoptic_{split}.json",
        panoptic_folder=root / f"panoptic_{split}",
        instances_json=root / "annotations" / f"instances_{split}.json",
        stuff_folder=stuff if stuff.is_dir() else None,
    )


def _coco_instances_files(description: Mapping) -> DatasetFiles:
    return DatasetFiles(images=_resolve(description["IMAGES"]), instances_json=_resolve(description["JSON"]))


def _imagenet_s_files(description: Mapping) -> DatasetFiles:
    return DatasetFiles(images=_resolve(description["IMAGES"]))


def _image_files(description: Mapping) -> DatasetFiles:
    return DatasetFiles(images=_resolve(description["ROOT"]))


def _load_panoptic(description: Mapping, files: DatasetFiles) -> list[dict]:
    panoptic = read_json(files.panoptic_json)
    space = _label_space(description, panoptic["categories"])
    to_contiguous = _thing_lookup(description, panoptic["categories"])
    instances = defaultdict(list)
    for annotation in read_json(files.instances_json)["annotations"]:
        instances[annotation["image_id"]].append(_instance(annotation, to_contiguous))
    segments = {annotation["image_id"]: annotation for annotation in panoptic["annotations"]}
    dicts = []
    for image in sorted(panoptic["images"], key=lambda image: image["id"]):
        annotation = segments.get(image["id"])
        if annotation is None:  # pictures of test splits carry no annotation
            continue
        record = _image_record(image, files.images)
        record["annotations"] = instances[image["id"]]
        record["pan_seg_file_name"] = str(files.panoptic_folder / annotation["file_name"])
        record["segments_info"] = [_segment(s, to_contiguous, space) for s in annotation["segments_info"]]
        if files.stuff_folder is not None:
            record["sem_seg_file_name"] = str(files.stuff_folder / annotation["file_name"])
        dicts.append(record)
    return dicts


def _load_instances(description: Mapping, files: DatasetFiles) -> list[dict]:
    content = read_json(files.instances_json)
    to_contiguous = _thing_lookup(description, [{**c, "isthing": 1} for c in content["categories"]])
    instances = defaultdict(list)
    for annotation in content["annotations"]:
        instances[annotation["image_id"]].append(_instance(annotation, to_contiguous))
    dicts = []
    for image in sorted(content["images"], key=lambda image: image["id"]):
        record = _image_record(image, files.images)
        record["annotations"] = instances[image["id"]]
        dicts.append(record)
    return dicts


def _load_images(description: Mapping, files: DatasetFiles) -> list[dict]:
    names = list_images(files.images)
    return [{"file_name": str(files.images / name), "image_id": i} for name, i in zip(names, image_ids(names))]


_FORMATS = {
    "pseudo_labels": _Format(("ROOT", "IMAGES"), ("CLASS_AGNOSTIC", "SUBSET"), _pseudo_label_files, _load_panoptic),
    "coco_panoptic": _Format(("ROOT", "SPLIT"), ("CLASS_AGNOSTIC", "SUBSET"), _coco_panoptic_files, _load_panoptic),
    "coco_instances": _Format(("JSON", "IMAGES"), ("CLASS_AGNOSTIC", "SUBSET"), _coco_instances_files, _load_instances),
    "images": _Format(("ROOT",), ("SUBSET",), _image_files, _load_images),
    "class_folders": _Format(
        ("ROOT",),
        ("SUBSET",),
        _image_files,
        lambda description, files: class_folder_records(files.images),
        lambda description: class_folder_metadata(description["ROOT"]),
    ),
    "imagenet_s": _Format(
        ("CLASSES", "SPLIT", "IMAGES", "LISTS"),
        ("MASKS", "SUBSET"),
        _imagenet_s_files,
        lambda description, files: imagenet_s_records(_resolved(description)),
        imagenet_s_metadata,
    ),
    "luss_pseudo_labels": _Format(
        ("ROOT", "IMAGES"),
        ("SUBSET",),
        _imagenet_s_files,
        lambda description, files: pseudo_label_records(_resolved(description)),
        pseudo_label_metadata,
    ),
}


# --- records ---------------------------------------------------------------------------------------------------------------------


def _image_record(image: dict, folder: Path) -> dict:
    return {
        "file_name": str(folder / image["file_name"]),
        "image_id": image["id"],
        "height": image["height"],
        "width": image["width"],
    }


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


def _subset(name: str, dicts: list[dict], path: Path) -> list[dict]:
    """Returns the pictures that a split file names; datasets/make_label_splits.py writes such files."""
    wanted = read_label_split(path)
    chosen = [record for record in dicts if record["image_id"] in wanted]
    if len(chosen) != len(wanted):
        missing = sorted(wanted - {record["image_id"] for record in chosen})
        raise ValueError(
            f"DATASETS.BY_PATH.{name}: {len(missing)} of the {len(wanted)} pictures that {path} names are not in the data set, "
            f"for example ids {missing[:5]}; the split belongs to another data set"
        )
    return chosen


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
    metadata = {"image_root": str(files.images)}
    if files.panoptic_json is not None:
        space = _label_space(description, read_json(files.panoptic_json)["categories"])
        metadata.update(
            space.metadata(),
            evaluator_type=EVALUATOR_TYPE,
            label_space=space,
            panoptic_root=str(files.panoptic_folder),
            panoptic_json=str(files.panoptic_json),
            json_file=str(files.instances_json),
        )
    elif files.instances_json is not None:
        categories = [{**c, "isthing": 1} for c in read_json(files.instances_json)["categories"]]
        space = _label_space(description, categories)
        metadata.update(space.metadata(), label_space=space, evaluator_type="coco", json_file=str(files.instances_json))
    return metadata


# --- checks ----------------------------------------------------------------------------------------------------------------------


def _checked(name: str, description: Mapping) -> dict:
    where = f"DATASETS.BY_PATH.{name}"
    kind = description.get("FORMAT")
    if kind not in _FORMATS:
        raise ValueError(f"{where}.FORMAT must be one of {', '.join(sorted(_FORMATS))}, got {kind!r}")
    known = _FORMATS[kind]
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
        (files.images, "folder", "the pictures"),
        (files.panoptic_json, "file", "COCO panoptic annotations"),
        (files.panoptic_folder, "folder", "panoptic PNGs"),
        (files.instances_json, "file", "COCO instance annotations"),
        (files.stuff_folder, "folder", "8-bit semantic targets"),
    ]
    rows = [(path, kind, what, _found(path, kind)) for path, kind, what in wanted if path is not None]
    if any(found != "found" for *_, found in rows):
        tree = "\n".join(
            f"  {'[x]' if found == 'found' else '[ ]'} {path}{'/' if kind == 'folder' else ''}   {what}: {found}"
            for path, kind, what, found in rows
        )
        raise DatasetFilesError(
            f"Data set {name!r} (DATASETS.BY_PATH.{name}, format {description['FORMAT']}) is not complete. Expected:\n{tree}\n"
            "Correct its paths, or make the missing files (datasets/README.md says how each set is prepared)."
        )


def _found(path: Path, kind: str) -> str:
    if path.is_dir() if kind == "folder" else path.is_file():
        return "found"
    parent = next(parent for parent in path.parents if parent.is_dir())
    if parent != path.parent:
        return f"missing; the first folder that exists is {parent}"
    entries = sorted(entry.name for entry in parent.iterdir())[:8]
    return f"missing; {parent} holds {', '.join(entries) or 'nothing'}"


def _resolved(description: Mapping) -> dict:
    """Returns a description with its paths resolved."""
    paths = {"ROOT", "IMAGES", "LISTS", "MASKS"}
    return {key: str(_resolve(value)) if key in paths and value else value for key, value in description.items()}


def _resolve(path: str) -> Path:
    parts = Path(path).parts
    root = os.environ.get("DETECTRON2_DATASETS")
    if root and parts[:1] == ("datasets",):
        return Path(root, *parts[1:])
    return Path(path)
