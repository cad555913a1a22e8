#!/usr/bin/env python
"""Kills random workers of a label run at random moments, two of them at once, until the labels are done; then compares the bytes.

    python tests/pseudo_labels/kill_workers.py [--kills 100] [--seed 0] [--images 24]

Three processes work on one directory all the time: two workers that make their shares and close rounds, and a whole run beside them.
Whoever ends or is killed is started again. Exits with status 1 if the labels differ from those of one process that nobody disturbed.
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_images import synthetic_photo
from u2seg.config import setup_cfg
from u2seg.pseudo_labels import make_pseudo_labels
from u2seg.pseudo_labels.pipeline import finalize, make_worker_share
from u2seg.pseudo_labels.worker import Worker
from u2seg.utils.manifest import IncompleteStageError, is_complete

CONFIG = "quick_schedules/coco_mini_handmade.yaml"
OPTIONS = [
    *("FEATURES.DEVICE", "cpu", "FEATURES.IMAGE_SIZE", "(64,96)", "FEATURES.HANDMADE.PATCH_SIZE", "4"),
    *("MASKS.NUM_WORKERS", "0", "MASKS.NUM_THREADS", "1", "MASKS.SHARD_SIZE", "2", "MASKS.MAX_FAILURES", "0.5"),
    *("CLUSTERS.NUM_CLUSTERS", "6", "SEMANTICS.NUM_CLUSTERS", "4"),
]
CONTEXT = multiprocessing.get_context("fork")


def work_as(index: int, photos: Path, output: Path) -> None:
    """Makes a share and tries to close the round (workers 0 and 1), or everything (2)."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    cfg = setup_cfg(CONFIG, OPTIONS)
    if index == 2:
        make_pseudo_labels(cfg, photos, output)
    elif make_worker_share(cfg, photos, output, Worker(index, 2)):
        with contextlib.suppress(IncompleteStageError):
            finalize(cfg, photos, output)


def start(index: int, photos: Path, output: Path) -> multiprocessing.process.BaseProcess:
    process = CONTEXT.Process(target=work_as, args=(index, photos, output))
    process.start()
    return process


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def kill_for_a_while(
    kills: int,
    rng: np.random.Generator,
    begin: Callable[[int], multiprocessing.process.BaseProcess],
    output: Path,
    seconds: float,
) -> dict[str, int]:
    """Kills workers until as many were killed; a run that is done is deleted and begun again. Returns the kills by what was done."""
    killed: dict[str, int] = {}
    processes = {index: begin(index) for index in range(3)}
    while sum(killed.values()) < kills:
        time.sleep(rng.uniform(0, seconds))
        chosen = rng.choice(3, rng.integers(1, 3), replace=False)
        stage = next(
            (name for name in ("panoptic", "semantics", "clusters", "masks") if (output / name).is_dir()), "plan"
        )
        alive = [index for index in chosen if processes[index].is_alive()]
        for index in alive:
            processes[index].kill()
        for index in alive:
            processes[index].join()
            killed[stage] = killed.get(stage, 0) + 1
        if is_complete(output / "panoptic"):
            for process in processes.values():
                process.kill()
                process.join()
            shutil.rmtree(output)
        for index, process in processes.items():
            if not process.is_alive():
                process.join()
                processes[index] = begin(index)
    for process in processes.values():
        process.kill()
        process.join()
    return killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=24)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "photos").mkdir()
        for number in range(args.images):
            Image.fromarray(synthetic_photo(number, (64, 96))).save(root / "photos" / f"{number:03d}.png")
        (root / "photos" / "broken.png").write_bytes(b"broken")
        begun = time.monotonic()
        alone = CONTEXT.Process(target=work_as, args=(2, root / "photos", root / "alone"))
        alone.start()
        alone.join()
        seconds = time.monotonic() - begun
        killed = kill_for_a_while(
            args.kills,
            np.random.default_rng(args.seed),
            lambda index: start(index, root / "photos", root / "labels"),
            root / "labels",
            seconds / 4,
        )
        last = start(2, root / "photos", root / "labels")
        last.join()
        expected, found = snapshot(root / "alone"), snapshot(root / "labels")
        different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"{sum(killed.values())} kills, by the last stage begun: {killed}; one undisturbed run takes {seconds:.1f} s")
    print(
        f"{len(expected)} files, {len(different)} differ: {different[:20]}; last run ended with status {last.exitcode}"
    )
    return 1 if different or last.exitcode or not expected else 0


if __name__ == "__main__":
    sys.exit(main())
