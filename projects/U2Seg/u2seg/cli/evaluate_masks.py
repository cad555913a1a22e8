"""Prints class-agnostic AP and AR of masks: those of a label directory, or any COCO JSON, against a COCO ground truth.

u2seg evaluate-masks output/photos/labels --ground-truth annotations/instances_val2017.json
"""

import argparse

from u2seg.evaluation.metrics.mask_quality import evaluate_masks, format_quality
from u2seg.utils.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("masks", help="label directory, mask directory, COCO results JSON or COCO dataset JSON")
    parser.add_argument("--ground-truth", required=True, metavar="JSON", help="COCO instances JSON")
    parser.add_argument("--json", metavar="FILE", help="write the scores there as well")


def run(args: argparse.Namespace) -> int:
    """Prints the scores."""
    results = evaluate_masks(args.masks, args.ground_truth)
    print(format_quality(results))
    if args.json:
        write_json(args.json, results)
    return 0
