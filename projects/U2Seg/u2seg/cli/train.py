"""Trains or evaluates a model, as Detectron2's tools/train_net.py does.

    u2seg train --config-file COCO-PanopticSegmentation/u2seg_R50_800.yaml --num-gpus 8
    u2seg train --config-file my.yaml --eval-only MODEL.WEIGHTS output/model_final.pth

FILE is a path, or the name of a shipped configuration. Without a GPU it runs on the CPU. With --resume, a run that was killed goes
on from its last checkpoint.
"""

import argparse

from u2seg.cli.arguments import add_config_arguments, add_launch_arguments, launch_processes
from u2seg.engine import run_training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line: that of Detectron2's own script."""
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR's last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, train nothing")
    add_launch_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Starts one process for each GPU."""
    launch_processes(run_training, args)
    return 0
