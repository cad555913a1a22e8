#!/usr/bin/env python
"""Scores saved segment tables, or panoptic files, without a model.

Tables that an evaluation kept (TEST.SAVE_TABLES), under other protocols or fitted on another split:
    tools/score.py tables output/inference/my_val/tables.npz --protocols hungarian cups --fit-on output/inference/my_train/tables.npz

Pseudo-labels or predictions in COCO's panoptic format against a ground truth in the same format:
    tools/score.py files --truth-json GT.json --truth-folder GT_PNGS --predicted-json P.json --predicted-folder P_PNGS
"""

import argparse

from u2seg.evaluation.commands import score_panoptic_files, score_saved_tables


def parse_arguments() -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tables = commands.add_parser("tables", help="score tables that an evaluation saved")
    tables.add_argument("tables", help="a tables.npz")
    files = commands.add_parser("files", help="score panoptic PNG + JSON against COCO panoptic ground truth")
    for role in ("truth", "predicted"):
        files.add_argument(f"--{role}-json", required=True, help="COCO panoptic JSON")
        files.add_argument(f"--{role}-folder", required=True, help="folder of its PNGs")
    for command in (tables, files):
        command.add_argument("--protocols", nargs="+", metavar="NAME", help="rows of the table; default TEST.PROTOCOLS")
        command.add_argument("--fit-on", metavar="TABLES", help="tables.npz on which label maps are fitted")
        command.add_argument("--label-map", metavar="JSON", help="a saved label map to use instead of fitting one")
        command.add_argument(
            "--all-stuff", action="store_true", help="COCO's 53 stuff categories, not 15 supercategories"
        )
        command.add_argument(
            "--nms-across-clusters", type=float, metavar="IOU", help="drop duplicates within a category"
        )
        command.add_argument(
            "--bootstrap", type=int, metavar="N", help="95 %% intervals from N resamples of the pictures"
        )
        command.add_argument(
            "--output", default="", metavar="DIR", help="write metrics.json, CSV, LaTeX and label maps here"
        )
    return parser.parse_args()


def main() -> None:
    """Runs the command and prints the table."""
    arguments = vars(parse_arguments())
    arguments["stuff_supercategories"] = not arguments.pop("all_stuff")
    score = {"tables": score_saved_tables, "files": score_panoptic_files}[arguments.pop("command")]
    print(score(**arguments))


if __name__ == "__main__":
    main()
