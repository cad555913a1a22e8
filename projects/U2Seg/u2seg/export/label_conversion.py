"""Labels and predictions for other tools, and what people corrected there as a dataset to train on."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from u2seg.data.formats.coco_panoptic import read_panoptic_png
from u2seg.data.formats.coco_writer import PanopticWriter
from u2seg.export.label_tools.coco_format import INSTANCES, read_coco, write_coco
from u2seg.export.label_tools.cvat_format import ANNOTATIONS, read_cvat, write_cvat
from u2seg.export.label_tools.fiftyone_format import make_fiftyone_dataset
from u2seg.export.label_tools.label_studio_format import TASKS, read_label_studio, write_label_studio
from u2seg.export.label_tools.labeled_images import (
    CATEGORIES,
    Category,
    LabeledImage,
    Region,
    copy_image,
    flat_name,
    require_different_flat_stems,
)
from u2seg.export.label_tools.voc_format import write_voc
from u2seg.export.label_tools.yolo_format import write_yolo
from u2seg.utils.files import confined_name, read_json, write_json
from u2seg.utils.image_io import ImageReadError, image_size, iter_images
from u2seg.visualization.label_page import PanopticLabels

Writer = Callable[[Iterator[LabeledImage], Sequence[Category], Path], None]
Reader = Callable[[Path], Iterator[tuple[str, list[Region]]]]

WRITERS: dict[str, Writer] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "label-studio": write_label_studio,
    "cvat": write_cvat,
}
FIFTYONE = "fiftyone"
# By format: how its files are read, what they are called, and which export of the tool they are.
READERS: dict[str, tuple[Reader, str, str]] = {
    "coco": (read_coco, INSTANCES, "a COCO instances JSON"),
    "label-studio": (read_label_studio, TASKS, 'Label Studio\'s export "JSON"'),
    "cvat": (read_cvat, ANNOTATIONS, 'CVAT\'s export "CVAT for images 1.1"'),
}
# What Label Studio puts before the name of an uploaded file.
_UPLOAD_PREFIX = re.compile("^[0-9a-f]{8}-")


def convert_labels(labels: PanopticLabels, output: str | Path, kind: str, *, with_stuff: bool = False) -> int:
    """Writes panoptic labels or predictions in another tool's format; returns the number of regions.

    Beside the tool's files, ``categories.json`` says which categories are things, for the way back. Clusters to which a label map gave
    one name are one category.

    Args:
        labels: see :func:`u2seg.visualization.label_page.load_panoptic_labels`.
        output: directory to write to; for ``fiftyone``, its last part is the dataset's name.
        kind: key of :data:`WRITERS`, or ``fiftyone``.
        with_stuff: whether stuff regions are written too; else things alone.

    Raises:
        ValueError: an unknown format, one that cannot hold these labels, or ``output`` is the directory of the labels themselves.
        ImageReadError: an image or its labels cannot be read.
        ModuleNotFoundError: ``fiftyone`` is not installed.
    """
    space = labels.space
    categories = [Category(name, True) for name in dict.fromkeys(space.thing_names)]
    names = dict(zip(space.thing_dataset_ids, space.thing_names))
    if with_stuff:
        categories += [Category(name, False) for name in dict.fromkeys(space.stuff_names)]
        names.update(zip(space.stuff_dataset_ids, space.stuff_names))
    counted = _Counted(_labeled_images(labels, names))
    if kind == FIFTYONE:
        make_fiftyone_dataset(counted, categories, Path(output).name)
        return counted.regions
    if kind not in WRITERS:
        raise ValueError(f"unknown format {kind!r}; known: {', '.join([*WRITERS, FIFTYONE])}")
    if Path(output).resolve() == labels.png_directory.parent.resolve():
        raise ValueError(
            f"{output} holds the labels themselves, which would be overwritten; choose another output directory"
        )
    WRITERS[kind](iter(counted), categories, Path(output))
    _write_categories(Path(output) / CATEGORIES, categories)
    return counted.regions


class _Counted:
    """Labeled images, whose regions are counted as they pass."""

    def __init__(self, images: Iterator[LabeledImage]):
        self._images = images
        self.regions = 0

    def __iter__(self) -> Iterator[LabeledImage]:
        for image in self._images:
            self.regions += len(image.regions)
            yield image


def _labeled_images(labels: PanopticLabels, names: Mapping[int, str]) -> Iterator[LabeledImage]:
    """Yields the images with the regions whose category id has a name."""
    for annotation in labels.annotations:
        name = labels.file_names[annotation["image_id"]]
        panoptic_map = read_panoptic_png(labels.png_directory / annotation["file_name"])
        # Stuff first, so that things lie above it in tools that paint regions one over the other.
        infos = sorted(annotation["segments_info"], key=lambda s: s["category_id"] in labels.space.thing_contiguous_ids)
        masks = [(info, panoptic_map == info["id"]) for info in infos if info["category_id"] in names]
        regions = [Region(names[info["category_id"]], mask, info.get("score")) for info, mask in masks if mask.any()]
        yield LabeledImage(name, labels.image_directory / name, panoptic_map.shape, regions)


def _write_categories(path: Path, categories: Sequence[Category]) -> None:
    write_json(
        path,
        [{"id": i, "name": c.name, "isthing": int(c.is_thing)} for i, c in enumerate(categories, start=1)],
    )


@dataclass(frozen=True)
class Corrected:
    """What a corrected file gave.

    Attributes:
        root, split: of the dataset, for ``FORMAT: coco_panoptic``.
        images, regions: their numbers.
        new_categories: names that the file has and ``categories.json`` has not.
    """

    root: Path
    split: str
    images: int
    regions: int
    new_categories: list[str]


def import_corrected(
    source: str | Path,
    images: str | Path,
    output: str | Path,
    kind: str,
    *,
    categories: str | Path | None = None,
    stuff: Collection[str] = (),
    split: str = "train",
) -> Corrected:
    """Writes labels that people corrected in a tool as a COCO panoptic dataset, images copied, ready to be trained on.

    Categories are numbered things first, in the order of ``categories.json``, then new ones by name. Categories without a region stay, so
    that a model's classes do not move. Pixels without a region are void: unlabeled, not background.

    Args:
        source: the tool's export: a file, or a directory with the file under the name that :func:`convert_labels` gives it.
        images: directory of the images.
        output: root of the dataset.
        kind: key of :data:`READERS`.
        categories: the ``categories.json`` that was written with the labels; None: the one beside ``source``, if there is one.
        stuff: names of categories that are stuff; names that neither this nor ``categories.json`` knows are things.
        split: name of the split.

    Raises:
        FileNotFoundError: the file, or an image that it names.
        ImageReadError: an image cannot be read.
        ValueError: the file has another form or names no image, two images would share a label file, an image has another size than
            its labels, or ``stuff`` names an unknown category.
    """
    read, file_name, export = READERS[kind]
    path = Path(source) / file_name if Path(source).is_dir() else Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} labels at {path}")
    given = Path(categories) if categories else path.with_name(CATEGORIES)
    known = _read_categories(given) if categories or given.is_file() else []
    directory = _ImageDirectory(Path(images), path)
    names: list[str] = []
    used: set[str] = set()
    # The file is read twice, so that the masks of one image at a time are in memory.
    for name, regions in read(path):
        names.append(directory.find(name))
        used.update(region.category for region in regions)
    if not names:
        raise ValueError(f"{path} names no image; expected {export}")
    require_different_flat_stems(names, "the dataset")
    new = sorted(used - {category.name for category in known})
    known = [*known, *(Category(name, True) for name in new)]
    unknown = sorted(set(stuff) - {category.name for category in known})
    if unknown:
        raise ValueError(
            f"no category is called {', '.join(map(repr, unknown))}, which should be stuff; known: "
            f"{', '.join(category.name for category in known)}"
        )
    known = [Category(one.name, one.is_thing and one.name not in stuff) for one in known]
    ordered = sorted(known, key=lambda category: not category.is_thing)
    ids = {category.name: index for index, category in enumerate(ordered, start=1)}
    writer = PanopticWriter(
        output, split, [{"id": ids[c.name], "name": c.name, "isthing": int(c.is_thing)} for c in ordered]
    )
    things = {category.name for category in ordered if category.is_thing}
    count = 0
    for name, (_, regions) in zip(names, read(path)):
        image_path = Path(images) / name
        size = _size_of(image_path)
        segment_map, segments = _painted(sorted(regions, key=lambda one: one.category in things), ids, size, image_path)
        copy_image(LabeledImage(name, image_path, size, regions), Path(output) / split)
        writer.add(flat_name(name), segment_map, segments)
        count += len(segments)
    writer.close()
    return Corrected(Path(output), split, len(names), count, new)


def _painted(
    regions: Sequence[Region], ids: Mapping[str, int], size: tuple[int, int], path: Path
) -> tuple[np.ndarray, list[dict]]:
    """Returns a panoptic map in which later regions cover earlier ones, int32 (H, W), and the segments that can still be seen."""
    segment_map = np.zeros(size, np.int32)
    for number, region in enumerate(regions, start=1):
        if region.mask.shape != size:
            raise ValueError(
                f"{path} has {size[0]} x {size[1]} pixels (height x width), its labels {region.mask.shape}"
            )
        segment_map[region.mask] = number
    seen = set(np.unique(segment_map).tolist())
    segments = [
        {"id": number, "category_id": ids[region.category], "iscrowd": 0}
        for number, region in enumerate(regions, start=1)
        if number in seen
    ]
    return segment_map, segments


def _read_categories(path: Path) -> list[Category]:
    content = read_json(path)
    if not isinstance(content, list) or not all({"name", "isthing"} <= set(one) for one in content):
        raise ValueError(f"{path} must be a list of categories with name and isthing")
    return [Category(one["name"], bool(one["isthing"])) for one in content]


def _size_of(path: Path) -> tuple[int, int]:
    """Returns an image's (height, width), turned upright; the error names it."""
    try:
        return image_size(path)
    except ImageReadError as error:
        raise ImageReadError(f"{path}: {error}") from error


class _ImageDirectory:
    """A directory of images, which are found by the names that a tool gives back."""

    def __init__(self, directory: Path, source: Path):
        """Takes the directory, and the tool's file for messages."""
        self._directory, self._source = directory, source

    @cached_property
    def _listed(self) -> list[str]:
        return list(iter_images(self._directory))

    def find(self, name: str) -> str:
        """Returns an image's name relative to the directory.

        A tool may put directories before it, so the longest end of the name counts that is an image's path. A name without directories,
        or of an uploaded file, may also be an image's own or flat name.

        Raises:
            FileNotFoundError: no such image, or several of that name.
        """
        parts = confined_name(name, self._source).split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if (self._directory / end).is_file():
                return end
        bare = _UPLOAD_PREFIX.sub("", parts[-1])
        found = []
        if len(parts) == 1 or bare != parts[-1]:
            found = [one for one in self._listed if bare in (flat_name(one), one.rpartition("/")[2])]
        if len(found) != 1:
            raise FileNotFoundError(
                f"{self._source} names the image {name}, and {self._directory} holds {'several' if found else 'none'} of that name"
            )
        return found[0]
