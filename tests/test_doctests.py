"""Runs the examples in docstrings of public pure functions."""

import doctest
from importlib import import_module

import pytest

MODULES = (
    "u2seg.evaluation.matching.assignment",
    "u2seg.evaluation.metrics.semantic_scores",
    "u2seg.structures.label_space",
    "u2seg.utils.image_io",
    "u2seg.utils.kmeans",
    "u2seg.utils.manifest",
    "u2seg.visualization.colors",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0, f"{name} has no examples any more; take it from the list"
    assert result.failed == 0
