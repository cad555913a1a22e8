"""PQ against panopticapi (written by COCO's authors) on random maps, and on real ones."""

import json

import numpy as np
import pytest
from score_oracles import categories, official_pq, perturbed, random_map, write_coco_panoptic
from u2seg.data.formats.coco_panoptic import read_panoptic_png
from u2seg.evaluation.metrics.panoptic_quality import _Segments, match_segments, panoptic_quality
from u2seg.evaluation.tables.panoptic_files import tables_from_panoptic_files

NAMES = [f"{metric}{group}" for group in ("", "_th", "_st") for metric in ("PQ", "SQ", "RQ")]


def identity_pq(tables, merge_stuff=False):
    """PQ with every cluster being the category of its own number."""
    clusters = np.arange(tables.space.num_clusters)
    nothing = np.full(len(clusters), -1)
    return panoptic_quality(match_segments(tables, clusters, nothing, merge_stuff=merge_stuff)).summary()


@pytest.mark.parametrize("seed", range(5))
def test_equals_panopticapi_on_100_random_maps_with_crowd_void_and_missing_classes(tmp_path, seed):
    rng = np.random.default_rng(seed)
    cats = categories(7, 5)
    present = [c for c in cats if c["id"] != cats[3]["id"]]  # one category is in neither
    gt, predicted = [], []
    for _ in range(100):
        size = tuple(rng.integers(20, 60, 2))  # not square
        ids, infos = random_map(rng, size, int(rng.integers(2, 14)), present, crowds=True)
        gt.append((ids, infos))
        predicted.append(perturbed(rng, ids, infos, present))
    files = (
        *write_coco_panoptic(tmp_path, "gt", gt, cats),
        *write_coco_panoptic(tmp_path, "pred", predicted, cats),
    )
    expected = official_pq(*files)
    scores = identity_pq(tables_from_panoptic_files(*files, progress=False))
    assert expected["PQ"] > 5  # the case is not empty
    for name in NAMES:
        assert scores[name] == pytest.approx(expected[name], abs=1e-9), name


def test_equals_panopticapi_on_cocos_categories_perturbed(tmp_path, synthetic_coco):
    content = json.loads(synthetic_coco.panoptic_json.read_text())
    rng = np.random.default_rng(0)
    predicted = []
    for annotation in content["annotations"]:
        ids = read_panoptic_png(synthetic_coco.panoptic_directory / annotation["file_name"])
        predicted.append(perturbed(rng, ids, annotation["segments_info"], content["categories"], strength=0.2))
    path, directory = write_coco_panoptic(tmp_path, "pred", predicted, content["categories"])
    files = (synthetic_coco.panoptic_json, synthetic_coco.panoptic_directory, path, directory)
    expected = official_pq(*files)
    scores = identity_pq(tables_from_panoptic_files(*files, progress=False))
    assert expected["PQ"] > 10
    for name in NAMES:
        assert scores[name] == pytest.approx(expected[name], abs=1e-9), name


def test_segments_of_image_1048576_are_not_merged_with_others():
    image, label, area = np.array([5, 1 << 20, 1 << 20]), np.array([1, 0, 0]), np.array([3, 4, 5])
    merged = _Segments.of(image, label, area).merged(np.array([False, True, True]))
    assert (merged.image.tolist(), merged.area.tolist()) == ([5, 1 << 20], [3, 9])
