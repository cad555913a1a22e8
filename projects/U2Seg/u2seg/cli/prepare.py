"""Makes the annotation files of a dataset from its published ones; renders the demo's scenes; chooses few-label splits.

    u2seg prepare voc segments --voc datasets/VOC2012
    u2seg prepare scenes --output scenes
    u2seg prepare label_splits --annotations instances_train2017.json --output splits

datasets/README.md shows where each dataset's files belong.
"""

import argparse
from pathlib import Path

from u2seg.data.benchmarks import PREPARE
from u2seg.data.datasets import label_splits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line: one subcommand for each dataset."""
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name, module in {**PREPARE, "label_splits": label_splits}.items():
        subparser = commands.add_parser(
            name,
            # argparse takes a percent sign for a format.
            help=(module.__doc__ or name).splitlines()[0].replace("%", "%%"),
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(prepare=module.run)


def run(args: argparse.Namespace) -> int:
    """Runs the conversion and prints the files that it wrote."""
    settings = {
        key: value for key, value in vars(args).items() if key not in ("command", "dataset", "debug", "prepare")
    }
    written = args.prepare(**settings)
    for path in [written] if isinstance(written, Path) else written:
        print(path)
    return 0
