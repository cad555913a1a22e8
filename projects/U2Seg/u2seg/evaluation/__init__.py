"""Scores: segment tables, matching, protocols, metrics.

Importing this package registers the evaluators and protocols that it holds; pictures are read only when an evaluator is used.
"""

from u2seg.evaluation.registry import EVALUATOR_REGISTRY, PROTOCOL_REGISTRY

__all__ = ["EVALUATOR_REGISTRY", "PROTOCOL_REGISTRY"]
