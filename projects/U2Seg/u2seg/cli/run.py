"""From photos to pseudo-labels, a trained model, its predictions and a page of images, without any label.

    u2seg run PHOTOS                                     a directory, one photo, or a text file with a path in each line
    u2seg run PHOTOS --check                             shows the plan and stops
    u2seg run PHOTOS --minutes 60 --output output/mine
    u2seg run PHOTOS --ground-truth instances.json       scores as well; nothing else reads the file

Settings fit the photos and the machine. Your own --config-file and KEY VALUE pairs win. Killed and started again, the same command goes
on where it was. With other --minutes or training settings it trains a new model on the labels that are there, and keeps the old one.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from u2seg.cli.arguments import add_overrides
from u2seg.data.formats.label_directory import panoptic_directory
from u2seg.engine.end_to_end import METRICS, RunCounts, RunDirectories, count_run, run_photos
from u2seg.engine.end_to_end_report import PROTOCOL, write_run_report
from u2seg.engine.photo_run.run_budget import MAX_PREDICTED
from u2seg.engine.photo_run.run_config import PHOTOS_CONFIG
from u2seg.engine.photo_run.run_photos import default_output
from u2seg.engine.photo_run.run_plan import DEFAULT_MINUTES, RunPlan, make_plan
from u2seg.engine.photo_run.run_screen import format_plan
from u2seg.evaluation import format_table
from u2seg.utils.files import read_json
from u2seg.utils.progress import format_seconds
from u2seg.utils.quiet_screen import quiet_screen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument(
        "photos", help="directory tree of JPEG, PNG or WebP photos, one photo, or a text file that lists some"
    )
    parser.add_argument(
        "--config-file", metavar="FILE", help=f"YAML file: a path, or a name below configs/ (default {PHOTOS_CONFIG})"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="directory for everything (default output/NAME)")
    parser.add_argument(
        "--minutes",
        type=_positive,
        metavar="N",
        help=f"time for everything; training fills what labels and predictions leave (default {DEFAULT_MINUTES:g})",
    )
    parser.add_argument(
        "--ground-truth", default="", metavar="JSON", help="COCO panoptic or instances JSON of the photos, for scores"
    )
    parser.add_argument("--check", action="store_true", help="show what was found and what would be done, and stop")
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="GPUs to train on; 0: the CPU (default 1 where there is one)"
    )
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Shows the plan, runs it, and says what came out."""
    output = args.output or default_output(args.photos)
    options = {
        "config_file": args.config_file,
        "opts": args.opts,
        "minutes": args.minutes,
        "ground_truth": args.ground_truth,
        "num_gpus": args.num_gpus,
        "started": _process_start(),
        "before_measuring": _announce_measuring,
    }
    if args.check:
        with tempfile.TemporaryDirectory() as directory:
            plan = make_plan(args.photos, output, directory=directory, **options)
            print(format_plan(plan))
        _print_better_features(args, plan)
        print(f"\nNothing was done. The same command without --check runs this into {output}.")
        return 0
    plan = make_plan(args.photos, output, **options)
    print(f"{format_plan(plan)}\n", flush=True)
    plan = run_photos(plan)
    counts = count_run(plan)
    with quiet_screen(RunDirectories(output).log):
        page = write_run_report(
            str(plan.config.path),
            plan.photos.root,
            output,
            title=f"U2Seg on {args.photos}",
            summary="\n\n".join(_page_summary(plan, counts)),
        )
    _print_result(plan, counts, page)
    _print_better_features(args, plan)
    return 0


def _page_summary(plan: RunPlan, counts: RunCounts) -> list[str]:
    """Returns the paragraphs at the head of the page: features, counts, what is empty, how to read numbers and gaps."""
    is_scored = bool(plan.cfg.DATASETS.TEST)
    no_scores = "" if is_scored else " No ground truth was given, so nothing was scored."
    # Things come first, and scores replace the numbers of clusters by the names that were matched.
    last = counts.clusters + counts.stuff_clusters
    numbers = f"Classes 1 to {counts.clusters} are things, {counts.clusters + 1} to {last} are stuff, unless they have names. "
    return [
        f"{plan.features.description}.",
        f"{counts.images} photos. Labels: {_labels_count(counts)}. Predictions: {_predictions_count(plan, counts)}.{no_scores}",
        *(f"{warning[0].upper()}{warning[1:]}." for warning in _warnings(plan, counts)),
        f"{numbers}In a prediction, pixels are unlabeled where no confident thing and no large enough stuff segment covers them.",
    ]


def _labels_count(counts: RunCounts) -> str:
    return (
        f"{counts.masks} masks in {counts.clusters} clusters: {counts.things} are things, {counts.dropped} lie behind others and were "
        f"dropped; {counts.stuff} stuff segments; photos without a thing: {counts.without_things}"
    )


def _predictions_count(plan: RunPlan, counts: RunCounts) -> str:
    threshold = plan.cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH
    best = f", the highest {counts.best_score:.2f}" if counts.detections else ""
    return (
        f"{counts.predicted_things} things with a score of {threshold:g} or more in {counts.predicted_images} photos; photos without a "
        f"thing: {counts.predicted_without_things}; {counts.detections} detections with any score{best}"
    )


def _announce_measuring() -> None:
    print("The settings are valid. A few photos are labeled and trained on, to measure the time ...", flush=True)


def _process_start() -> float:
    """Returns when this process was started, by ``time.monotonic``; now where the system does not say."""
    status = Path("/proc/self/stat")
    if not status.is_file():
        return time.monotonic()
    # Fields are counted from behind the name of the program, which may hold blanks; ticks since the machine was started.
    ticks = int(status.read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age


def _print_better_features(args: argparse.Namespace, plan: RunPlan) -> None:
    """Prints how to get better features than the run can have from here."""
    if not plan.features.better_url:
        return
    words = ["u2seg", "run", args.photos]
    for option in ("config_file", "minutes", "ground_truth", "num_gpus"):
        value = getattr(args, option)
        if value:
            words += [f"--{option.replace('_', '-')}", f"{value:g}" if option == "minutes" else str(value)]
    weights = Path(plan.features.better_url).name
    words += ["--output", f"{plan.output}_dino", "FEATURES.VIT.WEIGHTS", weights, *args.opts]
    print(
        "\nAccording to the literature, masks follow objects better with DINO's features (not measured here; labels take longer, as "
        f"--check says). Download its weights ({plan.features.better_megabytes} MB) from"
    )
    print(f"  {plan.features.better_url}\nand give the file:\n  {shlex.join(words)}")


def _print_result(plan: RunPlan, counts: RunCounts, page: Path) -> None:
    """Prints counts, what is empty, where things are, and what to type next."""
    output = plan.output
    unread = (
        f", {counts.unreadable} could not be read ({output / 'labels' / 'failures.json'})" if counts.unreadable else ""
    )
    print(f"\nphotos       {counts.images} labeled{unread}")
    print(f"labels       {_labels_count(counts)}")
    print(f"predictions  {_predictions_count(plan, counts)}")
    for warning in _warnings(plan, counts):
        print(f"warning: {warning}", file=sys.stderr)
    if (output / METRICS).is_file():
        print(format_table(read_json(output / METRICS)))
        print(
            "Scored on the photos that the model was trained on (their ground truth was not used); the label maps are fitted on the same "
            f"photos. {PROTOCOL} is the strictest protocol; docs/evaluation.md describes all. Ground truth without "
            "panoptic maps gives scores of boxes and masks alone."
        )
    print(f"page         {page}")
    print(f"labels       {panoptic_directory(output / 'labels')}")
    print(f"model        {output / 'model' / 'model_final.pth'}")
    print(f"predictions  {output / 'predictions' / 'visualizations'}")
    print(f"time         {format_seconds(time.monotonic() - plan.started)}")
    if plan.set_aside:
        print(f"earlier      {plan.set_aside}, what was trained with other settings")
    print("\nPredict on other photos:")
    print(
        f"  u2seg predict OTHER_PHOTOS --config-file {plan.config.path} --output {output / 'other'} "
        f"MODEL.WEIGHTS {output / 'model' / 'model_final.pth'}"
    )


def _warnings(plan: RunPlan, counts: RunCounts) -> list[str]:
    found = []
    if not counts.masks:
        found.append(
            f"no things found in {counts.images} photos: the labels hold stuff alone. Try other features (FEATURES.VIT.WEIGHTS), or a "
            "smaller MASKS.MIN_AREA"
        )
    elif counts.without_things > counts.images / 2:
        found.append(f"no things found in {counts.without_things} of {counts.images} photos")
    if counts.masks and counts.predicted_without_things > counts.predicted_images / 2:
        found.append(
            f"the model shows no thing in {counts.predicted_without_things} of {counts.predicted_images} photos: "
            f"{plan.cfg.SOLVER.MAX_ITER} iterations were too few, so its scores are low (coco_results.json beside the predictions "
            f"has them). Give it --minutes {max(60, 4 * (plan.minutes or 0)):g}: it trains anew on the same labels"
        )
    if counts.images > MAX_PREDICTED:
        found.append(
            f"predictions were made for {MAX_PREDICTED} photos of {counts.images}; `u2seg predict` makes the others"
        )
    return found


def _positive(text: str) -> float:
    message = f"expected a number of minutes above 0, such as 120, got {text!r}"
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(message) from error
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(message)
    return value
