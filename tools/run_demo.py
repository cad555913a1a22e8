#!/usr/bin/env python
"""The demo: renders scenes, makes labels without any label, trains on them, scores, and writes a page of pictures.

python tools/run_demo.py --output output/demo                # what `make demo` runs
python tools/run_demo.py --output output/demo --supervised   # its upper bound: the same model trained on ground truth
"""

import argparse
import logging
import subprocess
import sys
from pathlib import Path

from u2seg.chain import METRICS, ChainFolders, run_chain, train
from u2seg.chain_report import comparison_rows, write_chain_report
from u2seg.evaluation import format_table
from u2seg.stages import read_json

CONFIG = "quick_schedules/scenes.yaml"
SUPERVISED_CONFIG = "quick_schedules/scenes_supervised.yaml"
RENDER = Path(__file__).resolve().parent.parent / "datasets" / "prepare_scenes.py"
TRAIN_PICTURES, VAL_PICTURES = 200, 60
SEED = 2026  # of the scenes; the configuration was chosen on scenes of other seeds
SUMMARY = """Rendered scenes: six kinds of textured things over six kinds of textured stuff. The labels were made from the training
pictures by a hand-made descriptor, recursive normalised cuts, a dense CRF and k-means; a Panoptic-FPN with ResNet-18 was trained on
them from random weights. Ground truth exists for the test pictures alone and was read by the scorer alone."""


def render(scenes: Path, annotate_train: bool) -> None:
    """Renders the data set; the script leaves a finished one alone, and refuses one of other settings."""
    command = [sys.executable, str(RENDER), "--output", str(scenes)]
    command += ["--train", str(TRAIN_PICTURES), "--val", str(VAL_PICTURES), "--seed", str(SEED)]
    subprocess.run([*command, *(["--annotate-train"] if annotate_train else [])], check=True)


def report(output: Path, opts: list[str]) -> None:
    """Writes the page and prints the scores."""
    folders = ChainFolders(output)
    upper_bound = output / "supervised" / "model" / "inference" / "scenes_val" / METRICS
    page = write_chain_report(
        CONFIG,
        output / "scenes" / "train",
        output,
        title="U2Seg on rendered scenes",
        summary=SUMMARY,
        opts=opts,
        upper_bound=upper_bound,
    )
    print(format_table(read_json(folders.root / METRICS)))
    for name, scores in comparison_rows(folders, upper_bound).items():
        print(f"PQ {scores['panoptic']['hungarian']['PQ']:5.1f}  {name}")
    print(f"scores in {folders.root / METRICS}\npictures in {page}")


def main() -> None:
    """Parses the command line and runs the demo, or its upper bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--supervised", action="store_true", help="train on ground truth instead, as an upper bound")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="configuration: KEY VALUE ...")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scenes = args.output / "scenes"
    opts = [*args.opts, "DATASETS.BY_PATH.scenes_val.ROOT", str(scenes)]
    if args.supervised:
        # A copy of the same pictures with ground truth: the demo's own training pictures never get any.
        annotated = args.output / "supervised" / "scenes"
        render(annotated, annotate_train=True)
        for name in ("scenes_val", "scenes_train_truth"):
            opts += [f"DATASETS.BY_PATH.{name}.ROOT", str(annotated)]
        train(SUPERVISED_CONFIG, args.output / "supervised" / "model", opts)
    else:
        render(scenes, annotate_train=False)
        run_chain(CONFIG, scenes / "train", args.output, opts=opts)
        report(args.output, opts)


if __name__ == "__main__":
    main()
