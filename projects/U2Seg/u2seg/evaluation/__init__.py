"""Scores: segment tables, matching, protocols, metrics.

Importing this package registers the evaluators and protocols that it holds; pictures are read only when an evaluator is used.
"""

from u2seg.evaluation import evaluator as _evaluator  # noqa: F401 - registers u2seg_panoptic
from u2seg.evaluation import luss as _luss  # noqa: F401 - registers luss
from u2seg.evaluation import protocols as _protocols  # noqa: F401 - registers the protocols
from u2seg.evaluation.files import tables_from_panoptic_files
from u2seg.evaluation.registry import EVALUATOR_REGISTRY, PROTOCOL_REGISTRY
from u2seg.evaluation.report import format_table
from u2seg.evaluation.scoring import ScoreSettings, evaluate_tables
from u2seg.evaluation.tables import load_tables, save_tables

__all__ = [
    "EVALUATOR_REGISTRY",
    "PROTOCOL_REGISTRY",
    "ScoreSettings",
    "evaluate_tables",
    "format_table",
    "load_tables",
    "save_tables",
    "tables_from_panoptic_files",
]
