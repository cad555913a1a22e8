"""The LUSS evaluator against a slow restatement of the protocol, hand-made cases, and what must not change a score."""

import json
import math
import zipfile
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from luss_toy import make_toy
from scipy.ndimage import binary_erosion
from scipy.optimize import linear_sum_assignment
from u2seg.config import add_u2seg_config
from u2seg.data import register_datasets
from u2seg.evaluation.registries import EVALUATOR_REGISTRY
from u2seg.luss.data.id_maps import LUSS_IGNORE, read_id_map, write_id_map
from u2seg.luss.evaluation.luss_counts import boundary_mask, boundary_width, count_image, count_sweep
from u2seg.luss.evaluation.luss_evaluator import LussEvaluator, label_map_of
from u2seg.luss.evaluation.luss_metrics import (
    MATCHERS,
    co_occurrence,
    identity,
    majority,
    match_clusters,
    one_to_one,
    score,
    sweep_scores,
)

RATIO = 0.03


# --- the protocol, said slowly ---------------------------------------------------------------------------------------------------


def slow_boundary(labels, width):
    """Label v + 1 where a pixel is lost when v's mask is eroded ``width`` times, 0 elsewhere."""
    result = np.zeros(labels.shape, int)
    for value in np.unique(labels):
        mask = np.pad(labels == value, 1)
        eroded = binary_erosion(mask, np.ones((3, 3)), iterations=width)[1:-1, 1:-1]
        result[(labels == value) & ~eroded] = value + 1
    return result


class Pool:
    """Pixels of (prediction, ground truth), one at a time, summed over images."""

    def __init__(self):
        self.true, self.predicted, self.gt = Counter(), Counter(), Counter()

    def add(self, predicted, gt):
        for p, t in zip(predicted.tolist(), gt.tolist()):
            self.predicted[p] += 1
            self.gt[t] += 1
            self.true[t] += p == t

    def mean_iou(self, labels):
        ious = [self.true[v] / (self.predicted[v] + self.gt[v] - self.true[v] + 1e-10) for v in labels]
        return sum(ious) / len(ious) if ious else math.nan

    def mean_iou_where_present(self, labels):
        return self.mean_iou([v for v in labels if self.gt[v]])


def slow_match(images, num_clusters, num_classes):
    together = np.zeros((num_clusters, num_classes))
    for predicted, gt in images:
        valid = gt != LUSS_IGNORE
        for cluster in set(predicted[valid].tolist()) - {0}:
            for label in set(gt[valid].tolist()) - {0}:
                together[cluster - 1, label - 1] += 1
    rows, columns = linear_sum_assignment(-together)
    return {0: 0, **{int(r) + 1: int(c) + 1 for r, c in zip(rows, columns)}}


def size_name(percent):
    return "S" if percent <= 5 else "MS" if percent <= 25 else "ML" if percent <= 50 else "L"


def slow_scores(images, match, num_classes):
    """Every metric, image by image and pixel by pixel; boundary label v + 1 stands for the boundary of v, 0 for none."""
    whole, edges = Pool(), Pool()
    of_size, edges_of_size = defaultdict(Pool), defaultdict(Pool)
    accuracy, f_beta = [], []
    for raw, gt in images:
        predicted = np.array([[match.get(v, -1) for v in row] for row in raw.tolist()])
        scored = gt != LUSS_IGNORE
        width = max(1, round(RATIO * math.hypot(*gt.shape)))
        p, t = predicted[scored], gt[scored]
        p_edge, t_edge = slow_boundary(predicted, width)[scored], slow_boundary(gt, width)[scored]
        whole.add(p, t)
        edges.add(p_edge, t_edge)
        classes_of_size = defaultdict(set)
        for label in set(t.tolist()) - {0}:
            classes_of_size[size_name(math.ceil(Fraction(100 * t.tolist().count(label), len(t))))].add(label)
        # An image counts for a size only if it holds a class of that size; then its "other" counts there as well.
        for size, labels in classes_of_size.items():
            chosen = np.array([v in labels or v == 0 for v in t.tolist()])
            of_size[size].add(p[chosen], t[chosen])
            edges_of_size[size].add(p_edge[chosen], t_edge[chosen])
        areas = [p.tolist().count(label) for label in range(1, num_classes + 1)]
        largest = 1 + areas.index(max(areas))
        accuracy.append(max(areas) > 0 and largest in t)
        common, found, there = ((p != 0) & (t != 0)).sum(), (p != 0).sum(), (t != 0).sum()
        precision, recall = common / max(found, 1), common / max(there, 1)
        f_beta.append(1.3 * precision * recall / (0.3 * precision + recall) if common else 0)
    labels, edge_labels = range(num_classes + 1), range(1, num_classes + 2)
    result = {
        "mIoU": whole.mean_iou(labels),
        "b-mIoU": edges.mean_iou(edge_labels),
        "Acc": np.mean(accuracy),
        "F-beta": np.mean(f_beta),
    }
    for size in ("S", "MS", "ML", "L"):
        result[size] = of_size[size].mean_iou_where_present(labels)
        result[f"B{size}"] = edges_of_size[size].mean_iou_where_present(edge_labels)
    return {name: 100 * float(value) for name, value in result.items()}


# --- images --------------------------------------------------------------------------------------------------------------------


def random_images(count=12, num_classes=5, seed=0, ignore=True):
    """Blocky ground truth with some ignored parts, and predictions that follow it in part, under renamed ids."""
    rng = np.random.default_rng(seed)
    renamed = np.concatenate([[0], 1 + rng.permutation(num_classes)])
    images = []
    for _ in range(count):
        height, width = int(rng.integers(20, 40)), int(rng.integers(30, 60))
        coarse = rng.integers(0, num_classes + 1, (4, 5)) * (rng.random((4, 5)) < 0.6)
        gt = np.kron(coarse, np.ones((height // 4 + 1, width // 5 + 1), int))[:height, :width]
        predicted = np.roll(renamed[gt], tuple(rng.integers(-3, 4, 2)), axis=(0, 1))
        noise = np.kron(rng.random((4, 5)) < 0.2, np.ones((height // 4 + 1, width // 5 + 1), bool))[:height, :width]
        predicted = np.where(noise, rng.integers(0, num_classes + 1), predicted)
        if ignore:
            gt = gt.copy()
            gt[: int(rng.integers(1, 6)), int(rng.integers(0, 10)) :] = LUSS_IGNORE
        images.append((predicted, gt))
    return images


def counts_of(images):
    return np.concatenate([count_image(i, p, t, RATIO) for i, (p, t) in enumerate(images)])


def scores_of(images, num_classes, matching="hungarian"):
    counts = counts_of(images)
    return score(counts, match_clusters(matching, counts, num_classes, num_classes), num_classes).scores


# --- tests -----------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_boundary_is_what_erosion_of_each_label_takes(seed, width):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 4, (5, 6)), np.ones((4, 3), int))[:17, :16]
    labels[:3, 5:] = LUSS_IGNORE
    assert np.array_equal(boundary_mask(labels, width), slow_boundary(labels, width) > 0)


def test_boundary_width_is_three_percent_of_the_diagonal():
    assert boundary_width(375, 500, 0.03) == 19  # 0.03 * 625 = 18.75
    assert boundary_width(10, 10, 0.03) == 1


@pytest.mark.parametrize("seed", range(4))
def test_all_scores_equal_the_slow_restatement(seed):
    images = random_images(seed=seed)
    counts = counts_of(images)
    matched = match_clusters("hungarian", counts, 5, 5)
    match = slow_match(images, 5, 5)
    together = co_occurrence(counts, 5, 5)
    assert sum(together[i, matched[i]] for i in range(5)) == sum(together[k - 1, v - 1] for k, v in match.items() if k)
    expected = slow_scores(images, {0: 0, **{i + 1: int(c) + 1 for i, c in enumerate(matched)}}, 5)
    found = score(counts, matched, 5).scores
    assert set(found) == set(expected) and len(found) == 12
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name


def test_an_image_counted_by_hand():
    # 2 x 4 pixels: ground truth 1 1 0 i / 1 1 0 0, prediction 2 2 2 2 / 2 0 0 0; cluster 2 is class 1, i is left out.
    gt = np.array([[1, 1, 0, LUSS_IGNORE], [1, 1, 0, 0]])
    predicted = np.array([[2, 2, 2, 2], [2, 0, 0, 0]])
    found = score(counts_of([(predicted, gt)]), np.array([1, 0]), 2).scores
    # Class 1: 3 true, 4 predicted, 4 in ground truth: 3 / 5. Other: 2 true, 3 predicted, 3 in ground truth: 2 / 4. Class 2: 0.
    assert found["mIoU"] == pytest.approx(100 * (3 / 5 + 2 / 4 + 0) / 3)
    assert found["Acc"] == 100
    precision, recall = 3 / 4, 3 / 4
    assert found["F-beta"] == pytest.approx(100 * 1.3 * precision * recall / (0.3 * precision + recall))
    # Class 1 has 4 of 7 pixels, 58 %: bin L holds it and other.
    assert found["L"] == pytest.approx(100 * (3 / 5 + 2 / 4) / 2)
    # No image holds a class of another size: there is nothing to score there, other's pixels neither.
    assert all(math.isnan(found[name]) for name in ("S", "MS", "ML", "BS", "BMS", "BML"))
    # Every pixel is within one of the edge: boundary equals area here.
    assert found["b-mIoU"] == pytest.approx(found["mIoU"])


def sized_images():
    """Rectangles of 2 to 91 % of the image, one or two in each, predicted two pixels to the right and one row short."""
    images = []
    for index in range(12):
        height, width = ((5, 8), (14, 20), (25, 36), (38, 48))[index % 4]
        gt, predicted = np.zeros((40, 50), int), np.zeros((40, 50), int)
        gt[:height, :width], predicted[: height - 1, 2 : width + 2] = 1 + index % 5, 1 + index % 5
        if index % 3 == 0:
            gt[-4:, -9:], predicted[-4:, -7:] = 1 + (index + 2) % 5, 1 + (index + 2) % 5
        if index % 5 == 0:
            gt[-12:, :4] = LUSS_IGNORE
        images.append((predicted, gt))
    return images


# What the authors' published scorer (LUSSeg/ImageNet-S, evaluation/metric.py, of March 2022) gave for `sized_images`.
PUBLISHED = {"S": 55.92230, "MS": 81.31727, "ML": 86.70229, "L": 75.61851}


def test_size_bins_equal_the_published_scorers():
    found = score(counts_of(sized_images()), np.arange(5), 5).scores
    for name, value in PUBLISHED.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name


def test_an_image_without_a_class_of_a_size_adds_nothing_to_that_size():
    small, large = np.zeros((20, 20), int), np.zeros((20, 20), int)
    small[:4, :4], large[:18, :18] = 1, 2
    wrong = np.full_like(large, 2)  # "other" is wholly missed where the large class is
    alone = score(counts_of([(small, small)]), np.arange(2), 2).scores
    both = score(counts_of([(small, small), (wrong, large)]), np.arange(2), 2).scores
    assert alone["S"] == both["S"] == pytest.approx(100) and both["L"] == pytest.approx(100 * (324 / 400 + 0) / 2)


def test_the_order_of_the_images_changes_no_score():
    for seed in range(8):
        images = random_images(count=4, seed=seed)
        assert scores_of(images, 5) == pytest.approx(scores_of(images[::-1], 5), nan_ok=True)


@given(st.integers(0, 10_000), st.permutations(range(1, 8)))
@settings(max_examples=40, deadline=None)
def test_renaming_clusters_changes_no_score(seed, names):
    # Few images and more clusters than classes: most sums of the matching are reached in several ways.
    images = random_images(count=4, seed=seed)
    rng = np.random.default_rng(seed)
    images = [(np.where((p > 0) & (rng.random(p.shape) < 0.3), 6 + p % 2, p), t) for p, t in images]
    lookup = np.array([0, *names])
    renamed = [(lookup[p], t) for p, t in images]
    thresholds = np.array([0, 0.5])
    attention = [np.round(rng.random(t.shape), 1) for _, t in images]

    def results(pairs, matching):
        counts = counts_of(pairs)
        matched = match_clusters(matching, counts, 7, 5)
        sweep = np.concatenate(
            [count_sweep(i, p, a, t, thresholds) for i, ((p, t), a) in enumerate(zip(pairs, attention))]
        )
        return score(counts, matched, 5).scores, sweep_scores(sweep, thresholds, 7, 5, MATCHERS[matching])

    for matching in ("hungarian", "majority"):
        scores, curve = results(images, matching)
        other_scores, other_curve = results(renamed, matching)
        assert scores == pytest.approx(other_scores, nan_ok=True)
        assert [row["mIoU"] for row in curve] == pytest.approx([row["mIoU"] for row in other_curve])


def test_a_perfect_prediction_under_other_names_scores_100():
    rename = np.array([0, 4, 1, 5, 2, 3])
    images = [(rename[t], t) for _, t in random_images(ignore=False)]
    found = scores_of(images, 5)
    assert found["mIoU"] == pytest.approx(100) and found["b-mIoU"] == pytest.approx(100)


def test_what_is_predicted_on_ignored_pixels_changes_no_area_score():
    images = random_images()
    changed = [(np.where(t == LUSS_IGNORE, 3, p), t) for p, t in images]
    before, after = scores_of(images, 5), scores_of(changed, 5)
    for name in ("mIoU", "Acc", "F-beta", "S", "MS", "ML", "L"):
        assert before[name] == pytest.approx(after[name], nan_ok=True)


def test_predicting_other_everywhere_has_no_foreground_and_no_accuracy():
    images = [(np.zeros_like(t), t) for _, t in random_images()]
    found = scores_of(images, 5)
    assert found["F-beta"] == 0 and found["Acc"] == 0 and found["mIoU"] > 0


def test_co_occurrence_counts_images_and_not_pixels():
    gt = np.array([[1, 1, 2], [0, LUSS_IGNORE, 0]])
    predicted = np.array([[3, 3, 3], [1, 2, 0]])
    together = co_occurrence(counts_of([(predicted, gt)] * 2), 3, 2)
    # Clusters 1 and 3 are seen with both classes in two images; cluster 2 lies on an ignored pixel only.
    assert together.tolist() == [[2, 2], [0, 0], [2, 2]]


def test_matching_with_more_or_fewer_clusters_than_classes():
    more = np.array([[0, 5], [4, 0], [3, 3]])
    assert one_to_one(more).tolist() == [1, 0, -1]
    assert majority(more).tolist() == [1, 0, 0]
    assert identity(more).tolist() == [0, 1, -1]
    fewer = np.array([[0, 0, 2]])
    assert one_to_one(fewer).tolist() == [2]
    # Without anything in common a complete assignment still pairs them, in order.
    assert one_to_one(np.zeros((3, 3), int)).tolist() == [0, 1, 2]
    assert one_to_one(np.array([[0, 3, 0], [0, 2, 0], [0, 0, 0]])).tolist() == [1, 0, 2]


def test_clusters_beyond_the_classes_count_as_wrong_everywhere():
    images = random_images()
    split = [(np.where(p == 1, 6, p) if i % 2 else p, t) for i, (p, t) in enumerate(images)]
    counts = counts_of(split)
    matched = one_to_one(co_occurrence(counts, 6, 5))
    match = {0: 0, **{i + 1: int(c) + 1 for i, c in enumerate(matched) if c >= 0}}
    expected = slow_scores(split, match, 5)
    found = score(counts, matched, 5).scores
    assert found["mIoU"] == pytest.approx(expected["mIoU"], abs=1e-5)
    assert found["Acc"] == pytest.approx(expected["Acc"], abs=1e-5)


def test_boundaries_are_not_claimed_when_clusters_share_a_class():
    images = random_images(num_classes=3)
    found = score(counts_of(images), np.array([0, 0, 1]), 3).scores
    assert math.isnan(found["b-mIoU"]) and math.isnan(found["BL"]) and not math.isnan(found["mIoU"])


@pytest.mark.parametrize("name", ["hungarian", "majority", "none"])
def test_the_sweep_equals_separate_runs(name):
    rng = np.random.default_rng(1)
    thresholds = np.linspace(0, 0.8, 9)
    images = random_images(count=8, seed=3)
    clusters = [np.where(p == 0, 1, p) for p, _ in images]
    attentions = [np.round(rng.random(t.shape), 1) for _, t in images]  # many pixels lie exactly on a threshold
    sweep = np.concatenate(
        [count_sweep(i, c, a, t, thresholds) for i, (c, a, (_, t)) in enumerate(zip(clusters, attentions, images))]
    )
    curve = sweep_scores(sweep, thresholds, 5, 5, MATCHERS[name])
    for row, threshold in zip(curve, thresholds):
        separate = [(np.where(a < threshold, 0, c), t) for c, a, (_, t) in zip(clusters, attentions, images)]
        assert row["mIoU"] == pytest.approx(scores_of(separate, 5, name)["mIoU"], abs=1e-9), threshold


def test_ids_of_every_byte_survive_the_png(tmp_path):
    ids = np.array([[0, 255, 256], [919, 1000, 65535]])
    write_id_map(tmp_path / "a.png", ids)
    assert np.array_equal(read_id_map(tmp_path / "a.png"), ids)
    with pytest.raises(ValueError, match=r"ids in 0\.\.65535"):
        write_id_map(tmp_path / "b.png", np.array([[70000]]))


def evaluator(directory, images, num_classes=5, **changes):
    gt = {}
    for index, (_, t) in enumerate(images):
        write_id_map(directory / f"ground truth/{index}.png", t)
        gt[f"n00/{index}.JPEG"] = str(directory / f"ground truth/{index}.png")
    options = {
        "matching": "hungarian",
        "boundary_ratio": RATIO,
        "thresholds": np.linspace(0, 0.8, 5),
        "num_things": 0,
        "output_dir": directory / "out",
        "submission": False,
        "protocol": "test",
    }
    return LussEvaluator(gt, [f"n0{i}" for i in range(num_classes)], **{**options, **changes})


def run(one, images, **extra):
    one.reset()
    for index, (predicted, _) in enumerate(images):
        output = {"sem_seg_labels": torch.from_numpy(predicted), **{k: v[index] for k, v in extra.items()}}
        one.process([{"file_name": f"n00/{index}.JPEG"}], [output])
    return one.evaluate()


def test_the_evaluator_gives_the_functions_scores_and_writes_them(tmp_path):
    images = random_images()
    one = evaluator(tmp_path, images)
    found = run(one, images)["luss"]
    assert found == pytest.approx(scores_of(images, 5), nan_ok=True)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["luss"]["hungarian"]["mIoU"] == found["mIoU"]
    # Fewer images than the dataset has: not the dataset's score.
    assert list(run(evaluator(tmp_path, images), images[:5])) == ["partial/luss"]
    record = json.loads((tmp_path / "out/metrics.json").read_text())["record"]
    assert record == {"images": 5, "dataset_images": 12, "complete": False}
    run(one, images)
    saved = evaluator(tmp_path, images, matching=str(tmp_path / "out/match.json"))
    assert run(saved, images)["luss"] == pytest.approx(found, nan_ok=True)


def test_two_processes_give_the_scores_of_one(tmp_path, monkeypatch):
    images = random_images()
    whole = run(evaluator(tmp_path, images), images)
    halves = [evaluator(tmp_path, images) for _ in range(2)]
    for index, (predicted, _) in enumerate(images):
        # The last image goes to both, as loaders do that fill up their last batch.
        for half in halves if index == len(images) - 1 else [halves[index % 2]]:
            half.process([{"file_name": f"n00/{index}.JPEG"}], [{"sem_seg_labels": torch.from_numpy(predicted)}])
    gathered = []
    monkeypatch.setattr(
        "u2seg.luss.evaluation.luss_evaluator.comm.gather", lambda own, dst: gathered.append(own) or gathered
    )
    halves[0]._gathered()
    assert halves[1].evaluate()["luss"] == pytest.approx(whole["luss"], nan_ok=True)


def test_a_model_that_gives_attention_is_swept(tmp_path):
    images = random_images()
    rng = np.random.default_rng(0)
    attention = [torch.from_numpy(rng.random(t.shape)) for _, t in images]
    found = run(evaluator(tmp_path, images), images, attention=attention)["luss"]
    curve = json.loads((tmp_path / "out/provenance.json").read_text())["sweep"]
    assert len(curve) == 5 and curve[0]["mIoU"] == pytest.approx(found["mIoU"])  # threshold 0 changes nothing
    assert found["sweep-best-mIoU"] == max(row["mIoU"] for row in curve)


def test_a_submission_holds_matched_ids_by_directory(tmp_path):
    images = random_images(count=3)
    one = evaluator(tmp_path, images, submission=True)
    run(one, images)
    matched = json.loads((tmp_path / "out/match.json").read_text())
    with zipfile.ZipFile(tmp_path / "out/submission.zip") as packed:
        assert sorted(packed.namelist()) == ["method.txt", "n00/0.png", "n00/1.png", "n00/2.png"]
    expected = np.vectorize(lambda v: matched[str(v)])(images[1][0])
    assert np.array_equal(read_id_map(tmp_path / "out/submission/n00/1.png"), expected)


def test_a_submission_is_named_by_the_list_and_not_by_the_images_directory(tmp_path):
    # ImageNet's val/ is flat as published; the server wants <synset>/<name>.png.
    splits = make_toy(tmp_path, train=0, semi=0, val=3)
    names = ["n00000001/ILSVRC2012_val_00000004.png", "n00000002/ILSVRC2012_val_00000005.png"]
    register_datasets({"toy_test": splits["test"]})
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.TEST.LUSS.MATCHING, cfg.TEST.LUSS.SUBMISSION = "none", True
    one = LussEvaluator(cfg, "toy_test", tmp_path / "out")
    for record in DatasetCatalog.get("toy_test"):
        one.process([record], [{"sem_seg_labels": torch.full((64, 64), 2)}])
    assert one.evaluate() == {}
    with zipfile.ZipFile(tmp_path / "out/submission.zip") as packed:
        assert packed.namelist() == ["method.txt", *names, "n00000004/ILSVRC2012_val_00000003.png"]
    assert (read_id_map(tmp_path / "out/submission" / names[0]) == 2).all()


def test_a_hidden_split_is_written_with_another_runs_match(tmp_path):
    images = random_images(count=2)
    (tmp_path / "match.json").write_text(json.dumps({"0": 0, "1": 2, "2": 1, "3": 3}))
    options = {"submission": True, "matching": str(tmp_path / "match.json")}
    one = evaluator(tmp_path, [], **options)
    assert run(one, images) == {}
    written = read_id_map(tmp_path / "out/submission/n00/0.png")
    lookup = np.array([0, 2, 1, 3, 0, 0])  # clusters without a class become other
    assert np.array_equal(written, lookup[images[0][0]])
    with pytest.raises(ValueError, match="no ground truth to match with"):
        evaluator(tmp_path, [], matching="hungarian")
    for content in ("[]", "{}", '{"a": 1}', '{"1": 6}', '{"1": "x"}'):
        (tmp_path / "match.json").write_text(content)
        with pytest.raises(ValueError, match=r"match.json must map predicted ids to class ids in 0\.\.5.* got"):
            run(evaluator(tmp_path, [], **options), images)


def test_what_models_give_becomes_ids():
    logits = torch.tensor([[[0.0, 2.0]], [[1.0, 1.0]], [[0.5, 3.0]]])
    assert label_map_of({"sem_seg": logits}, 0).tolist() == [[1, 2]]
    panoptic = torch.tensor([[0, 1, 2, 2]])
    segments = [{"id": 1, "isthing": True, "category_id": 4}, {"id": 2, "isthing": False, "category_id": 3}]
    # Things 0..9 are ids 1..10; stuff 3 follows as 13.
    assert label_map_of({"panoptic_seg": (panoptic, segments), "sem_seg": logits}, 10).tolist() == [[0, 5, 13, 13]]
    # A map without segments is "other" everywhere; a segment that no pixel has changes nothing.
    nothing = torch.zeros(1, 2, dtype=torch.int32)
    assert label_map_of({"panoptic_seg": (nothing, [])}, 10).tolist() == [[0, 0]]
    assert label_map_of({"panoptic_seg": (nothing, segments)}, 10).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="sem_seg_labels, panoptic_seg or sem_seg.*got instances"):
        label_map_of({"instances": None}, 0)


def test_the_configuration_and_explicit_arguments_make_the_same_evaluator(tmp_path):
    gt_file = tmp_path / "0.png"
    write_id_map(gt_file, np.ones((4, 5), int))
    name = f"luss_configurable_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [{"file_name": "n00/0.JPEG", "sem_seg_file_name": str(gt_file)}])
    MetadataCatalog.get(name).set(stuff_classes=["other", "n00"])
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.TEST.LUSS.MATCHING, cfg.TEST.LUSS.BOUNDARY_RATIO, cfg.TEST.LUSS.SWEEP = "majority", 0.25, [0.0, 1.0, 3]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    found = EVALUATOR_REGISTRY.get("luss")(name, cfg, str(tmp_path / "out"))
    assert (found.gt_files, found.class_names) == ({"n00/0.JPEG": str(gt_file)}, ["n00"])
    assert (found.matching, found.boundary_ratio, found.num_things) == ("majority", 0.25, 7)
    assert found.thresholds.tolist() == [0, 0.5, 1]
    assert found.output_dir == tmp_path / "out"
    # An argument beside the configuration goes before it.
    assert LussEvaluator(cfg, name, None, matching="none").matching == "none"
    MetadataCatalog.pop(name)
    DatasetCatalog.pop(name)


def test_wrong_inputs_are_told(tmp_path):
    images = random_images(count=1)
    one = evaluator(tmp_path, images)
    with pytest.raises(ValueError, match="score at native size"):
        one.process([{"file_name": "n00/0.JPEG"}], [{"sem_seg_labels": torch.zeros(5, 7, dtype=torch.long)}])
    with pytest.raises(ValueError, match="no ground truth in this dataset"):
        one.process([{"file_name": "n00/9.JPEG"}], [{"sem_seg_labels": torch.zeros(5, 7, dtype=torch.long)}])
    with pytest.raises(RuntimeError, match="never called"):
        one.evaluate()
    with pytest.raises(FileNotFoundError, match="one of hungarian, majority, none or a match.json, got 'hungarain'"):
        evaluator(tmp_path, images, matching="hungarain")
    with pytest.raises(ValueError, match="class names must be unique"):
        LussEvaluator({}, ["crane", "crane"], matching="none", boundary_ratio=RATIO, thresholds=np.zeros(0), num_things=0,
                      output_dir=None, submission=False, protocol="")  # fmt: skip
    few = evaluator(tmp_path, [(np.zeros((4, 5), int), np.full((4, 5), 7))])
    with pytest.raises(ValueError, match=r"class id 7; this dataset has ids 0\.\.5"):
        few.process([{"file_name": "n00/0.JPEG"}], [{"sem_seg_labels": torch.zeros(4, 5, dtype=torch.long)}])
