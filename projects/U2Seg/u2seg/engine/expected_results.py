"""``TEST.EXPECTED_RESULTS``: scores that a run must reach. What no run could score or reach is refused before it begins."""

from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from u2seg.data.datasets.registration import EVALUATOR_TYPE
from u2seg.evaluation.evaluator import PARTIAL, TABLES
from u2seg.evaluation.matching.protocols import build_protocol
from u2seg.evaluation.scoring import CLASS_AGNOSTIC, TASKS, ScoreSettings, saved_label_map
from u2seg.evaluation.tables.segment_tables import TableSpace


def refuse_impossible_results(cfg: CfgNode) -> None:
    """Refuses rows of ``TEST.EXPECTED_RESULTS`` that name what no evaluation of this configuration gives.

    Args:
        cfg: complete.

    Raises:
        ValueError: nothing is scored, or a row names a task or protocol that is not scored; the message says which there are.
    """
    tests = list(cfg.DATASETS.TEST)
    for row in cfg.TEST.EXPECTED_RESULTS:
        task = row[0]
        if not tests:
            raise ValueError(
                f"TEST.EXPECTED_RESULTS expects a score of {task!r}, but DATASETS.TEST is empty: nothing is scored"
            )
        name = tests[0] if len(tests) == 1 else next((name for name in tests if task.startswith(f"{name}/")), None)
        if name is None:
            raise ValueError(
                f"TEST.EXPECTED_RESULTS names the task {task!r}; with several test sets it must begin with one of "
                f"{', '.join(f'{name}/' for name in tests)}"
            )
        own = task if len(tests) == 1 else task.removeprefix(f"{name}/")
        scored = _tasks(cfg, name)
        if scored and own.removeprefix(PARTIAL) not in scored:
            raise ValueError(
                f"TEST.EXPECTED_RESULTS names the task {own!r}, which is not scored on {name}; there are {', '.join(scored)}"
            )


def refuse_impossible_scoring(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Refuses what else would only be found out after the training and the inference.

    Args:
        cfg: complete. Without test sets nothing is refused.
        eval_only: whether a model is scored that is there already; else one is trained.

    Raises:
        UnknownNameError: ``TEST.PROTOCOLS`` names an unknown protocol.
        FileNotFoundError: the label map, or the tables on which to fit one, are not there and will not be.
        ValueError: both are given, the label map belongs to other clusters or categories than those that are scored, or the tables will
            not be those of the scored model.
    """
    if not cfg.DATASETS.TEST:
        return
    for protocol in cfg.TEST.PROTOCOLS:
        build_protocol(protocol)
    settings = ScoreSettings.of_config(cfg)
    if settings.fit_on:
        _require_tables(cfg, Path(settings.fit_on), eval_only)
    if settings.label_map:
        if not Path(settings.label_map).is_file():
            raise FileNotFoundError(f"TEST.LABEL_MAP.FILE names {settings.label_map}, which is not there")
        counts = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - 1
        for name in cfg.DATASETS.TEST:
            categories = MetadataCatalog.get(name).get("label_space")
            if categories is not None:
                saved_label_map(settings, TableSpace(name, *counts, categories, ()))


def _require_tables(cfg: CfgNode, fit_on: Path, eval_only: bool) -> None:
    """Refuses a ``TEST.LABEL_MAP.FIT_ON`` whose tables will not be there, of the scored model, when they are needed."""
    inference = Path(cfg.OUTPUT_DIR).resolve() / "inference"
    tables = fit_on.resolve() if fit_on.suffix == ".npz" else inference / fit_on / TABLES
    made_here = [inference / name / TABLES for name in cfg.DATASETS.TEST]
    named = f"TEST.LABEL_MAP.FIT_ON is {str(fit_on)!r}"
    if tables in made_here:
        if tables != made_here[0]:
            raise ValueError(f"{named}, which must come first in DATASETS.TEST; it is {tuple(cfg.DATASETS.TEST)}")
        if not cfg.TEST.SAVE_TABLES:
            raise ValueError(f"{named}, whose tables TEST.SAVE_TABLES False does not keep; set it to True")
    elif not tables.is_file():
        raise FileNotFoundError(
            f"{named}, but {tables} is not there, and DATASETS.TEST does not name the dataset; it names {', '.join(cfg.DATASETS.TEST)}"
        )
    elif not eval_only:
        raise ValueError(
            f"{named}, whose tables are of another model than the one to be trained; put it first in DATASETS.TEST"
        )


def _tasks(cfg: CfgNode, name: str) -> list[str]:
    """Returns the tasks that may be scored on a dataset; empty where its evaluator is not ours and may score anything."""
    if MetadataCatalog.get(name).get("evaluator_type") != EVALUATOR_TYPE:
        return []
    rows = [ScoreSettings.of_config(cfg).row_name(protocol) for protocol in cfg.TEST.PROTOCOLS]
    return [*TASKS, *(f"{task}/{row}" for task in TASKS for row in (*rows, CLASS_AGNOSTIC))]


def verify_expected_results(cfg: CfgNode, results: Mapping[str, Mapping]) -> None:
    """Compares scores with ``TEST.EXPECTED_RESULTS``, rows like ``["panoptic_seg", "PQ", 40.0, 5.0]``: task, metric, value, tolerance.

    Where there are several test sets, a task is named with its dataset: ``["my_val/panoptic_seg", "PQ", 40.0, 5.0]``.

    Args:
        cfg: the configuration.
        results: of :meth:`u2seg.engine.U2SegTrainer.test`; empty in processes other than the main one.

    Raises:
        ValueError: there is no such score, for example since a part of the dataset was scored alone; the message says which there are.
        SystemExit: a score differs by more than its tolerance; Detectron2 logs which.
    """
    if not cfg.TEST.EXPECTED_RESULTS or not comm.is_main_process():
        return
    by_task: dict[str, Mapping] = {}
    for name, scores in results.items():
        if name in cfg.DATASETS.TEST:
            by_task.update({f"{name}/{task}": row for task, row in scores.items()})
        else:
            by_task[name] = scores
    for task, metric, *_ in cfg.TEST.EXPECTED_RESULTS:
        _require_score(by_task, task, metric)
    verify_results(cfg, by_task)


def _require_score(by_task: Mapping[str, Mapping], task: str, metric: str) -> None:
    head, _, tail = task.rpartition("/")
    partial = next((name for name in (f"{PARTIAL}{task}", f"{head}/{PARTIAL}{tail}") if name in by_task), None)
    if task not in by_task and partial is not None:
        raise ValueError(
            f"TEST.EXPECTED_RESULTS names {task}, but only a part of the images was scored: the score is called {partial}. Score the "
            "whole dataset (without SUBSET), or name the partial score"
        )
    if task not in by_task:
        raise ValueError(
            f"TEST.EXPECTED_RESULTS names {task}, which was not scored; there are {', '.join(by_task) or 'none'}"
        )
    if metric not in by_task[task]:
        raise ValueError(
            f"TEST.EXPECTED_RESULTS names the metric {metric!r} of {task}, which was not scored; there are {', '.join(by_task[task])}"
        )
