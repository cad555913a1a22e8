"""Writes trained models as they are handed to others: half-precision .safetensors, settings, a model card.

    u2seg release output/photos/backbone output/photos/model --output output/release

Each training gets a directory of its name below --output, with model.safetensors, config.yaml and README.md. Of pretraining, the
backbone alone is written.
"""

import argparse
from pathlib import Path

from u2seg.engine.release import write_release


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of a training")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory for the results")
    parser.add_argument(
        "--license", default="other", metavar="ID", help="license of the weights, as the Hugging Face Hub spells it"
    )


def run(args: argparse.Namespace) -> int:
    """Writes each model and says how large it is."""
    names = [run.resolve().name for run in args.runs]
    if len(set(names)) != len(names):
        raise ValueError(f"trainings must have different names, since each gets a directory; got {', '.join(names)}")
    for run, name in zip(args.runs, names):
        written = write_release(run, args.output / name, license_id=args.license)
        print(f"{written.directory}: {written.num_bytes / 1e6:.1f} MB, SHA-256 {written.sha256}")
    return 0
