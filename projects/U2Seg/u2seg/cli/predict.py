"""Runs a trained model on images.

    u2seg predict photo.jpg photos/ --config-file my.yaml --output predictions MODEL.WEIGHTS output/model_final.pth

Writes for each image: the drawn prediction, a panoptic PNG with one JSON for all, and COCO results JSON. Images that cannot be read are
named, the others are done all the same, and the exit status is then 1.
"""

import argparse
from pathlib import Path

from u2seg.cli.arguments import add_config_arguments
from u2seg.config import setup_cfg
from u2seg.predictor import Predictor, predict_files, things_by_image
from u2seg.utils.files import read_json
from u2seg.utils.progress import print_above_progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("images", nargs="+", help="image files, or directories of them")
    add_config_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="directory for the results")
    parser.add_argument(
        "--label-map", metavar="JSON", help="a saved label map: clusters are shown with its category names"
    )


def run(args: argparse.Namespace) -> int:
    """Predicts; returns 1 where an image could not be read."""
    predictor = Predictor(setup_cfg(args.config_file, args.opts), args.label_map)
    failures = predict_files(
        predictor,
        args.images,
        args.output,
        on_failure=lambda failure: print_above_progress(f"error: {failure.file_name}: {failure.reason}"),
    )
    things = things_by_image(read_json(Path(args.output) / "panoptic.json"))
    print(f"{sum(things)} things in {len(things)} images; images without things: {things.count(0)}")
    print(f"predictions in {args.output}" + (f"; {len(failures)} images could not be read" if failures else ""))
    return 1 if failures else 0
