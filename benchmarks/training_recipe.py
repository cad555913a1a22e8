#!/usr/bin/env python
"""What each part of the training recipe is worth on the rendered scenes, over several seeds; and what few labels gain.

    python benchmarks/training_recipe.py --output DIR [--seeds 0 1 2] [--iterations 160] [--limit N] [--table recipe|few]
        [--only VARIANT ...]

Renders the scenes, makes pseudo-labels with quick_schedules/scenes.yaml, then trains and scores each variant with each seed. Runs
that are done are kept in DIR, so that it may be killed; ``--limit N`` ends it after N runs, ``--only`` makes some variants alone.

recipe: plain; + DropLoss, with the labels as targets or with those that CutLER's code guesses (drop_loss_guessed); + copy-paste, ours
or as CutLER pastes (copy_paste_cutler); then, from the copy-paste model, as many iterations again on the old labels (continued) or on
those of one self-training round (self_training_early); and once more, from the continued model (continued_twice, self_training, and
self_training_confirmed, whose labels are merged by the rule confirmed_labels_first).
few: fine-tuning on 1 % and 10 % of the true labels, from the unsupervised copy-paste model and from random weights, scored without
matching (protocol identity).

Promise (recipe): self-training gains over as much training on the old labels. Exits with status 1 when it is missed. The last line
holds the figures.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from u2seg.config import setup_cfg
from u2seg.data.datasets.label_splits import make_label_splits
from u2seg.engine import U2SegTrainer
from u2seg.engine.self_training import self_train
from u2seg.modeling import complete_config
from u2seg.pseudo_labels.pipeline import make_pseudo_labels
from u2seg.utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "quick_schedules/scenes.yaml"
DROP = ("MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True)
PASTE = (*DROP, "INPUT.COPY_PASTE.ENABLED", True)
GUESSED = (*DROP, "MODEL.ROI_HEADS.DROP_LOSS.TARGETS", "guessed")
CUTLER_PASTE = (*PASTE, "INPUT.COPY_PASTE.NAME", "CutLERCopyPaste", "INPUT.COPY_PASTE.PARTNER", "reversed_batch")
# Variants that start from random weights, and their settings.
FROM_SCRATCH = {
    "plain": (),
    "drop_loss": DROP,
    "drop_loss_guessed": GUESSED,
    "copy_paste": PASTE,
    "copy_paste_cutler": CUTLER_PASTE,
}
RECIPE = (
    *FROM_SCRATCH,
    "continued",
    "self_training_early",
    "continued_twice",
    "self_training",
    "self_training_confirmed",
)
# From which model a variant goes on; the early round's model has not yet outgrown its labels.
STARTS = {
    "continued": "copy_paste",
    "self_training_early": "copy_paste",
    "continued_twice": "continued",
    "self_training": "continued",
    "self_training_confirmed": "continued",
}
# Score from which a prediction becomes a label. Chosen by the labels' AP on the training scenes: 0.7 hurts least early, 0.5 finds
# most objects later.
THRESHOLDS = {"self_training_early": 0.7, "self_training": 0.5, "self_training_confirmed": 0.5}
MERGES = {"self_training_confirmed": "confirmed_labels_first"}
FEW = ("few_1_random", "few_1_unsupervised", "few_10_random", "few_10_unsupervised")
METRICS = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ things": ("panoptic_seg", "PQ_th"),
    "mask AP": ("segm", "AP"),
    "mask AP50": ("segm", "AP50"),
}


def prepare(output: Path) -> None:
    """Renders scenes and makes labels, where they are not there."""
    scenes = output / "scenes"
    if not (scenes / "annotations" / "panoptic_val.json").is_file():
        script = ROOT / "datasets" / "prepare_scenes.py"
        subprocess.run([sys.executable, str(script), "--output", str(scenes), "--annotate-train"], check=True)
    make_pseudo_labels(setup_cfg(CONFIG), scenes / "train", output / "labels")
    make_label_splits(scenes / "annotations" / "panoptic_train.json", output / "splits", (1, 10))


def make_cfg(output: Path, seed: int, iterations: int, directory: Path, *opts) -> CfgNode:
    cfg = setup_cfg(CONFIG)
    sets = cfg.DATASETS.BY_PATH
    sets.scenes_train.ROOT, sets.scenes_train.IMAGES = str(output / "labels"), str(output / "scenes" / "train")
    sets.scenes_val.ROOT = str(output / "scenes")
    cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.OUTPUT_DIR = seed, iterations, str(directory)
    cfg.SOLVER.CHECKPOINT_PERIOD = iterations
    cfg.merge_from_list(list(opts))
    return cfg


def train(cfg: CfgNode) -> dict:
    trainer = U2SegTrainer(complete_config(cfg))
    trainer.resume_or_load(resume=True)
    return trainer.train()


def run(name: str, seed: int, args) -> dict:
    """Returns the scores of one variant with one seed."""
    output, directory = args.output, args.output / name / str(seed)
    start = ("MODEL.WEIGHTS", str(args.output / STARTS.get(name, "copy_paste") / str(seed) / "model_final.pth"))
    make = lambda *opts: make_cfg(output, seed, args.iterations, directory, *opts)  # noqa: E731
    if name in FROM_SCRATCH:
        return train(make(*FROM_SCRATCH[name]))
    if name in ("continued", "continued_twice"):
        return train(make(*PASTE, *start))
    if name in THRESHOLDS:
        merge = MERGES.get(name, "predictions_first")
        rule = ("SELF_TRAINING.SCORE_THRESH", (THRESHOLDS[name],), "SELF_TRAINING.MERGE", merge)
        cfg = complete_config(make(*PASTE, *start, *rule))
        cfg.DATASETS.TEST = ()
        last = self_train(cfg, directory, 1)
        cfg = complete_config(make("MODEL.WEIGHTS", str(last)))
        model = U2SegTrainer.build_model(cfg)
        model.load_state_dict(torch.load(last, weights_only=True)["model"])
        return U2SegTrainer.test(cfg, model)
    return run_few(name, seed, args, directory, start)


def run_few(name: str, seed: int, args, directory: Path, start: tuple) -> dict:
    _, percent, weights = name.split("_")
    cfg = make_cfg(args.output, seed, args.iterations, directory, "TEST.PROTOCOLS", ("identity",))
    cfg.DATASETS.BY_PATH["scenes_few"] = CfgNode(
        {
            "FORMAT": "coco_panoptic",
            "ROOT": str(args.output / "scenes"),
            "SPLIT": "train",
            "SUBSET": str(args.output / "splits" / f"{percent}perc.json"),
        }
    )
    cfg.DATASETS.TRAIN = ("scenes_few",)
    if weights == "unsupervised":
        cfg.merge_from_list(list(start))
        cfg.SOLVER.LR_MULTIPLIERS = (("backbone", 0.25),)
    return train(cfg)


def settings_of(name: str, args) -> dict:
    """Returns what a kept result depends on beside its name and seed."""
    return {
        "iterations": args.iterations,
        "start": STARTS.get(name),
        "threshold": THRESHOLDS.get(name),
        "merge": MERGES.get(name),
    }


def check_kept(path: Path, name: str, args) -> None:
    """Ends the run where a result was kept that other settings gave."""
    kept = read_json(path).get("settings")
    if kept != settings_of(name, args):
        sys.exit(f"{path} was made with {kept}, not with {settings_of(name, args)}: choose another --output")


def figures_of(scores: dict, protocol: str) -> dict[str, float]:
    # The first protocol's rows are named by the task alone, the others' by task/protocol.
    row = lambda task: scores.get(f"{task}/{protocol}", scores[task])  # noqa: E731
    return {name: row(task)[metric] for name, (task, metric) in METRICS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=160)
    parser.add_argument("--limit", type=int, default=10**9)
    parser.add_argument("--table", choices=["recipe", "few"], default="recipe")
    parser.add_argument("--only", nargs="+", choices=[*RECIPE, *FEW], metavar="VARIANT")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    prepare(args.output)
    names = [name for name in (RECIPE if args.table == "recipe" else FEW) if not args.only or name in args.only]
    protocol = "hungarian" if args.table == "recipe" else "identity"
    wanted = [(name, seed) for seed in args.seeds for name in names]
    if args.table == "few":  # they start from these
        wanted = [("copy_paste", seed) for seed in args.seeds] + wanted
    path = lambda name, seed: args.output / "scores" / f"{name}-{seed}.json"  # noqa: E731
    for name, seed in wanted:
        if path(name, seed).is_file():
            check_kept(path(name, seed), name, args)
    for name, seed in [one for one in wanted if not path(*one).is_file()][: args.limit]:
        write_json(path(name, seed), {"settings": settings_of(name, args), **run(name, seed, args)})
    rows, figures = [], {}
    for name in names:
        runs = [figures_of(read_json(path(name, s)), protocol) for s in args.seeds if path(name, s).is_file()]
        if runs:
            values = {metric: [one[metric] for one in runs] for metric in METRICS}
            figures[name] = {metric: [round(v, 2) for v in column] for metric, column in values.items()}
            cells = [f"{np.mean(column):.1f} ± {np.std(column):.1f}" for column in values.values()]
            rows.append([name, len(runs), *cells])
    print(tabulate(rows, headers=["variant", "seeds", *METRICS], tablefmt="github"))
    gained = True
    if {"continued_twice", "self_training"} <= set(figures):
        gained = np.mean(figures["self_training"]["PQ"]) > np.mean(figures["continued_twice"]["PQ"])
        print(f"{'kept  ' if gained else 'MISSED'} self-training gains PQ over its control")
    print(json.dumps(figures))
    return 0 if gained else 1


if __name__ == "__main__":
    sys.exit(main())
