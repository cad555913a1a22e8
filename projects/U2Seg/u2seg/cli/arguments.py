"""Arguments that several subcommands share."""

import argparse

from detectron2.engine import default_argument_parser


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config-file`` and takes KEY VALUE pairs."""
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="YAML file: a path, or a name below configs/ of this project",
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Lets a subcommand take KEY VALUE pairs anywhere on its command line, as ``args.opts``."""
    parser.set_defaults(opts=[])
    parser.epilog = "KEY VALUE pairs anywhere after the command override the configuration, e.g. SOLVER.MAX_ITER 1000."


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds Detectron2's own arguments for training on several GPUs and machines."""
    parser.add_argument("--num-gpus", type=int, default=0, help="GPUs of this machine; 0 trains on the CPU (default 0)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all (default 1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0 (default 0)")
    parser.add_argument(
        "--dist-url",
        default=default_argument_parser().get_default("dist_url"),
        metavar="URL",
        help="where the processes meet, as torch.distributed takes it (default: a free port of this machine)",
    )
