#!/usr/bin/env python
"""Which engine computes AP: ours on segment tables, pycocotools, faster-coco-eval or hotcoco.

    python benchmarks/ap_engines.py [--num-images 100] [--protocols 3]
    python benchmarks/ap_engines.py --ground-truth INSTANCES.json [--results RESULTS.json]

The first form scores 100 detections an image with boxes and masks in 80 categories, on the images of benchmarks/evaluation.py, once
for each of --protocols label maps, class-aware, plus once class-agnostic. The second scores a COCO results JSON (run lengths, boxes,
or both) against a COCO instances JSON, class-aware and class-agnostic. Without --results, the ground truth perturbed is scored:
--detections an image, each object in turn shifted, eroded and dilated, a fifth of them in a random category, then ellipses anywhere,
scores of two digits so that there are ties; all from --seed.

All start from the model's masks as arrays: the engines need them as run lengths and compute the IoUs of every run anew; ours takes
the IoUs that the inference pass left in the tables. Both preparations are counted, and shown by themselves. Where the masks come from
a results file, the time from its run lengths on is shown as well, which adds their decoding to ours and spares the engines the
encoding. Loading files is not timed. CPU seconds of one thread, the least of --repeat rounds.

Promises: our arrays equal pycocotools' to the last bit, and from the model's masks on ours is the fastest (where there are boxes alone,
nothing is promised: without masks to encode hotcoco is faster). Ours computes precision and recall, from which every metric comes; the
engines' third array, the score at each recall, is compared among them. Engines that are not installed are left out. Exits with
status 1 when a promise is missed. The last line holds the figures as JSON.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAYON_NUM_THREADS", "1")  # hotcoco's threads

import cv2
import numpy as np
from evaluation import Clock, samples, write_gt
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from u2seg.evaluation.metrics.average_precision import accumulate, match_detections
from u2seg.evaluation.scoring import instance_rows
from u2seg.evaluation.tables.ground_truth import InstanceGroundTruth
from u2seg.evaluation.tables.image_tables import Regions, image_tables, instance_blocks
from u2seg.evaluation.tables.segment_tables import SegmentTables, TableSpace, concatenate_tables

ARRAYS = ("precision", "recall", "scores")
WRONG_CATEGORIES = 0.2  # share of the perturbed detections


@dataclass(frozen=True)
class Case:
    """What is scored.

    Attributes:
        ground truth: COCO instances JSON.
        maps: int (clusters,) each, category index of every cluster; one class-aware run each.
        images: called with a clock that takes the time of decoding, yields (image id, detections) of every image.
    """

    gt: Path
    maps: list[np.ndarray]
    images: Callable[[Clock], Iterable[tuple[int, Regions]]]


@dataclass(frozen=True)
class Prepared:
    """The detections in both forms, and the CPU seconds that each took.

    Attributes:
        tables: for ours.
        runs: for the engines: (kind, whether categories count, COCO results).
        kinds: "box" and "mask", or "box" alone.
        tables_s, encode_s, decode_s: of the tables, of masks to run lengths, and of a results file's run lengths to masks.
    """

    tables: SegmentTables
    runs: list[tuple[str, bool, list[dict]]]
    kinds: tuple[str, ...]
    tables_s: float
    encode_s: float
    decode_s: float


# --- what is scored --------------------------------------------------------------------------------------------------------------


def synthetic_case(directory: Path, options: argparse.Namespace) -> Case:
    """Returns the images of benchmarks/evaluation.py, whose ground truth it writes to ``directory``."""

    def images(clock: Clock):
        for sample in samples(options):
            found = sample.output["instances"]
            boxes = found.pred_boxes.tensor.numpy().astype(float)
            boxes[:, 2:] -= boxes[:, :2]
            labels, scores = found.pred_classes.numpy(), found.scores.numpy().astype(float)
            yield sample.image_id, Regions(labels, boxes, found.pred_masks.numpy(), scores)

    write_gt(directory, options)
    maps = [np.random.default_rng(seed).permutation(options.things) // 10 for seed in range(options.protocols)]
    maps[0] = np.arange(options.things) // 10
    return Case(directory / "instances.json", maps, images)


def file_case(gt: Path, results: Path) -> Case:
    """Returns what two COCO files hold; clusters are the categories.

    Raises:
        ValueError: the results are no list of COCO results, or not of the ground truth's images and categories.
    """
    space, found = InstanceGroundTruth(gt).space, json.loads(results.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in json.loads(gt.read_text())["images"]}
    if not isinstance(found, list) or not all("bbox" in row or "segmentation" in row for row in found):
        raise ValueError(f"{results} must hold a list of COCO results, each with bbox or segmentation; make it one")
    for key, known in (("image_id", sizes), ("category_id", space.thing_contiguous_ids)):
        foreign = sorted({row[key] for row in found} - set(known))
        if foreign:
            raise ValueError(
                f"{results} has {key} {foreign[:5]}, which {gt} lacks; give the ground truth of these results"
            )
    by_image = defaultdict(list)
    for row in found:
        by_image[row["image_id"]].append(row)
    with_masks = all("segmentation" in row for row in found)

    def images(clock: Clock):
        for image_id, size in sizes.items():
            rows = by_image[image_id]
            masks = None
            if with_masks:
                with clock:
                    masks = np.array([mask_utils.decode(row["segmentation"]) for row in rows], bool).reshape(-1, *size)
            boxes = [row["bbox"] if "bbox" in row else mask_utils.toBbox(row["segmentation"]) for row in rows]
            labels = [space.thing_contiguous_ids[row["category_id"]] for row in rows]
            scores = np.array([row["score"] for row in rows], float)
            yield image_id, Regions(np.array(labels, int), np.array(boxes, float).reshape(-1, 4), masks, scores)

    return Case(gt, [np.arange(space.num_things)], images)


def perturbed_results(gt: Path, per_image: int, seed: int) -> list[dict]:
    """Returns COCO results made of a ground truth, ``per_image`` for each image; without masks where it has none."""
    reader, rng, results = InstanceGroundTruth(gt), np.random.default_rng(seed), []
    categories = reader.space.thing_dataset_ids
    for image in json.loads(gt.read_text())["images"]:
        objects, size = reader.read(image["id"]), (image["height"], image["width"])
        masks = [rectangle(box, size) for box in objects.boxes_xywh] if objects.masks is None else objects.masks
        ways = (shifted, eroded, dilated)
        for number in range(per_image):
            way, index = divmod(number, max(len(masks), 1))
            near = way < len(ways) and len(masks) > 0
            mask = ways[way](masks[index], rng) if near else anywhere(size, rng)
            wrong = not near or rng.random() < WRONG_CATEGORIES
            label = rng.integers(len(categories)) if wrong else objects.labels[index]
            box = np.array(cv2.boundingRect(mask.astype(np.uint8)), float) + rng.uniform(-1.5, 1.5, 4)
            row = {"image_id": image["id"], "category_id": int(categories[label]), "score": round(rng.random(), 2)}
            row["bbox"] = [round(float(v), 2) for v in (*box[:2], *np.maximum(box[2:], 1))]
            if objects.masks is not None:
                row["segmentation"] = run_lengths(mask)
            results.append(row)
    return results


def rectangle(box_xywh: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a box's pixels, bool (height, width)."""
    mask = np.zeros(size, bool)
    x, y, width, height = np.rint(box_xywh).astype(int)
    mask[max(y, 0) : y + height, max(x, 0) : x + width] = True
    return mask


def anywhere(size: tuple[int, int], rng) -> np.ndarray:
    """Returns a filled ellipse of any place and size, bool (height, width)."""
    height, width = size
    canvas = np.zeros(size, np.uint8)
    center = int(rng.integers(width)), int(rng.integers(height))
    axes = int(rng.integers(1, width // 4 + 2)), int(rng.integers(1, height // 4 + 2))
    cv2.ellipse(canvas, center, axes, float(rng.integers(180)), 0, 360, 1, -1)
    return canvas.astype(bool)


def shifted(mask: np.ndarray, rng) -> np.ndarray:
    """Returns a mask moved by up to 9 pixels."""
    return np.roll(mask, tuple(rng.integers(-9, 10, 2)), (0, 1))


def eroded(mask: np.ndarray, rng, change=cv2.erode) -> np.ndarray:
    """Returns a mask less a border of 1 to 4 pixels; as it is where nothing would be left."""
    width = 2 * int(rng.integers(1, 5)) + 1
    changed = change(mask.astype(np.uint8), np.ones((width, width), np.uint8)).astype(bool)
    return changed if changed.any() else mask


dilated = partial(eroded, change=cv2.dilate)


def run_lengths(mask: np.ndarray) -> dict:
    """Returns a mask as COCO's JSON files have it, made as Detectron2's COCO evaluator does."""
    rle = mask_utils.encode(np.array(mask[:, :, None], order="F", dtype=np.uint8))[0]
    return {**rle, "counts": rle["counts"].decode()}


# --- engines ---------------------------------------------------------------------------------------------------------------------


def engines() -> dict:
    """Returns name -> (class of the ground truth, class of the evaluation) for the engines that are installed."""
    found = {"pycocotools": (COCO, COCOeval)}
    with contextlib.suppress(ImportError):
        import faster_coco_eval

        found["faster-coco-eval"] = (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster)
    with contextlib.suppress(ImportError):
        import hotcoco

        found["hotcoco"] = (hotcoco.COCO, hotcoco.COCOeval)
    return found


def prepare(case: Case) -> Prepared:
    """Returns the detections as tables and as COCO results, timed."""
    reader = InstanceGroundTruth(case.gt)
    categories = reader.space.thing_dataset_ids
    kinds = ("box", "mask") if reader.has_masks else ("box",)
    tables, encode, decode = Clock(), Clock(), Clock()
    parts, rows = [], []
    for image_id, found in case.images(decode):
        if found.masks is None:
            kinds = ("box",)
        with tables:
            objects = reader.read(image_id)
            space = TableSpace("engines", len(case.maps[0]), 1, reader.space, kinds)
            size = (1, 1) if found.masks is None else found.masks.shape[1:]
            parts.append(image_tables(space, image_id, size, **instance_blocks(found, objects)))
        with encode:
            masks = [None] * len(found.labels) if found.masks is None else [run_lengths(m) for m in found.masks]
        rows += zip(
            [image_id] * len(masks), found.labels.tolist(), found.boxes_xywh.tolist(), found.scores.tolist(), masks
        )
    runs = []
    for lookup in [*case.maps, None]:
        results = [
            {
                "image_id": image,
                "category_id": categories[0 if lookup is None else lookup[label]],
                "score": score,
                "segmentation": rle,
            }
            for image, label, _, score, rle in rows
        ]
        boxes = [{**r, "bbox": row[2]} for r, row in zip(results, rows)]
        boxes = [{key: value for key, value in r.items() if value is not None} for r in boxes]
        runs += [("bbox", lookup is not None, boxes), ("segm", lookup is not None, results)][: len(kinds)]
    with tables:
        joined = concatenate_tables(parts)
    return Prepared(joined, runs, kinds, tables.cpu, encode.cpu, decode.cpu)


def run_engine(classes, gt: Path, runs: list[tuple[str, bool, list[dict]]]) -> tuple[float, list[dict]]:
    """Returns CPU seconds and, for each run, the arrays by name."""
    seconds, arrays = 0.0, []
    for kind, use_categories, results in runs:
        with contextlib.redirect_stdout(io.StringIO()):
            ground_truth = classes[0](str(gt))
            evaluation = classes[1](ground_truth, ground_truth.loadRes([dict(r) for r in results]), kind)
            evaluation.params.useCats = use_categories
            start = time.process_time()
            evaluation.evaluate()
            evaluation.accumulate()
            seconds += time.process_time() - start
        arrays.append({name: np.asarray(evaluation.eval[name]) for name in ARRAYS})
    return seconds, arrays


def run_ours(prepared: Prepared, maps: list[np.ndarray]) -> tuple[float, list[dict]]:
    """Returns CPU seconds and, for each run, the arrays by name, from tables."""
    tables, arrays, start = prepared.tables, [], time.process_time()
    for lookup in [*maps, None]:
        labels = tables.detections["label"] * 0 if lookup is None else lookup[tables.detections["label"]]
        objects = tables.objects["label"] * 0 if lookup is None else tables.objects["label"]
        count = 1 if lookup is None else tables.space.categories.num_things
        for kind in prepared.kinds:
            curves = accumulate(match_detections(instance_rows(tables, kind, labels, labels >= 0, objects, count)))
            arrays.append({"precision": curves.precision, "recall": curves.recall})
    return time.process_time() - start, arrays


def measure(case: Case, repeat: int) -> tuple[dict, dict, Prepared]:
    """Returns engine -> seconds by name, engine -> arrays of each run, and what was scored."""
    seconds, arrays = defaultdict(lambda: defaultdict(list)), {}
    for _ in range(repeat):
        prepared = prepare(case)
        for engine, classes in engines().items():
            alone, arrays[engine] = run_engine(classes, case.gt, prepared.runs)
            seconds[engine]["cpu_s"].append(alone + prepared.encode_s)
            seconds[engine]["runs_s"].append(alone)
            if prepared.decode_s:
                seconds[engine]["from_run_lengths_s"].append(alone)
        alone, arrays["ours"] = run_ours(prepared, case.maps)
        seconds["ours"]["cpu_s"].append(alone + prepared.tables_s)
        seconds["ours"]["runs_s"].append(alone)
        if prepared.decode_s:
            seconds["ours"]["from_run_lengths_s"].append(alone + prepared.tables_s + prepared.decode_s)
    least = {engine: {name: min(values) for name, values in of.items()} for engine, of in seconds.items()}
    return least, arrays, prepared


def differences(got: list[dict], want: list[dict]) -> dict[str, float]:
    """Returns the largest difference of each array over all runs; infinite where shapes differ."""
    return {
        name: max(
            float(np.abs(a[name] - b[name]).max()) if a[name].shape == b[name].shape else float("inf")
            for a, b in zip(got, want)
        )
        for name in got[0]
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ground-truth", type=Path, help="COCO instances JSON; without it, synthetic images")
    parser.add_argument("--results", type=Path, help="COCO results JSON; without it, the ground truth perturbed")
    parser.add_argument("--detections", type=int, default=100, help="an image, of a perturbed ground truth")
    parser.add_argument("--seed", type=int, default=0, help="of the perturbation")
    parser.add_argument("--repeat", type=int, default=1, help="rounds of which the fastest counts")
    parser.add_argument("--num-images", type=int, default=100, help="synthetic ones")
    parser.add_argument("--protocols", type=int, default=3, help="label maps on synthetic images")
    parser.add_argument("--things", type=int, default=800, help="thing clusters on synthetic images")
    parser.add_argument("--stuff", type=int, default=27, help="stuff clusters on synthetic images")
    options = parser.parse_args()
    if options.results and not options.ground_truth:
        parser.error("--results needs --ground-truth, the COCO instances JSON that they are scored against")
    return options


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if options.ground_truth:
            results = options.results
            if not results:
                results = directory / "results.json"
                found = perturbed_results(options.ground_truth, options.detections, options.seed)
                results.write_text(json.dumps(found))
            case = file_case(options.ground_truth, results)
        else:
            case = synthetic_case(directory, options)
        seconds, arrays, prepared = measure(case, options.repeat)
    print(f"{len(prepared.tables.detections)} detections, {len(prepared.runs)} runs")
    figures = {}
    for engine, times in seconds.items():
        apart = differences(arrays[engine], arrays["pycocotools"])
        figures[engine] = {**times, "max_difference": max(apart.values()), "differences": apart}
        from_file = times.get("from_run_lengths_s")
        print(
            f"{engine:>18}: {times['cpu_s']:7.3f} s CPU, the runs alone {times['runs_s']:7.3f} s"
            + (f", from run lengths {from_file:7.3f} s" if from_file else "")
            + ", largest difference from pycocotools: "
            + ", ".join(f"{name} {value:.2g}" for name, value in apart.items())
        )
    promises = {"our arrays equal pycocotools'": figures["ours"]["max_difference"] == 0}
    if "mask" in prepared.kinds:
        fastest = min(seconds, key=lambda engine: seconds[engine]["cpu_s"])
        promises["from the model's masks on, ours is the fastest"] = fastest == "ours"
    for promise, kept in promises.items():
        print(f"{'kept  ' if kept else 'MISSED'} {promise}")
    print(json.dumps(figures))
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
