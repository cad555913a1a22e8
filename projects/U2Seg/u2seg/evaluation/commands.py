"""What ``tools/score.py`` does: scores from tables or files, as a text table and, if asked for, as files."""

from pathlib import Path

from u2seg.evaluation.evaluator import TABLES, write_evaluation
from u2seg.evaluation.files import tables_from_panoptic_files
from u2seg.evaluation.label_map import load_label_map
from u2seg.evaluation.report import format_table
from u2seg.evaluation.scoring import evaluate_tables
from u2seg.evaluation.tables import SegmentTables, load_tables, save_tables
from u2seg.version import __version__


def score_saved_tables(tables: str | Path, **options) -> str:
    """Returns the scores of a file of tables as text; ``options`` as in :func:`score_and_write`."""
    return score_and_write(load_tables(tables), **options)


def score_panoptic_files(
    truth_json: str | Path,
    truth_folder: str | Path,
    predicted_json: str | Path,
    predicted_folder: str | Path,
    output: str | Path = "",
    **options,
) -> str:
    """Returns the scores of panoptic files as text, and keeps their tables where there is an output folder.

    Args:
        truth_json: COCO panoptic JSON of the ground truth.
        truth_folder: its PNGs.
        predicted_json: COCO panoptic JSON of pseudo-labels or predictions.
        predicted_folder: its PNGs.
        output: folder for the files; empty writes none.
        **options: as in :func:`score_and_write`.
    """
    tables = tables_from_panoptic_files(truth_json, truth_folder, predicted_json, predicted_folder)
    if output:
        save_tables(Path(output) / TABLES, tables)
    return score_and_write(tables, output=output, **options)


def score_and_write(
    tables: SegmentTables,
    *,
    protocols: list[str],
    fit_on: str | Path = "",
    label_map: str | Path = "",
    output: str | Path = "",
) -> str:
    """Returns the scores as text, naming the split on which label maps were fitted.

    Args:
        tables: to score.
        protocols: names in PROTOCOL_REGISTRY.
        fit_on: file of tables on which label maps are fitted; empty for the scored ones.
        label_map: file of a saved label map to use instead.
        output: folder for ``metrics.json`` and the rest; empty writes none.
    """
    fitted = load_tables(fit_on) if fit_on else None
    given = load_label_map(label_map, tables.space) if label_map else None
    evaluation = evaluate_tables(tables, protocols, fitted, given)
    source = f"saved map {label_map}" if label_map else (fitted or tables).space.dataset
    if output:
        record = {
            "dataset": tables.space.dataset,
            "fitted_on": source,
            "pictures": len(tables.images),
            "thing_clusters": tables.space.num_things,
            "stuff_clusters": tables.space.num_stuff,
            "u2seg": __version__,
        }
        write_evaluation(output, evaluation, tables.space, record)
    heading = f"{tables.space.dataset}: {len(tables.images)} pictures, label maps fitted on {source}"
    return f"{heading}\n\n{format_table(evaluation.results)}"
