#!/usr/bin/env python
"""Everything that only a GPU can show, in one command: GPU tests, benchmarks, a short training with mixed precision, NCCL.

    make gpu-check            or    python tools/gpu_check.py [--output output/gpu_check] [--minutes 25]

Needs no network. Each step is a process with a time limit of its own; its output goes to STEP.log, its result to STEP.json. Run again,
the command makes only the steps that have no result or failed. The table of all results, with the card's name, goes to summary.md,
whose text is meant for docs/results.md. Exits with status 1 if a step failed, 2 if there is no GPU.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
TRAIN_OPTS = ["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_ITER", "40"]


@dataclass(frozen=True)
class Step:
    """One line of the table.

    Attributes:
        name: of its files, without spaces.
        command: words after the interpreter.
        seconds: time limit.
    """

    name: str
    command: tuple[str, ...]
    seconds: int


@dataclass(frozen=True)
class Result:
    """What a step came to.

    Attributes:
        passed: whether its process ended with status 0 in time.
        seconds: it took.
        last_line: that it printed: the figures, where it is a benchmark.
        device: name of the card.
    """

    passed: bool
    seconds: float
    last_line: str
    device: str


def steps(output: Path, num_gpus: int) -> list[Step]:
    """Returns the steps for a machine with so many GPUs; their limits add up to 25 minutes.

    Args:
        output: directory of the results.
        num_gpus: at least 1.
    """
    found = [
        Step("tests", ("-m", "pytest", "-q", "-m", "gpu", "tests"), 300),
        Step("masks", ("benchmarks/maskcut.py", "--device", "cuda"), 240),
        Step("features", ("benchmarks/features.py",), 120),
        Step("kmeans", ("benchmarks/kmeans.py", "--seeds", "1"), 120),
        Step("training", ("benchmarks/training.py", "--device", "cuda", "--size", "full"), 360),
        Step("amp", (__file__, "--train", "1", "--output", str(output)), 180),
    ]
    if num_gpus > 1:
        found.append(Step("nccl", (__file__, "--train", str(num_gpus), "--output", str(output)), 180))
    return found


def run_step(step: Step, output: Path, device: str) -> Result:
    """Runs a step and returns its result, which is also written down.

    Args:
        step: to run.
        output: directory of the results.
        device: name of the card.
    """
    log, start = output / f"{step.name}.log", time.monotonic()
    with log.open("w") as file:
        try:
            status = subprocess.run(
                [sys.executable, *step.command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=step.seconds
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
            file.write(f"\nstopped after {step.seconds} s\n")
    lines = log.read_text(errors="replace").strip().splitlines()
    result = Result(status == 0, round(time.monotonic() - start, 1), lines[-1] if lines else "", device)
    (output / f"{step.name}.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    return result


def earlier_result(step: Step, output: Path, device: str) -> Result | None:
    """Returns the result of a step that passed before on the same card; None if it is to be run."""
    path = output / f"{step.name}.json"
    if not path.is_file():
        return None
    result = Result(**json.loads(path.read_text()))
    return result if result.passed and result.device == device else None


def summary(results: dict[str, Result | None], device: str) -> str:
    """Returns the table, Markdown.

    Args:
        results: by the step's name; None for one for which no time was left.
        device: name of the card.
    """
    lines = [f"GPU check on {device}, torch {torch.__version__}", ""]
    lines += ["| step | result | seconds | last line |", "| --- | --- | --- | --- |"]
    for name, result in results.items():
        if result is None:
            lines.append(f"| {name} | not run: out of time | | |")
        else:
            cell = result.last_line.replace("|", "\\|")
            lines.append(f"| {name} | {'passed' if result.passed else 'FAILED'} | {result.seconds} | `{cell}` |")
    return "\n".join(lines) + "\n"


def train_briefly(num_gpus: int, output: Path) -> None:
    """Labels a few rendered scenes and trains on them for 40 iterations with mixed precision.

    Args:
        num_gpus: to train on; several talk through NCCL.
        output: directory of the results.
    """
    from u2seg.cli.demo import CONFIG
    from u2seg.data.benchmarks.scenes import prepare_scenes
    from u2seg.engine.end_to_end import run_end_to_end

    scenes = output / "scenes"
    prepare_scenes(scenes, 40, 10, 0, annotate_train=False)
    opts = [*TRAIN_OPTS, "DATASETS.BY_PATH.scenes_val.ROOT", str(scenes)]
    run_end_to_end(CONFIG, scenes / "train", output / f"train_{num_gpus}", opts=opts, num_gpus=num_gpus)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps that are missing and writes the table.

    Args:
        argv: the command line; None: the process's.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "gpu_check", help="directory of the results")
    parser.add_argument("--minutes", type=float, default=25, help="after which no further step is begun (default 25)")
    parser.add_argument("--train", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if args.train:
        train_briefly(args.train, output)
        return 0
    if not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is False; nothing was checked", file=sys.stderr)
        return 2
    device, end = torch.cuda.get_device_name(0), time.monotonic() + 60 * args.minutes
    results: dict[str, Result | None] = {}
    for step in steps(output, torch.cuda.device_count()):
        result = earlier_result(step, output, device)
        if result is None and time.monotonic() < end:
            result = run_step(step, output, device)
        results[step.name] = result
        (output / "summary.md").write_text(summary(results, device))
    print(summary(results, device))
    return 0 if all(result and result.passed for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
