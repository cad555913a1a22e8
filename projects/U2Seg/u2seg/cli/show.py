"""Shows labels on their images: pseudo-labels (after the mask stage alone, masks), predictions, or a ground truth in COCO's format.

    u2seg show labels --images photos --output page
    u2seg show pseudo-label=labels prediction=predictions gt=panoptic_val.json --images photos --output page

Writes DIR/index.html, a page with counts, examples of the most common clusters, and images beside their labels. It opens in any
browser, without a network. Several sets of labels stand side by side, under the names given before the "=".
"""

import argparse
import sys
from pathlib import Path

from u2seg.visualization.label_page import PanopticLabels, show_labels
from u2seg.visualization.mask_labels import load_labels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument(
        "labels",
        nargs="+",
        metavar="[NAME=]LABELS",
        help="directory that holds panoptic.json and panoptic/, or masks/ alone; or a COCO panoptic JSON",
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="directory of the images")
    parser.add_argument("--output", required=True, metavar="DIR", help="directory for the page")
    parser.add_argument("--limit", type=int, default=48, help="images to show, evenly spaced (default 48)")
    parser.add_argument(
        "--clusters", type=int, default=40, help="clusters of things, and of stuff, to show examples of (default 40)"
    )
    parser.add_argument("--title", default="Labels", help="heading of the page (default Labels)")


def run(args: argparse.Namespace) -> int:
    """Writes the page; returns 1 where an image could not be read."""
    label_sets: dict[str, PanopticLabels] = {}
    for given in args.labels:
        name, path = _name_and_path(given)
        if name in label_sets:
            raise ValueError(
                f"two sets of labels are called {name!r}, the second in {path}; give each a name: NAME={path}"
            )
        label_sets[name] = load_labels(path, args.images)
    page, failures = show_labels(label_sets, args.output, title=args.title, limit=args.limit, clusters=args.clusters)
    for failure in failures:
        print(f"error: {failure.file_name}: {failure.reason}", file=sys.stderr)
    print(f"page in {page}")
    return 1 if failures else 0


def _name_and_path(given: str) -> tuple[str, str]:
    name, equals, path = given.partition("=")
    # A path may have a "=" in it: lr=0.1/labels.
    return (name, path) if equals and not Path(given).exists() else (Path(given).name, given)
