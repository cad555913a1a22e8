"""What the label maker costs beside the backbone, and how its memory grows with the number of images.

The source is synthetic: names, and images of 16 x 16 pixels that are made from their number. Features are raw pixels, masks come
from the "WholeImage" baseline, nothing is refined. What is left is everything that is not the backbone, the cut and the CRF:
listing, decoding queues, shards, k-means, PNG and JSON. Every phase runs in a process of its own, whose peak memory is its own.

Promise: between the smallest and the largest number of images, the peak memory of no process grows by more than 10 %, beyond the
k-means sample whose size the settings bound. Files and bytes on disk are printed.

    python benchmarks/label_scaling.py [--images 2000,20000] [--stages plan,masks,...] [--output DIRECTORY]

A run with --output goes on where an earlier one stopped. Exits with status 1 when a promise is missed. The last line holds the
figures as JSON.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import torch
from u2seg.config import setup_cfg
from u2seg.pseudo_labels.launchers import Launcher
from u2seg.pseudo_labels.phases import LabelRun, phase_named
from u2seg.utils.image_io import ImageSource

MAX_GROWTH = 1.1
OPTIONS = [
    *("FEATURES.NAME", "RawPixels", "FEATURES.IMAGE_SIZE", "(16,16)", "FEATURES.BATCH_SIZE", "64"),
    *("FEATURES.DEVICE", "cpu", "MASKS.GENERATOR", "WholeImage", "MASKS.REFINEMENT", "none"),
    *("MASKS.NUM_WORKERS", "0", "MASKS.NUM_THREADS", "1", "MASKS.SHARD_SIZE", "0"),
    *("CLUSTERS.NUM_CLUSTERS", "8", "CLUSTERS.NUM_RESTARTS", "1", "CLUSTERS.MAX_TRAINING_SAMPLES", "2000"),
    *("SEMANTICS.NUM_CLUSTERS", "8", "SEMANTICS.NUM_RESTARTS", "1", "SEMANTICS.MAX_TRAINING_SAMPLES", "2000"),
]
PHASES = ("plan", "masks", "cluster samples", "semantic samples", "clusters", "semantics", "panoptic")


class SyntheticSource(ImageSource):
    """Images that are made from their number."""

    def __init__(self, count: int):
        self.description, self.root, self._count = f"{count} synthetic images", None, count

    def names(self) -> Iterator[str]:
        """Yields the names."""
        return (f"{number // 1000:07d}/image-{number:010d}.jpg" for number in range(self._count))

    def digest(self, name: str) -> str:
        """Returns the number as a digest."""
        return name[-14:-4]

    def read(self, name: str) -> np.ndarray:
        """Returns a few gray levels and a stripe of one channel."""
        number = int(name[-14:-4])
        image = np.full((16, 16, 3), number * 40503 % 256, np.uint8)
        image[:8, :, number % 3] = number % 256
        return image


def run_phase(name: str, count: int, output: str, results: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    cfg = setup_cfg("quick_schedules/scenes.yaml", OPTIONS)
    launcher = Launcher(cfg, LabelRun(SyntheticSource(count), Path(output)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    if name == "plan":
        launcher.plan()
    else:
        phase = phase_named(name)
        launcher.make(phase)
        launcher.finish(phase)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    results.put((time.process_time() - start, usage.ru_maxrss / 1024, before / 1024))


def measure(name: str, count: int, output: str) -> dict:
    # Forked before anything was computed: a new interpreter would spend minutes on its imports where the machine is busy.
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=run_phase, args=(name, count, output, results))
    process.start()
    while process.is_alive() and results.empty():
        time.sleep(0.05)
    if results.empty():
        raise ChildProcessError(f"the {name} phase of {count} images ended with status {process.exitcode}")
    seconds, peak, before = results.get()
    process.join()
    return {"ms_per_image": 1000 * seconds / count, "peak_mb": peak, "start_mb": before}


def disk(output: Path) -> dict:
    files = [path for path in output.rglob("*") if path.is_file()]
    pngs = [path for path in files if path.suffix == ".png"]
    return {
        "files": len(files),
        "pngs": len(pngs),
        "bytes": sum(path.stat().st_size for path in files),
        "png_bytes": sum(path.stat().st_size for path in pngs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="2000,20000", help="numbers of images, comma-separated")
    parser.add_argument("--stages", default=",".join(PHASES), help="phases to run, comma-separated")
    parser.add_argument("--output", help="directory to keep; default: a temporary one")
    args = parser.parse_args()
    chosen = args.stages.split(",")
    if unknown := [name for name in chosen if name not in PHASES]:
        parser.error(f"unknown phases {unknown}; choose from {', '.join(PHASES)}")
    counts = [int(count) for count in args.images.split(",")]
    rows: dict[str, dict[str, dict]] = {name: {} for name in chosen}
    disks = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.output or temporary)
        print(f"{'phase':18s} {'images':>9s} {'CPU ms an image':>16s} {'peak MB':>8s} {'at start':>9s}", flush=True)
        for count in counts:
            for name in chosen:
                row = rows[name][str(count)] = measure(name, count, str(root / str(count)))
                print(
                    f"{name:18s} {count:9d} {row['ms_per_image']:16.3f} {row['peak_mb']:8.0f} {row['start_mb']:9.0f}",
                    flush=True,
                )
            disks[str(count)] = disk(root / str(count))
            print(f"on disk: {disks[str(count)]}", flush=True)
    first, last = str(min(counts)), str(max(counts))
    grown = {name: row[last]["peak_mb"] / row[first]["peak_mb"] for name, row in rows.items()}
    kept = all(growth <= MAX_GROWTH for growth in grown.values())
    print(
        f"{'kept  ' if kept else 'MISSED'} peak memory grows by at most {MAX_GROWTH - 1:.0%}: largest {max(grown.values()):.3f}"
    )
    print(json.dumps({"rows": rows, "disk": disks, "growth": grown}))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
