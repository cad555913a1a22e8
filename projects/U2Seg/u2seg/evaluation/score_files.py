"""Scores from tables or files, as a text table and, if asked for, as files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from u2seg.evaluation.evaluator import TABLES, tables_summary, write_evaluation
from u2seg.evaluation.metrics.average_precision import MAX_DETECTIONS
from u2seg.evaluation.score_table import format_table
from u2seg.evaluation.scoring import ScoreSettings, evaluate_tables
from u2seg.evaluation.tables.panoptic_files import tables_from_panoptic_files
from u2seg.evaluation.tables.segment_tables import SegmentTables, load_tables, save_tables
from u2seg.evaluation.tables.semantic_maps import tables_from_semantic_maps


def score_saved_tables(tables: str | Path, **options: Any) -> str:
    """Returns the scores of a file of tables as text; ``options`` as in :func:`score_and_write`.

    The new record says what the evaluation that saved them put into them: which weights were scored, and whether all images of the
    dataset were. AP takes as many detections of an image as it did there.
    """
    return score_and_write(load_tables(tables), **options)


def score_panoptic_files(
    gt_json: str | Path,
    gt_root: str | Path,
    predicted_json: str | Path,
    predicted_root: str | Path,
    output: str | Path = "",
    **options: Any,
) -> str:
    """Returns the scores of panoptic files as text, and keeps their tables where there is an output directory.

    Args:
        gt_json: COCO panoptic JSON of the ground truth.
        gt_root: its PNGs.
        predicted_json: COCO panoptic JSON of pseudo-labels or predictions.
        predicted_root: its PNGs.
        output: directory for the files; empty writes none.
        **options: as in :func:`score_and_write`.
    """
    tables = tables_from_panoptic_files(gt_json, gt_root, predicted_json, predicted_root)
    if output:
        save_tables(Path(output) / TABLES, tables)
    return score_and_write(tables, output=output, **options)


def score_semantic_maps(
    gt_json: str | Path, gt_root: str | Path, semantics: str | Path, output: str | Path = "", **options: Any
) -> str:
    """Returns the scores of a semantic stage's maps as text, and keeps their tables where there is an output directory.

    Args:
        gt_json: COCO panoptic JSON of the ground truth.
        gt_root: its PNGs.
        semantics: directory of the semantic stage, made on the images of the ground truth.
        output: directory for the files; empty writes none.
        **options: as in :func:`score_and_write`; the default protocol is "stego", which scores semantic maps alone.
    """
    tables = tables_from_semantic_maps(gt_json, gt_root, semantics)
    if output:
        save_tables(Path(output) / TABLES, tables)
    return score_and_write(tables, output=output, **{**options, "protocols": options.get("protocols") or ("stego",)})


def score_and_write(tables: SegmentTables, *, output: str | Path = "", **settings: Any) -> str:
    """Returns the scores as text, naming the split on which label maps were fitted.

    Args:
        tables: to score.
        output: directory for ``metrics.json`` and the rest; empty writes none.
        **settings: fields of :class:`u2seg.evaluation.scoring.ScoreSettings`; those left out or None are as the tables'
            record has them, else the configuration's defaults.
    """
    recorded = {"max_detections": tuple(tables.record.get("max_detections", MAX_DETECTIONS))}
    given = {key: value for key, value in settings.items() if value is not None}
    chosen = replace(ScoreSettings.of_config(), **{**recorded, **given})
    evaluation = evaluate_tables(tables, chosen)
    source = f"{tables.space.dataset} (the scored images themselves)"
    if chosen.label_map:
        source = f"the saved map {chosen.label_map}"
    elif chosen.fit_on:
        source = f"{load_tables(chosen.fit_on).space.dataset} ({chosen.fit_on})"
    if output:
        record = {**tables.record, **tables_summary(tables), "fitted_on": source}
        write_evaluation(output, evaluation, record, chosen.label_map)
    heading = f"{tables.space.dataset}: {len(tables.images)} images, label maps fitted on {source}"
    if not tables.record.get("complete", True):
        heading += (
            f"\nOnly {len(tables.images)} of the {tables.record.get('dataset_images', '?')} images of {tables.space.dataset} were scored: "
            f"this is NOT the score of {tables.space.dataset}"
        )
    return f"{heading}\n\n{format_table(evaluation.results, evaluation.intervals)}"
