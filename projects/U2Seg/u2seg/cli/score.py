"""Scores saved segment tables, or panoptic files, without a model.

Tables that an evaluation kept (TEST.SAVE_TABLES), under other protocols or fitted on another split:

    u2seg score tables output/inference/my_val/tables.npz --protocols hungarian,cups --fit-on output/inference/my_train/tables.npz

Pseudo-labels or predictions in COCO's panoptic format against a ground truth in the same format:

    u2seg score files --gt-json GT.json --gt-root GT_PNGS --predicted-json P.json --predicted-root P_PNGS

The semantic stage's maps alone, made on the images of the ground truth (protocol "stego" unless others are asked for):

    u2seg score semantics labels/semantics --gt-json GT.json --gt-root GT_PNGS

A linear probe on the codes of a trained head of STEGO or CAUSE. It is trained on ground truth, so this is not an unsupervised score:

    u2seg score linear-probe labels/semantics/model_final.pth --config-file my.yaml \
        --train-images TRAIN --train-json TRAIN.json --train-root TRAIN_PNGS --images VAL --gt-json VAL.json --gt-root VAL_PNGS
"""

import argparse

from u2seg.cli.arguments import add_config_arguments
from u2seg.config import setup_cfg
from u2seg.evaluation import score_panoptic_files, score_saved_tables, score_semantic_maps
from u2seg.evaluation.linear_probe import LabeledImages, score_linear_probe
from u2seg.utils.command_line import comma_separated, positive_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="source", required=True, metavar="tables|files|semantics|linear-probe")
    tables = commands.add_parser("tables", help="score tables that an evaluation saved")
    tables.add_argument("tables", help="a tables.npz")
    files = commands.add_parser("files", help="score panoptic PNG + JSON against COCO panoptic ground truth")
    semantics = commands.add_parser(
        "semantics", help="score the semantic stage's maps against COCO panoptic ground truth"
    )
    semantics.add_argument("semantics", help="directory of the semantic stage")
    probe = commands.add_parser(
        "linear-probe", help="score a linear classifier, trained on ground truth, of a head's codes"
    )
    probe.add_argument("weights", help="model_final.pth of the semantic stage")
    add_config_arguments(probe)
    probe.add_argument("--train-images", required=True, metavar="DIR", help="images on which the probe is trained")
    probe.add_argument("--images", required=True, metavar="DIR", help="images on which it is scored")
    probe.add_argument(
        "--iterations", type=positive_integer, default=1000, metavar="N", help="of its training (default 1000)"
    )
    for command, role, what in (
        (probe, "train", "training images' ground truth"),
        (probe, "gt", "ground truth"),
        (files, "gt", "ground truth"),
        (files, "predicted", "labels or predictions"),
        (semantics, "gt", "ground truth"),
    ):
        command.add_argument(f"--{role}-json", required=True, metavar="JSON", help=f"COCO panoptic JSON of the {what}")
        command.add_argument(f"--{role}-root", required=True, metavar="DIR", help="directory of its PNGs")
    for command in (tables, files, semantics):
        command.add_argument(
            "--protocols", type=comma_separated(), metavar="A,B,...", help="rows of the table (default TEST.PROTOCOLS)"
        )
        source = command.add_mutually_exclusive_group()
        source.add_argument("--fit-on", metavar="TABLES", help="tables.npz on which label maps are fitted")
        source.add_argument("--label-map", metavar="JSON", help="a saved label map to use instead of fitting one")
        command.add_argument(
            "--all-stuff", action="store_true", help="COCO's 53 stuff categories, not 15 supercategories"
        )
        command.add_argument(
            "--nms-across-clusters", type=float, metavar="IOU", help="drop duplicates within a category (default: none)"
        )
        command.add_argument(
            "--bootstrap", type=int, metavar="N", help="95 %% intervals from N resamples of the images (default: none)"
        )
        command.add_argument(
            "--output", default="", metavar="DIR", help="write metrics.json, CSV, LaTeX and label maps here"
        )


def run(args: argparse.Namespace) -> int:
    """Prints the table of scores."""
    if args.source == "linear-probe":
        train = LabeledImages(args.train_images, args.train_json, args.train_root)
        scored = LabeledImages(args.images, args.gt_json, args.gt_root)
        cfg = setup_cfg(args.config_file, args.opts)
        scores = score_linear_probe(cfg, args.weights, train, scored, iterations=args.iterations)
        print(f"{args.gt_json}: {len(scored)} images, linear probe trained on the ground truth of {args.train_json}")
        print("  ".join(f"{name} {value:.1f}" for name, value in scores.items()))
        return 0
    options = {
        "protocols": tuple(args.protocols) if args.protocols else None,
        "fit_on": args.fit_on,
        "label_map": args.label_map,
        "stuff_supercategories": not args.all_stuff,
        "nms_across_clusters": args.nms_across_clusters,
        "bootstrap": args.bootstrap,
        "output": args.output,
    }
    if args.source == "tables":
        print(score_saved_tables(args.tables, **options))
    elif args.source == "semantics":
        print(score_semantic_maps(args.gt_json, args.gt_root, args.semantics, **options))
    else:
        print(score_panoptic_files(args.gt_json, args.gt_root, args.predicted_json, args.predicted_root, **options))
    return 0
