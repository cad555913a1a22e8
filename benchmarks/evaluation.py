#!/usr/bin/env python
"""Scores in one pass over segment tables, against the plain way: files, official tools, and a second pass after matching.

    python benchmarks/evaluation.py [--num-images 500] [--things 800] [--stuff 27] [--photos PANOPTIC_JSON] [--ours-only]

The plain way is what Detectron2's evaluators do, twice: (1) write every prediction as panoptic PNG and RLE; read the PNGs for the
counts, match. (2) Process every prediction again with the clusters renamed: PNG, RLE of the masks and of the semantic classes,
confusion matrix; then panopticapi, and pycocotools for boxes and masks, class-aware and class-agnostic. The model's time is in
neither. Both start from the same outputs of a Panoptic-FPN (100 detections with masks, panoptic map, semantic logits) on synthetic
images of 480 x 640, and run in their own process, one thread each. With --photos the shapes are those of real photos, from a panoptic
JSON in COCO's format whose PNGs lie in the directory beside it: objects as predicted are shifted, shrunk and grown, and fill up
the 100 detections of the photo. --ours-only leaves the plain way out, which takes ten times as long: for memory at many images.

Promises:
* at least 10 times faster (CPU time of the process; wall time is shown beside it);
* PQ and AP are the plain way's, to 1e-9;
* all protocols together take less than twice what one takes;
* the process grows by less than 1 GB above what it held before the first image, scores included (claim it for 5000 images only
  from a run with ``--num-images 5000``);
* the tables of 5000 such images take less than 1 GB, and grow with the images no faster than linearly.

Exits with status 1 when a promise is missed. The last line holds the figures as JSON.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from u2seg.data.formats.coco_panoptic import read_panoptic_png, write_panoptic_png
from u2seg.evaluation import PROTOCOL_REGISTRY, ScoreSettings, evaluate_tables
from u2seg.evaluation.evaluator import PanopticEvaluator
from u2seg.evaluation.matching.assignment import hungarian_then_best
from u2seg.evaluation.matching.label_map import LabelMap
from u2seg.evaluation.matching.protocols import CupsProtocol
from u2seg.evaluation.tables.segment_tables import BLOCKS, SegmentTables, concatenate_tables, overlap_images

HEIGHT, WIDTH = 480, 640
THING_CATEGORIES, STUFF_CATEGORIES = 80, 15
MIN_SPEEDUP, MAX_PROTOCOL_RATIO, MAX_BYTES, MAX_GROWTH_MB = 10.0, 2.0, 10**9, 1000
POOL = 20  # distinct images; the others repeat them with other clusters, categories and scores
PROTOCOLS = ("hungarian", "cups", "u2seg_paper", "u2seg_release", "stego", "majority")


@PROTOCOL_REGISTRY.register("cups_dropping")
class CupsDroppingProtocol(CupsProtocol):
    """``cups``, clusters without a category costing nothing: what official tools can express by leaving their segments out."""

    def fit(self, tables) -> LabelMap:
        """Returns the label map of ``cups``, nothing charged."""
        label_map = super().fit(tables)
        return replace(label_map, error_category=np.full_like(label_map.error_category, -1))


def resident_memory() -> float:
    """Returns what the process holds now, MB; 0 where the system does not say (not Linux)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def ellipse(rng) -> np.ndarray:
    """Returns a filled ellipse, bool (HEIGHT, WIDTH)."""
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    center = int(rng.integers(30, WIDTH - 30)), int(rng.integers(30, HEIGHT - 30))
    axes = int(rng.integers(8, 120)), int(rng.integers(8, 100))
    cv2.ellipse(canvas, center, axes, float(rng.integers(180)), 0, 360, 1, -1)
    return canvas.astype(bool)


class SyntheticImage:
    """Ground truth and detections of one image of the pool, without labels."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.objects = [ellipse(rng) for _ in range(int(rng.integers(3, 12)))]
        near = [np.roll(mask, tuple(rng.integers(-6, 7, 2)), (0, 1)) for mask in self.objects]
        self.masks = np.array((near + [ellipse(rng) for _ in range(100)])[:100])
        self.regions = cv2.resize(
            rng.integers(0, 4, (4, 5)).astype(np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST
        )
        self.found_regions = np.roll(self.regions, (9, 14), (0, 1))
        self.boxes = np.array([cv2.boundingRect(mask.astype(np.uint8)) for mask in self.masks], np.float32)


class PhotoShapes:
    """The same of one photo, from its panoptic ground truth."""

    def __init__(self, segments_of: np.ndarray, thing_ids: list[int], stuff_ids: list[int], seed: int):
        """Takes int32 (H, W) segment ids, which of them are things (at least one) and stuff, and a seed of the detections."""
        rng = np.random.default_rng(seed)
        resized = cv2.resize(segments_of, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
        self.objects = [mask for number in thing_ids if (mask := resized == number).any()]
        largest = sorted(stuff_ids, key=lambda number: -int((resized == number).sum()))[:4]
        self.regions = np.zeros((HEIGHT, WIDTH), np.uint8)
        for region, number in enumerate(largest):
            self.regions[resized == number] = region
        self.found_regions = np.roll(self.regions, (5, 7), (0, 1))
        masks = [self._detection(self.objects[number % len(self.objects)], rng) for number in range(100)]
        self.masks = np.array(masks)
        self.boxes = np.array([cv2.boundingRect(mask.astype(np.uint8)) for mask in self.masks], np.float32)

    def _detection(self, mask: np.ndarray, rng) -> np.ndarray:
        changed = np.roll(mask, tuple(rng.integers(-6, 7, 2)), (0, 1)).astype(np.uint8)
        side = int(rng.integers(1, 5))
        change = cv2.erode if rng.random() < 0.5 else cv2.dilate
        changed = change(changed, np.ones((side, side), np.uint8)).astype(bool)
        return changed if changed.any() else mask


def photo_shapes(panoptic_json: Path) -> list[PhotoShapes]:
    """Returns the shapes of every photo that has a thing."""
    content = json.loads(panoptic_json.read_text())
    things = {category["id"] for category in content["categories"] if category["isthing"]}
    directory = panoptic_json.parents[1] / panoptic_json.stem
    pool = []
    for annotation in content["annotations"]:
        by_kind: dict[bool, list[int]] = {True: [], False: []}
        for segment in annotation["segments_info"]:
            by_kind[segment["category_id"] in things].append(segment["id"])
        if by_kind[True]:
            ids = read_panoptic_png(directory / annotation["file_name"])
            pool.append(PhotoShapes(ids, by_kind[True], by_kind[False], len(pool)))
    return [shapes for shapes in pool if shapes.objects]


class Sample:
    """One labeled image and what the model gave for it."""

    def __init__(self, image: "SyntheticImage | PhotoShapes", image_id: int, things: int, stuff: int):
        rng = np.random.default_rng(image_id)
        self.image_id = image_id
        # No more objects than detections.
        objects = image.objects[:100]
        categories = rng.integers(THING_CATEGORIES, size=len(objects))
        regions = rng.permutation(STUFF_CATEGORIES)[:4]
        self.gt = np.zeros((HEIGHT, WIDTH), np.int32)
        self.segments, self.annotations = [], []
        for number in range(4):
            self.gt[image.regions == number] = 1000 + number
            self.segments.append({"id": 1000 + number, "category_id": 101 + int(regions[number]), "iscrowd": 0})
        for number, (mask, category) in enumerate(zip(objects, categories)):
            self.gt[mask] = number + 1
            self.segments.append({"id": number + 1, "category_id": 1 + int(category), "iscrowd": 0})
            box = [float(v) for v in cv2.boundingRect(mask.astype(np.uint8))]
            self.annotations.append(
                {"category_id": 1 + int(category), "bbox": box, "area": float(mask.sum()), "mask": mask}
            )
        ids, areas = np.unique(self.gt, return_counts=True)
        area = dict(zip(ids.tolist(), areas.tolist()))
        self.segments = [{**s, "area": area[s["id"]]} for s in self.segments if s["id"] in area]
        # Clusters follow the categories, ten to one, with errors.
        count = len(categories)
        labels = rng.integers(things, size=100)
        right = rng.random(count) < 0.8
        labels[:count] = np.where(
            right, categories * (things // THING_CATEGORIES) + rng.integers(3, size=count), labels[:count]
        )
        scores = np.sort(rng.uniform(0.05, 1, 100))[::-1].astype(np.float32)
        instances = Instances((HEIGHT, WIDTH))
        x, y, w, h = image.boxes.T
        instances.pred_boxes = Boxes(torch.tensor(np.stack([x, y, x + w, y + h], 1)))
        instances.scores = torch.tensor(scores.copy())
        instances.pred_classes = torch.tensor(labels)
        instances.pred_masks = torch.from_numpy(image.masks)
        clusters = (regions * 27 // STUFF_CATEGORIES + rng.integers(2, size=4)) % stuff + 1
        head = clusters[image.found_regions % 4].astype(np.uint8)
        panoptic, infos = np.zeros((HEIGHT, WIDTH), np.int32), []
        for index in range(12):
            free = image.masks[index] & (panoptic == 0)
            if free.any():
                panoptic[free] = len(infos) + 1
                infos.append({"id": len(infos) + 1, "isthing": True, "category_id": int(labels[index]), "score": 0.9})
        for cluster in np.unique(head):
            free = (head == cluster) & (panoptic == 0)
            if free.any():
                panoptic[free] = len(infos) + 1
                infos.append({"id": len(infos) + 1, "isthing": False, "category_id": int(cluster)})
        head = np.where(image.masks[:12].any(0), 0, head)
        logits = torch.zeros(stuff + 1, HEIGHT, WIDTH)
        logits.scatter_(0, torch.from_numpy(head.astype(np.int64))[None], 1.0)
        self.output = {"instances": instances, "panoptic_seg": (torch.from_numpy(panoptic), infos), "sem_seg": logits}


def shape_pool(options: argparse.Namespace) -> list["SyntheticImage | PhotoShapes"]:
    """Returns the distinct images, which take 30 MB each."""
    return photo_shapes(options.photos) if options.photos else [SyntheticImage(seed) for seed in range(POOL)]


def samples(options: argparse.Namespace, pool: list["SyntheticImage | PhotoShapes"]):
    """Yields every image in turn; making them is not timed."""
    for image_id in range(1, options.num_images + 1):
        yield Sample(pool[image_id % len(pool)], image_id, options.things, options.stuff)


def write_gt(directory: Path, options: argparse.Namespace) -> None:
    """Writes the ground truth as COCO's files."""
    things = [{"id": i + 1, "name": f"thing{i}", "isthing": 1} for i in range(THING_CATEGORIES)]
    stuff = [{"id": i + 101, "name": f"stuff{i}", "isthing": 0} for i in range(STUFF_CATEGORIES)]
    images, panoptic, instances = [], [], []
    for sample in samples(options, shape_pool(options)):
        name = f"{sample.image_id:06d}.png"
        write_panoptic_png(directory / "gt" / name, sample.gt)
        Image.fromarray(semantic_labels(sample)).save(directory / "gt" / f"semantic_{name}")
        images.append({"id": sample.image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
        panoptic.append({"image_id": sample.image_id, "file_name": name, "segments_info": sample.segments})
        for annotation in sample.annotations:
            rle = mask_utils.encode(np.asfortranarray(annotation.pop("mask").astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            rest = {"id": len(instances) + 1, "image_id": sample.image_id, "iscrowd": 0, "segmentation": rle}
            instances.append({**annotation, **rest})
    (directory / "panoptic.json").write_text(
        json.dumps({"images": images, "annotations": panoptic, "categories": things + stuff})
    )
    (directory / "instances.json").write_text(
        json.dumps({"images": images, "annotations": instances, "categories": things})
    )


def semantic_labels(sample: Sample) -> np.ndarray:
    """Returns Detectron2's semantic target, uint8 (HEIGHT, WIDTH): 0 things, 1.. stuff."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for segment in sample.segments:
        labels[sample.gt == segment["id"]] = max(segment["category_id"] - 100, 0)
    return labels


class Clock:
    """CPU and wall seconds of the blocks that it surrounds, added up."""

    def __init__(self):
        self.cpu = self.wall = 0.0

    def __enter__(self):
        self._start = time.process_time(), time.perf_counter()

    def __exit__(self, *_):
        self.cpu += time.process_time() - self._start[0]
        self.wall += time.perf_counter() - self._start[1]


def one_pass(directory: Path, options: argparse.Namespace) -> dict:
    """Our way: tables in one pass, then every protocol."""
    clock, one, every = Clock(), Clock(), Clock()
    MetadataCatalog.get("benchmark").set(
        panoptic_json=str(directory / "panoptic.json"),
        panoptic_root=str(directory / "gt"),
        json_file=str(directory / "instances.json"),
    )
    with clock:
        evaluator = PanopticEvaluator(
            "benchmark",
            None,
            num_things=options.things,
            num_stuff=options.stuff,
            settings=ScoreSettings(("cups_dropping",)),
        )
    pool = shape_pool(options)
    held_before = resident_memory() or peak_memory()
    for sample in samples(options, pool):
        with clock:
            evaluator.process([{"image_id": sample.image_id}], [sample.output])
    held = resident_memory() - held_before
    with clock:
        evaluator._join_latest()
        tables = concatenate_tables(evaluator._parts)
    with one:
        results = evaluate_tables(tables, ScoreSettings(("cups_dropping",))).results
    with every:
        evaluate_tables(tables, ScoreSettings(PROTOCOLS))
    half = bytes_of_first_images(tables, options.num_images // 2)
    return {
        "pass_s": clock.cpu,
        "one_protocol_s": one.cpu,
        "all_protocols_s": every.cpu,
        "cpu_s": clock.cpu + one.cpu,
        "cpu_all_s": clock.cpu + every.cpu,
        "wall_s": clock.wall + one.wall,
        "peak_growth_mb": peak_memory() - held_before,
        "held_growth_mb": held,
        "table_bytes": tables.nbytes,
        "half_table_bytes": half,
        "PQ": results["panoptic_seg"]["cups_dropping"]["PQ"],
        "mask_AP": results["segm"]["cups_dropping"]["AP"],
        "box_AP": results["bbox"]["cups_dropping"]["AP"],
        "agnostic_AR": results["segm"]["class_agnostic"]["AR100"],
    }


def bytes_of_first_images(tables: SegmentTables, count: int) -> int:
    """Returns the bytes of the rows of the first images; overlaps and IoUs belong to the image of what they point at."""
    image_of = {
        "overlaps": overlap_images(tables),
        "ious": tables.detections["image"][tables.ious["detection"]],
        "images": np.arange(len(tables.images)),
    }
    total = 0
    for name in BLOCKS:
        block = getattr(tables, name)
        image = image_of[name] if name in image_of else block["image"]
        total += int((image < count).sum()) * block.itemsize
    return total


def plain_way(directory: Path, options: argparse.Namespace) -> dict:
    """Files and official tools, twice over the predictions."""
    clock = Clock()
    pool = shape_pool(options)
    held_before = resident_memory() or peak_memory()
    gt = json.loads((directory / "panoptic.json").read_text())
    clusters = {}
    for sample in samples(options, pool):  # first pass: what the clusters cover
        with clock:
            write_prediction(directory / "first", sample)
            encode(sample.output["instances"])
            sample.output["sem_seg"].argmax(dim=0)
            clusters[sample.image_id] = sample.output["panoptic_seg"][1]
    with clock:
        counts = count_pixels(directory, gt, clusters, options)
        things = hungarian_then_best(counts[: options.things, :THING_CATEGORIES])
        stuff = hungarian_then_best(counts[options.things :, THING_CATEGORIES:])
    results, annotations, confusion = [], [], np.zeros((STUFF_CATEGORIES + 2,) * 2)
    for sample in samples(options, pool):  # second pass: with categories
        with clock:
            annotations.append(write_renamed(directory / "second", sample, things, stuff))
            results += detections(sample, things)
            confusion += semantic_counts(directory, sample, stuff)
    with clock:
        quality = official_quality(directory, gt, annotations)
        scores = official_precision(directory, results)
    return {
        "cpu_s": clock.cpu,
        "wall_s": clock.wall,
        "peak_growth_mb": peak_memory() - held_before,
        "PQ": quality,
        **scores,
    }


def write_prediction(directory: Path, sample: Sample) -> None:
    """Writes the panoptic map, as Detectron2's evaluator does."""
    write_panoptic_png(directory / f"{sample.image_id:06d}.png", sample.output["panoptic_seg"][0].numpy())


def encode(instances: Instances) -> list[dict]:
    """Returns the masks as RLE, as Detectron2's COCO evaluator makes them."""
    return [mask_utils.encode(np.array(m[:, :, None], order="F", dtype=np.uint8))[0] for m in instances.pred_masks]


def count_pixels(directory: Path, gt: dict, clusters: dict, options: argparse.Namespace) -> np.ndarray:
    """Returns joint clusters x joint categories, by np.unique over both maps."""
    counts = np.zeros((options.things + options.stuff, THING_CATEGORIES + STUFF_CATEGORIES), np.int64)
    for annotation in gt["annotations"]:
        name = annotation["file_name"]
        ids = read_panoptic_png(directory / "gt" / name).astype(np.uint64)
        found = read_panoptic_png(directory / "first" / name)
        category = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
        infos = {info["id"]: info for info in clusters[annotation["image_id"]]}
        pairs, pixels = np.unique(ids * (1 << 24) + found.astype(np.uint64), return_counts=True)
        for pair, number in zip(pairs.tolist(), pixels.tolist()):
            info = infos.get(pair % (1 << 24))
            if info is None or pair >> 24 not in category:
                continue
            label = category[pair >> 24]
            column = label - 1 if label <= 100 else THING_CATEGORIES + label - 101
            row = info["category_id"] if info["isthing"] else options.things + info["category_id"] - 1
            counts[row, column] += number
    return counts


def write_renamed(directory: Path, sample: Sample, things: np.ndarray, stuff: np.ndarray) -> dict:
    """Writes the map with categories in place of clusters, stuff of one category merged; returns its annotation."""
    panoptic, infos = sample.output["panoptic_seg"]
    renamed, kept = np.zeros((HEIGHT, WIDTH), np.int32), {}
    for info in infos:
        if info["isthing"]:
            identifier, category = info["id"], int(things[info["category_id"]]) + 1
            valid = category > 0
        else:
            label = int(stuff[info["category_id"] - 1])
            identifier, category, valid = 500 + label, label + 101, label >= 0
        if valid:
            renamed[panoptic.numpy() == info["id"]] = identifier
            kept[identifier] = {"id": identifier, "category_id": category}
    name = f"{sample.image_id:06d}.png"
    write_panoptic_png(directory / name, renamed)
    return {"image_id": sample.image_id, "file_name": name, "segments_info": list(kept.values())}


def detections(sample: Sample, things: np.ndarray) -> list[dict]:
    """Returns COCO results with categories in place of clusters."""
    instances = sample.output["instances"]
    boxes = instances.pred_boxes.tensor.numpy()
    return [
        {
            "image_id": sample.image_id,
            "category_id": int(things[label]) + 1,
            "bbox": [float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])],
            "score": float(score),
            "segmentation": rle,
        }
        for label, box, score, rle in zip(
            instances.pred_classes.tolist(), boxes, instances.scores.tolist(), encode(instances)
        )
        if things[label] >= 0
    ]


def semantic_counts(directory: Path, sample: Sample, stuff: np.ndarray) -> np.ndarray:
    """Returns the confusion matrix of one image and encodes its prediction, as Detectron2's evaluator does."""
    size = STUFF_CATEGORIES + 2
    lookup = np.concatenate([[0], np.where(stuff >= 0, stuff + 1, size - 1)])
    predicted = lookup[sample.output["sem_seg"].argmax(dim=0).numpy()]
    gt = np.asarray(Image.open(directory / "gt" / f"semantic_{sample.image_id:06d}.png"), dtype=int)
    for label in np.unique(predicted):
        mask_utils.encode(np.asfortranarray((predicted == label).astype(np.uint8)))
    return np.bincount((predicted * size + gt).ravel(), minlength=size * size).reshape(size, size)


def official_quality(directory: Path, gt: dict, annotations: list[dict]) -> float:
    """Returns panopticapi's PQ."""
    from panopticapi.evaluation import pq_compute_single_core

    categories = {category["id"]: category for category in gt["categories"]}
    pairs = list(zip(gt["annotations"], annotations))
    with contextlib.redirect_stdout(io.StringIO()):
        stat = pq_compute_single_core(0, pairs, str(directory / "gt"), str(directory / "second"), categories)
    return 100 * stat.pq_average(categories, None)[0]["pq"]


def official_precision(directory: Path, results: list[dict]) -> dict:
    """Returns pycocotools' AP for boxes and masks, and class-agnostic AR."""
    scores = {}
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(directory / "instances.json"))
        plain = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        for kind, found in (("bbox", results), ("segm", plain)):
            for use_categories in (1, 0):
                evaluation = COCOeval(gt, gt.loadRes([dict(r) for r in found]), kind)
                evaluation.params.useCats = use_categories
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                scores[kind, use_categories] = evaluation.stats
    return {
        "box_AP": 100 * scores["bbox", 1][0],
        "mask_AP": 100 * scores["segm", 1][0],
        "agnostic_AR": 100 * scores["segm", 0][8],
    }


def peak_memory() -> float:
    """Returns this process's peak resident memory, MB; on Linux without that of the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(way, directory: Path, options: argparse.Namespace) -> dict:
    """Returns what ``way`` gives, run in a fresh process so that peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(way, (directory, options))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--things", type=int, default=800)
    parser.add_argument("--stuff", type=int, default=27)
    parser.add_argument("--photos", type=Path, help="panoptic JSON of real photos; without it shapes are synthetic")
    parser.add_argument("--ours-only", action="store_true", help="without the plain way: memory and time of ours alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_gt(directory, options)
        ours = in_own_process(one_pass, directory, options)
        if options.ours_only:
            print(json.dumps({"images": options.num_images, "ours": ours}))
            return 0 if ours["peak_growth_mb"] < MAX_GROWTH_MB else 1
        plain = in_own_process(plain_way, directory, options)
    figures = {
        "images": options.num_images,
        "speedup": plain["cpu_s"] / ours["cpu_s"],
        "speedup_wall": plain["wall_s"] / ours["wall_s"],
        "protocol_ratio": ours["cpu_all_s"] / ours["cpu_s"],
        "gb_for_5000": ours["table_bytes"] / options.num_images * 5000 / 1e9,
        "growth": ours["table_bytes"] / ours["half_table_bytes"],
        "max_difference": max(abs(ours[key] - plain[key]) for key in ("PQ", "box_AP", "mask_AP")),
        "ours": ours,
        "plain": plain,
    }
    for key, unit in (
        ("cpu_s", "s CPU"),
        ("wall_s", "s wall"),
        ("peak_growth_mb", "MB peak above start"),
        ("PQ", "PQ"),
    ):
        print(f"{unit:>22}: plain {plain[key]:9.2f}   ours {ours[key]:9.2f}")
    print(
        f"ours: pass {ours['pass_s']:.2f} s, one protocol {ours['one_protocol_s']:.2f} s, all {ours['all_protocols_s']:.2f} s"
    )
    promises = {
        f"at least {MIN_SPEEDUP:g} times faster": figures["speedup"] >= MIN_SPEEDUP,
        "equal scores": figures["max_difference"] < 1e-9,
        "all protocols under twice one": figures["protocol_ratio"] < MAX_PROTOCOL_RATIO,
        f"under 1 GB above the start at {options.num_images} images": ours["peak_growth_mb"] < MAX_GROWTH_MB,
        "tables of 5000 images under 1 GB": figures["gb_for_5000"] * 1e9 < MAX_BYTES,
        "tables grow linearly": figures["growth"] < 2.2,
    }
    for promise, kept in promises.items():
        print(f"{'kept  ' if kept else 'MISSED'} {promise}")
    print(json.dumps(figures))
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
