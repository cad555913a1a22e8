"""Renders scenes, makes labels without any label, trains on them, scores, and writes a page of images; minutes on a CPU.

u2seg demo --output output/demo
u2seg demo --output output/demo --supervised     the upper bound: the same model trained on ground truth
"""

import argparse
from pathlib import Path

from u2seg.cli.arguments import add_overrides
from u2seg.data.benchmarks.scenes import prepare_scenes
from u2seg.engine.end_to_end import METRICS, RunDirectories, run_end_to_end, train
from u2seg.engine.end_to_end_report import comparison_rows, write_run_report
from u2seg.evaluation import format_table
from u2seg.utils.files import read_json

CONFIG = "quick_schedules/scenes.yaml"
SUPERVISED_CONFIG = "quick_schedules/scenes_supervised.yaml"
NUM_TRAIN_IMAGES, NUM_VAL_IMAGES = 200, 60
SEED = 2026  # of the scenes; the configuration was chosen on scenes of other seeds
SUMMARY = """Rendered scenes: six kinds of textured things over six kinds of textured stuff. The labels were made from the training
images by a hand-made descriptor, recursive normalized cuts, a dense CRF and k-means; a Panoptic-FPN with ResNet-18 was trained on
them from random weights. Ground truth exists for the test images alone and was read by the scorer alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/demo"),
        metavar="DIR",
        help="where everything goes (default output/demo)",
    )
    parser.add_argument("--supervised", action="store_true", help="train on ground truth instead, as an upper bound")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the demo, or its upper bound."""
    scenes = args.output / "scenes"
    opts = [*args.opts, "DATASETS.BY_PATH.scenes_val.ROOT", str(scenes)]
    if args.supervised:
        # A copy of the same images with ground truth: the demo's own training images never get any.
        supervised = args.output / "supervised"
        annotated = supervised / "scenes"
        prepare_scenes(annotated, NUM_TRAIN_IMAGES, NUM_VAL_IMAGES, SEED, annotate_train=True)
        for name in ("scenes_val", "scenes_train_gt"):
            opts += [f"DATASETS.BY_PATH.{name}.ROOT", str(annotated)]
        train(SUPERVISED_CONFIG, supervised / "model", opts, 0, supervised / "log.txt")
        scores = _upper_bound(args.output)
        print(format_table(read_json(scores)))
        print(f"scores in {scores}\nlog in {supervised / 'log.txt'}")
    else:
        prepare_scenes(scenes, NUM_TRAIN_IMAGES, NUM_VAL_IMAGES, SEED, annotate_train=False)
        run_end_to_end(CONFIG, scenes / "train", args.output, opts=opts)
        _report(args.output, opts)
    return 0


def _upper_bound(output: Path) -> Path:
    """Returns where the scores of the model trained on ground truth are, or would be."""
    return output / "supervised" / "model" / "inference" / "scenes_val" / METRICS


def _report(output: Path, opts: list[str]) -> None:
    """Writes the page and prints the scores."""
    directories = RunDirectories(output)
    upper_bound = _upper_bound(output)
    page = write_run_report(
        CONFIG,
        output / "scenes" / "train",
        output,
        title="U2Seg on rendered scenes",
        summary=SUMMARY,
        opts=opts,
        upper_bound=upper_bound,
    )
    print(format_table(read_json(directories.root / METRICS)))
    for name, scores in comparison_rows(directories, upper_bound).items():
        print(f"PQ {scores['panoptic_seg']['hungarian']['PQ']:5.1f}  {name}")
    print(f"scores in {directories.root / METRICS}\npage in {page}")
