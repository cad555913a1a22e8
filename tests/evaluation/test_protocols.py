"""Every protocol on maps of 8 x 8 pixels, with the numbers worked out by hand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from u2seg.evaluation.matching.assignment import best_category, hungarian, hungarian_then_best
from u2seg.evaluation.matching.label_map import load_label_map, save_label_map
from u2seg.evaluation.matching.protocols import build_protocol
from u2seg.evaluation.matching.protocols.u2seg import PAPER_THRESHOLDS, RELEASE_THRESHOLDS, aliased, paper_thresholds
from u2seg.evaluation.matching.protocols.votes import every_object_votes, instance_votes, semantic_votes
from u2seg.evaluation.scoring import ScoreSettings, evaluate_tables
from u2seg.evaluation.tables.image_tables import (
    MapSegment,
    head_blocks,
    image_tables,
    instance_blocks,
    label_map_of,
    panoptic_blocks,
    regions_of_map,
)
from u2seg.evaluation.tables.segment_tables import TableSpace, save_tables
from u2seg.structures.label_space import LabelSpace

# Joint category labels: cat 0, dog 1 (things), sky 2, grass 3 (stuff).
CATEGORIES = LabelSpace((1, 2), (3, 4), ("cat", "dog"), ("sky", "grass"))
# Joint cluster labels: things 0, 1, 2; stuff 3, 4, 5 (classes 1, 2, 3 of the semantic head).
SPACE = TableSpace("toy", 3, 3, CATEGORIES, ("panoptic", "box", "mask", "semantic"))

# Ground truth: rows 0-3 sky, rows 4-7 grass; a cat of 4 x 3 = 12 pixels at rows 0-3, columns 0-2; a dog of 4 x 3 at rows 4-7,
# columns 5-7. So sky has 32 - 12 = 20 pixels and grass 20.
GT_MAP = np.zeros((8, 8), np.int32)
GT_MAP[:4], GT_MAP[4:] = 3, 4
GT_MAP[:4, :3], GT_MAP[4:, 5:] = 1, 2
GT_SEGMENTS = [MapSegment(1, 0), MapSegment(2, 1), MapSegment(3, 2), MapSegment(4, 3)]


def tables_of(predicted_map, segments, space=SPACE, gt_map=GT_MAP, gt=GT_SEGMENTS):
    """Tables of one image whose detections are the thing segments and whose semantic head agrees with the map."""
    labels = label_map_of(predicted_map, segments)
    head = np.where(labels >= space.num_things, labels - space.num_things + 1, 0)
    head[labels < 0] = -1
    return image_tables(
        space,
        1,
        (8, 8),
        **panoptic_blocks(gt_map, gt, predicted_map, segments),
        **instance_blocks(
            regions_of_map(predicted_map, [s for s in segments if s.label < space.num_things]),
            regions_of_map(gt_map, [s for s in gt if s.label < 2]),
        ),
        **head_blocks(gt_map, {s.id: s.label for s in gt}, head),
    )


@pytest.fixture
def toy():
    """Cat found whole (cluster 1). Dog cut in two: 9 pixels (cluster 2) and 3 (cluster 0). Grass whole (cluster 4).

    Sky cut in two: columns 3-6 (16 pixels) by cluster 3, column 7 (4 pixels) by cluster 5.
    """
    predicted = GT_MAP.copy()
    predicted[4:7, 5:], predicted[7, 5:] = 5, 6
    predicted[:4, 7] = 7
    segments = [
        MapSegment(1, 1, 0.9),
        MapSegment(5, 2, 0.8),
        MapSegment(6, 0, 0.7),
        MapSegment(3, 3),
        MapSegment(4, 4),
        MapSegment(7, 5),
    ]
    return tables_of(predicted, segments)


def scores(tables, protocol, **settings):
    return evaluate_tables(tables, ScoreSettings((protocol,), **settings)).results


def row(tables, protocol, task="panoptic_seg", **settings):
    return scores(tables, protocol, **settings)[task][protocol]


def test_hungarian_an_unmatched_cluster_is_false_positive_and_miss(toy):
    label_map = build_protocol("hungarian").fit(toy)
    # Pixels: cluster 1 cat 12; cluster 2 dog 9; cluster 0 dog 3; 3 sky 16; 5 sky 4; 4 grass 20. One-to-one: 0 and 5 are left over.
    assert label_map.panoptic.tolist() == [-1, 0, 1, 2, 3, -1]
    assert label_map.error_category.tolist() == [1, -1, -1, -1, -1, 2]
    # cat: IoU 1, PQ 1. dog: IoU 9 / 12 = 0.75, and cluster 0's segment is false: PQ = 0.75 / (1 + 0.5) = 0.5.
    # sky: IoU 16 / 20 = 0.8, cluster 5's segment is false: PQ = 0.8 / 1.5. grass: 1.
    got = row(toy, "hungarian")
    assert got["PQ_th"] == pytest.approx(100 * (1 + 0.5) / 2)
    assert got["PQ_st"] == pytest.approx(100 * (0.8 / 1.5 + 1) / 2)
    assert got["SQ_th"] == pytest.approx(100 * (1 + 0.75) / 2)
    assert got["RQ_th"] == pytest.approx(100 * (1 + 1 / 1.5) / 2)
    assert got["unmatched_segments"] == pytest.approx(100 * 2 / 6)
    # Pixels: right 12 + 9 + 16 + 20 = 57 of 64. IoU: cat 1; dog 9 / 12; sky 16 / 20; grass 1: the seven others are missed only.
    semantic = row(toy, "hungarian", "sem_seg")
    assert semantic["pACC"] == pytest.approx(100 * 57 / 64)
    assert semantic["mIoU"] == pytest.approx(100 * (1 + 0.75 + 0.8 + 1) / 4)
    # Masks: cat AP 1. dog: the 9-pixel mask (score 0.8, IoU 0.75) comes before cluster 0's false one (0.7), which costs nothing:
    # AP is 1 at the thresholds 0.5 ... 0.75 (6 of 10), so 0.6.
    assert row(toy, "hungarian", "segm")["AP"] == pytest.approx(100 * (1 + 0.6) / 2)


def test_hungarian_a_confident_unmatched_detection_costs_precision():
    predicted = GT_MAP.copy()
    predicted[7, 5:] = 6
    segments = [MapSegment(1, 1, 0.9), MapSegment(2, 2, 0.5), MapSegment(6, 0, 0.7), MapSegment(3, 3), MapSegment(4, 4)]
    # dog: cluster 0's false one (0.7) precedes the 9-pixel true one (0.5): precision 1/2 at 6 thresholds: AP 0.3.
    assert row(tables_of(predicted, segments), "hungarian", "segm")["AP"] == pytest.approx(100 * (1 + 0.3) / 2)


def test_a_thing_cluster_that_covers_only_stuff_is_charged_there():
    # Cluster 0 is a thing of 16 pixels in the sky: no thing category has a pixel of it.
    predicted = GT_MAP.copy()
    predicted[:4, 4:] = 9
    segments = [MapSegment(1, 1), MapSegment(2, 2), MapSegment(3, 3), MapSegment(4, 4), MapSegment(9, 0, 0.7)]
    tables = tables_of(predicted, segments)
    for protocol in ("hungarian", "cups", "majority"):
        label_map = build_protocol(protocol).fit(tables)
        assert label_map.panoptic[0] == -1 and label_map.error_category.tolist() == [2, -1, -1, -1, -1, -1]
        # Sky: 4 of its 20 pixels found: IoU 0.2, missed, one false segment of its own cluster and one of cluster 0: PQ 0.
        got = row(tables, protocol)
        assert got["PQ_th"] == 100 and got["PQ_st"] == pytest.approx(100 * (0 + 1) / 2)
        # The things' AP is untouched: the false mask is no cat and no dog.
        assert row(tables, protocol, "segm")["AP"] == pytest.approx(100)


def test_a_thing_cluster_that_only_detections_show_is_charged_where_it_overlaps():
    segments = [MapSegment(1, 1, 0.9), MapSegment(2, 2, 0.5), MapSegment(3, 3), MapSegment(4, 4)]
    tables = tables_of(GT_MAP, segments)
    # A detection of cluster 0 on the dog's box, not in the panoptic map.
    extra = tables.detections[1:2].copy()
    extra["label"], extra["score"] = 0, 0.95
    pair = tables.ious[tables.ious["detection"] == 1].copy()
    pair["detection"] = 2
    tables = replace(
        tables,
        detections=np.concatenate([tables.detections, extra]),
        ious=np.concatenate([tables.ious, pair]),
    )
    assert build_protocol("hungarian").fit(tables).error_category.tolist() == [1, -1, -1, -1, -1, -1]
    # Dog: the false one (0.95) before the true one (0.5): precision 1/2 everywhere.
    assert row(tables, "hungarian", "segm")["AP"] == pytest.approx(100 * (1 + 0.5) / 2)


def test_cups_left_over_clusters_go_to_their_best_category(toy):
    label_map = build_protocol("cups").fit(toy)
    assert label_map.panoptic.tolist() == [1, 0, 1, 2, 3, 2]
    # dog: two segments, IoU 0.75 true, 3/12 false: 0.75 / 1.5. sky: clusters 3 and 5 merge into one segment: IoU 1.
    got = row(toy, "cups")
    assert got["PQ_th"] == pytest.approx(100 * (1 + 0.5) / 2)
    assert got["PQ_st"] == 100
    assert row(toy, "cups", "sem_seg")["pACC"] == 100  # every pixel has its category


def test_majority_merges_as_cups_does_here_but_without_one_to_one_first():
    # Clusters 0 and 1 both lie on the cat, 0 more so (8 of its 8 pixels; 1 has 4 there and 2 on the dog).
    predicted = GT_MAP.copy()
    predicted[:4, 2] = 5
    predicted[6, 6:] = 6
    segments = [
        MapSegment(1, 0),
        MapSegment(5, 1),
        MapSegment(6, 1),
        MapSegment(2, 2),
        MapSegment(3, 3),
        MapSegment(4, 4),
    ]
    tables = tables_of(predicted, segments)
    assert build_protocol("majority").fit(tables).panoptic.tolist() == [0, 0, 1, 2, 3, -1]
    assert build_protocol("hungarian").fit(tables).panoptic.tolist() == [0, -1, 1, 2, 3, -1]


def test_u2seg_paper_votes(toy):
    # Thresholds for K = 3: nearest listed K is 300 on COCO: IoU above 0.6, score at least 0.3.
    assert paper_thresholds(SPACE) == (0.6, 0.3)
    # Boxes: cluster 1 IoU 1 with cat. Cluster 2: 3 x 3 of 4 x 3: 0.75, votes dog. Cluster 0: 1 x 3 of 4 x 3: 0.25, no vote.
    assert instance_votes(toy, 0.3, 0.6).tolist() == [[0, 0], [1, 0], [0, 1]]
    assert instance_votes(toy, 0.85, 0.6).tolist() == [[0, 0], [1, 0], [0, 0]]
    # Head: class 1 on sky 16 / 20, class 3 on sky 4 / 20 = 0.2 > 0.15, class 2 on grass 1.
    assert semantic_votes(toy, 0.15).tolist() == [[1, 0], [0, 1], [1, 0]]
    assert semantic_votes(toy, 0.2).tolist() == [[1, 0], [0, 1], [0, 0]]  # must exceed
    label_map = build_protocol("u2seg_paper").fit(toy)
    assert label_map.panoptic.tolist() == [-1, 0, 1, 2, 3, 2]
    # Cluster 0 is void: dog has IoU 0.75 and no false positive.
    assert row(toy, "u2seg_paper")["PQ_th"] == pytest.approx(100 * (1 + 0.75) / 2)
    # Semantic classes: things, sky, grass; the head says 0 for every thing: all right.
    assert row(toy, "u2seg_paper", "sem_seg") == {"mIoU": 100, "fwIoU": 100, "mACC": 100, "pACC": 100}


def test_u2seg_paper_unmatched_stuff_is_wrong_and_with_the_releases_faults_it_vanishes():
    predicted = GT_MAP.copy()
    predicted[4, 0], predicted[0, 3] = 7, 7  # cluster 5 has one pixel of grass and one of sky: IoU 1 / 21 with either
    segments = [MapSegment(1, 0), MapSegment(2, 1), MapSegment(3, 3), MapSegment(4, 4), MapSegment(7, 5)]
    tables = tables_of(predicted, segments)
    assert build_protocol("u2seg_paper").fit(tables).semantic.labels.tolist() == [0, 1, 2, -1]
    # Right: 24 things + 19 sky + 19 grass of 64.
    assert row(tables, "u2seg_paper", "sem_seg")["pACC"] == pytest.approx(100 * 62 / 64)
    assert row(tables, "u2seg_release", "sem_seg")["pACC"] == pytest.approx(100 * 62 / 64)
    # In place: key 3 (cluster 5) is written 3 = "none" (two categories + 1), none of the keys after it rewrites that.
    assert row(tables, "u2seg_release_faults", "sem_seg")["pACC"] == 100  # the two wrong pixels are not counted


def test_aliasing_rewrites_what_was_just_written():
    # Intended: 1 -> 3, 2 -> 1, 3 -> 2, none for 4, and "none" is written as 4. In place, ascending: 1 becomes 3; key 2 makes
    # 2 -> 1; key 3 turns the old 1s and the 3s into 2; key 4 turns 4 into 4.
    assert aliased(np.array([0, 3, 1, 2, -1]), none=4).tolist() == [0, 2, 1, 2, -1]
    # "None" itself is rewritten where a cluster has its number: 1 -> none = 2, then key 2 -> 0.
    assert aliased(np.array([0, -1, 0]), none=2).tolist() == [0, 0, 0]


def test_u2seg_release_votes_for_every_object_and_for_crowds():
    # The dog's box again as a second object, a crowd of the category cat, one column wider: 4 x 4 = 16 pixels.
    gt_map = GT_MAP.copy()
    gt_map[4:, 4] = 9
    gt = [MapSegment(1, 0), MapSegment(2, 1), MapSegment(3, 2), MapSegment(4, 3), MapSegment(9, 0, crowd=True)]
    segments = [MapSegment(1, 1, 0.9), MapSegment(2, 2, 0.9), MapSegment(3, 3), MapSegment(4, 4)]
    tables = tables_of(GT_MAP, segments, gt_map=gt_map, gt=gt)
    crowd = tables.objects["crowd"]
    tables.objects["box_xywh"][crowd] = [4, 4, 4, 4]
    new = tables.ious[:1].copy()
    new["detection"], new["object"], new["box"], new["mask"] = 1, np.flatnonzero(crowd)[0], 1.0, 0.0
    tables = replace(tables, ious=np.concatenate([tables.ious, new]))
    # The dog's detection lies wholly in the crowd's box: pycocotools' crowd IoU 1; as a single object 12 / 16 = 0.75 > 0.7.
    min_iou, min_score = RELEASE_THRESHOLDS
    assert every_object_votes(tables, min_score, min_iou).tolist() == [[0, 0], [1, 0], [1, 1]]
    assert instance_votes(tables, min_score, min_iou).tolist() == [[0, 0], [1, 0], [0, 1]]
    assert every_object_votes(tables, 0.95, min_iou).sum() == 0


def test_u2seg_release_does_not_merge_stuff(toy):
    # Sky's two clusters both map to sky: two segments of 16 and 4 pixels, one true (0.8), one false: 0.8 / 1.5.
    assert row(toy, "u2seg_release")["PQ_st"] == pytest.approx(100 * (0.8 / 1.5 + 1) / 2)
    assert row(toy, "u2seg_paper")["PQ_st"] == 100


def test_stego_matches_the_heads_classes_one_to_one(toy):
    label_map = build_protocol("stego").fit(toy)
    # Head class 0 covers cat 12 and dog 12 (the lower category of equals), 1 sky 16, 2 grass 20, 3 sky 4. Best sum: 0 -> cat,
    # 1 -> sky, 2 -> grass, 3 -> nothing left that it touches.
    assert label_map.semantic.labels.tolist() in ([0, 2, 3, -1], [1, 2, 3, -1])
    results = scores(toy, "stego")
    assert results["panoptic_seg"] == {} and list(results["segm"]) == ["class_agnostic"]
    assert results["sem_seg"]["stego"]["pACC"] == pytest.approx(100 * (12 + 16 + 20) / 64)


def test_identity_needs_the_categories_own_counts(toy):
    with pytest.raises(ValueError, match="the categories' own 2 things and 2 stuff classes, got 3 and 3"):
        build_protocol("identity").fit(toy)
    space = TableSpace("toy", 2, 2, CATEGORIES, SPACE.tasks)
    tables = tables_of(GT_MAP, [MapSegment(i + 1, i) for i in range(4)], space)
    assert row(tables, "identity")["PQ"] == 100


def test_a_saved_label_map_scores_as_the_fit_did(toy, tmp_path):
    fitted = build_protocol("cups").fit(toy)
    save_label_map(tmp_path / "map.json", fitted, SPACE)
    found = scores(toy, "cups", label_map=tmp_path / "map.json")
    # The row says that the map was not fitted here.
    expected = {
        task: {"cups (map map.json)" if name == "cups" else name: row for name, row in rows.items()}
        for task, rows in scores(toy, "cups").items()
    }
    assert found == expected
    with pytest.raises(ValueError, match="either label maps are fitted on a.npz or the saved one of b.json is used"):
        ScoreSettings(("cups",), fit_on="a.npz", label_map="b.json")
    other = TableSpace("toy", 4, 3, CATEGORIES, SPACE.tasks)
    with pytest.raises(ValueError, match="maps 3 thing and 3 stuff clusters, the predictions have 4 and 3"):
        load_label_map(tmp_path / "map.json", other)
    renamed = TableSpace("toy", 3, 3, LabelSpace((1, 2), (3, 5), ("cat", "dog"), ("sky", "road")), SPACE.tasks)
    with pytest.raises(ValueError, match="other categories than those of dataset 'toy'"):
        load_label_map(tmp_path / "map.json", renamed)


def test_fitting_on_another_split_uses_that_splits_counts(toy, tmp_path):
    # The other split: cat and dog clusters exchanged.
    swapped = tables_of(GT_MAP, [MapSegment(1, 2), MapSegment(2, 1), MapSegment(3, 3), MapSegment(4, 4)])
    save_tables(tmp_path / "other.npz", swapped)
    got = row(toy, "hungarian", fit_on=tmp_path / "other.npz")
    assert got["PQ_th"] == 0 and row(toy, "hungarian")["PQ_th"] == 75
    different = tables_of(
        GT_MAP, [MapSegment(i + 1, i) for i in range(4)], TableSpace("toy", 2, 2, CATEGORIES, SPACE.tasks)
    )
    save_tables(tmp_path / "different.npz", different)
    with pytest.raises(ValueError, match="num_things is 3 here and 2 there"):
        row(toy, "hungarian", fit_on=tmp_path / "different.npz")


def test_paper_thresholds_by_benchmark_and_nearest_count():
    space = lambda dataset, count: TableSpace(dataset, count, 27, CATEGORIES, ())  # noqa: E731
    assert paper_thresholds(space("coco_2017_val", 800)) == PAPER_THRESHOLDS["coco"][800] == (0.6, 0.4)
    assert paper_thresholds(space("uvo_val", 800)) == (0.4, 0.1)
    assert paper_thresholds(space("voc_2007_trainval_test", 2911)) == (0.5, 0.2)
    assert paper_thresholds(space("my_images", 20)) == (0.6, 0.3)


def test_an_unknown_protocol_is_named_with_those_that_exist():
    with pytest.raises(ValueError, match="Unknown protocol .* 'hungarain'; registered: cups, cups_release, hungarian"):
        build_protocol("hungarain")


@pytest.mark.parametrize("seed", range(20))
def test_hungarian_is_the_best_of_all_permutations(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (5, 4))
    best = max(
        sum(counts[row, column] for column, row in enumerate(rows)) for rows in itertools.permutations(range(5), 4)
    )
    matched = hungarian(counts)
    used = matched[matched >= 0]
    assert len(set(used)) == len(used)
    assert sum(counts[i, c] for i, c in enumerate(matched) if c >= 0) == best
    rest = hungarian_then_best(counts)
    assert (rest[matched >= 0] == used).all()
    assert (rest[matched < 0] == best_category(counts)[matched < 0]).all()
