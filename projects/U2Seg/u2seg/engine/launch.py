"""One training or evaluation run, as ``u2seg train`` starts it in every process."""

import argparse
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from u2seg.checkpoint.checkpointer import AtomicCheckpointer
from u2seg.checkpoint.loading import load_weights
from u2seg.config import find_config_file, setup_cfg
from u2seg.engine.self_training import self_train
from u2seg.engine.trainer import U2SegTrainer, verify_expected_results
from u2seg.modeling.build import complete_config
from u2seg.utils.files import write_json
from u2seg.version import __version__


def run_training(args: argparse.Namespace) -> OrderedDict:
    """Returns the scores of one run; trains before unless ``args.eval_only``.

    The run's directory, ``OUTPUT_DIR``, then holds ``config.yaml`` (everything resolved), ``run.json`` (version, seed, weights),
    ``log.txt``, ``metrics.json`` (one line of losses every 20 iterations), TensorBoard's file, checkpoints and ``inference/``.

    Args:
        args: of Detectron2's ``default_argument_parser``.
    """
    args.config_file = find_config_file(args.config_file)
    cfg = setup_cfg(args.config_file, args.opts)
    complete_config(cfg, eval_only=args.eval_only)
    cfg.freeze()
    default_setup(cfg, args)
    # Detectron2 sets up its own loggers alone; ours says what training and scoring found.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="u2seg")
    if args.eval_only:
        return _evaluate(cfg, args.resume)
    trainer = U2SegTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if comm.is_main_process():
        write_json(
            Path(cfg.OUTPUT_DIR) / "run.json",
            {"u2seg": __version__, "torch": torch.__version__, "seed": trainer.seed, "weights": cfg.MODEL.WEIGHTS},
        )
    return trainer.train()


def _evaluate(cfg: CfgNode, resume: bool) -> OrderedDict:
    model = U2SegTrainer.build_model(cfg)
    checkpointer = AtomicCheckpointer(model, cfg.OUTPUT_DIR)
    path = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not path:
        raise ValueError("--eval-only needs a model: MODEL.WEIGHTS FILE, or --resume for OUTPUT_DIR's last checkpoint")
    load_weights(model, cfg, path)
    results = U2SegTrainer.test(cfg, model)
    verify_expected_results(cfg, results)
    return results


def run_self_training(args: argparse.Namespace) -> Path:
    """Returns the last checkpoint of ``args.rounds`` rounds of self-training, as ``u2seg self-train`` starts them."""
    cfg = setup_cfg(args.config_file, args.opts)
    cfg.OUTPUT_DIR = args.output
    complete_config(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    # Detectron2 sets up its own loggers alone; ours says what training and scoring found.
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="u2seg")
    return self_train(cfg, args.output, args.rounds)
