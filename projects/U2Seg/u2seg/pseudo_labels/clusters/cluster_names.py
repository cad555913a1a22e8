"""Names for the clusters of finished labels, given by hand; clusters of one name become one. Masks and clusters stay as they are.

The labels with names are a set of their own, ``LABELS/named``, which readers of a label directory prefer to ``LABELS/panoptic``.
Without it the labels are again what the stages made.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from u2seg.data.formats.coco_panoptic import read_panoptic_png, write_panoptic_png
from u2seg.data.formats.label_directory import (
    INSTANCES_JSON,
    NAMED_DIRECTORY,
    PANOPTIC_DIRECTORY,
    PANOPTIC_JSON,
    STAGE_DIRECTORY,
    STUFF_DIRECTORY,
    find_panoptic_json,
)
from u2seg.structures.label_space import VOID_SEGMENT, LabelSpace
from u2seg.structures.segments import segment_values, semantic_target
from u2seg.utils.files import atomic_path, confined_path, read_json, write_json
from u2seg.utils.progress import Progress

logger = logging.getLogger(__name__)

NAMES = "names.json"
# Beside the set while it is replaced or deleted.
_NEW, _OLD, _DELETED = (f".{NAMED_DIRECTORY}-{state}" for state in ("new", "old", "deleted"))


class ClusterNameError(ValueError):
    """A name that no cluster can have, or a cluster that the labels do not have; the message says which."""


@dataclass(frozen=True)
class ClusterCount:
    """A cluster as the stages made it.

    Attributes:
        cluster: its number, the dataset id in the label files.
        is_thing: whether it is one of things.
        segments: of it in all labels.
        images: in which there is one.
        name: given by hand; "" for none.
    """

    cluster: int
    is_thing: bool
    segments: int
    images: int
    name: str


def count_clusters(labels: str | Path) -> list[ClusterCount]:
    """Returns the clusters of finished labels, by number, with their sizes and names.

    Args:
        labels: a label directory.

    Raises:
        FileNotFoundError: it holds no finished labels.
    """
    panoptic = _read_panoptic(Path(labels))
    names = read_names(labels)
    segments: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for annotation in panoptic["annotations"]:
        found = [segment["category_id"] for segment in annotation["segments_info"]]
        segments.update(found)
        images.update(set(found))
    return [
        ClusterCount(c["id"], bool(c["isthing"]), segments[c["id"]], images[c["id"]], names.get(c["id"], ""))
        for c in panoptic["categories"]
    ]


def read_names(labels: str | Path) -> dict[int, str]:
    """Returns the names given by hand in a label directory, by the number of the cluster; empty where there are none."""
    _finish_replacing(Path(labels))
    path = Path(labels) / NAMED_DIRECTORY / NAMES
    return {int(cluster): name for cluster, name in read_json(path).items()} if path.is_file() else {}


def merged_clusters(labels: str | Path) -> list[list[int]]:
    """Returns the groups of clusters that have become one by their names, each by ascending number."""
    groups: dict[str, list[int]] = {}
    for cluster, name in sorted(read_names(labels).items()):
        groups.setdefault(name, []).append(cluster)
    return [group for group in groups.values() if len(group) > 1]


def rename_clusters(labels: str | Path, names: Mapping[int, str]) -> Path:
    """Returns ``LABELS/named``, the labels with more clusters named, or some named otherwise.

    Clusters of one name become one; in an image their stuff segments become one segment, things stay apart. Classes are numbered anew
    in the order of the clusters: things 1..K, then stuff.

    Args:
        labels: a label directory, with ``panoptic/`` in it.
        names: number of a cluster, as the stages gave it -> its name; "" takes a name back.

    Raises:
        FileNotFoundError: the directory holds no finished labels.
        ClusterNameError: there is no such cluster; a name is a number; or one name is given to a thing and to a stuff cluster. Nothing
            was changed then.
    """
    labels = Path(labels)
    panoptic = _read_panoptic(labels)
    wanted = {cluster: name.strip() for cluster, name in {**read_names(labels), **names}.items()}
    wanted = {cluster: name for cluster, name in wanted.items() if name}
    _check(wanted, names, panoptic["categories"], labels)
    if not wanted:
        forget_names(labels)
        return labels / STAGE_DIRECTORY
    new = labels / _NEW
    shutil.rmtree(new, ignore_errors=True)
    _write_named(labels / STAGE_DIRECTORY, new, panoptic, wanted)
    _replace(labels, new)
    return labels / NAMED_DIRECTORY


def forget_names(labels: str | Path) -> bool:
    """Deletes the labels named by hand, so that those of the stages count again; returns whether there were any."""
    labels = Path(labels)
    _finish_replacing(labels)
    named, deleted = labels / NAMED_DIRECTORY, labels / _DELETED
    if not named.is_dir():
        return False
    named.rename(deleted)  # at once: half a set must never be taken for a whole one
    shutil.rmtree(deleted)
    return True


def forget_outdated_names(labels: str | Path) -> None:
    """Deletes the labels named by hand because those that they were made from are made anew; says so where there were any."""
    if forget_names(labels):
        logger.warning("The labels are made anew: the names that their clusters were given by hand are gone")


def parse_names(words: Sequence[str], source: str) -> dict[int, str]:
    """Returns ``{3: "cat"}`` for ``["3=cat"]``.

    Args:
        words: NUMBER=NAME each.
        source: where they stand, for messages.

    Raises:
        ClusterNameError: a word is no such pair, or two name one cluster.
    """
    names: dict[int, str] = {}
    for word in words:
        number, equals, name = word.partition("=")
        if not equals or not number.strip().isdigit():
            raise ClusterNameError(f"{source}: expected NUMBER=NAME, such as 3=cat, got {word!r}")
        if int(number) in names:
            raise ClusterNameError(f"{source}: cluster {int(number)} is named twice")
        names[int(number)] = name.strip()
    return names


def _read_panoptic(labels: Path) -> dict:
    path = labels / STAGE_DIRECTORY / PANOPTIC_JSON
    if not path.is_file():
        find_panoptic_json(labels)  # says what to do about labels in shards
        raise FileNotFoundError(
            f"no finished labels in {labels}: there is no {path}; expected a label directory, what `u2seg labels` or `u2seg run` fills"
        )
    return read_json(path)


def _check(wanted: Mapping[int, str], given: Mapping[int, str], categories: list[dict], labels: Path) -> None:
    kinds = {category["id"]: bool(category["isthing"]) for category in categories}
    unknown = sorted(set(given) - set(kinds))
    if unknown:
        raise ClusterNameError(
            f"there is no cluster {', '.join(map(str, unknown))} in {labels}; it has {min(kinds)} to {max(kinds)} "
            f"(`u2seg clusters list {labels}` shows them)"
        )
    kind_of: dict[str, bool] = {}
    for cluster, name in wanted.items():
        if name.isdigit() or name == "things":
            raise ClusterNameError(
                f"cluster {cluster} cannot be called {name!r}: numbers are those of clusters without a name, and 'things' is the "
                "semantic class of all things"
            )
        if kind_of.setdefault(name, kinds[cluster]) != kinds[cluster]:
            raise ClusterNameError(
                f"{name!r} is given to things and to stuff; a thing cluster and a stuff cluster cannot become one. Choose two names"
            )


def _write_named(source: Path, target: Path, panoptic: dict, names: Mapping[int, str]) -> None:
    """Writes the labels of ``source`` with names to ``target``."""
    categories, class_of = _named_categories(panoptic["categories"], names)
    space = LabelSpace.of_coco_categories(categories)
    annotations = []
    with Progress(len(panoptic["annotations"]), "naming clusters") as bar:
        for annotation in bar.track(panoptic["annotations"]):
            infos, joined_into = _named_segments(annotation["segments_info"], class_of, space)
            _write_pngs(source, target, annotation["file_name"], infos, joined_into, space)
            annotations.append({**annotation, "segments_info": infos})
    instances = read_json(source / INSTANCES_JSON)
    rows = [{**row, "category_id": class_of[row["category_id"]]} for row in instances["annotations"]]
    things = [category for category in categories if category["isthing"]]
    write_json(target / INSTANCES_JSON, {**instances, "annotations": rows, "categories": things})
    write_json(target / NAMES, {str(cluster): name for cluster, name in sorted(names.items())})
    write_json(target / PANOPTIC_JSON, {**panoptic, "annotations": annotations, "categories": categories})


def _named_categories(categories: list[dict], names: Mapping[int, str]) -> tuple[list[dict], dict[int, int]]:
    """Returns the categories after naming, and which of them each cluster becomes, by id."""
    named: dict[str, dict] = {}
    class_of = {}
    for category in sorted(categories, key=lambda category: (not category["isthing"], category["id"])):
        name = names.get(category["id"], category["name"])
        entry = named.setdefault(name, {"id": len(named) + 1, "name": name, "isthing": category["isthing"]})
        class_of[category["id"]] = entry["id"]
    return list(named.values()), class_of


def _named_segments(
    segments: list[dict], class_of: Mapping[int, int], space: LabelSpace
) -> tuple[list[dict], dict[int, int]]:
    """Returns an image's segments after naming, and into which segment others are joined, by id: stuff of one class is one segment."""
    infos: dict[int, dict] = {}
    first_of_class: dict[int, int] = {}
    joined_into = {}
    for segment in segments:
        category = class_of[segment["category_id"]]
        kept = segment["id"]
        if category in space.stuff_contiguous_ids:
            kept = first_of_class.setdefault(category, kept)
        if kept == segment["id"]:
            infos[kept] = {**segment, "category_id": category}
            continue
        joined_into[segment["id"]] = kept
        whole = infos[kept]
        whole["area"] += segment["area"]
        whole["bbox"] = _joined_box(whole["bbox"], segment["bbox"])
    return list(infos.values()), joined_into


def _joined_box(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """Returns the smallest box, XYWH, around two."""
    left, top = min(first[0], second[0]), min(first[1], second[1])
    right, bottom = (max(first[i] + first[i + 2], second[i] + second[i + 2]) for i in (0, 1))
    return [left, top, right - left, bottom - top]


def _write_pngs(
    source: Path, target: Path, name: str, infos: list[dict], joined_into: Mapping[int, int], space: LabelSpace
) -> None:
    json_path = source / PANOPTIC_JSON
    old, new = (confined_path(directory / PANOPTIC_DIRECTORY, name, json_path) for directory in (source, target))
    panoptic_map = read_panoptic_png(old)
    if joined_into:
        ids = {int(i): joined_into.get(int(i), int(i)) for i in np.unique(panoptic_map)}
        panoptic_map = segment_values(panoptic_map, ids, VOID_SEGMENT)
        write_panoptic_png(new, panoptic_map)
    else:
        _link_or_copy(old, new)
    targets = {info["id"]: space.semantic_target_of(info["category_id"]) for info in infos}
    with atomic_path(confined_path(target / STUFF_DIRECTORY, name, json_path)) as temporary:
        Image.fromarray(semantic_target(panoptic_map, targets)).save(temporary)


def _link_or_copy(old: Path, new: Path) -> None:
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, new)
    except OSError:  # not every file system has links
        shutil.copyfile(old, new)


def _replace(labels: Path, new: Path) -> None:
    """Puts a whole new set where the old one was; a kill leaves the one or the other, or what the stages made."""
    named, old = labels / NAMED_DIRECTORY, labels / _OLD
    _finish_replacing(labels)
    if named.is_dir():
        named.rename(old)
    new.rename(named)
    shutil.rmtree(old, ignore_errors=True)


def _finish_replacing(labels: Path) -> None:
    """Clears what a kill left: brings the old set back where the new one had not arrived yet, and deletes the rest."""
    named, old = labels / NAMED_DIRECTORY, labels / _OLD
    shutil.rmtree(labels / _DELETED, ignore_errors=True)
    if (old / NAMES).is_file() and not named.is_dir():
        old.rename(named)
    shutil.rmtree(old, ignore_errors=True)
