"""Every conversion of ids, on hand-made cases."""

import pytest
from u2seg.structures.label_space import LabelSpace


def test_clusters_are_numbered_from_one_things_first():
    space = LabelSpace.of_clusters(3, 2)
    assert space.thing_dataset_ids == (1, 2, 3)
    assert space.stuff_dataset_ids == (4, 5)
    assert [space.thing_dataset_id(c) for c in range(3)] == [1, 2, 3]
    assert [space.stuff_dataset_id(c) for c in range(2)] == [4, 5]
    assert [space.stuff_target(c) for c in range(2)] == [1, 2]
    assert [space.semantic_target_of(i) for i in (1, 3, 4, 5)] == [0, 0, 1, 2]


def test_a_cluster_out_of_range_is_refused():
    space = LabelSpace.of_clusters(3, 2)
    with pytest.raises(ValueError, match=r"thing cluster must be in 0\.\.2, got 3"):
        space.thing_dataset_id(3)
    with pytest.raises(ValueError, match=r"stuff cluster must be in 0\.\.1, got -1"):
        space.stuff_target(-1)


def test_coco_categories_round_trip_by_ascending_id():
    categories = [
        {"id": 200, "name": "rug", "isthing": 0},
        {"id": 90, "name": "toothbrush", "isthing": 1},
        {"id": 1, "name": "person", "isthing": 1},
        {"id": 92, "name": "banner", "isthing": 0},
    ]
    space = LabelSpace.of_coco_categories(categories)
    assert space.thing_contiguous_ids == {1: 0, 90: 1}
    assert space.stuff_contiguous_ids == {92: 1, 200: 2}
    assert LabelSpace.of_coco_categories(space.categories()) == space


def test_metadata_is_detectron2s():
    metadata = LabelSpace.of_clusters(2, 1).metadata()
    assert metadata["thing_classes"] == ["1", "2"]
    assert metadata["stuff_classes"] == ["things", "3"]
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {0: 0, 3: 1}


def test_repeated_ids_and_too_many_stuff_classes_are_refused():
    with pytest.raises(ValueError, match="unique"):
        LabelSpace((1, 1), (2,), ("a", "b"), ("c",))
    with pytest.raises(ValueError, match="at most 254"):
        LabelSpace.of_clusters(1, 255)
