"""Datasets registered by path: what Detectron2 then sees, and what a wrong path or key says."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from u2seg.data import DatasetFilesError, label_space_of, register_dataset


@pytest.fixture
def coco_root(tmp_path, write_coco_panoptic):
    return write_coco_panoptic(tmp_path / "tiny")


def test_coco_panoptic_gives_dicts_and_metadata_in_contiguous_ids(coco_root):
    register_dataset("reg_coco", {"FORMAT": "coco_panoptic", "ROOT": str(coco_root), "SPLIT": "train"})
    dicts = DatasetCatalog.get("reg_coco")
    assert [record["image_id"] for record in dicts] == [1, 2, 3, 4, 5, 6]
    first = dicts[0]
    assert first["file_name"] == str(coco_root / "train" / "000001.png")
    assert (first["height"], first["width"]) == (48, 64)
    # Categories 1, 2 are things 0, 1; categories 7, 9 are stuff 1, 2.
    assert [a["category_id"] for a in first["annotations"]] == [0, 1]
    assert [(s["isthing"], s["category_id"]) for s in first["segments_info"]] == [
        (False, 1), (False, 2), (True, 0), (True, 1),
    ]  # fmt: skip
    assert "sem_seg_file_name" not in first
    assert dicts[2]["annotations"] == []  # an image of stuff alone stays
    metadata = MetadataCatalog.get("reg_coco")
    assert metadata.thing_classes == ["box", "disc"]
    assert metadata.stuff_classes == ["things", "sky", "ground"]
    assert metadata.evaluator_type == "u2seg_panoptic"
    assert metadata.panoptic_json.endswith("panoptic_train.json")
    assert label_space_of("reg_coco").num_stuff == 2


def test_registering_again_replaces(coco_root, tmp_path, write_coco_panoptic):
    other = write_coco_panoptic(tmp_path / "other", count=3)
    for root, count in ((coco_root, 6), (other, 3)):
        register_dataset("reg_twice", {"FORMAT": "coco_panoptic", "ROOT": str(root), "SPLIT": "train"})
        assert len(DatasetCatalog.get("reg_twice")) == count


def test_class_agnostic_keeps_stuff_and_makes_one_thing(coco_root):
    description = {"FORMAT": "coco_panoptic", "ROOT": str(coco_root), "SPLIT": "train", "CLASS_AGNOSTIC": True}
    register_dataset("reg_agnostic", description)
    record = DatasetCatalog.get("reg_agnostic")[0]
    assert {a["category_id"] for a in record["annotations"]} == {0}
    assert [s["category_id"] for s in record["segments_info"]] == [1, 2, 0, 0]
    assert MetadataCatalog.get("reg_agnostic").thing_classes == ["object"]


def test_pseudo_labels_are_read_from_a_run_or_its_panoptic_directory(coco_root, tmp_path):
    # The same files in the layout of a label run.
    directory = tmp_path / "labels" / "panoptic"
    (directory / "stuff").mkdir(parents=True)
    (directory / "panoptic").symlink_to(coco_root / "panoptic_train")
    for kind in ("panoptic", "instances"):
        (directory / f"{kind}.json").write_text((coco_root / "annotations" / f"{kind}_train.json").read_text())
    for root in (tmp_path / "labels", directory):
        register_dataset(
            "reg_pseudo", {"FORMAT": "pseudo_labels", "ROOT": str(root), "IMAGES": str(coco_root / "train")}
        )
        record = DatasetCatalog.get("reg_pseudo")[0]
        assert record["sem_seg_file_name"] == str(directory / "stuff" / "000001.png")
        assert record["pan_seg_file_name"] == str(directory / "panoptic" / "000001.png")


def test_instances_and_bare_images(coco_root):
    json_file = str(coco_root / "annotations" / "instances_train.json")
    register_dataset(
        "reg_instances", {"FORMAT": "coco_instances", "JSON": json_file, "IMAGES": str(coco_root / "train")}
    )
    assert len(DatasetCatalog.get("reg_instances")[0]["annotations"]) == 2
    register_dataset("reg_images", {"FORMAT": "images", "ROOT": str(coco_root / "train")})
    records = DatasetCatalog.get("reg_images")
    assert [r["image_id"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert "annotations" not in records[0]
    assert MetadataCatalog.get("reg_images").get("evaluator_type") is None


def test_class_directories_give_classes_by_directory(coco_root, tmp_path):
    image = (coco_root / "train" / "000001.png").read_bytes()
    for name in ("b/1.png", "a/deep/er/1.png", "a/2.png", "loose.png", ".hidden/1.png"):
        path = tmp_path / "sorted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (tmp_path / "sorted/empty").mkdir()
    register_dataset("reg_classes", {"FORMAT": "class_directories", "ROOT": str(tmp_path / "sorted")})
    found = [(r["file_name"].split("sorted/")[1], r.get("image_class")) for r in DatasetCatalog.get("reg_classes")]
    assert found == [("a/2.png", 0), ("a/deep/er/1.png", 0), ("b/1.png", 1), ("loose.png", None)]
    assert MetadataCatalog.get("reg_classes").image_classes == ["a", "b", "empty"]
    with pytest.raises(
        ValueError, match="one directory for each class .* holds no directory; images without classes are"
    ):
        register_dataset("reg_flat", {"FORMAT": "class_directories", "ROOT": str(coco_root / "train")})


def test_subset_keeps_the_named_images_and_refuses_strangers(coco_root, tmp_path):
    split = tmp_path / "split.json"
    description = {"FORMAT": "coco_panoptic", "ROOT": str(coco_root), "SPLIT": "train", "SUBSET": str(split)}
    split.write_text(json.dumps({"image_ids": [2, 5]}))
    register_dataset("reg_subset", description)
    assert [r["image_id"] for r in DatasetCatalog.get("reg_subset")] == [2, 5]
    split.write_text(json.dumps({"image_ids": [2, 77]}))
    with pytest.raises(ValueError, match=r"1 of the 2 images .* not in the dataset, for example ids \[77\]"):
        DatasetCatalog.get("reg_subset")


def test_missing_files_show_the_tree_expected_and_what_was_found(coco_root):
    (coco_root / "annotations" / "instances_train.json").unlink()
    with pytest.raises(DatasetFilesError) as error:
        register_dataset("reg_missing", {"FORMAT": "coco_panoptic", "ROOT": str(coco_root), "SPLIT": "train"})
    text = str(error.value)
    assert f"[x] {coco_root}/train/" in text
    assert f"[ ] {coco_root}/annotations/instances_train.json" in text
    assert "holds panoptic_train.json" in text
    assert "DATASETS.BY_PATH.reg_missing" in text


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            {"FORMAT": "coco"},
            "FORMAT must be one of class_directories, coco_instances, coco_panoptic, .*pseudo_labels, got 'coco'",
        ),
        ({"FORMAT": "coco_panoptic", "ROOT": "x"}, "missing: SPLIT; unknown: none"),
        ({"FORMAT": "images", "ROOT": "x", "SPLIT": "y"}, "missing: none; unknown: SPLIT"),
    ],
)
def test_wrong_descriptions_are_refused(description, message):
    with pytest.raises(ValueError, match=message):
        register_dataset("reg_wrong", description)


def test_detectron2s_own_names_are_not_replaced(coco_root):
    with pytest.raises(ValueError, match="Detectron2 has a dataset of that name already"):
        register_dataset("coco_2017_val", {"FORMAT": "images", "ROOT": str(coco_root / "train")})


def test_paths_under_datasets_follow_the_environment(coco_root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(coco_root.parent))
    register_dataset("reg_env", {"FORMAT": "coco_panoptic", "ROOT": "datasets/tiny", "SPLIT": "train"})
    assert Image.open(DatasetCatalog.get("reg_env")[0]["file_name"]).size == (64, 48)


def test_the_fixture_holds_void_things_and_stuff(coco_root):
    pixels = np.asarray(Image.open(coco_root / "panoptic_train" / "000001.png"))[:, :, 0]
    assert set(np.unique(pixels)) == {0, 1, 2, 3, 4}


def spoiled(root, kind, change):
    """Changes one of a dataset's JSON files and returns its path."""
    path = root / "annotations" / f"{kind}_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


WRONG = {
    "no images": (
        "panoptic",
        lambda c: c.pop("images"),
        "images is missing; a dataset is loaded by its list of images",
    ),
    "no size": (
        "panoptic",
        lambda c: c["images"][1].pop("height"),
        r"images\[1\] has no 'height'; expected an integer above 0",
    ),
    "no name": ("panoptic", lambda c: c["images"][1].pop("file_name"), r"images\[1\] has no 'file_name'"),
    "image twice": (
        "panoptic",
        lambda c: c["images"][1].update(id=1),
        r"images\[1\] has id 1, which an earlier row has too",
    ),
    "image of no list": (
        "panoptic",
        lambda c: c["annotations"][1].update(image_id=99),
        r"annotations\[1\] has image_id 99, which the images of this file lack",
    ),
    "segment of no category": (
        "panoptic",
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id=99),
        "has category_id 99, which the categories of this file lack",
    ),
    "no segments": (
        "panoptic",
        lambda c: c["annotations"][0].pop("segments_info"),
        "has no 'segments_info'|instances JSON",
    ),
    "object of no category": (
        "instances",
        lambda c: c["annotations"][0].update(category_id=7),
        "has category_id 7, which the",
    ),
    "a box of three": (
        "instances",
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
        "expected four finite numbers",
    ),
    "no mask": (
        "instances",
        lambda c: c["annotations"][0].pop("segmentation"),
        "has no segmentation; training needs the mask",
    ),
    "another file": ("instances", lambda c: c.pop("annotations"), "not a COCO instances JSON: annotations is missing"),
    "too few run lengths": (
        "instances",
        lambda c: c["annotations"][0].update(segmentation={"size": [48, 64], "counts": [3, 4]}),
        "run lengths that cover 7 pixels; its image has 48 x 64 = 3072",
    ),
    "another category": (
        "instances",
        lambda c: (c["categories"].append({"id": 5, "name": "x"}), c["annotations"][0].update(category_id=5)),
        "has category_id 5, which is not a thing of the dataset's panoptic JSON",
    ),
}


@pytest.mark.parametrize(("kind", "change", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_row_is_named_before_training(coco_root, kind, change, message):
    description = {"FORMAT": "coco_panoptic", "ROOT": str(coco_root), "SPLIT": "train"}
    register_dataset("reg_spoiled", description)
    path = spoiled(coco_root, kind, change)
    with pytest.raises(ValueError, match=message) as error:
        DatasetCatalog.get("reg_spoiled")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), "not a COCO panoptic JSON: categories is missing"),
        (lambda c: c["categories"][0].pop("isthing"), r"categories\[0\] has no 'isthing'"),
    ],
)
def test_wrong_categories_are_named_when_a_dataset_is_registered(coco_root, change, message):
    path = spoiled(coco_root, "panoptic", change)
    with pytest.raises(ValueError, match=message) as error:
        register_dataset("reg_spoiled", {"FORMAT": "coco_panoptic", "ROOT": str(coco_root), "SPLIT": "train"})
    assert str(path) in str(error.value)


def test_images_to_evaluate_alone_are_checked_too(coco_root):
    path = spoiled(coco_root, "panoptic", lambda c: c["images"][0].update(width="64"))
    description = {"FORMAT": "evaluation_only", "PANOPTIC_JSON": str(path), "IMAGES": str(coco_root / "train")}
    register_dataset("reg_evaluated", description)
    with pytest.raises(ValueError, match=r'images\[0\] has width "64"; expected an integer above 0'):
        DatasetCatalog.get("reg_evaluated")
