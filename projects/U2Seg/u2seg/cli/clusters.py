"""Names the clusters of finished labels by hand; clusters of one name become one. No mask is made again.

    u2seg clusters list output/photos/labels                      number, size and name of each
    u2seg clusters rename output/photos/labels 3=cat 8=cat 21=sky
    u2seg clusters rename output/photos/labels --file names.txt   the same, one NUMBER=NAME a line
    u2seg clusters rename output/photos/labels 8=                 takes a name back
    u2seg clusters reset output/photos/labels                     takes all names back

The numbers are those of the labels without names. The labels with names are written to LABELS/named, which training, pages and
predictions then use; LABELS/panoptic stays as it is.
"""

import argparse
from pathlib import Path

from u2seg.pseudo_labels.clusters.cluster_names import (
    count_clusters,
    forget_names,
    merged_clusters,
    parse_names,
    read_names,
    rename_clusters,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|rename|reset")
    for name, summary in (
        ("list", "show number, size and name of each cluster"),
        ("rename", "name clusters; those of one name become one"),
        ("reset", "take all names back"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        action.add_argument("labels", type=Path, metavar="LABELS", help="label directory, such as output/photos/labels")
        if name == "rename":
            action.add_argument("names", nargs="*", metavar="NUMBER=NAME", help="3=cat; 3= takes the name back")
            action.add_argument("--file", type=Path, help="text file with NUMBER=NAME in each line; # begins a comment")


def run(args: argparse.Namespace) -> int:
    """Lists, renames or resets."""
    if args.action == "list":
        _print_clusters(args.labels)
    elif args.action == "reset":
        found = forget_names(args.labels)
        print(f"the clusters in {args.labels} no longer have names" if found else f"{args.labels} has no names")
    else:
        _rename(args)
    return 0


def _rename(args: argparse.Namespace) -> None:
    names = parse_names(args.names, "command line")
    if args.file:
        lines = [line.partition("#")[0].strip() for line in args.file.read_text(encoding="utf-8").splitlines()]
        names = {**parse_names([line for line in lines if line], str(args.file)), **names}
    if not names:
        raise ValueError("nothing to name; give NUMBER=NAME, such as 3=cat, or --file names.txt")
    directory = rename_clusters(args.labels, names)
    count = len(read_names(args.labels))
    print(f"{count} cluster{'s have names' if count != 1 else ' has a name'}; labels in {directory}")
    for group in merged_clusters(args.labels):
        print(f"clusters {', '.join(map(str, group))} are one class: {read_names(args.labels)[group[0]]}")


def _print_clusters(labels: Path) -> None:
    rows = count_clusters(labels)
    print(f"{'number':>6}  {'kind':5}  {'segments':>8}  {'images':>6}  name")
    for row in rows:
        kind = "thing" if row.is_thing else "stuff"
        print(f"{row.cluster:6d}  {kind:5}  {row.segments:8d}  {row.images:6d}  {row.name or '-'}")
