"""The two registries of this package, apart from the evaluators and protocols, so that anything may import them."""

from u2seg.utils.registry import NamedRegistry

EVALUATOR_REGISTRY = NamedRegistry("EVALUATOR")
EVALUATOR_REGISTRY.__doc__ = """
Evaluators by the ``evaluator_type`` of a dataset's metadata. Called as ``(dataset_name, cfg, output_dir)``; what they return is
a :class:`detectron2.evaluation.DatasetEvaluator`.
"""

PROTOCOL_REGISTRY = NamedRegistry("PROTOCOL")
PROTOCOL_REGISTRY.__doc__ = """
Protocols by name, which is what stands in the row of the table: classes derived from
:class:`u2seg.evaluation.matching.protocols.Protocol`, called without arguments.
"""
