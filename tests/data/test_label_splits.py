"""Few-label splits: sizes, nesting, seed, and foreign files."""

import json

import pytest
from u2seg.data.datasets.label_splits import make_label_splits, read_label_split


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps({"images": [{"id": 10 * i} for i in range(200, 0, -1)]}))
    return path


def test_sizes_and_nesting(annotations, tmp_path):
    paths = make_label_splits(annotations, tmp_path / "a")
    splits = [read_label_split(path) for path in paths]
    assert [path.name for path in paths][:3] == ["1perc.json", "2perc.json", "5perc.json"]
    assert [len(split) for split in splits] == [2, 4, 10, 20, 40, 60, 80, 100]  # of 200
    assert all(a < b for a, b in zip(splits, splits[1:]))
    assert all(i % 10 == 0 for i in splits[-1])


def test_the_seed_decides(annotations, tmp_path):
    def chosen(seed, directory):
        return read_label_split(make_label_splits(annotations, tmp_path / directory, (10,), seed)[0])

    assert chosen(1, "a") == chosen(1, "b") != chosen(2, "c")


def test_at_least_one_image(annotations, tmp_path):
    assert len(read_label_split(make_label_splits(annotations, tmp_path, (0.1,))[0])) == 1


def test_published_splits_are_coco_files(annotations):
    assert len(read_label_split(annotations)) == 200


def test_wrong_input_is_refused(annotations, tmp_path):
    with pytest.raises(ValueError, match=r"above 0 and at most 100, got \(0,\)"):
        make_label_splits(annotations, tmp_path, (0,))
    other = tmp_path / "other.json"
    other.write_text('{"categories": []}')
    with pytest.raises(ValueError, match=r"expected image_ids .* it holds categories"):
        read_label_split(other)
    for content in ("[1]", '{"categories": []}'):
        other.write_text(content)
        with pytest.raises(ValueError, match="other.json lists no images: expected"):
            make_label_splits(other, tmp_path)
    other.write_text('{"images": []}')
    with pytest.raises(ValueError, match="lists no image"):
        make_label_splits(other, tmp_path)
