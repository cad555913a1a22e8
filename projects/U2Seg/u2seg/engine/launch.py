"""One training or evaluation run, as ``u2seg train`` starts it in every process."""

import argparse
import logging
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from u2seg.checkpoint.checkpointer import AtomicCheckpointer
from u2seg.checkpoint.loading import load_weights
from u2seg.config import find_config_file, setup_cfg
from u2seg.config.config import require_chosen_model
from u2seg.engine import training_record
from u2seg.engine.expected_results import refuse_impossible_results, refuse_impossible_scoring, verify_expected_results
from u2seg.engine.self_training import self_train
from u2seg.engine.trainer import U2SegTrainer, train_and_record
from u2seg.evaluation.evaluator import weights_of_file
from u2seg.modeling.build import complete_config
from u2seg.utils.write_errors import clear_write_errors

logger = logging.getLogger(__name__)


def run_training(args: argparse.Namespace) -> OrderedDict:
    """Returns the scores of one run; trains before unless ``args.eval_only``.

    The run's directory, ``OUTPUT_DIR``, then holds ``config.yaml`` (everything resolved), ``run.json`` (version, seed, weights),
    ``training.json`` (the settings that the weights depend on, and whether training and scoring are done), ``log.txt``, ``metrics.json``
    (one line of losses every 20 iterations), TensorBoard's file, checkpoints and ``inference/``.

    Args:
        args: of Detectron2's ``default_argument_parser``.

    Raises:
        TrainingMismatchError: ``args.resume`` finds a training that has no iteration left and was made with other settings.
    """
    cfg = _complete_config(args)
    if args.resume and not args.eval_only:
        training_record.refuse_untrained_changes(cfg)
    _set_up(cfg, args)
    if args.eval_only:
        return _evaluate(cfg, args.resume)
    return train_and_record(cfg, resume=args.resume)


def continue_training(config_file: str, opts: Sequence[str]) -> OrderedDict:
    """Trains and scores as :func:`run_training` does, for a recipe that is called again: what is done is not repeated.

    Args:
        config_file: a file, or the name of a shipped one.
        opts: configuration, KEY VALUE ...

    Returns:
        The scores; empty where the run was finished before.

    Raises:
        TrainingMismatchError: ``OUTPUT_DIR`` holds a model that was trained with other settings.
    """
    # Detectron2's default_setup logs the command line.
    args = argparse.Namespace(config_file=config_file, opts=list(opts), resume=True, eval_only=False)
    cfg = _complete_config(args)
    training_record.refuse_other_training(cfg)
    if training_record.is_finished(cfg):
        logger.info("%s is trained and scored already", cfg.OUTPUT_DIR)
        return OrderedDict()
    _set_up(cfg, args)
    return train_and_record(cfg, resume=True)


def _complete_config(args: argparse.Namespace) -> CfgNode:
    args.config_file = find_config_file(args.config_file)
    cfg = setup_cfg(args.config_file, args.opts)
    require_chosen_model(cfg, args.config_file)
    complete_config(cfg, eval_only=args.eval_only)
    refuse_impossible_results(cfg)
    refuse_impossible_scoring(cfg, eval_only=args.eval_only)
    cfg.freeze()
    return cfg


# How Detectron2's longest messages begin: hundreds of lines, for the file and not for the screen.
_FOR_THE_FILE = ("Environment info:", "Contents of args.config_file", "Running with full config", "Model:")


def _is_for_the_screen(record: logging.LogRecord) -> bool:
    """Returns whether a line is short; an error's traceback stays in the file too, since the command says it in one line."""
    return record.exc_info is None and not record.getMessage().startswith(_FOR_THE_FILE)


def _set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    with clear_write_errors(cfg.OUTPUT_DIR):
        # Called before Detectron2 does, which gets the same logger again.
        detectron2_logger = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank())
        for handler in detectron2_logger.handlers:
            if not isinstance(handler, logging.FileHandler) and getattr(handler, "stream", None) is sys.stdout:
                handler.addFilter(_is_for_the_screen)
        default_setup(cfg, args)
    # Detectron2 sets up its own loggers alone; ours says what training and scoring found.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="u2seg")
    logger.info(
        "Everything of this run goes to %s: config.yaml (all settings), log.txt, metrics.json, checkpoints and, below "
        "inference/, scores",
        cfg.OUTPUT_DIR,
    )


def _evaluate(cfg: CfgNode, resume: bool) -> OrderedDict:
    model = U2SegTrainer.build_model(cfg)
    checkpointer = AtomicCheckpointer(model, cfg.OUTPUT_DIR)
    path = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not path:
        raise ValueError("--eval-only needs a model: MODEL.WEIGHTS FILE, or --resume for OUTPUT_DIR's last checkpoint")
    load_weights(model, cfg, path)
    results = U2SegTrainer.test(cfg, model, weights=weights_of_file(path))
    verify_expected_results(cfg, results)
    return results


def run_self_training(args: argparse.Namespace) -> Path:
    """Returns the last checkpoint of ``args.rounds`` rounds of self-training, as ``u2seg self-train`` starts them."""
    args.config_file = find_config_file(args.config_file)
    cfg = setup_cfg(args.config_file, args.opts)
    cfg.OUTPUT_DIR = args.output
    complete_config(cfg)
    refuse_impossible_scoring(cfg)
    cfg.freeze()
    _set_up(cfg, args)
    return self_train(cfg, args.output, args.rounds)
