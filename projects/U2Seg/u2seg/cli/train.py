"""Trains or evaluates a model, as Detectron2's tools/train_net.py does.

    u2seg train --config-file COCO-PanopticSegmentation/u2seg_R50_800.yaml --num-gpus 8
    u2seg train --config-file my.yaml --eval-only MODEL.WEIGHTS output/model_final.pth

FILE is a path, or the name of a shipped configuration. Without a GPU it runs on the CPU. With --resume, a run that was killed goes
on from its last checkpoint. The full configuration is written to OUTPUT_DIR/config.yaml and log.txt, and not to the screen.
"""

import argparse

from u2seg.cli.arguments import add_config_arguments, add_launch_arguments, launch_processes
from u2seg.engine import run_training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line: that of Detectron2's own script."""
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR's last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, train nothing")
    parser.add_argument(
        "--log-to",
        action="append",
        default=[],
        choices=("wandb", "mlflow", "tensorboard"),
        help="where losses and scores go too; TensorBoard's file is in OUTPUT_DIR in any case",
    )
    add_launch_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Starts one process for each GPU."""
    if args.log_to:
        args.opts = [*args.opts, "LOG_TO", repr(tuple(args.log_to))]
    launch_processes(run_training, args)
    return 0
