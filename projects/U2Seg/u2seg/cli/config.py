"""Writes a short configuration file to start from, with comments, to standard output.

u2seg config new --images photos > my.yaml
u2seg run photos --config-file my.yaml
"""

import argparse
import sys
from pathlib import Path

from u2seg.engine.photo_run.new_config import new_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="new")
    new = commands.add_parser("new", help="write a file to start from")
    new.add_argument("--images", required=True, metavar="DIR", help="directory of the photos that the file is for")
    new.add_argument("--output", type=Path, metavar="DIR", help="where runs with it go (default output/NAME)")


def run(args: argparse.Namespace) -> int:
    """Writes the file."""
    sys.stdout.write(new_config(args.images, args.output))
    return 0
