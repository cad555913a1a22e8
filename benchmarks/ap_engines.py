#!/usr/bin/env python
"""Which engine computes AP: ours on segment tables, pycocotools, faster-coco-eval or hotcoco.

    python benchmarks/ap_engines.py [--pictures 100] [--protocols 3]

All score the same detections (100 a picture, boxes and masks, 80 categories; the pictures of benchmarks/evaluation.py) once for each
of --protocols label maps, class-aware, plus once class-agnostic. All start from the model's masks as arrays: the engines need them as
run lengths and compute the IoUs of every run anew; ours takes the IoUs that the inference pass left in the tables. Both preparations
are counted, and shown by themselves. Loading files is not timed.

Promises: our arrays equal pycocotools' to the last bit, and from the model's masks on ours is the fastest. Engines that are
not installed are left out. Exits with status 1 when a promise is missed. The last line holds the figures as JSON.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from detectron2.data import MetadataCatalog
from evaluation import THING_CATEGORIES, encode, samples, write_truth
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from u2seg.evaluation import ScoreSettings
from u2seg.evaluation.average_precision import accumulate, match_detections
from u2seg.evaluation.evaluator import PanopticEvaluator
from u2seg.evaluation.scoring import instance_rows
from u2seg.evaluation.tables import concatenate_tables


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


def run_engine(classes, truth: Path, runs: list[tuple[str, bool, list[dict]]]) -> tuple[float, list]:
    """Returns CPU seconds and, for each run, (precision, recall)."""
    seconds, arrays = 0.0, []
    for kind, use_categories, results in runs:
        with contextlib.redirect_stdout(io.StringIO()):
            ground_truth = classes[0](str(truth))
            evaluation = classes[1](ground_truth, ground_truth.loadRes([dict(r) for r in results]), kind)
            evaluation.params.useCats = use_categories
            start = time.process_time()
            evaluation.evaluate()
            evaluation.accumulate()
            seconds += time.process_time() - start
        arrays.append(tuple(np.asarray(evaluation.eval[key]) for key in ("precision", "recall")))
    return seconds, arrays


def run_ours(tables, maps: list[np.ndarray]) -> tuple[float, list]:
    """Returns CPU seconds and, for each run, (precision, recall), from tables."""
    arrays, start = [], time.process_time()
    for lookup in [*maps, None]:
        labels = tables.detections["label"] * 0 if lookup is None else lookup[tables.detections["label"]]
        objects = tables.objects["label"] * 0 if lookup is None else tables.objects["label"]
        count = 1 if lookup is None else THING_CATEGORIES
        for kind in ("box", "mask"):
            curves = accumulate(match_detections(instance_rows(tables, kind, labels, labels >= 0, objects, count)))
            arrays.append((curves.precision, curves.recall))
    return time.process_time() - start, arrays


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--protocols", type=int, default=3)
    parser.add_argument("--things", type=int, default=800)
    parser.add_argument("--stuff", type=int, default=27)
    options = parser.parse_args()
    maps = [np.random.default_rng(seed).permutation(options.things) // 10 for seed in range(options.protocols)]
    maps[0] = np.arange(options.things) // 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_truth(folder, options)
        MetadataCatalog.get("engines").set(json_file=str(folder / "instances.json"))
        evaluator = PanopticEvaluator(
            "engines", None, num_things=options.things, num_stuff=options.stuff, settings=ScoreSettings(())
        )
        rows, table_seconds, encode_seconds = [], 0.0, 0.0
        for sample in samples(options):
            start = time.process_time()
            evaluator.process([{"image_id": sample.image_id}], [{"instances": sample.output["instances"]}])
            table_seconds += time.process_time() - start
            found = sample.output["instances"]
            boxes = found.pred_boxes.tensor.numpy().astype(float)
            start = time.process_time()
            run_lengths = encode(found)
            encode_seconds += time.process_time() - start
            rows += [
                (
                    sample.image_id,
                    label,
                    [b[0], b[1], b[2] - b[0], b[3] - b[1]],
                    score,
                    {**rle, "counts": rle["counts"].decode()},
                )
                for label, b, score, rle in zip(found.pred_classes.tolist(), boxes, found.scores.tolist(), run_lengths)
            ]
        runs = []
        for lookup in [*maps, None]:
            results = [
                {
                    "image_id": image,
                    "category_id": 1 if lookup is None else int(lookup[label]) + 1,
                    "bbox": box,
                    "score": score,
                    "segmentation": rle,
                }
                for image, label, box, score, rle in rows
            ]
            plain = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
            runs += [("bbox", lookup is not None, results), ("segm", lookup is not None, plain)]
        seconds, without, arrays = {}, {}, {}
        for engine, classes in engines().items():
            alone, arrays[engine] = run_engine(classes, folder / "instances.json", runs)
            seconds[engine], without[engine] = alone + encode_seconds, alone
        own, arrays["ours"] = run_ours(concatenate_tables(evaluator._parts), maps)
    seconds["ours"], without["ours"] = own + table_seconds, own
    figures = {}
    for engine in seconds:
        differences = [
            max(float(np.abs(a - b).max()) if a.shape == b.shape else np.inf for a, b in zip(got, want))
            for got, want in zip(arrays[engine], arrays["pycocotools"])
        ]
        figures[engine] = {"cpu_s": seconds[engine], "runs_s": without[engine], "max_difference": max(differences)}
        print(
            f"{engine:>18}: {seconds[engine]:8.2f} s CPU, the {len(runs)} runs alone {without[engine]:8.2f} s, largest difference "
            f"from pycocotools {max(differences):.2g}"
        )
    promises = {
        "our arrays equal pycocotools'": figures["ours"]["max_difference"] == 0,
        "from the model's masks on, ours is the fastest": min(seconds, key=seconds.get) == "ours",
    }
    for promise, kept in promises.items():
        print(f"{'kept  ' if kept else 'MISSED'} {promise}")
    print(json.dumps(figures))
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
