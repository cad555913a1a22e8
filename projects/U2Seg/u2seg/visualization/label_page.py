"""A page that shows panoptic labels or predictions on their images, whoever made them: what they look like, what each cluster is."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from u2seg.data.formats.coco_panoptic import read_panoptic_png
from u2seg.data.formats.coco_schema import loadable_images, read_panoptic_json
from u2seg.data.formats.label_directory import find_panoptic_json, panoptic_directory
from u2seg.data.formats.label_shards import label_shards
from u2seg.structures.label_space import LabelSpace
from u2seg.utils.files import confined_name
from u2seg.utils.image_io import ImageReadError, read_image_rgb
from u2seg.utils.manifest import Failure
from u2seg.utils.progress import track
from u2seg.visualization.class_style import ClassStyle
from u2seg.visualization.html_report import Row, Table, write_report
from u2seg.visualization.panoptic_drawing import PanopticDrawing, contiguous_segments, draw_for_page

_PANOPTIC_JSON = "panoptic.json"
_CROP_SIDE = 180  # pixels
_CROPS = 8  # examples of one cluster


@dataclass(frozen=True)
class PanopticLabels:
    """Labels in COCO's panoptic format, and their images.

    Attributes:
        png_directory: directory of the panoptic PNGs.
        image_directory: directory of the images.
        file_names: image id -> name below ``image_directory``.
        annotations: COCO panoptic annotations, one an image, by ascending image id.
        space: their classes.
    """

    png_directory: Path
    image_directory: Path
    file_names: dict[int, str]
    annotations: list[dict]
    space: LabelSpace

    def read(self, annotation: dict) -> tuple[np.ndarray, np.ndarray]:
        """Returns an image, uint8 (H, W, 3), and its segment ids, int32 (H, W).

        Raises:
            ImageReadError: the image cannot be read, has another size than its labels, or its PNG is missing; the message is the
                reason alone.
        """
        image_rgb = read_image_rgb(self.image_directory / self.file_names[annotation["image_id"]])
        png = self.png_directory / annotation["file_name"]
        try:
            panoptic_map = read_panoptic_png(png)
        except (OSError, ValueError) as error:
            raise ImageReadError(f"its labels cannot be read: {error}") from error
        if panoptic_map.shape != image_rgb.shape[:2]:
            raise ImageReadError(f"it has size {image_rgb.shape[:2]}, its labels {panoptic_map.shape}")
        return image_rgb, panoptic_map

    def read_named(self, annotation: dict) -> tuple[np.ndarray, np.ndarray]:
        """Returns what ``read`` does; the error names the image."""
        try:
            return self.read(annotation)
        except ImageReadError as error:
            raise ImageReadError(
                f"{self.image_directory / self.file_names[annotation['image_id']]}: {error}"
            ) from error


def load_panoptic_labels(labels: str | Path, images: str | Path) -> PanopticLabels:
    """Returns labels in COCO's panoptic format.

    Args:
        labels: a run's label directory, a directory with ``panoptic.json`` and ``panoptic/*.png`` (what ``u2seg predict`` writes), or a
            panoptic JSON in COCO's layout, ``ROOT/annotations/panoptic_SPLIT.json`` with ``ROOT/panoptic_SPLIT/*.png``.
        images: directory of the images.

    Raises:
        FileNotFoundError: nothing of the kind is there.
        ValueError: the JSON is no panoptic JSON, with the row and the field in the message, or a name in it leads out of its directory.
    """
    json_path, png_directory = _find(Path(labels))
    content = read_panoptic_json(json_path)
    listed = loadable_images(json_path, content)
    by_image = {annotation["image_id"]: annotation for annotation in content["annotations"]}
    return PanopticLabels(
        png_directory,
        Path(images),
        {image["id"]: confined_name(image["file_name"], json_path) for image in listed},
        [by_image[image["id"]] for image in listed if image["id"] in by_image],
        LabelSpace.of_coco_categories(content["categories"]),
    )


def show_labels(
    label_sets: Mapping[str, PanopticLabels], output: str | Path, *, title: str, limit: int = 48, clusters: int = 40
) -> tuple[Path, list[Failure]]:
    """Writes a page with counts, examples of the most common clusters, and images beside their labels.

    Args:
        label_sets: caption -> labels, one column each; the first one gives the images and the examples. The others are found by the
            images' names; where one has none, its place is empty.
        output: directory; the page is its ``index.html``.
        title: the page's heading.
        limit: images shown, evenly spaced over all.
        clusters: thing clusters, and stuff clusters, of which examples are shown, the most frequent first.

    Returns:
        The page's path, and the images that could not be shown, with the reason.

    Raises:
        ValueError: no labels at all.
    """
    if not label_sets:
        raise ValueError("show_labels needs at least one set of labels, got none")
    failures: list[Failure] = []
    first = next(iter(label_sets.values()))
    chosen = evenly_spaced(first.annotations, limit)
    names = [first.file_names[annotation["image_id"]] for annotation in chosen]
    page = write_report(
        Path(output) / "index.html",
        title=title,
        summary=f"{len(chosen)} of {len(first.annotations)} images, evenly spaced.",
        tables=[_counts(label_sets)],
        rows=chain(cluster_gallery(first, clusters, failures), _rows(label_sets, names, failures)),
    )
    # An image can be met several times: as an example of each of its classes, and in its row.
    return page, list(dict.fromkeys(failures))


def _rows(label_sets: Mapping[str, PanopticLabels], names: list[str], failures: list[Failure]) -> Iterator[Row]:
    by_name = {
        caption: {labels.file_names[a["image_id"]]: a for a in labels.annotations}
        for caption, labels in label_sets.items()
    }
    for name in track(names, "page"):
        images: dict[str, np.ndarray | PanopticDrawing] = {}
        for caption, labels in label_sets.items():
            annotation = by_name[caption].get(name)
            if annotation is None:
                continue
            try:
                image_rgb, panoptic_map = labels.read(annotation)
            except ImageReadError as error:
                failures.append(Failure(name, str(error)))
                continue
            images.setdefault("image", image_rgb)
            segments = contiguous_segments(annotation["segments_info"], labels.space)
            style = ClassStyle.of_label_space(labels.space)
            images[caption] = draw_for_page(image_rgb, panoptic_map, segments, style)
        if images:
            yield Row(name, images)


def _counts(label_sets: Mapping[str, PanopticLabels]) -> Table:
    columns = [_count(labels) for labels in label_sets.values()]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return Table("Counts", rows, header=("", *label_sets))


def _count(labels: PanopticLabels) -> dict[str, object]:
    space = labels.space
    classes = [[s["category_id"] for s in annotation["segments_info"]] for annotation in labels.annotations]
    things = [sum(c in space.thing_contiguous_ids for c in row) for row in classes]
    used = Counter(c for row in classes for c in row)
    sizes = [used[i] for i in space.thing_dataset_ids]
    images = max(len(things), 1)
    return {
        "images": len(things),
        "things in an image, on average": sum(things) / images,
        "images without a thing, %": 100 * things.count(0) / images,
        "thing classes that occur": f"{sum(size > 0 for size in sizes)} of {space.num_things}",
        "largest thing class, % of things": 100 * max(sizes, default=0) / max(sum(sizes), 1),
        "stuff classes that occur": f"{sum(used[i] > 0 for i in space.stuff_dataset_ids)} of {space.num_stuff}",
    }


def cluster_gallery(labels: PanopticLabels, clusters: int, failures: list[Failure]) -> Iterator[Row]:
    """Yields a row of examples for each of the most common classes: those of things, then those of stuff, the largest first.

    Args:
        labels: the labels.
        clusters: at most so many classes of things, and as many of stuff.
        failures: images that cannot be read are added to it.
    """
    space = labels.space
    members: dict[int, list[tuple[dict, dict]]] = defaultdict(list)
    for annotation in labels.annotations:
        for segment in annotation["segments_info"]:
            members[segment["category_id"]].append((annotation, segment))
    for kind, ids, names in (
        ("thing", space.thing_contiguous_ids, space.thing_names),
        ("stuff", space.stuff_dataset_ids, space.stuff_names),
    ):
        used = [category for category in ids if members[category]]
        most_common = sorted(used, key=lambda category: (-len(members[category]), category))[:clusters]
        group = f"{'Things' if kind == 'thing' else 'Stuff'}: the {len(most_common)} largest of {len(used)} clusters"
        name_of = dict(zip(ids, names))
        for category in most_common:
            examples = _examples(labels, members[category], failures)
            if examples:
                count = len(members[category])
                title = f"{kind.capitalize()} class {name_of[category]}: {count} segment{'s' if count > 1 else ''}"
                yield Row(title, examples, columns=_CROPS, group=group)


def _examples(
    labels: PanopticLabels, members: list[tuple[dict, dict]], failures: list[Failure]
) -> dict[str, np.ndarray]:
    """Returns crops around some segments of a class, by their number, evenly spaced over ``members``: (annotation, segment) each."""
    examples = {}
    for number, (annotation, segment) in enumerate(evenly_spaced(members, _CROPS), start=1):
        try:
            image_rgb, panoptic_map = labels.read(annotation)
        except ImageReadError as error:
            failures.append(Failure(labels.file_names[annotation["image_id"]], str(error)))
            continue
        examples[f"{number}"] = _crop(image_rgb, panoptic_map == segment["id"])
    return examples


def _crop(image_rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the square around a segment, the rest of it paled, uint8 (180, 180, 3); gray beyond the image's border."""
    paled = np.where(mask[:, :, None], image_rgb, 0.35 * image_rgb + 0.65 * 235).astype(np.uint8)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.full((_CROP_SIDE, _CROP_SIDE, 3), 235, np.uint8)
    middle_y, middle_x = (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2
    side = 1.25 * max(np.ptp(rows) + 1, np.ptp(columns) + 1)
    left, top = round(middle_x - side / 2), round(middle_y - side / 2)
    canvas = Image.new("RGB", (max(round(side), 1),) * 2, (235, 235, 235))
    canvas.paste(Image.fromarray(paled), (-left, -top))
    return np.array(canvas.resize((_CROP_SIDE, _CROP_SIDE), Image.Resampling.BICUBIC))


def evenly_spaced(items: list, count: int) -> list:
    """Returns at most ``count`` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int)]


def has_panoptic_labels(labels: str | Path) -> bool:
    """Returns whether there are panoptic labels: a panoptic JSON with its PNGs, or shards, which :func:`load_panoptic_labels` refuses."""
    try:
        _find(Path(labels))
    except FileNotFoundError:
        return bool(label_shards(panoptic_directory(labels)))
    return True


def _find(labels: Path) -> tuple[Path, Path]:
    """Returns the panoptic JSON and its PNG directory."""
    if labels.suffix == ".json" and labels.is_file():
        for directory in (labels.parent.parent / labels.stem, labels.parent / labels.stem):
            if directory.is_dir():
                return labels, directory
        raise FileNotFoundError(
            f"no directory of panoptic PNGs for {labels}; expected {labels.parent.parent / labels.stem}"
        )
    directory = find_panoptic_json(labels).parent
    if (directory / _PANOPTIC_JSON).is_file() and (directory / "panoptic").is_dir():
        return directory / _PANOPTIC_JSON, directory / "panoptic"
    raise FileNotFoundError(
        f"no panoptic labels in {labels}; expected {labels / _PANOPTIC_JSON} with {labels / 'panoptic'}/*.png, "
        f"the same below {labels / 'panoptic'}, or a panoptic JSON in COCO's layout; masks/shard-*.parquet will do as well"
    )
