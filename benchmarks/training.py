#!/usr/bin/env python
"""Our trainer against stock Detectron2's, on the same data and the same model, with everything of ours switched off.

    python benchmarks/training.py [--iterations 30] [--size small|full] [--device cpu|cuda]

Ours: U2SegTrainer, DropLossCascadeROIHeads with DropLoss off, our mapper and loader. Stock: DefaultTrainer, CascadeROIHeads,
DatasetMapper. The two take turns, step by step, in one process, so that the machine's other work hits both alike; a step is
data, forward, backward and optimizer. "small" is the scenes' model, "full" the ResNet-50 with 800 clusters.

Promises:
* at most 2 % slower than stock (median over pairs of steps of the ratio of CPU time, or of time on a GPU);
* at most 2 % more memory (peak of a process that runs the one or the other; of the GPU where there is one);
* the loader alone, with 4 workers, delivers at least twice as many images a second as training consumes.

Exits with status 1 when a promise is missed. The last line holds the figures as JSON.
"""

import argparse
import json
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils.events import EventStorage
from PIL import Image
from tabulate import tabulate
from u2seg.config import setup_cfg
from u2seg.data import build_train_loader
from u2seg.data.formats.coco_panoptic import read_panoptic_png
from u2seg.data.training_sample import segment_targets
from u2seg.engine import U2SegTrainer
from u2seg.modeling import complete_config
from u2seg.structures import semantic_target

MAX_SLOWDOWN, MAX_MEMORY_RATIO, MIN_LOADER_RATIO, LOADER_WORKERS = 1.02, 1.02, 2.0, 4
CONFIGS = {
    "small": "quick_schedules/Base-Scenes-R18-FPN.yaml",
    "full": "COCO-PanopticSegmentation/u2seg_R50_800.yaml",
}
CLUSTERS = {"small": 6, "full": 800}
ROOT = Path(__file__).resolve().parents[1]


def make_data(directory: Path) -> Path:
    """Renders scenes with ground truth, and the stuff PNGs that the stock mapper needs."""
    script = ROOT / "datasets" / "prepare_scenes.py"
    command = [
        sys.executable,
        str(script),
        "--output",
        str(directory),
        "--train",
        "64",
        "--val",
        "1",
        "--annotate-train",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return directory


def make_cfg(size: str, device: str, data: Path, output: Path) -> CfgNode:
    cfg = setup_cfg(CONFIGS[size])
    cfg.DATASETS.BY_PATH["bench"] = CfgNode({"FORMAT": "coco_panoptic", "ROOT": str(data), "SPLIT": "train"})
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("bench",), ()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = device, "", str(output)
    cfg.TEST.PRECISE_BN.ENABLED = False
    # Detectron2 knows no clipping over the whole model; its own kind serves both here.
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.DATALOADER.NUM_WORKERS = 0 if device == "cpu" else LOADER_WORKERS
    if size == "full":
        cfg.SOLVER.IMS_PER_BATCH = 2 if device == "cpu" else 4
        cfg.INPUT.MIN_SIZE_TRAIN = (320,) if device == "cpu" else (640,)
    if device == "cpu":
        cfg.SOLVER.AMP.ENABLED = False
    else:
        cfg.SOLVER.AMP.PRECISION = "fp16"  # all that the stock trainer has
    complete_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = CLUSTERS[size]
    return cfg


def register_stock(data: Path) -> None:
    """Registers the same images with the semantic targets as files."""
    records = DatasetCatalog.get("bench")
    directory = data / "stuff"
    directory.mkdir(exist_ok=True)
    for record in records:
        path = directory / Path(record["pan_seg_file_name"]).name
        target = semantic_target(
            read_panoptic_png(record["pan_seg_file_name"]), segment_targets(record["segments_info"])
        )
        Image.fromarray(target).save(path)
        record["sem_seg_file_name"] = str(path)
    if "bench_stock" not in DatasetCatalog.list():
        DatasetCatalog.register("bench_stock", lambda: records)
        MetadataCatalog.get("bench_stock").set(thing_classes=MetadataCatalog.get("bench").thing_classes)


def build(kind: str, cfg: CfgNode, data: Path) -> DefaultTrainer:
    if kind == "ours":
        return U2SegTrainer(cfg)
    register_stock(data)
    stock = cfg.clone()
    stock.DATASETS.TRAIN = ("bench_stock",)
    stock.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    return DefaultTrainer(stock)


def step(trainer, device: str) -> float:
    """Returns the time of one step: of the CPU, or of the clock where a GPU works."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    with EventStorage(trainer.iter):
        start = clock()
        trainer.run_step()
        if device != "cpu":
            torch.cuda.synchronize()
        return clock() - start


def peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss, in which Linux also counts the process that this one was started from.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def peak_memory(kind: str, args, data: Path, output: Path, queue) -> None:
    """Puts the peak memory in bytes of a few steps into the queue; runs in a process of its own."""
    torch.set_num_threads(1)
    trainer = build(kind, make_cfg(args.size, args.device, data, output), data)
    for _ in range(4):
        step(trainer, args.device)
    if args.device == "cpu":
        queue.put(peak_resident_bytes())
    else:
        queue.put(torch.cuda.max_memory_allocated())


def measure_memory(kind: str, args, data: Path, output: Path) -> int:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=peak_memory, args=(kind, args, data, output, queue))
    process.start()
    peak = queue.get(timeout=600)
    process.join()
    return peak


def loader_rate(cfg: CfgNode, batches: int) -> float:
    """Returns the images a second of the loader alone, its start left out."""
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = LOADER_WORKERS
    iterator = iter(build_train_loader(cfg, 0))
    for _ in range(2 * LOADER_WORKERS):  # what the workers fetch ahead
        next(iterator)
    start = time.perf_counter()
    count = sum(len(next(iterator)) for _ in range(batches))
    return count / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--size", choices=sorted(CONFIGS), default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        data, output = make_data(Path(directory) / "scenes"), Path(directory) / "run"
        cfg = make_cfg(args.size, args.device, data, output)
        trainers = {kind: build(kind, cfg, data) for kind in ("ours", "stock")}
        times = {kind: [] for kind in trainers}
        for iteration in range(args.iterations + 3):
            kinds = list(trainers) if iteration % 2 else list(trainers)[::-1]
            for kind in kinds:
                trainers[kind].iter = iteration
                times[kind].append(step(trainers[kind], args.device))
        times = {kind: np.array(values[3:]) for kind, values in times.items()}
        loader = loader_rate(cfg, 40)
        memory = {kind: measure_memory(kind, args, data, output) for kind in trainers}
    rates = {kind: 1 / float(np.median(values)) for kind, values in times.items()}
    consumed = rates["ours"] * cfg.SOLVER.IMS_PER_BATCH
    figures = {
        "size": args.size,
        "device": args.device,
        "iterations_per_second": {kind: round(rate, 4) for kind, rate in rates.items()},
        "time_ratio": round(float(np.median(times["ours"] / times["stock"])), 4),
        "peak_memory_mb": {kind: round(value / 2**20, 1) for kind, value in memory.items()},
        "memory_ratio": round(memory["ours"] / memory["stock"], 4),
        "loader_images_per_second": round(loader, 2),
        "training_images_per_second": round(consumed, 2),
        "loader_ratio": round(loader / consumed, 2),
    }
    rows = [[kind, f"{rates[kind]:.3f}", f"{memory[kind] / 2**20:.0f}"] for kind in trainers]
    print(tabulate(rows, headers=["trainer", "iterations/s", "peak memory, MB"], tablefmt="github"))
    kept = {
        f"time ratio {figures['time_ratio']} <= {MAX_SLOWDOWN}": figures["time_ratio"] <= MAX_SLOWDOWN,
        f"memory ratio {figures['memory_ratio']} <= {MAX_MEMORY_RATIO}": figures["memory_ratio"] <= MAX_MEMORY_RATIO,
        f"loader / training {figures['loader_ratio']} >= {MIN_LOADER_RATIO}": figures["loader_ratio"]
        >= MIN_LOADER_RATIO,
    }
    for promise, held in kept.items():
        print(f"{'kept  ' if held else 'MISSED'} {promise}")
    print(json.dumps(figures))
    return 0 if all(kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
