"""What the writers write, other people's readers read; what the readers refuse, they name."""

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as mask_utils
from u2seg.data.formats.coco_panoptic import (
    instance_annotations,
    panoptic_annotation,
    read_panoptic_png,
    whole_instance_annotations,
    write_panoptic_png,
    write_stuff_png,
)
from u2seg.structures import LabelSpace, Segment, semantic_target

SPACE = LabelSpace.of_clusters(3, 2)
# 4 x 6: a thing of cluster 2 in a corner, stuff of cluster 1 in the lower half, the rest void.
PANOPTIC = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [2, 2, 2, 2, 2, 2], [2, 2, 2, 2, 2, 2]], np.int32)
SEGMENTS = [Segment(1, 2, True, 4, source=0), Segment(2, 1, False, 12)]


@pytest.mark.parametrize("ids", [[0, 1, 255], [256, 65535, 65536], [(1 << 24) - 1, 0, 7]])
def test_panoptic_png_round_trip_equals_panopticapis_reading(tmp_path, ids):
    panoptic = np.array([ids, ids[::-1]], np.int64)
    write_panoptic_png(tmp_path / "a.png", panoptic)
    np.testing.assert_array_equal(read_panoptic_png(tmp_path / "a.png"), panoptic)
    np.testing.assert_array_equal(rgb2id(np.asarray(Image.open(tmp_path / "a.png"))), panoptic)


def test_ids_that_do_not_fit_and_other_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"0\.\.16777215, got 0\.\.16777216"):
        write_panoptic_png(tmp_path / "a.png", np.array([[0, 1 << 24]]))
    assert not (tmp_path / "a.png").exists()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "gray.png")
    with pytest.raises(ValueError, match=r"gray\.png must be an RGB panoptic PNG.*got uint8 of shape \(2, 2\)"):
        read_panoptic_png(tmp_path / "gray.png")


def test_stuff_png_is_detectron2s_semantic_target(tmp_path):
    write_stuff_png(tmp_path / "s.png", PANOPTIC, SEGMENTS, SPACE)
    stuff = np.asarray(Image.open(tmp_path / "s.png"))
    expected = np.array([[0, 0, 255, 255, 255, 255]] * 2 + [[2] * 6] * 2, np.uint8)
    np.testing.assert_array_equal(stuff, expected)
    assert stuff.dtype == np.uint8


def test_segments_that_are_not_listed_are_void():
    target = semantic_target(np.array([[5, 6]]), {5: 1})
    np.testing.assert_array_equal(target, [[1, 255]])


def test_annotations_say_what_is_seen():
    row = panoptic_annotation(17, "a.png", PANOPTIC, SEGMENTS, SPACE)
    assert row["image_id"] == 17 and row["file_name"] == "a.png"
    # Thing cluster 2 is dataset id 3; stuff cluster 1 is dataset id K + 2 = 5.
    assert [(s["id"], s["category_id"], s["area"], s["bbox"]) for s in row["segments_info"]] == [
        (1, 3, 4, [0, 0, 2, 2]),
        (2, 5, 12, [0, 2, 6, 2]),
    ]
    (instance,) = instance_annotations(17, PANOPTIC, SEGMENTS, np.array([0.75]), SPACE)
    assert (instance["category_id"], instance["area"], instance["bbox"], instance["score"]) == (
        3,
        4,
        [0, 0, 2, 2],
        0.75,
    )
    np.testing.assert_array_equal(mask_utils.decode(instance["segmentation"]).astype(bool), PANOPTIC == 1)


def test_whole_instances_overlap_and_hidden_ones_stay():
    masks = np.zeros((3, 4, 6), bool)
    masks[0, :3, :3] = masks[1, 1:2, 1:2] = True  # the second lies within the first
    first, second = whole_instance_annotations(17, masks, np.array([0, 2, 1]), np.array([0.5, 0.25, 1.0]), SPACE)
    assert (first["category_id"], first["area"], first["bbox"], first["score"]) == (1, 9, [0, 0, 3, 3], 0.5)
    assert (second["category_id"], second["area"], second["bbox"], second["image_id"]) == (3, 1, [1, 1, 1, 1], 17)
    np.testing.assert_array_equal(mask_utils.decode(first["segmentation"]).astype(bool), masks[0])
    assert whole_instance_annotations(17, masks[2:], np.array([1]), np.array([1.0]), SPACE) == []  # it has no pixel
