"""Optimizers by name, learning-rate multipliers, gradient clipping."""

from u2seg.solver.build import OPTIMIZER_REGISTRY, build_optimizer

__all__ = ["OPTIMIZER_REGISTRY", "build_optimizer"]
