"""Segment tables from the semantic stage's maps, against a COCO panoptic ground truth."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from u2seg.data.formats.semantic_shards import iter_semantic_maps
from u2seg.evaluation.tables.ground_truth import PanopticGroundTruth
from u2seg.evaluation.tables.image_tables import head_blocks, image_tables
from u2seg.evaluation.tables.segment_tables import SegmentTables, TableSpace, concatenate_tables
from u2seg.structures.label_space import IGNORE_LABEL
from u2seg.utils.external_sort import repeated_items
from u2seg.utils.image_io import png_names
from u2seg.utils.manifest import is_complete, stage_settings


def tables_from_semantic_maps(gt_json: str | Path, gt_directory: str | Path, semantics: str | Path) -> SegmentTables:
    """Returns the tables of a finished semantic stage's maps, as if a semantic head had predicted them; it never says "thing".

    Args:
        gt_json: COCO panoptic JSON of the ground truth.
        gt_directory: its PNGs.
        semantics: directory of the semantic stage, made on the images of the ground truth.

    Raises:
        FileNotFoundError: the stage is not finished.
        ValueError: a ground-truth image has no map, or one of another size; or a name stands for several images, which cannot be
            told apart then.
    """
    if not is_complete(semantics):
        raise FileNotFoundError(f"{semantics} holds no finished semantic stage; make it by u2seg labels")
    gt = PanopticGroundTruth(gt_json, gt_directory)
    wanted = images_by_stem(gt)
    space = TableSpace(Path(gt_json).stem, 1, stage_settings(semantics)["num_clusters"], gt.space, ("semantic",))
    parts = {}
    for name, found in _named_maps(semantics):
        if name in parts:
            raise twins_error(semantics, [name])
        if name in wanted:
            gt_map, segments = gt.read(wanted[name])
            head = np.where(found == IGNORE_LABEL, -1, found.astype(np.int32) + 1)
            try:
                blocks = head_blocks(gt_map, {segment.id: segment.label for segment in segments}, head)
            except ValueError as error:
                raise ValueError(f"the map of {name} in {semantics}: {error}") from error
            parts[name] = image_tables(space, wanted[name], gt_map.shape, **blocks)
    missing = sorted(wanted.keys() - parts.keys())
    if missing:
        raise ValueError(
            f"{semantics} has no map for {len(missing)} of the {len(wanted)} images of {gt_json}, for example {missing[:5]}; images "
            "are paired by name"
        )
    if not parts:
        raise ValueError(f"{gt_json} lists no image; there is nothing to score")
    return concatenate_tables([parts[name] for name in sorted(parts)])


def _named_maps(semantics: str | Path) -> Iterable[tuple[str, np.ndarray]]:
    for maps in iter_semantic_maps(semantics):
        for name, png in zip(maps, png_names(list(maps))):
            yield Path(png).stem, maps[name]


def images_by_stem(gt: PanopticGroundTruth) -> dict[str, int]:
    """Returns bare name, without directory and suffix -> image id.

    Raises:
        ValueError: a name stands for several images.
    """
    ids = {Path(annotation["file_name"]).stem: image_id for image_id, annotation in gt.annotations.items()}
    if len(ids) < len(gt.annotations):
        stems = (Path(annotation["file_name"]).stem for annotation in gt.annotations.values())
        raise twins_error(gt.path, repeated_items(stems))
    return ids


def twins_error(source: str | Path, names: list[str]) -> ValueError:
    """Returns the error for names, in a file or directory, that stand for several images."""
    return ValueError(
        f"{source} has several images named {', '.join(names[:5])}; they are paired with the ground truth by the bare name, without "
        "directory and suffix: give each image a name of its own"
    )
