#!/usr/bin/env python
"""Shows panoptic labels on their pictures: pseudo-labels, predictions of tools/demo.py, or a ground truth in COCO's format.

    python tools/visualize.py --labels LABELS --images DIR --output DIR [--limit N] [--clusters N]
    python tools/visualize.py --labels pseudo-label=LABELS prediction=DEMO_OUTPUT truth=panoptic_val.json --images DIR --output DIR

Writes DIR/index.html, a page with counts, examples of the commonest clusters, and pictures beside their labels; it opens in any
browser, without a network. Several sets of labels stand side by side, under the names given before the "=".
"""

import argparse
import sys
from pathlib import Path

from u2seg.visualization.labels import load_panoptic_labels, show_labels


def main() -> int:
    """Parses the command line and writes the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--labels",
        nargs="+",
        required=True,
        metavar="[NAME=]PATH",
        help="folder that holds panoptic.json and panoptic/, or a COCO panoptic JSON",
    )
    parser.add_argument("--images", required=True, help="folder of the pictures")
    parser.add_argument("--output", required=True, help="folder for the page")
    parser.add_argument("--limit", type=int, default=48, help="pictures to show, evenly spaced (default 48)")
    parser.add_argument("--clusters", type=int, default=12, help="clusters to show examples of (default 12)")
    parser.add_argument("--title", default="Labels", help="heading of the page")
    args = parser.parse_args()
    try:
        label_sets = {}
        for given in args.labels:
            name, equals, path = given.partition("=")
            label_sets[name if equals else Path(given).name] = load_panoptic_labels(
                path if equals else given, args.images
            )
        page, failures = show_labels(
            label_sets, args.output, title=args.title, limit=args.limit, clusters=args.clusters
        )
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for failure in failures:
        print(f"error: {failure.file_name}: {failure.reason}", file=sys.stderr)
    print(f"page in {page}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
