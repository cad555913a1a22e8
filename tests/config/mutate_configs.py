"""Puts a wrong value into a shipped configuration, starts the command that reads it as far as its first step, and counts how it ends.

    python tests/config/mutate_configs.py --count 220

Every trial runs in a process of its own with a limit of memory and time. It ends as one of

* refused: one line that names the key;
* unclear: one line that does not;
* traceback: an error that the command line does not turn into one line;
* hang: no end in time;
* accepted: the first step ran.
"""

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from PIL import Image

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "luss")]

from luss_toy import make_toy
from tiny_coco import write_coco_panoptic

SECONDS, MEMORY = 90, 12 << 30  # of one trial
NONSENSE = ("none", "nan", "text", "type")  # kinds that no key means, but for text in a key that takes any name
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "MASKS.NUM_WORKERS": 0,
    "MASKS.NUM_THREADS": 1,
    "MASKS.SHARD_SIZE": 2,
    "FEATURES.NAME": "HandmadeDescriptor",
    "FEATURES.IMAGE_SIZE": [48, 64],
    "FEATURES.HANDMADE.PATCH_SIZE": 4,
    "CLUSTERS.EMBEDDING": "mask_pooled",
    "SEMANTICS.PROVIDER": "PatchKMeans",
}
SMALL_LABELS = {"CLUSTERS.NUM_CLUSTERS": 1, "SEMANTICS.NUM_CLUSTERS": 2}
SMALL_LUSS = {
    "MODEL.SMALL_RESNET.WIDTH": 8,
    "MODEL.PASS.HIDDEN_DIM": 16,
    "LUSS.NUM_CLUSTERS": 2,
    "LUSS.RESIZE": 64,
    "LUSS.CENTER_CROP": 64,
}
# Which keys a trial may change, by the command that reads them.
SECTIONS = {
    "train": ("MODEL", "SOLVER", "INPUT", "DATALOADER", "DATASETS.TRAIN", "SEED", "TEST", "HOOKS"),
    "labels": ("FEATURES", "MASKS", "CLUSTERS", "SEMANTICS", "PANOPTIC_LABELS"),
    "self-train": ("SELF_TRAINING",),
    "luss": ("LUSS", "MODEL", "SOLVER", "INPUT", "SEED"),
    "luss clusters": ("LUSS",),
}
# Named in the report of a user: once accepted in silence.
ALWAYS = [
    ("labels", "quick_schedules/scenes.yaml", "MASKS.MIN_AREA", "huge", -1e30),
    ("labels", "quick_schedules/scenes.yaml", "CLUSTERS.NUM_RESTARTS", "negative", -1000),
    ("train", "quick_schedules/scenes.yaml", "INPUT.MASK_FORMAT", "text", "nonsense"),
    ("train", "quick_schedules/scenes.yaml", "SOLVER.STEPS", "type", ["a"]),
    ("train", "quick_schedules/scenes.yaml", "MODEL.CHANNELS_LAST", "none", None),
]


def mutations(value: object) -> Iterator[tuple[str, object]]:
    """Yields (kind, wrong value) for a value."""
    yield "none", None
    if isinstance(value, bool):
        yield from (("text", "nonsense"), ("type", 7), ("list", [value]))
    elif isinstance(value, (int, float)):
        huge = 10**12 if isinstance(value, int) else 1e30
        yield from (("nan", math.nan), ("negative", type(value)(-3)), ("zero", type(value)(0)), ("huge", huge))
        yield from (("text", "nonsense"), ("type", not value), ("list", [value]))
    elif value is None:
        yield from (("nan", math.nan), ("negative", -3.0), ("text", "nonsense"), ("list", [1]))
    elif isinstance(value, str):
        yield from (("text", "nonsense"), ("type", 7), ("list", [value]), ("empty", ""))
    else:
        first = value[0] if value else 1
        yield from (("text", "nonsense"), ("type", 5), ("list", [[first]]), ("empty", []))
        yield from (("list", [wrong, *value[1:]]) for _, wrong in itertools.islice(mutations(first), 6))


def flat(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields (key, value) for the leaves of a configuration."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(values: dict[str, object]) -> dict:
    """Returns a configuration file's content for dotted keys."""
    tree: dict = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


class Data:
    """Tiny datasets, one for each command."""

    def __init__(self, root: Path):
        """Writes them below ``root``."""
        self.root = root
        self.coco = write_coco_panoptic(root / "coco", count=4, size=(64, 64))
        self.toy = make_toy(root / "toy", train=8, semi=4, val=2)
        (root / "photos").mkdir()
        rng = np.random.default_rng(0)
        for number in range(3):
            pixels = np.full((48, 64, 3), (120, 160, 220))
            pixels[14:34, 8 + 4 * number : 26] = (230, 40, 40)
            noise = rng.integers(-9, 10, pixels.shape)
            Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(root / "photos" / f"{number}.png")

    def datasets(self, cfg: CfgNode, door: str) -> dict:
        """Returns the keys that name tiny datasets, as many as the configuration names."""
        if door.startswith("luss"):
            tiny: dict = self.toy["train_semi"]
        elif door == "self-train":
            tiny = {"FORMAT": "pseudo_labels", "ROOT": str(self.root / "labels"), "IMAGES": str(self.root / "photos")}
        else:
            tiny = {"FORMAT": "coco_panoptic", "ROOT": str(self.coco), "SPLIT": "train"}
        train = [f"tiny_{number}" for number in range(len(cfg.DATASETS.TRAIN))]
        test = [] if door.startswith("luss") else ["tiny_0"] * bool(cfg.DATASETS.TEST)
        by_path = {f"DATASETS.BY_PATH.{name}": tiny for name in train}
        return {**by_path, "DATASETS.TRAIN": train, "DATASETS.TEST": test}


def doors_of(config: str) -> list[str]:
    """Returns the commands that are tried with a shipped configuration."""
    if config.startswith("LUSS"):
        return ["luss", "luss clusters"] if "attention" in config else ["luss"]
    if config.startswith(("semantics", "masks")):
        return ["labels"]  # they describe no training
    doors = ["train", "labels"] if "COCO-FewLabels" not in config else ["train"]
    return [*doors, "self-train"] if "self_training" in config or "quick" in config else doors


def shipped() -> list[str]:
    """Returns the shipped configurations that describe a training."""
    root = Path(__file__).parents[2] / "configs"
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    # Scored benchmarks have no training and a base no dataset; the others need what an earlier stage made.
    return [
        n
        for n in names
        if "Base" not in n and "evaluation/" not in n and "distance" not in n and "semi" not in n and "_labels" not in n
    ]


def trials(count: int, seed: int) -> list[tuple[str, str, str, str, object]]:
    """Returns (command, configuration, key, kind, value), as many from each configuration."""
    from u2seg.config import setup_cfg

    rng = random.Random(seed)
    chosen = list(ALWAYS)
    configs = [(config, door) for config in shipped() for door in doors_of(config)]
    values = {config: dict(flat(setup_cfg(config))) for config in {c for c, _ in configs}}
    for config, door in itertools.islice(itertools.cycle(configs), count - len(ALWAYS)):
        keys = [key for key in values[config] if any(key == s or key.startswith(f"{s}.") for s in SECTIONS[door])]
        keys = [key for key in keys if not any(part in key for part in ("KEYPOINT", "RETINANET", "CASCADE", "ANGLES"))]
        key = rng.choice(keys)
        kind, value = rng.choice(list(mutations(values[config][key])))
        chosen.append((door, config, key, kind, value))
    return chosen


def write_config(path: Path, data: Data, door: str, config: str, changed: dict) -> Path:
    """Writes a file that makes a shipped configuration small, and one key wrong."""
    from u2seg.config import setup_cfg

    small = {**SMALL, **(SMALL_LUSS if config.startswith("LUSS") else SMALL_LABELS)}
    values = {**small, **data.datasets(setup_cfg(config), door), **changed}
    path.write_text(yaml.safe_dump({"_BASE_": config, **nested(values)}))
    return path


def start(door: str, path: Path, data: Data, output: Path) -> None:
    """Does what a command does up to the end of its first step."""
    from u2seg.config import setup_cfg
    from u2seg.engine import launch, self_training
    from u2seg.luss.clustering import cluster_images
    from u2seg.modeling import complete_config
    from u2seg.pseudo_labels import make_pseudo_labels

    if door == "labels":
        make_pseudo_labels(setup_cfg(path), data.root / "photos", output)
    elif door == "luss clusters":
        cluster_images(complete_config(setup_cfg(path, ["MODEL.WEIGHTS", str(data.root / "luss.pth")])), output)
    elif door == "self-train":
        cfg = complete_config(setup_cfg(path, ["MODEL.WEIGHTS", str(data.root / "model.pth")]))
        self_training.relabel(cfg, output, float(cfg.SELF_TRAINING.SCORE_THRESH[0]))
    else:
        opts = ["OUTPUT_DIR", str(output)]
        args = SimpleNamespace(config_file=str(path), opts=opts, eval_only=False, resume=False)
        step(launch._complete_config(args))


def step(cfg: CfgNode) -> None:
    """Builds a trainer and takes one step."""
    from detectron2.utils.events import EventStorage
    from u2seg.engine import U2SegTrainer

    trainer = U2SegTrainer(cfg)
    trainer.resume_or_load(resume=False)
    with EventStorage(0):
        trainer.model.train()
        trainer._trainer.run_step()
    for name in cfg.DATASETS.TEST:
        trainer.build_evaluator(cfg, name)


def prepare(data: Data) -> None:
    """Makes the labels and models that self-training and LUSS's clusters begin with."""
    from u2seg.config import setup_cfg
    from u2seg.engine import U2SegTrainer
    from u2seg.modeling import complete_config

    scenes = "quick_schedules/scenes.yaml"
    start("labels", write_config(data.root / "a.yaml", data, "labels", scenes, {}), data, data.root / "labels")
    for name, door, config in (
        ("model", "self-train", scenes),
        ("luss", "luss clusters", "LUSS/pass_tiny_attention.yaml"),
    ):
        cfg = complete_config(setup_cfg(write_config(data.root / "a.yaml", data, door, config, {})))
        torch.save({"model": U2SegTrainer.build_model(cfg).state_dict()}, data.root / f"{name}.pth")


def run_apart(trial: tuple, data: Data) -> tuple[str, str]:
    """Returns how a trial ended in a process of its own, and the message."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(trial, data, sender))
    process.start()
    sender.close()
    result = ("traceback", "the process was killed")
    with contextlib.suppress(EOFError):
        result = receiver.recv()
    process.join()
    return ("hang", f"no end in {SECONDS} s") if process.exitcode == -signal.SIGALRM else result


def _child(trial: tuple, data: Data, sender) -> None:
    from u2seg.cli.main import EXPECTED_ERRORS, _message

    door, config, key, _, value = trial
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    with tempfile.TemporaryDirectory() as directory:
        path = write_config(Path(directory) / "c.yaml", data, door, config, {key: value})
        try:
            start(door, path, data, Path(directory) / "out")
            result = ("accepted", "")
        except EXPECTED_ERRORS as error:
            message = _message(error)
            named = key in message or key.split(".", 1)[-1] in message
            result = ("refused" if named else "unclear", f"{type(error).__name__}: {message}")
        except BaseException as error:  # noqa: BLE001 whatever else comes is what is counted
            result = ("traceback", f"{type(error).__name__}: {error}")
    sender.send(result)
    sender.close()
    os._exit(0)


def main() -> None:
    """Runs the trials and prints what is not a clear refusal, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=220, help="mutations (default 220)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default 0)")
    parser.add_argument("--part", default="0/1", help="only trial number I, I + N, ... (default 0/1)")
    parser.add_argument("--verbose", action="store_true", help="print the clear refusals too")
    args = parser.parse_args()
    results = run(args.count, args.seed, *map(int, args.part.split("/")), verbose=args.verbose)
    print(json.dumps(Counter(outcome for _, outcome, _ in results)))


def run(count: int, seed: int, part: int = 0, parts: int = 1, verbose: bool = False) -> list[tuple[tuple, str, str]]:
    """Returns (trial, how it ended, message) for mutations of the shipped configurations, and prints those not refused."""
    torch.set_num_threads(1)  # a forked process must not wait for its parent's threads
    results = []
    with tempfile.TemporaryDirectory() as directory:
        data = Data(Path(directory))
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            prepare(data)
        for trial in trials(count, seed)[part::parts]:
            outcome, message = run_apart(trial, data)
            results.append((trial, outcome, message))
            if verbose or outcome != "refused":
                door, config, key, kind, value = trial
                print(f"{outcome:9} {door}, {config}: {key} {value!r} ({kind}): {message[:300]}", flush=True)
    return results


if __name__ == "__main__":
    main()
