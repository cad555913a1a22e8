"""Segment tables from files: panoptic PNG and JSON of pseudo-labels or predictions, against a COCO panoptic ground truth."""

import logging
from pathlib import Path

import numpy as np

from u2seg.evaluation.tables.ground_truth import PanopticGroundTruth
from u2seg.evaluation.tables.image_tables import (
    MapSegment,
    Regions,
    head_blocks,
    image_tables,
    instance_blocks,
    panoptic_blocks,
    regions_of_map,
)
from u2seg.evaluation.tables.segment_tables import VOID, SegmentTables, TableSpace, concatenate_tables
from u2seg.utils.progress import Progress

TASKS = ("panoptic", "box", "mask", "semantic")
logger = logging.getLogger(__name__)


def tables_from_panoptic_files(
    gt_json: str | Path,
    gt_directory: str | Path,
    predicted_json: str | Path,
    predicted_directory: str | Path,
    *,
    dataset: str = "",
    progress: bool = True,
) -> SegmentTables:
    """Returns the segment tables of predictions, or pseudo-labels, that lie in COCO's panoptic format.

    Thing segments serve as detections (score: the segment's ``score`` if it has one, else 1) and thing segments of the
    ground truth as objects, so that AP and AR can be computed too; the map's labels serve as the semantic head's.

    Args:
        gt_json: COCO panoptic JSON of the ground truth.
        gt_directory: its PNGs.
        predicted_json: COCO panoptic JSON of what is scored; its ``categories`` are the clusters, however many.
        predicted_directory: its PNGs.
        dataset: name for the record; empty takes the ground truth's file name.
        progress: whether a progress bar is shown.

    Raises:
        ValueError: a file is not of its format, a ground-truth image has no prediction, sizes differ, or a map and its list of
            segments do not agree. The message names the file, and the row or the image.
    """
    gt = PanopticGroundTruth(gt_json, gt_directory)
    predicted = PanopticGroundTruth(predicted_json, predicted_directory)
    partner = _pair_images(gt, predicted)
    space = TableSpace(
        dataset or Path(gt_json).stem, predicted.space.num_things, predicted.space.num_stuff, gt.space, TASKS
    )
    if progress:
        with Progress(len(partner), "scoring maps") as bar:
            parts = [_tables_of(space, gt, predicted, one, partner[one]) for one in bar.track(sorted(partner))]
    else:
        parts = [_tables_of(space, gt, predicted, one, partner[one]) for one in sorted(partner)]
    if not parts:
        raise ValueError(f"{gt_json} lists no image; there is nothing to score")
    return concatenate_tables(parts)


def _tables_of(
    space: TableSpace, gt: PanopticGroundTruth, predicted: PanopticGroundTruth, image_id: int, predicted_id: int
) -> SegmentTables:
    gt_map, gt_segments = gt.read(image_id)
    predicted_map, predicted_segments = predicted.read(predicted_id)
    try:
        panoptic = panoptic_blocks(gt_map, gt_segments, predicted_map, predicted_segments)
    except ValueError as error:
        raise ValueError(f"image {image_id} of {gt.path} and {predicted.path}: {error}") from error
    if len(panoptic["predicted"]) < len(predicted_segments):
        shown = set(np.unique(predicted_map).tolist())
        absent = [segment.id for segment in predicted_segments if segment.id not in shown]
        raise ValueError(
            f"{predicted.path} lists segment ids for image {predicted_id} that its PNG lacks: {absent[:10]}; do the two belong "
            "together?"
        )
    return image_tables(
        space,
        image_id,
        gt_map.shape,
        **panoptic,
        **instance_blocks(
            _things(predicted_map, predicted_segments, space.num_things),
            _things(gt_map, gt_segments, space.categories.num_things),
        ),
        **head_blocks(gt_map, {s.id: s.label for s in gt_segments}, _as_head(predicted_map, predicted_segments, space)),
    )


def _things(segment_map: np.ndarray, segments: list[MapSegment], num_things: int) -> Regions:
    return regions_of_map(segment_map, [segment for segment in segments if segment.label < num_things])


def _as_head(predicted_map: np.ndarray, segments: list[MapSegment], space: TableSpace) -> np.ndarray:
    """Returns what a semantic head would say to give this map: 0 for things, 1..S for stuff, -1 for void."""
    lookup = {s.id: max(s.label - space.num_things + 1, 0) for s in segments}
    ids, inverse = np.unique(predicted_map, return_inverse=True)
    values = np.array([lookup.get(int(identifier), VOID) for identifier in ids], np.int32)
    return values[inverse].reshape(predicted_map.shape)


def _pair_images(gt: PanopticGroundTruth, predicted: PanopticGroundTruth) -> dict[int, int]:
    """Returns ground-truth image id -> prediction's, by id where those are the same numbering, else by file name."""
    if set(gt.annotations) <= set(predicted.annotations) and all(
        _stem(gt, i) == _stem(predicted, i) for i in gt.annotations
    ):
        return {image_id: image_id for image_id in gt.annotations}
    by_name: dict[str, int] = {}
    for image_id in predicted.annotations:
        name = _stem(predicted, image_id)
        if name in by_name:
            raise ValueError(
                f"{predicted.path} has two images, {by_name[name]} and {image_id}, whose PNGs are named {name!r}; they cannot be "
                "paired by name, and their ids are not the ground truth's"
            )
        by_name[name] = image_id
    missing = [_stem(gt, i) for i in gt.annotations if _stem(gt, i) not in by_name]
    if missing:
        raise ValueError(
            f"{predicted.path} has no annotation for {len(missing)} of the {len(gt.annotations)} images of {gt.path}, "
            f"for example {missing[:5]}; images are paired by the names of their PNGs"
        )
    logger.warning(
        "Image ids of %s and %s differ; images are paired by the names of their PNGs", gt.path, predicted.path
    )
    return {image_id: by_name[_stem(gt, image_id)] for image_id in gt.annotations}


def _stem(gt: PanopticGroundTruth, image_id: int) -> str:
    return Path(gt.annotations[image_id]["file_name"]).stem
