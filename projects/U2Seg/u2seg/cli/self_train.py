"""Improves a model by its own confident predictions.

    u2seg self-train --config-file my.yaml --rounds 2 --output output/self MODEL.WEIGHTS output/model_final.pth

The configuration's training set gives images and first labels, SOLVER the schedule of one round, SELF_TRAINING the thresholds. Killed
and started again it goes on where it was.
"""

import argparse

from u2seg.cli.arguments import add_config_arguments, add_launch_arguments, launch_processes
from u2seg.engine import run_self_training
from u2seg.utils.command_line import positive_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    add_config_arguments(parser)
    parser.add_argument(
        "--rounds", type=positive_integer, default=1, metavar="N", help="rounds of labeling and training (default 1)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory for labels and models of the rounds")
    add_launch_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Starts one process for each GPU."""
    launch_processes(run_self_training, args)
    return 0
