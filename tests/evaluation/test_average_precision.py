"""AP and AR against pycocotools' COCOeval, array by array."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from score_oracles import official_coco_eval
from u2seg.evaluation.metrics.average_precision import accumulate, match_detections
from u2seg.evaluation.scoring import instance_rows
from u2seg.evaluation.tables.ground_truth import InstanceGroundTruth
from u2seg.evaluation.tables.image_tables import Regions, image_tables, instance_blocks
from u2seg.evaluation.tables.segment_tables import TableSpace, concatenate_tables
from u2seg.structures.label_space import LabelSpace

NUM_CATEGORIES = 6


def random_regions(rng, size, count, like=None):
    """Boxes with elliptic masks; near those of ``like`` two times in three."""
    height, width = size
    boxes, masks, labels = [], [], []
    yy, xx = np.mgrid[:height, :width]
    for _ in range(count):
        if like is not None and len(like.labels) and rng.random() < 0.66:
            k = rng.integers(len(like.labels))
            x, y, w, h = np.maximum(like.boxes_xywh[k] + rng.integers(-4, 5, 4), 1)
            label = like.labels[k] if rng.random() < 0.7 else rng.integers(NUM_CATEGORIES - 1)
        else:
            w, h = rng.integers(3, width), rng.integers(3, height)
            x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            label = rng.integers(NUM_CATEGORIES - 1)  # the last category never occurs
        masks.append(((xx - x - w / 2) / w * 2) ** 2 + ((yy - y - h / 2) / h * 2) ** 2 <= 1)
        boxes.append([x, y, w, h])
        labels.append(label)
    masks = np.array(masks, bool).reshape(-1, height, width)
    crowds = rng.random(count) < 0.15
    return Regions(
        labels=np.array(labels, np.int64),
        boxes_xywh=np.array(boxes, np.float64).reshape(-1, 4),
        masks=masks,
        scores=np.round(rng.random(count), 2),  # ties
        crowds=crowds,
        areas=masks.sum((1, 2)).astype(np.float64),
    )


def random_case(seed, num_images=40, detections=30):
    rng = np.random.default_rng(seed)
    names = tuple(map(str, range(NUM_CATEGORIES)))
    space = TableSpace("x", NUM_CATEGORIES, 1, LabelSpace(tuple(range(1, 7)), (), names, ()), ("box", "mask"))
    parts, gt, results = [], {"images": [], "annotations": [], "info": {}}, []
    gt["categories"] = [{"id": i + 1, "name": str(i)} for i in range(NUM_CATEGORIES)]
    for image_id in range(1, num_images + 1):
        size = tuple(int(v) for v in rng.integers(30, 180, 2))
        objects = random_regions(rng, size, int(rng.integers(0, 8)))
        found = random_regions(rng, size, int(rng.integers(0, detections)), objects)
        parts.append(image_tables(space, image_id, size, **instance_blocks(found, objects)))
        gt["images"].append({"id": image_id, "height": size[0], "width": size[1]})
        for k in range(len(objects.labels)):
            gt["annotations"].append(
                {
                    "id": len(gt["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(objects.labels[k]) + 1,
                    "bbox": objects.boxes_xywh[k].tolist(),
                    "area": float(objects.areas[k]),
                    "iscrowd": int(objects.crowds[k]),
                    "segmentation": mask_utils.encode(np.asfortranarray(objects.masks[k].astype(np.uint8))),
                }
            )
        results += [
            {
                "image_id": image_id,
                "category_id": int(found.labels[k]) + 1,
                "bbox": found.boxes_xywh[k].tolist(),
                "score": float(found.scores[k]),
                "segmentation": mask_utils.encode(np.asfortranarray(found.masks[k].astype(np.uint8))),
            }
            for k in range(len(found.labels))
        ]
    return concatenate_tables(parts), gt, results


def ours(tables, kind, max_detections, one_class=False):
    labels, objects = tables.detections["label"], tables.objects["label"]
    count = NUM_CATEGORIES
    if one_class:
        labels, objects, count = labels * 0, objects * 0, 1
    rows = instance_rows(tables, kind, labels, np.ones(len(labels), bool), objects, count)
    return accumulate(match_detections(rows, max_detections))


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("max_detections", [(1, 10, 100), (1, 2, 5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_arrays_equal_pycocotools(kind, max_detections, seed):
    tables, gt, results = random_case(seed)
    if kind == "mask":  # with boxes in the results, pycocotools takes the areas of the boxes
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    official = official_coco_eval(gt, results, {"box": "bbox", "mask": "segm"}[kind], max_detections)
    curves = ours(tables, kind, max_detections)
    assert curves.summary()["AP"] > 2
    np.testing.assert_array_equal(curves.precision, official.eval["precision"])
    np.testing.assert_array_equal(curves.recall, official.eval["recall"])


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_class_agnostic_equals_pycocotools_with_one_category(kind):
    tables, gt, results = random_case(2)
    gt["categories"] = gt["categories"][:1]
    for row in [*gt["annotations"], *results]:
        row["category_id"] = 1
        if kind == "mask" and "score" in row:
            del row["bbox"]
    official = official_coco_eval(gt, results, {"box": "bbox", "mask": "segm"}[kind])
    curves = ours(tables, kind, (1, 10, 100), one_class=True)
    np.testing.assert_array_equal(curves.precision, official.eval["precision"])
    np.testing.assert_array_equal(curves.recall, official.eval["recall"])


def test_objects_marked_ignore_count_as_with_pycocotools(tmp_path):
    # pycocotools overwrites the mark with ``iscrowd``: the object that is not found costs half of the recall.
    box = {"bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0, "image_id": 1, "category_id": 1}
    gt = {
        "info": {},
        "images": [{"id": 1, "height": 20, "width": 40}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{**box, "id": 1}, {**box, "id": 2, "bbox": [20, 0, 10, 10], "ignore": 1}],
    }
    official = official_coco_eval(gt, [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 1.0}], "bbox")
    path = tmp_path / "ground truth.json"
    path.write_text(json.dumps(gt))
    assert len(InstanceGroundTruth(path).read(1).labels) == 2
    assert official.eval["recall"][0, 0, 0, -1] == 0.5


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_polygons_and_crowds_perturbed_equal_pycocotools(kind, synthetic_coco):
    content = json.loads(synthetic_coco.instances_json.read_text())
    gt = InstanceGroundTruth(synthetic_coco.instances_json)
    names = tuple(category["name"] for category in content["categories"])
    space = TableSpace("mini", len(names), 1, gt.space, ("box", "mask"))
    rng = np.random.default_rng(0)
    parts, results = [], []
    for image in content["images"]:
        objects = gt.read(image["id"])
        count = len(objects.labels)
        picked = rng.integers(count, size=2 * count) if count else np.zeros(0, int)
        masks = np.array([np.roll(objects.masks[k], tuple(rng.integers(-9, 10, 2)), (0, 1)) for k in picked], bool)
        masks = masks.reshape(-1, *objects.masks.shape[1:])
        wrong = rng.random(len(picked)) < 0.2
        found = Regions(
            labels=np.where(wrong, rng.integers(len(names), size=len(picked)), objects.labels[picked]),
            boxes_xywh=objects.boxes_xywh[picked] + rng.integers(0, 9, (len(picked), 4)),
            masks=masks,
            scores=np.round(rng.random(len(picked)), 2),
        )
        parts.append(image_tables(space, image["id"], masks.shape[1:], **instance_blocks(found, objects)))
        for k in range(len(picked)):
            result = {
                "image_id": image["id"],
                "category_id": gt.space.thing_dataset_ids[found.labels[k]],
                "score": float(found.scores[k]),
                "bbox": found.boxes_xywh[k].tolist(),
                "segmentation": mask_utils.encode(np.asfortranarray(masks[k].astype(np.uint8))),
            }
            results.append({key: v for key, v in result.items() if kind == "box" or key != "bbox"})
    official = official_coco_eval(content, results, {"box": "bbox", "mask": "segm"}[kind])
    tables = concatenate_tables(parts)
    labels = tables.detections["label"]
    rows = instance_rows(tables, kind, labels, labels >= 0, tables.objects["label"], len(names))
    curves = accumulate(match_detections(rows))
    assert curves.summary()["AP"] > 5
    np.testing.assert_array_equal(curves.precision, official.eval["precision"])
    np.testing.assert_array_equal(curves.recall, official.eval["recall"])


def test_ground_truth_of_which_some_has_masks_is_refused(synthetic_coco, tmp_path):
    content = json.loads(Path(synthetic_coco.instances_json).read_text())
    del content["annotations"][3]["segmentation"]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    message = r"instances\.json: annotations\[3\] has no segmentation, annotations\[0\] has one; either all"
    with pytest.raises(ValueError, match=message):
        InstanceGroundTruth(path)
