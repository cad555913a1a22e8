"""What a training set of pseudo-labels takes in memory, from Parquet shards and from COCO's JSON files.

The labels are synthetic: images of 640 x 480 pixels with three masks of blobs and two stuff segments each; names are as long as those
of ImageNet. Neither images nor PNGs are written: a training opens them one by one, and none of them to build its loader. Each
number of images is loaded in a process of its own, up to the point where the first batch would be drawn.

    python benchmarks/label_dataset.py [--images 10000,100000] [--json 10000] [--output DIRECTORY]

--json also writes and loads the JSON files of so many images. With --output, shards that are there are used again. The last line
holds the figures as JSON.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from u2seg.config import setup_cfg
from u2seg.data import build_train_loader, register_dataset
from u2seg.data.formats.coco_panoptic import instance_annotations, panoptic_annotation
from u2seg.data.formats.label_shards import ImageLabels, iter_labels, label_shards, write_label_shard
from u2seg.modeling import complete_config
from u2seg.pseudo_labels.image_plan import automatic_shard_size
from u2seg.pseudo_labels.panoptic.panoptic_merge import merge_panoptic
from u2seg.pseudo_labels.panoptic.panoptic_stage import write_json_files
from u2seg.structures import LabelSpace
from u2seg.utils.manifest import close_stage, open_stage, shard_path

SPACE = LabelSpace.of_clusters(800, 27)
SIZE = (480, 640)
NUM_TEMPLATES = 200


def templates() -> list[ImageLabels]:
    """Returns the labels of a few images: ellipses with ragged edges before two halves."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    found = []
    for _ in range(NUM_TEMPLATES):
        edge = np.repeat(rng.normal(0, 0.06, SIZE[0]), SIZE[1]).reshape(SIZE)
        masks = [
            ((rows - rng.integers(90, 390)) / rng.integers(30, 90)) ** 2
            + ((columns - center) / rng.integers(40, 90)) ** 2
            + edge
            < 1
            for center in (120, 320, 520)
        ]
        semantic = np.full(SIZE, rng.integers(27), np.uint8)
        semantic[300:] = rng.integers(27)
        panoptic, segments = merge_panoptic(np.stack(masks), rng.integers(0, 800, 3), semantic)
        found.append(
            ImageLabels(
                image={"id": 0, "file_name": "", "height": SIZE[0], "width": SIZE[1]},
                panoptic=panoptic_annotation(0, "", panoptic, segments, SPACE),
                instances=instance_annotations(0, panoptic, segments, rng.random(3), SPACE),
            )
        )
    return found


def synthetic(start: int, stop: int, shapes: list[ImageLabels]) -> Iterator[ImageLabels]:
    """Yields the labels of the images with the given numbers."""
    for number in range(start, stop):
        shape = shapes[number % len(shapes)]
        name = f"n{number // 1300:08d}/n{number // 1300:08d}_{number:07d}"
        yield ImageLabels(
            image={**shape.image, "id": number + 1, "file_name": f"{name}.JPEG"},
            panoptic={**shape.panoptic, "image_id": number + 1, "file_name": f"{name}.png"},
            instances=[{**row, "image_id": number + 1} for row in shape.instances],
        )


def write_labels(directory: Path, count: int) -> None:
    """Writes the shards of so many images, unless they are there."""
    stage, shapes = directory / "panoptic", templates()
    open_stage(stage, "panoptic", {"things": 800, "stuff": 27})
    for name in ("images", "panoptic/panoptic", "panoptic/stuff"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    size = automatic_shard_size(count)
    for index, start in enumerate(range(0, count, size)):
        if not shard_path(stage, index).is_file():
            write_label_shard(shard_path(stage, index), list(synthetic(start, min(start + size, count), shapes)))
    close_stage(stage, {"images": count})


def load(directory: str, results: multiprocessing.Queue) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    description = {"FORMAT": "pseudo_labels", "ROOT": directory, "IMAGES": f"{directory}/images"}
    register_dataset("synthetic_labels", description)
    cfg = setup_cfg("quick_schedules/scenes.yaml", ["DATALOADER.NUM_WORKERS", "0"])
    cfg.DATASETS.BY_PATH.synthetic_labels = CfgNode(description)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("synthetic_labels",), ()
    loader = build_train_loader(complete_config(cfg), seed=0)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = loader.dataset.dicts.num_bytes
    results.put(
        {"held_mb": held / 1e6, "peak_mb": peak * 1024 / 1e6, "start_mb": before * 1024 / 1e6, "cpu_s": seconds}
    )


def measure(directory: Path) -> dict:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=load, args=(str(directory), results))
    process.start()
    while process.is_alive() and results.empty():
        time.sleep(0.1)
    if results.empty():
        raise ChildProcessError(f"loading {directory} ended with status {process.exitcode}")
    row = results.get()
    process.join()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="10000,100000", help="numbers of images in shards, comma-separated")
    parser.add_argument("--json", type=int, default=10_000, help="number of images in JSON files; 0: none")
    parser.add_argument("--output", help="directory to keep; default: a temporary one")
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.output or temporary)
        cases = [("shards", int(count)) for count in args.images.split(",")] + [("JSON", args.json)] * bool(args.json)
        print(
            f"{'':8s} {'images':>9s} {'held MB':>9s} {'peak MB':>9s} {'at start':>9s} {'on disk MB':>11s} {'CPU s':>7s}"
        )
        for kind, count in cases:
            directory = root / f"{kind}-{count}"
            write_labels(directory, count)
            stage = directory / "panoptic"
            if kind == "JSON":
                shards = label_shards(stage)
                write_json_files(stage, lambda shards=shards: iter_labels(shards), SPACE)
                for path in shards:
                    path.unlink()
            row = measure(directory)
            row["disk_mb"] = sum(path.stat().st_size for path in stage.glob("*.*")) / 1e6
            rows[f"{kind} {count}"] = row
            print(
                f"{kind:8s} {count:9d} {row['held_mb']:9.1f} {row['peak_mb']:9.1f} {row['start_mb']:9.1f} {row['disk_mb']:11.1f} "
                f"{row['cpu_s']:7.1f}",
                flush=True,
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
