"""Draws training samples as the trainer gets them: augmented, pasted, with instances, boxes and semantic targets.

u2seg show-samples --config-file my.yaml --output samples.png
"""

import argparse

from u2seg.cli.arguments import add_config_arguments
from u2seg.config import setup_cfg
from u2seg.modeling import complete_config
from u2seg.visualization.training_samples import show_training_samples


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    add_config_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help=".png or .jpg to write")
    parser.add_argument("--count", type=int, default=8, help="samples (default 8)")


def run(args: argparse.Namespace) -> int:
    """Draws the samples and says where they are."""
    cfg = complete_config(setup_cfg(args.config_file, args.opts))
    print(show_training_samples(cfg, args.output, args.count))
    return 0
