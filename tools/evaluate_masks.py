#!/usr/bin/env python
"""Prints the class-agnostic AP and AR of masks: a mask folder of ours, or any COCO JSON, against a COCO ground truth.

Example:
    tools/evaluate_masks.py --predictions output/labels/masks --ground-truth annotations/instances_val2017.json
"""

import argparse

from u2seg.masks.quality import evaluate_masks, format_quality
from u2seg.stages import write_json


def main() -> None:
    """Parses the command line, evaluates, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--predictions", required=True, help="mask folder, COCO results JSON or COCO data-set JSON")
    parser.add_argument("--ground-truth", required=True, help="COCO instances JSON")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    args = parser.parse_args()
    results = evaluate_masks(args.predictions, args.ground_truth)
    print(format_quality(results))
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    main()
