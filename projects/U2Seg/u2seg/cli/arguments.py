"""Arguments that several subcommands share."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, launch

from u2seg.config import add_u2seg_config

# A key of a section, such as SOLVER.MAX_ITER or DATASETS.BY_PATH.mine.ROOT.
_SECTION_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)*\.[A-Z][A-Z0-9_]*")


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


def add_num_gpus(parser: argparse.ArgumentParser) -> None:
    """Adds ``--num-gpus``; whether one process uses a GPU is up to ``MODEL.DEVICE``, as in Detectron2."""
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes on this machine, one per GPU; without a GPU the CPU is used (default 1)",
    )


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds Detectron2's own arguments for training on several GPUs and machines."""
    add_num_gpus(parser)
    parser.add_argument("--num-machines", type=int, default=1, help="machines in all (default 1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0 (default 0)")
    parser.add_argument(
        "--dist-url",
        default=default_argument_parser().get_default("dist_url"),
        metavar="URL",
        help="where the processes meet, as torch.distributed takes it (default: a free port of this machine)",
    )


def launch_processes(function: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Calls ``function(args)`` in one process for each GPU, by Detectron2's launcher.

    Args:
        function: what each process runs.
        args: the parsed command line, with the arguments of :func:`add_launch_arguments`.
    """
    launch(
        function,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the KEY VALUE pairs that are known by their key out of a command line, so that none is taken for a file.

    Args:
        words: the command line.

    Returns:
        The pairs, flat, and the other words, both in their order. A key without a section (``SEED``), a key of no section that
        exists, a key without a value and a word that names a file stay among the other words.
    """
    cfg = get_cfg()
    add_u2seg_config(cfg)
    sections = {name for name, value in cfg.items() if isinstance(value, CfgNode)}
    pairs: list[str] = []
    others: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        is_key = _SECTION_KEY.fullmatch(word) and word.partition(".")[0] in sections
        if waiting and is_key and not Path(word).exists():
            pairs += [word, waiting.pop(0)]
        else:
            others.append(word)
    return pairs, others
