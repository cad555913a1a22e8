"""Scores from tables or files, as a text table and, if asked for, as files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from u2seg.evaluation.evaluator import PROVENANCE, TABLES, write_evaluation
from u2seg.evaluation.score_table import format_table
from u2seg.evaluation.scoring import ScoreSettings, evaluate_tables
from u2seg.evaluation.tables.panoptic_files import tables_from_panoptic_files
from u2seg.evaluation.tables.segment_tables import SegmentTables, load_tables, save_tables
from u2seg.evaluation.tables.semantic_maps import tables_from_semantic_maps
from u2seg.utils.files import read_json
from u2seg.version import __version__


def score_saved_tables(tables: str | Path, **options: Any) -> str:
    """Returns the scores of a file of tables as text; ``options`` as in :func:`score_and_write`.

    Where the evaluation that saved them left its ``provenance.json`` beside them, the new record names the same checkpoint and
    says whether all images of the dataset were scored.
    """
    provenance = Path(tables).parent / PROVENANCE
    inherited = read_json(provenance) if provenance.is_file() else {}
    names = ("weights", "weights_sha256", "last_checkpoint", "last_checkpoint_sha256", "dataset_images", "complete")
    return score_and_write(
        load_tables(tables), provenance={name: inherited[name] for name in names if name in inherited}, **options
    )


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


def score_and_write(
    tables: SegmentTables, *, output: str | Path = "", provenance: dict | None = None, **settings: Any
) -> str:
    """Returns the scores as text, naming the split on which label maps were fitted.

    Args:
        tables: to score.
        output: directory for ``metrics.json`` and the rest; empty writes none.
        provenance: more values for the record, such as the checkpoint.
        **settings: fields of :class:`u2seg.evaluation.scoring.ScoreSettings`; those left out or None have the configuration's
            defaults.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    chosen = replace(ScoreSettings.of_config(), **given)
    evaluation = evaluate_tables(tables, chosen)
    source = f"{tables.space.dataset} (the scored images themselves)"
    if chosen.label_map:
        source = f"the saved map {chosen.label_map}"
    elif chosen.fit_on:
        source = f"{load_tables(chosen.fit_on).space.dataset} ({chosen.fit_on})"
    provenance = provenance or {}
    if output:
        record = {
            **provenance,
            "dataset": tables.space.dataset,
            "fitted_on": source,
            "images": len(tables.images),
            "thing_clusters": tables.space.num_things,
            "stuff_clusters": tables.space.num_stuff,
            "u2seg": __version__,
        }
        write_evaluation(output, evaluation, record)
    heading = f"{tables.space.dataset}: {len(tables.images)} images, label maps fitted on {source}"
    if not provenance.get("complete", True):
        heading += (
            f"\nOnly {len(tables.images)} of the {provenance['dataset_images']} images of {tables.space.dataset} were scored: this is "
            f"NOT the score of {tables.space.dataset}"
        )
    return f"{heading}\n\n{format_table(evaluation.results, evaluation.intervals)}"
