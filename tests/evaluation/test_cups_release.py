"""``cups_release`` against CUPS's evaluation said pixel by pixel, and where it parts from ``cups``."""

from collections import Counter

import numpy as np
import pytest
from score_oracles import categories, perturbed, random_map, write_coco_panoptic
from u2seg.evaluation.matching.protocols import build_protocol
from u2seg.evaluation.matching.protocols.cups import assigned_then_best
from u2seg.evaluation.scoring import ScoreSettings, evaluate_tables
from u2seg.evaluation.tables.panoptic_files import tables_from_panoptic_files

VOID = (255, 0)


def colored(segment_map, infos, category_of, things):
    """Maps of (category, instance) pairs as CUPS takes them: the instance of stuff is 0, void is (255, 0)."""
    colors = {0: VOID}
    for info in infos:
        category = category_of[info["category_id"]]
        colors[info["id"]] = (category, info["id"] if category in things else 0)
    return [colors[int(v)] for v in segment_map.ravel()]


def slow_quality(pairs, classes, things):
    """PQ, SQ and RQ by torchmetrics' rules, for [(predicted colors, true colors), ...] with one entry a pixel."""
    total, true, false, missed = Counter(), Counter(), Counter(), Counter()
    for predicted, gt in pairs:
        predicted_area, gt_area, common = Counter(predicted), Counter(gt), Counter(zip(predicted, gt))
        matched_predicted, matched_gt = {VOID}, {VOID}
        for (p, t), pixels in common.items():
            if VOID in (p, t) or p[0] != t[0]:
                continue
            union = predicted_area[p] - common[p, VOID] + gt_area[t] - common[VOID, t] - pixels
            if pixels / union > 0.5:
                total[p[0]] += pixels / union
                true[p[0]] += 1
                matched_predicted.add(p)
                matched_gt.add(t)
        for p in set(predicted_area) - matched_predicted:
            false[p[0]] += common[p, VOID] / predicted_area[p] <= 0.5
        for t in set(gt_area) - matched_gt:
            missed[t[0]] += common[VOID, t] / gt_area[t] <= 0.5
    rows = {}
    for c in classes:
        size = true[c] + 0.5 * false[c] + 0.5 * missed[c]
        if size:
            rows[c] = (total[c] / size, total[c] / true[c] if true[c] else 0.0, true[c] / size)
    mean = lambda chosen: 100 * np.mean([rows[c] for c in rows if c in chosen], axis=0)  # noqa: E731
    names = ("PQ", "SQ", "RQ")
    result = {}
    for suffix, chosen in (("", set(classes)), ("_th", things), ("_st", set(classes) - things)):
        if set(rows) & chosen:
            result |= {f"{name}{suffix}": value for name, value in zip(names, mean(chosen))}
    return result


def slow_semantics(pairs, classes):
    """mIoU over the classes that occur in the ground truth or in the prediction, and accuracy; void in either map is left out."""
    kept = [(p, t) for predicted, gt in pairs for p, t in zip(predicted, gt) if 255 not in (p, t)]
    ious = []
    for c in classes:
        hit, either = sum(p == t == c for p, t in kept), sum(c in (p, t) for p, t in kept)
        if either:
            ious.append(hit / either)
    return {"mIoU": 100 * np.mean(ious), "pACC": 100 * np.mean([p == t for p, t in kept])}


@pytest.mark.parametrize(("seed", "clusters"), [(0, (7, 6)), (1, (4, 3)), (2, (3, 2)), (3, (12, 3))])
def test_equals_the_evaluation_said_pixel_by_pixel(tmp_path, seed, clusters):
    rng = np.random.default_rng(seed)
    cats, cluster_cats = categories(4, 3), categories(*clusters)
    space = [c["id"] for c in cats]
    gt_maps = [random_map(rng, (18, 25), 7, cats, crowds=True) for _ in range(6)]
    predicted_maps = []
    for segment_map, infos in gt_maps:
        ids, found = perturbed(rng, segment_map, infos, cats)
        ids[:, : int(rng.integers(6))] = 0  # not predicted
        for info in found:
            kind = [i for i, c in enumerate(cluster_cats) if c["isthing"] == (space.index(info["category_id"]) < 4)]
            info["category_id"] = cluster_cats[int(rng.choice(kind))]["id"]
            info["area"] = int((ids == info["id"]).sum())
        found = [info for info in found if info["area"]]
        predicted_maps.append((ids, found))
    files = write_coco_panoptic(tmp_path, "gt", gt_maps, cats)
    tables = tables_from_panoptic_files(
        *files, *write_coco_panoptic(tmp_path, "predicted", predicted_maps, cluster_cats), progress=False
    )
    label_map = build_protocol("cups_release").fit(tables)
    results = evaluate_tables(tables, ScoreSettings(("cups_release",))).results

    of_gt = {identifier: index for index, identifier in enumerate(space)}
    joint = {c["id"]: index for index, c in enumerate(cluster_cats)}

    def pairs(mapping):
        of_cluster = {identifier: int(mapping[index]) for identifier, index in joint.items()}
        return [
            (colored(*predicted, of_cluster, set(range(4))), colored(*gt, of_gt, set(range(4))))
            for predicted, gt in zip(predicted_maps, gt_maps)
        ]

    expected = slow_quality(pairs(label_map.panoptic), range(7), set(range(4)))
    got = {k: v for k, v in results["panoptic_seg"]["cups_release"].items() if k != "unmatched_segments"}
    assert got == pytest.approx(expected)
    semantic = slow_semantics(
        [([p[0] for p in a], [t[0] for t in b]) for a, b in pairs(label_map.semantic.labels)], range(7)
    )
    assert {k: results["sem_seg"]["cups_release"][k] for k in semantic} == pytest.approx(semantic)


def test_pairs_without_overlap_are_kept_and_every_cluster_has_a_category():
    # One-to-one: 0 -> 1 and 3 -> 0 (9 + 1); the others, without pixels, take the first category.
    assert assigned_then_best(np.array([[2, 9], [0, 0], [0, 0], [1, 3]])).tolist() == [1, 0, 0, 0]
    # 1 is assigned the category that is left, of which it has nothing.
    assert assigned_then_best(np.array([[9, 0], [5, 0]])).tolist() == [0, 1]
    assert assigned_then_best(np.array([[0, 0, 4]])).tolist() == [2]
    assert assigned_then_best(np.zeros((2, 0))).tolist() == [-1, -1]


def test_what_is_not_predicted_costs_nothing_there_and_is_wrong_in_cups(tmp_path):
    cats = categories(1, 1)
    gt, infos = np.ones((10, 10), np.int32), [{"id": 1, "category_id": 1, "iscrowd": 0, "area": 60}]
    gt[6:] = 2
    infos.append({"id": 2, "category_id": 4, "iscrowd": 0, "area": 40})
    predicted = gt.copy()
    predicted[:, 4:] = 0  # 40 of 100 pixels remain
    found = [{"id": 1, "category_id": 1, "area": 24}, {"id": 2, "category_id": 4, "area": 16}]
    files = write_coco_panoptic(tmp_path, "gt", [(gt, infos)], cats)
    tables = tables_from_panoptic_files(
        *files, *write_coco_panoptic(tmp_path, "p", [(predicted, found)], cats), progress=False
    )
    results = evaluate_tables(tables, ScoreSettings(("cups", "cups_release"))).results
    # IoU 24 / 60 and 16 / 40 are no matches for COCO; without the void pixels both are 1.
    assert results["panoptic_seg"]["cups"]["PQ"] == 0 and results["panoptic_seg"]["cups_release"]["PQ"] == 100
    assert results["sem_seg"]["cups"]["mIoU"] == pytest.approx(40)
    assert results["sem_seg"]["cups_release"]["mIoU"] == 100
