"""Scores as people read them: text, CSV and LaTeX."""

import csv
import io
from typing import Any

from tabulate import tabulate

RECORD = "record"  # beside the tasks in metrics.json: what was scored, by what
# Of the record, what every row of the CSV begins with.
CSV_RECORD = ("dataset", "images", "dataset_images", "fitted_on", "checkpoint")
TITLES = {
    "panoptic_seg": "Panoptic",
    "bbox": "Boxes",
    "segm": "Masks",
    "sem_seg": "Semantic",
    "luss": "LUSS",
}
# What the text table shows, in this order; the files hold everything.
COLUMNS = {
    "panoptic_seg": ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st", "unmatched_segments"),
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"),
    "segm": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"),
    "sem_seg": ("mIoU", "fwIoU", "mACC", "pACC", "boundary_IoU"),
    "luss": ("mIoU", "b-mIoU", "Acc", "F-beta", "S", "MS", "ML", "L", "BS", "BMS", "BML", "BL"),
}


def format_table(results: dict, intervals: dict | None = None) -> str:
    """Returns the scores as text: one block a task, one row a protocol, numbers 0..100; "-" where nothing defines a number.

    Args:
        results: task -> protocol -> metric -> number, or task -> metric -> number; :data:`RECORD` is left out.
        intervals: task -> protocol -> metric -> [low, high], shown behind the numbers; None or empty shows none.
    """
    blocks = []
    for task, rows in results.items():
        if task == RECORD:
            continue
        rows = rows if all(isinstance(row, dict) for row in rows.values()) else {task: rows}
        if rows:
            columns = _columns(task, rows)
            bounds = (intervals or {}).get(task, {})
            body = [
                [protocol, *(_cell(scores.get(c), bounds.get(protocol, {}).get(c)) for c in columns)]
                for protocol, scores in rows.items()
            ]
            table = tabulate(
                body, headers=["protocol", *columns], tablefmt="github", stralign="right", disable_numparse=True
            )
            blocks.append(f"{TITLES.get(task, task)}\n{table}")
    return "\n\n".join(blocks)


def to_csv(results: dict, record: dict) -> str:
    """Returns every score as CSV: the columns :data:`CSV_RECORD`, then task, protocol, metric, value.

    Args:
        results: task -> protocol -> metric -> number.
        record: what was scored; what it lacks is an empty cell.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*CSV_RECORD, "task", "protocol", "metric", "value"])
    given = [record.get(name, "") for name in CSV_RECORD]
    for task, rows in results.items():
        for protocol, scores in rows.items():
            writer.writerows([*given, task, protocol, metric, repr(float(value))] for metric, value in scores.items())
    return buffer.getvalue()


def to_latex(results: dict) -> str:
    """Returns the text table's columns as LaTeX ``tabular`` environments (booktabs), one a task."""
    blocks = []
    for task, rows in results.items():
        if rows:
            columns = _columns(task, rows)
            lines = [
                f"% {TITLES.get(task, task)}",
                rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
                r"\toprule",
                " & ".join(["protocol", *map(_escaped, columns)]) + r" \\",
                r"\midrule",
            ]
            lines += [
                " & ".join([_escaped(protocol), *(_cell(scores.get(column)) for column in columns)]) + r" \\"
                for protocol, scores in rows.items()
            ]
            blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]))
    return "\n\n".join(blocks) + "\n"


def _columns(task: str, rows: dict) -> list[str]:
    present = {metric for scores in rows.values() for metric in scores}
    wanted = COLUMNS.get(task)
    return [column for column in wanted if column in present] if wanted else sorted(present)


def _cell(value: Any, bounds: list[float] | None = None) -> str:
    if not isinstance(value, (int, float)):
        return "-"
    return f"{value:.2f}" + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")


def _escaped(text: str) -> str:
    return text.replace("_", r"\_")
