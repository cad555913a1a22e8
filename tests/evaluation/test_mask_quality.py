import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from u2seg.data.formats.mask_shards import write_shard
from u2seg.evaluation.metrics.mask_quality import evaluate_masks, format_quality
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.manifest import open_stage, shard_path


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def box(top, left, height, width, size=(60, 90)):
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.fixture
def gt(tmp_path):
    """Two images; three objects of two categories, one of which is a crowd."""
    masks = [(7, box(0, 0, 40, 40), 1, 0), (7, box(0, 45, 40, 40), 2, 0), (9, box(10, 10, 20, 30), 2, 0)]
    masks.append((9, box(40, 40, 20, 40), 1, 1))
    annotations = [
        {
            "id": index + 1,
            "image_id": image_id,
            "category_id": category,
            "iscrowd": crowd,
            "area": int(mask.sum()),
            "bbox": coco_mask.toBbox(rle(mask)).tolist(),
            "segmentation": rle(mask),
        }
        for index, (image_id, mask, category, crowd) in enumerate(masks)
    ]
    images = [{"id": i, "file_name": f"{name}.jpg", "height": 60, "width": 90} for i, name in ((7, "a"), (9, "b"))]
    categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
    path = tmp_path / "ground truth.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def write_results(path, results):
    rows = [{"image_id": i, "category_id": 1, "segmentation": rle(mask), "score": s} for i, mask, s in results]
    path.write_text(json.dumps(rows))
    return path


def test_hand_written_case(gt, tmp_path):
    # Exact masks of both objects of image 7, whatever their category; nothing for the object of image 9; a false one that scores
    # least. Precision is 1 up to recall 2/3, so AP = 67 of the 101 recall levels 0, .01, ..., 1 (0 to .66), and AR = 2/3.
    results = [(7, box(0, 0, 40, 40), 0.9), (7, box(0, 45, 40, 40), 0.8), (9, box(40, 0, 10, 10), 0.1)]
    got = evaluate_masks(write_results(tmp_path / "results.json", results), gt)
    for kind in ("segm", "bbox"):
        assert got[kind]["AP"] == pytest.approx(100 * 67 / 101)
        assert got[kind]["AR100"] == pytest.approx(100 * 2 / 3)
        assert got[kind]["AR1"] == pytest.approx(100 / 3)
    counts = {"images": 2, "objects": 3, "images_without_prediction": 0, "predictions": 3, "left_out": 0}
    assert got["counts"] == counts
    assert "3 objects in 2 images; 0 of the images have no prediction" in format_quality(got)


def test_a_mask_directory_equals_its_results(gt, tmp_path):
    # The directory's ids differ from COCO's; its file names are COCO's.
    first, second = [box(0, 0, 40, 38), box(2, 45, 30, 40)], [box(10, 10, 20, 25)]
    records = [
        ImageMasks(
            image_id,
            name,
            60,
            90,
            tuple(rle(mask)["counts"].encode() for mask in masks),
            np.asarray(scores, np.float32),
            np.zeros(len(masks), np.float32),
            np.ones(len(masks), np.float32),
            np.zeros((len(masks), 2), np.float32),
        )
        for image_id, name, masks, scores in ((1, "a.jpg", first, [0.75, 0.5]), (2, "b.jpg", second, [0.25]))
    ]
    records.append(ImageMasks(3, "broken.jpg", error="the file is empty (0 bytes)"))
    write_shard(shard_path(tmp_path / "masks", 0), records)
    results = [(7, first[0], 0.75), (7, first[1], 0.5), (9, second[0], 0.25)]
    expected = evaluate_masks(write_results(tmp_path / "results.json", results), gt)
    got = evaluate_masks(tmp_path / "masks", gt)
    for kind in ("segm", "bbox"):
        assert got[kind] == pytest.approx(expected[kind], nan_ok=True)
    assert got["counts"] == expected["counts"]
    assert evaluate_masks(tmp_path, gt)["segm"] == pytest.approx(got["segm"], nan_ok=True)  # the label directory


def test_equals_pycocotools_summary(gt, tmp_path):
    rng = np.random.default_rng(0)
    results = [
        (int(rng.choice([7, 9])), box(*rng.integers(0, 30, 2), *rng.integers(5, 45, 2)), float(rng.random()))
        for _ in range(40)
    ]
    results += [(7, box(1, 1, 38, 40), 0.6), (9, box(10, 12, 20, 30), 0.7)]
    path = write_results(tmp_path / "results.json", results)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(gt))
        evaluator = COCOeval(coco, coco.loadRes(str(path)), "segm")
        evaluator.params.useCats = 0
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    got = evaluate_masks(path, gt)["segm"]
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"]
    expected = [100 * value if value >= 0 else float("nan") for value in evaluator.stats[:9]]
    assert [got[name] for name in names] == pytest.approx(expected, nan_ok=True)


def test_a_coco_dataset_without_scores_and_with_polygons(gt, tmp_path):
    annotations = [
        {"image_id": 7, "category_id": 1, "segmentation": [[0, 0, 40, 0, 40, 40, 0, 40]]},
        {"image_id": 7, "category_id": 1, "segmentation": rle(box(0, 45, 40, 40))},
        {"image_id": 1000, "category_id": 1, "segmentation": [[0, 0, 40, 0, 40, 40, 0, 40]]},
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": [], "annotations": annotations}))
    got = evaluate_masks(path, gt)
    assert got["segm"]["AR100"] == pytest.approx(100 * 2 / 3)
    assert got["counts"]["left_out"] == 1


def test_no_predictions_score_zero(gt, tmp_path):
    got = evaluate_masks(write_results(tmp_path / "results.json", []), gt)
    assert got["segm"]["AP"] == 0
    assert got["bbox"]["AR100"] == 0
    assert got["counts"]["images_without_prediction"] == 2


def test_a_directory_without_masks_is_refused(gt, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no masks: expected a label directory with masks/"):
        evaluate_masks(tmp_path, gt)
    clusters = open_stage(tmp_path / "clusters", "clusters", {})
    shard_path(clusters, 0).write_bytes(b"another stage's shard")
    with pytest.raises(FileNotFoundError, match="clusters holds no masks"):
        evaluate_masks(clusters, gt)


def test_clear_errors(gt, tmp_path):
    path = write_results(tmp_path / "results.json", [(1, box(0, 0, 4, 4), 1.0)])
    with pytest.raises(ValueError, match="none of the 1 predictions in .* belongs to an image"):
        evaluate_masks(path, gt)
    path.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="neither a list of COCO results nor a COCO dataset"):
        evaluate_masks(path, gt)
    path.write_text('[{"image_id": 7, "bbox": [0, 0, 1, 1]}]')
    with pytest.raises(ValueError, match=r"entry\[0\] has no 'segmentation'"):
        evaluate_masks(path, gt)


def test_ground_truth_without_crowd_flags_and_with_boxes_alone(gt, tmp_path):
    """iscrowd may be absent, and so may masks; what masks there are is not scored where some are missing."""
    results = write_results(tmp_path / "results.json", [(7, box(0, 0, 40, 40), 0.9), (9, box(10, 10, 20, 30), 0.8)])
    content = json.loads(gt.read_text())
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    gt.write_text(json.dumps(content))
    expected = evaluate_masks(results, gt)
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    gt.write_text(json.dumps(content))
    assert json.dumps(evaluate_masks(results, gt)) == json.dumps(expected)  # NaN equals NaN in text alone
    del content["annotations"][1]["segmentation"]
    gt.write_text(json.dumps(content))
    found = evaluate_masks(results, gt)
    assert json.dumps(found) == json.dumps({"bbox": expected["bbox"], "counts": expected["counts"]})
    text = format_quality(found)
    assert "boxes alone are scored: not every annotation of the ground truth has a mask" in text and "segm" not in text
