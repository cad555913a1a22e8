"""LUSS: large-scale unsupervised semantic segmentation with PASS, whole: configuration, data, models, scores, recipe.

Importing this package registers its configuration keys, dataset formats, mappers, models, evaluator and hook.
"""

from u2seg.luss import config as _config  # noqa: F401 - registers the configuration keys
from u2seg.luss import data as _data  # noqa: F401 - registers dataset formats and mappers
from u2seg.luss import engine as _engine  # noqa: F401 - registers the hook
from u2seg.luss import evaluation as _evaluation  # noqa: F401 - registers the evaluator
from u2seg.luss import modeling as _modeling  # noqa: F401 - registers the models
from u2seg.luss.convert import convert_pass, export_backbone
from u2seg.luss.distance_matching import build_bank
from u2seg.luss.recipe import STAGES, Run, run_pass

__all__ = ["STAGES", "Run", "build_bank", "convert_pass", "export_backbone", "run_pass"]
