"""LUSS's scores, registered as evaluator "luss" by importing this package."""

from u2seg.luss.evaluation.luss_evaluator import LussEvaluator

__all__ = ["LussEvaluator"]
