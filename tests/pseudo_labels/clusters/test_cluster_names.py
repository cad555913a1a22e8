"""Naming clusters by hand: what is written, what is refused, and that nothing is ever half done."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import rgb2id
from PIL import Image
from u2seg.cli.main import main
from u2seg.config import setup_cfg
from u2seg.data.datasets.registration import register_dataset
from u2seg.data.formats.coco_panoptic import (
    instance_annotations,
    panoptic_annotation,
    write_panoptic_png,
    write_stuff_png,
)
from u2seg.data.formats.label_shards import ImageLabels
from u2seg.pseudo_labels.clusters import cluster_names
from u2seg.pseudo_labels.clusters.cluster_names import (
    ClusterNameError,
    count_clusters,
    forget_names,
    merged_clusters,
    parse_names,
    read_names,
    rename_clusters,
)
from u2seg.pseudo_labels.image_source import open_source
from u2seg.pseudo_labels.panoptic import panoptic_stage
from u2seg.pseudo_labels.panoptic.panoptic_stage import write_json_files
from u2seg.pseudo_labels.phases import LabelRun, phase_named
from u2seg.structures import LabelSpace, Segment
from u2seg.utils.manifest import close_stage, discard_stage, open_stage

# Things 1 to 3, stuff 4 to 6.
SPACE = LabelSpace.of_clusters(3, 3)
SIZE = (6, 8)


def image(number: int) -> tuple[np.ndarray, list[Segment]]:
    """An image of three bands of stuff and two things, with other clusters in each."""
    panoptic = np.repeat(np.array([3, 3, 4, 4, 5, 0]), SIZE[1]).reshape(SIZE).astype(np.int32)
    panoptic[0, :3], panoptic[2:4, 5:] = 1, 2
    areas = Counter(panoptic.ravel().tolist())
    things = [Segment(i, cluster, True, areas[i], source=i - 1) for i, cluster in ((1, number), (2, 2))]
    return panoptic, [*things, *(Segment(i, i - 3, False, areas[i]) for i in (3, 4, 5))]


@pytest.fixture
def labels(tmp_path):
    """A label directory of two images, as the panoptic stage leaves it, and the images."""
    directory = tmp_path / "labels"
    stage = directory / "panoptic"
    open_stage(stage, "panoptic", {})
    (tmp_path / "photos").mkdir()
    labels = []
    for number in (0, 1):
        panoptic, segments = image(number)
        png = f"{number}.png"
        write_panoptic_png(stage / "panoptic" / png, panoptic)
        write_stuff_png(stage / "stuff" / png, panoptic, segments, SPACE)
        Image.new("RGB", SIZE[::-1]).save(tmp_path / "photos" / f"{number}.jpg")
        labels.append(
            ImageLabels(
                image={"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]},
                panoptic=panoptic_annotation(number, png, panoptic, segments, SPACE),
                instances=instance_annotations(number, panoptic, segments, np.ones(2), SPACE),
            )
        )
    write_json_files(stage, lambda: iter(labels), SPACE)
    close_stage(stage, {})
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def names_by_pixel(directory: Path, number: int) -> np.ndarray:
    """Returns the class name of each pixel, read from panoptic JSON and PNG alone."""
    panoptic = json.loads((directory / "panoptic.json").read_text())
    names = {category["id"]: category["name"] for category in panoptic["categories"]}
    row = panoptic["annotations"][number]
    ids = rgb2id(np.asarray(Image.open(directory / "panoptic" / row["file_name"])))
    found = np.full(ids.shape, "void", object)
    for segment in row["segments_info"]:
        inside = ids == segment["id"]
        found[inside] = names[segment["category_id"]]
        rows, columns = np.nonzero(inside)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert segment["area"] == inside.sum() and segment["bbox"] == [int(v) for v in box]
    return found


def test_every_pixel_keeps_its_cluster_under_its_new_name(labels):
    named = rename_clusters(labels, {1: "cat", 2: "cat", 4: "sky", 6: "sky", 5: "wall"})
    new_name = {"1": "cat", "2": "cat", "4": "sky", "6": "sky", "5": "wall", "3": "3", "void": "void"}
    stuff = json.loads((named / "panoptic.json").read_text())["categories"]
    assert [(c["id"], c["name"], c["isthing"]) for c in stuff] == [
        (1, "cat", 1),
        (2, "3", 1),
        (3, "sky", 0),
        (4, "wall", 0),
    ]
    for number in (0, 1):
        before, after = names_by_pixel(labels / "panoptic", number), names_by_pixel(named, number)
        assert np.vectorize(new_name.get)(before).tolist() == after.tolist()
        target = {"cat": 0, "3": 0, "sky": 1, "wall": 2, "void": 255}
        np.testing.assert_array_equal(
            np.asarray(Image.open(named / "stuff" / f"{number}.png")), np.vectorize(target.get)(after)
        )
    # Of the three bands two are one segment now; the things are still two.
    row = json.loads((named / "panoptic.json").read_text())["annotations"][0]
    assert Counter(segment["category_id"] for segment in row["segments_info"]) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert merged_clusters(labels) == [[1, 2], [4, 6]]


def test_training_sees_the_names_and_the_joined_classes(labels, tmp_path):
    rename_clusters(labels, {1: "cat", 2: "cat", 5: "wall"})
    register_dataset(
        "named_labels", {"FORMAT": "pseudo_labels", "ROOT": str(labels), "IMAGES": str(tmp_path / "photos")}
    )
    metadata = MetadataCatalog.get("named_labels")
    assert metadata.thing_classes == ["cat", "3"] and metadata.stuff_classes == ["things", "4", "wall", "6"]
    first, second = DatasetCatalog.get("named_labels")
    assert [row["category_id"] for row in first["annotations"] + second["annotations"]] == [0, 1, 0, 1]


def test_names_add_up_and_can_be_taken_back(labels):
    before = contents(labels)
    rename_clusters(labels, {1: "cat"})
    rename_clusters(labels, {2: "dog", 1: "lion "})
    assert read_names(labels) == {1: "lion", 2: "dog"}
    assert [(row.cluster, row.segments, row.images, row.name) for row in count_clusters(labels)][:3] == [
        (1, 1, 1, "lion"),
        (2, 1, 1, "dog"),
        (3, 2, 2, ""),
    ]
    rename_clusters(labels, {1: "", 2: ""})
    assert read_names(labels) == {} and contents(labels) == before
    rename_clusters(labels, {1: "cat"})
    assert forget_names(labels) and not forget_names(labels) and contents(labels) == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({7: "cat"}, "there is no cluster 7 in .*; it has 1 to 6"),
        ({1: "12"}, "cannot be called '12'"),
        ({1: "cat", 4: "cat"}, "a thing cluster and a stuff cluster cannot become one"),
    ],
)
def test_what_cannot_be_named_changes_nothing(labels, names, message):
    rename_clusters(labels, {2: "dog"})
    before = contents(labels)
    with pytest.raises(ClusterNameError, match=message):
        rename_clusters(labels, names)
    assert contents(labels) == before


@pytest.mark.parametrize("word", ["cat", "x=cat", "=cat", "-3=cat"])
def test_only_numbers_have_names(word):
    with pytest.raises(ClusterNameError, match=r"expected NUMBER=NAME, such as 3=cat, got"):
        parse_names([word], "names.txt")
    with pytest.raises(ClusterNameError, match="cluster 3 is named twice"):
        parse_names(["3=cat", "03=dog"], "names.txt")


def test_a_kill_at_any_rename_leaves_whole_labels(labels, monkeypatch):
    """Whatever was done before the kill, the labels are the old or the new ones, and the next call works."""
    rename_clusters(labels, {1: "cat"})
    old = contents(labels / "named")
    rename = Path.rename

    def killed_at(call):
        calls = []

        def renamed(self, target):
            calls.append(target)
            if len(calls) == call:
                raise KeyboardInterrupt
            return rename(self, target)

        return renamed

    for call in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed_at(call))
            with pytest.raises(KeyboardInterrupt):
                rename_clusters(labels, {2: "dog"})
        assert read_names(labels) == {1: "cat"} and contents(labels / "named") == old
    rename_clusters(labels, {2: "dog"})
    assert read_names(labels) == {1: "cat", 2: "dog"}
    assert sorted(path.name for path in labels.iterdir()) == ["named", "panoptic"]


def test_a_kill_while_images_are_written_leaves_the_old_labels(labels, monkeypatch):
    before = contents(labels)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster_names, "_write_pngs", killed)
    with pytest.raises(KeyboardInterrupt):
        rename_clusters(labels, {2: "dog"})
    assert contents(labels) == before


def test_names_end_with_the_labels_that_they_were_given_to(labels, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(panoptic_stage, "finish_panoptic", lambda *args: None)
    cfg, run = setup_cfg("quick_schedules/photos.yaml"), LabelRun(open_source(tmp_path / "photos"), labels)
    rename_clusters(labels, {1: "cat"})
    phase_named("panoptic").finish(cfg, run)
    assert read_names(labels) == {1: "cat"}
    discard_stage(labels / "panoptic")
    phase_named("panoptic").finish(cfg, run)
    assert read_names(labels) == {} and "given by hand are gone" in caplog.text


def test_the_command(labels, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("# animals\n1 = big cat\n3=dog  # or wolf\n\n")
    assert main(["clusters", "rename", str(labels), "2=big cat", "--file", str(tmp_path / "names.txt")]) == 0
    assert "clusters 1, 2 are one class: big cat" in capsys.readouterr().out
    assert main(["clusters", "list", str(labels)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split(maxsplit=4) == ["1", "thing", "1", "1", "big cat"]
    assert main(["clusters", "reset", str(labels)]) == 0
    assert not (labels / "named").exists()
    assert main(["clusters", "rename", str(labels)]) == 1
    assert main(["clusters", "list", str(tmp_path)]) == 1
    assert "no finished labels in" in capsys.readouterr().err
