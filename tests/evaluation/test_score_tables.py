"""Tables, files, categories and reports: shapes of what is written, and messages for what is wrong."""

import json

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from score_oracles import categories, random_map, write_coco_panoptic
from synthetic_images import CATEGORIES
from u2seg.data.datasets.coco_supercategories import STUFF_SUPERCATEGORIES, semantic_groups, stuff_supercategories
from u2seg.evaluation.score_table import format_table, to_csv, to_latex
from u2seg.evaluation.scoring import suppress_across_clusters
from u2seg.evaluation.tables.image_tables import MapSegment, count_pairs, crowd_mask_iou, panoptic_blocks
from u2seg.evaluation.tables.panoptic_files import tables_from_panoptic_files
from u2seg.evaluation.tables.segment_tables import concatenate_tables, load_tables, with_stuff_groups
from u2seg.structures.label_space import LabelSpace


def test_count_pairs_equals_unique():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, (31, 17)) * 70000, rng.integers(0, 4, (31, 17))
    pairs, counts = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1, return_counts=True)
    a, b, pixels = count_pairs(first, second)
    np.testing.assert_array_equal(np.stack([a, b]), pairs)
    np.testing.assert_array_equal(pixels, counts)
    assert [len(x) for x in count_pairs(first[:0], second[:0])] == [0, 0, 0]


def test_mask_iou_equals_pycocotools_with_crowds():
    rng = np.random.default_rng(1)
    first, second = rng.random((7, 23, 41)) < 0.3, rng.random((4, 23, 41)) < 0.5
    first[0], second[1] = False, False
    crowds = np.array([False, False, True, False])
    encode = lambda masks: [mask_utils.encode(np.asfortranarray(m.astype(np.uint8))) for m in masks]  # noqa: E731
    ious, areas = crowd_mask_iou(first, second, crowds)
    np.testing.assert_array_equal(ious, mask_utils.iou(encode(first), encode(second), crowds.astype(int).tolist()))
    np.testing.assert_array_equal(areas, first.sum((1, 2)))


def test_popcounts_without_numpy_2_are_the_same(monkeypatch):
    rng = np.random.default_rng(2)
    masks = rng.random((3, 9, 15)) < 0.5
    expected = crowd_mask_iou(masks, masks, np.zeros(3, bool))
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    for got, want in zip(crowd_mask_iou(masks, masks, np.zeros(3, bool)), expected):
        np.testing.assert_array_equal(got, want)


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"the ground truth's size \(4, 6\), got \(6, 4\)"):
        panoptic_blocks(np.zeros((4, 6), int), [], np.zeros((6, 4), int), [])
    with pytest.raises(ValueError, match=r"segment ids that its list lacks: \[5\]"):
        panoptic_blocks(np.zeros((4, 6), int), [], np.full((4, 6), 5), [MapSegment(4, 0)])


def test_files_are_paired_by_png_name_and_missing_images_are_named(tmp_path):
    rng = np.random.default_rng(0)
    cats = categories(3, 2)
    maps = [random_map(rng, (20, 30), 5, cats) for _ in range(3)]
    gt = write_coco_panoptic(tmp_path, "gt", maps, cats)
    path, directory = write_coco_panoptic(tmp_path, "pred", maps, cats)
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["image_id"] += 1000  # another numbering, the same names
    path.write_text(json.dumps(content))
    tables = tables_from_panoptic_files(*gt, path, directory, progress=False)
    assert tables.images["id"].tolist() == [1, 2, 3] and tables.space.num_things == 3
    content["annotations"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"no annotation for 1 of the 3 images .* for example \['000000000003'\]"):
        tables_from_panoptic_files(*gt, path, directory, progress=False)


def test_stuff_groups_merge_categories(tmp_path):
    cats = categories(2, 3)
    rng = np.random.default_rng(0)
    files = write_coco_panoptic(tmp_path, "gt", [random_map(rng, (20, 30), 8, cats) for _ in range(4)], cats)
    tables = tables_from_panoptic_files(*files, *files, progress=False)
    ids = [c["id"] for c in cats[2:]]
    grouped = with_stuff_groups(tables, {ids[0]: "soft", ids[1]: "hard", ids[2]: "soft"})
    assert grouped.space.categories.stuff_names == ("soft", "hard")
    assert set(grouped.gt["label"]) <= {0, 1, 2, 3}
    with pytest.raises(ValueError, match=rf"no group for the stuff categories with ids \[{ids[2]}\]"):
        with_stuff_groups(tables, {ids[0]: "soft", ids[1]: "hard"})


# Source: the supercategories of COCO's panoptic_coco_categories.json.
STUFF_GROUPS = {
    "textile": "banner blanket curtain pillow rug-merged towel",
    "building": "bridge house roof tent building-other-merged",
    "raw-material": "cardboard paper-merged",
    "furniture-stuff": "counter door-stuff light mirror-stuff shelf stairs cabinet-merged table-merged",
    "floor": "floor-wood floor-other-merged",
    "plant": "flower tree-merged grass-merged",
    "food-stuff": "fruit food-other-merged",
    "ground": "gravel platform playingfield railroad road sand snow pavement-merged dirt-merged",
    "structural": "net fence-merged",
    "water": "river sea water-other",
    "wall": "wall-brick wall-stone wall-tile wall-wood wall-other-merged",
    "window": "window-blind window-other",
    "ceiling": "ceiling-merged",
    "sky": "sky-other-merged",
    "solid": "mountain-merged rock-merged",
}
FIRST_THINGS = {
    "person": "person",
    "bicycle": "vehicle",
    "traffic light": "outdoor",
    "bird": "animal",
    "backpack": "accessory",
    "frisbee": "sports",
    "bottle": "kitchen",
    "banana": "food",
    "chair": "furniture",
    "tv": "electronic",
    "microwave": "appliance",
    "book": "indoor",
}


def test_coco_supercategories_are_cocos_own():
    by_name = {category["name"]: category["id"] for category in CATEGORIES}
    expected = {by_name[name]: group for group, names in STUFF_GROUPS.items() for name in names.split()}
    space = LabelSpace.of_coco_categories(CATEGORIES)
    assert stuff_supercategories(space) == expected
    groups, names = semantic_groups(space)
    assert len(names) == 27
    found = dict(zip((*space.thing_names, *space.stuff_dataset_ids), (names[group] for group in groups)))
    assert {name: found[name] for name in by_name.values() if name in expected} == expected
    group = ""
    for name in space.thing_names:  # in COCO's order each group of things is one run
        group = FIRST_THINGS.get(name, group)
        assert found[name] == group, name


def test_only_cocos_own_stuff_is_grouped():
    assert len(STUFF_SUPERCATEGORIES) == 53 and len(set(STUFF_SUPERCATEGORIES.values())) == 15
    assert stuff_supercategories(LabelSpace((1,), (92, 93), ("a",), ("b", "c"))) is None


def test_suppression_across_clusters_keeps_the_best_of_each_category_and_image(tmp_path):
    cats = categories(1, 1)
    square = np.zeros((10, 10), np.int32)
    square[2:8, 2:8] = 1
    maps = [(square, [{"id": 1, "category_id": 1, "iscrowd": 0}])] * 2
    files = write_coco_panoptic(tmp_path, "gt", maps, cats)
    tables = tables_from_panoptic_files(*files, *files, progress=False)
    double = np.concatenate([tables.detections, tables.detections])
    double["score"] = [0.5, 0.9, 0.6, 0.8]
    double = double[np.argsort(double["image"], kind="stable")]  # scores 0.5, 0.6 | 0.9, 0.8
    tables = type(tables)(**{**vars(tables), "detections": double})
    assert suppress_across_clusters(tables, np.array([0, 0, 0, 0]), 0.5).tolist() == [-1, 0, 0, -1]
    assert suppress_across_clusters(tables, np.array([0, 1, -1, 0]), 0.5).tolist() == [0, 1, -1, 0]


RESULTS = {
    "panoptic_seg": {"hungarian": {"PQ": 35.25, "SQ": 70.0, "RQ": 45.0}},
    "bbox": {"hungarian": {"AP": 1.5}, "class_agnostic": {"AR100": 20.0}},
    "segm": {},
    "sem_seg": {},
}


def test_the_table_names_every_protocol_and_marks_what_is_undefined():
    text = format_table(RESULTS)
    assert "hungarian | 35.25 | 70.00 | 45.00" in text
    assert "class_agnostic |    - |   20.00 |" in text and "Semantic" not in text
    assert "35.25 [30.0, 40.0]" in format_table(RESULTS, {"panoptic_seg": {"hungarian": {"PQ": [30, 40]}}})
    assert format_table({**RESULTS, "record": {"dataset": "val"}}) == format_table(RESULTS)
    assert "0.50" in format_table({"luss": {"mIoU": 0.5}})  # rows without a protocol


def test_csv_and_latex():
    record = {"dataset": "val", "images": 5, "fitted_on": "train", "checkpoint": "a,b.pth", "u2seg": "1"}
    assert to_csv(RESULTS, record).splitlines()[:2] == [
        "dataset,images,dataset_images,fitted_on,checkpoint,task,protocol,metric,value",
        'val,5,,train,"a,b.pth",panoptic_seg,hungarian,PQ,35.25',
    ]
    latex = to_latex(RESULTS)
    assert r"hungarian & 35.25 & 70.00 & 45.00 \\" in latex and r"class\_agnostic & - & 20.00 \\" in latex


def test_joining_nothing_and_reading_another_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected at least one table, got none"):
        concatenate_tables([])
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="no file of segment tables: it lacks detections"):
        load_tables(tmp_path / "other.npz")
