"""Scores: segment tables, matching, protocols, metrics.

Importing this package registers the evaluators and protocols that it holds; images are read only when an evaluator is used.
"""

from u2seg.evaluation import evaluator as _evaluator  # noqa: F401 - registers u2seg_panoptic
from u2seg.evaluation.metrics.mask_quality import evaluate_masks
from u2seg.evaluation.registries import EVALUATOR_REGISTRY, PROTOCOL_REGISTRY
from u2seg.evaluation.score_files import score_panoptic_files, score_saved_tables, score_semantic_maps
from u2seg.evaluation.score_table import format_table
from u2seg.evaluation.scoring import ScoreSettings, evaluate_tables
from u2seg.evaluation.tables import load_tables, save_tables, tables_from_panoptic_files

__all__ = [
    "EVALUATOR_REGISTRY",
    "PROTOCOL_REGISTRY",
    "ScoreSettings",
    "evaluate_masks",
    "evaluate_tables",
    "format_table",
    "load_tables",
    "save_tables",
    "score_panoptic_files",
    "score_saved_tables",
    "score_semantic_maps",
    "tables_from_panoptic_files",
]
