#!/usr/bin/env python
"""Chooses the pictures of few-label training: 1, 2, 5, 10, 20, 30, 40 and 50 % of a data set.

    python datasets/make_label_splits.py --annotations ANNOTATIONS.json --output DIR [--percentages P ...] [--seed 42]

Each DIR/{P}perc.json is for SUBSET of a data set in DATASETS.BY_PATH; so is any COCO JSON, the published splits among them.
"""

import argparse

from u2seg.data.label_splits import PERCENTAGES, make_label_splits


def main() -> None:
    """Parses the command line and writes the splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", required=True, help="COCO JSON, panoptic or instances")
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument("--percentages", type=float, nargs="+", default=PERCENTAGES)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    for path in make_label_splits(args.annotations, args.output, tuple(args.percentages), args.seed):
        print(path)


if __name__ == "__main__":
    main()
