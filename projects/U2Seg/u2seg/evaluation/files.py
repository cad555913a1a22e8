"""Segment tables from files: panoptic PNG and JSON of pseudo-labels or predictions, against a COCO panoptic ground truth."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from u2seg.evaluation.ground_truth import PanopticTruth
from u2seg.evaluation.pictures import (
    MapSegment,
    Regions,
    head_blocks,
    instance_blocks,
    panoptic_blocks,
    picture_tables,
    regions_of_map,
)
from u2seg.evaluation.tables import VOID, SegmentTables, TableSpace, concatenate_tables

TASKS = ("panoptic", "box", "mask", "semantic")


def tables_from_panoptic_files(
    truth_json: str | Path,
    truth_folder: str | Path,
    predicted_json: str | Path,
    predicted_folder: str | Path,
    *,
    dataset: str = "",
    progress: bool = True,
) -> SegmentTables:
    """Returns the segment tables of predictions, or pseudo-labels, that lie in COCO's panoptic format.

    Thing segments serve as detections (score: the segment's ``score`` if it has one, else 1) and thing segments of the ground
    truth as objects, so that AP and AR can be computed too; the map's labels serve as the semantic head's.

    Args:
        truth_json: COCO panoptic JSON of the ground truth.
        truth_folder: its PNGs.
        predicted_json: COCO panoptic JSON of what is scored; its ``categories`` are the clusters, however many.
        predicted_folder: its PNGs.
        dataset: name for the record; empty takes the ground truth's file name.
        progress: whether a progress bar is shown.

    Raises:
        ValueError: a ground-truth picture has no prediction, or sizes differ.
    """
    truth = PanopticTruth(truth_json, truth_folder)
    predicted = PanopticTruth(predicted_json, predicted_folder)
    partner = _partners(truth, predicted)
    space = TableSpace(
        dataset or Path(truth_json).stem, predicted.space.num_things, predicted.space.num_stuff, truth.space, TASKS
    )
    pictures = tqdm(sorted(partner), desc="tables", unit="picture", disable=not progress)
    return concatenate_tables(
        [_tables_of(space, truth, predicted, image_id, partner[image_id]) for image_id in pictures]
    )


def _tables_of(
    space: TableSpace, truth: PanopticTruth, predicted: PanopticTruth, image_id: int, predicted_id: int
) -> SegmentTables:
    truth_map, truth_segments = truth.read(image_id)
    predicted_map, predicted_segments = predicted.read(predicted_id)
    if truth_map.shape != predicted_map.shape:
        raise ValueError(
            f"picture {image_id}: the prediction must have the ground truth's size {truth_map.shape}, got {predicted_map.shape}"
        )
    return picture_tables(
        space,
        image_id,
        truth_map.shape,
        **panoptic_blocks(truth_map, truth_segments, predicted_map, predicted_segments),
        **instance_blocks(
            _things(predicted_map, predicted_segments, space.num_things),
            _things(truth_map, truth_segments, space.categories.num_things),
        ),
        **head_blocks(
            truth_map, {s.id: s.label for s in truth_segments}, _as_head(predicted_map, predicted_segments, space)
        ),
    )


def _things(segment_map: np.ndarray, segments: list[MapSegment], num_things: int) -> Regions:
    return regions_of_map(segment_map, [segment for segment in segments if segment.label < num_things])


def _as_head(predicted_map: np.ndarray, segments: list[MapSegment], space: TableSpace) -> np.ndarray:
    """Returns what a semantic head would say to give this map: 0 for things, 1..S for stuff, -1 for void."""
    lookup = {s.id: max(s.label - space.num_things + 1, 0) for s in segments}
    ids, inverse = np.unique(predicted_map, return_inverse=True)
    values = np.array([lookup.get(int(identifier), VOID) for identifier in ids], np.int32)
    return values[inverse].reshape(predicted_map.shape)


def _partners(truth: PanopticTruth, predicted: PanopticTruth) -> dict[int, int]:
    """Returns ground-truth picture id -> prediction's, by id where those are the same numbering, else by file name."""
    if set(truth.annotations) <= set(predicted.annotations) and all(
        _stem(truth, i) == _stem(predicted, i) for i in truth.annotations
    ):
        return {image_id: image_id for image_id in truth.annotations}
    by_name = {_stem(predicted, image_id): image_id for image_id in predicted.annotations}
    missing = [_stem(truth, i) for i in truth.annotations if _stem(truth, i) not in by_name]
    if missing:
        raise ValueError(
            f"{predicted.path} has no annotation for {len(missing)} of the {len(truth.annotations)} pictures of {truth.path}, "
            f"for example {missing[:5]}; pictures are paired by the names of their PNGs"
        )
    return {image_id: by_name[_stem(truth, image_id)] for image_id in truth.annotations}


def _stem(truth: PanopticTruth, image_id: int) -> str:
    return Path(truth.annotations[image_id]["file_name"]).stem
