"""Labels in other tools' formats, read back by the tools' own libraries where they are installed, and the way back."""

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny_coco
from detectron2.config import CfgNode
from PIL import Image
from pycocotools.coco import COCO
from u2seg.cli.main import main
from u2seg.data import register_datasets
from u2seg.data.datasets.registration import load_dicts
from u2seg.export.label_conversion import FIFTYONE, convert_labels, import_corrected
from u2seg.export.label_tools.coco_format import read_coco
from u2seg.export.label_tools.cvat_format import read_cvat
from u2seg.export.label_tools.label_studio_format import decode_brush, encode_brush, read_label_studio
from u2seg.export.label_tools.labeled_images import LabeledImage, Region, filled_polygon, joined_polygon
from u2seg.visualization.label_page import load_panoptic_labels

NAMES = ["box", "disc", "sky", "ground"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_coco.write_coco_panoptic(tmp_path_factory.mktemp("labels"), count=4)


@pytest.fixture(scope="module")
def labels(root):
    return load_panoptic_labels(root / "annotations" / "panoptic_train.json", root / "train")


def expected_regions(root, with_stuff=True):
    """Image name -> list of (category name, mask), read from the panoptic PNGs without any of the code under test."""
    content = json.loads((root / "annotations" / "panoptic_train.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    found = {}
    for annotation in content["annotations"]:
        rgb = np.asarray(Image.open(root / "panoptic_train" / annotation["file_name"])).astype(int)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        image = next(i for i in content["images"] if i["id"] == annotation["image_id"])
        found[image["file_name"]] = [
            (names[s["category_id"]], ids == s["id"])
            for s in annotation["segments_info"]
            if with_stuff or s["category_id"] in things
        ]
    return found


def same_regions(found, expected):
    """Whether two lists of (name, mask) hold the same regions, in any order."""
    as_set = [{(name, np.ascontiguousarray(mask, bool).tobytes()) for name, mask in side} for side in (found, expected)]
    return as_set[0] == as_set[1] and len(found) == len(expected)


def count(regions):
    return sum(map(len, regions.values()))


def test_coco_is_read_by_pycocotools(root, labels, tmp_path, capsys):
    expected = expected_regions(root, with_stuff=False)
    source = str(root / "annotations" / "panoptic_train.json")
    words = ["--images", str(root / "train"), "--format", "coco", "--output", str(tmp_path)]
    assert main(["convert", "labels", source, *words]) == 0
    assert f"{count(expected)} regions of 4 images" in capsys.readouterr().out
    coco = COCO(str(tmp_path / "instances.json"))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == NAMES[:2]
    for image in coco.loadImgs(coco.getImgIds()):
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        found = [(coco.cats[a["category_id"]]["name"], coco.annToMask(a) > 0) for a in annotations]
        assert same_regions(found, expected[image["file_name"]])


def test_yolo_is_read_by_supervision(root, labels, tmp_path):
    supervision = pytest.importorskip("supervision", reason="the package supervision is not installed")
    convert_labels(labels, tmp_path, "yolo", with_stuff=True)
    dataset = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images/train"), str(tmp_path / "labels/train"), str(tmp_path / "data.yaml"), force_masks=True
    )
    assert dataset.classes == NAMES
    expected = expected_regions(root)
    for path, _, detections in dataset:
        wanted = expected[Path(path).name]
        assert sorted(NAMES[c] for c in detections.class_id) == sorted(name for name, _ in wanted)
        for name, mask in wanted:
            ious = [
                (mask & found).sum() / (mask | found).sum()
                for c, found in zip(detections.class_id, detections.mask)
                if NAMES[c] == name
            ]
            # Things hide parts of the stuff behind them: such holes are filled.
            assert max(ious) == 1 if name in NAMES[:2] else max(ious) > 0.4


def test_yolo_lines_are_polygons_relative_to_the_image(root, labels, tmp_path):
    convert_labels(labels, tmp_path, "yolo")
    for name, wanted in expected_regions(root, with_stuff=False).items():
        lines = (tmp_path / "labels/train" / f"{Path(name).stem}.txt").read_text().splitlines()
        found = []
        for line in lines:
            index, *values = line.split()
            points = np.array(values, float).reshape(-1, 2) * (64, 48)  # the images' width and height
            found.append((NAMES[int(index)], filled_polygon(np.floor(points), (48, 64))))
        assert same_regions(found, wanted)


@pytest.mark.parametrize("seed", range(5))
def test_a_polygon_holds_all_parts_of_a_region(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 60), bool)
    for _ in range(1 + seed):
        y, x = rng.integers(0, 34), rng.integers(0, 50)
        mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 9)] = True
    polygon = joined_polygon(mask)
    filled = filled_polygon(polygon, mask.shape)
    assert len(polygon) >= 3 and not (mask & ~filled).any()
    # Beyond the region lie only the lines between its parts.
    assert (filled & ~mask).sum() <= 60 * seed


def test_voc_has_exact_pngs_and_boxes(root, labels, tmp_path):
    convert_labels(labels, tmp_path, "voc", with_stuff=True)
    names = ["background", *NAMES]
    for name, wanted in expected_regions(root).items():
        stem = Path(name).stem
        classes, objects = (
            np.asarray(Image.open(tmp_path / directory / f"{stem}.png"))
            for directory in ("SegmentationClass", "SegmentationObject")
        )
        numbers = [i for i in np.unique(objects) if i]
        assert same_regions([(names[classes[objects == i][0]], objects == i) for i in numbers], wanted)
        tree = ElementTree.parse(tmp_path / "Annotations" / f"{stem}.xml")
        boxes = [
            [int(o.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")] for o in tree.iter("object")
        ]
        masks = [objects == number for number in numbers]
        assert boxes == [[m.any(0).argmax() + 1, m.any(1).argmax() + 1, *_last(m)] for m in masks]
    # VOC's own colors: 1 is dark red, 2 dark green.
    assert "box:128,0,0::\ndisc:0,128,0::" in (tmp_path / "labelmap.txt").read_text()


def _last(mask):
    return [np.flatnonzero(mask.any(0))[-1] + 1, np.flatnonzero(mask.any(1))[-1] + 1]


def test_voc_is_read_by_supervision(root, labels, tmp_path):
    supervision = pytest.importorskip("supervision", reason="the package supervision is not installed")
    convert_labels(labels, tmp_path, "voc")
    dataset = supervision.DetectionDataset.from_pascal_voc(str(tmp_path / "JPEGImages"), str(tmp_path / "Annotations"))
    expected = expected_regions(root, with_stuff=False)
    for path, _, detections in dataset:
        found = sorted(dataset.classes[c] for c in (detections.class_id if len(detections) else []))
        assert found == sorted(name for name, _ in expected[Path(path).name])


def test_voc_and_cvat_are_read_by_datumaro(root, labels, tmp_path):
    datumaro = pytest.importorskip("datumaro", "1.0", reason="the package datumaro (1.0 or newer) is not installed")
    expected = expected_regions(root, with_stuff=False)
    for kind, reader in (("voc", "voc"), ("cvat", "cvat")):
        convert_labels(labels, tmp_path / kind, kind)
        shutil.copytree(root / "train", tmp_path / kind / "images")  # where it looks for CVAT's
        dataset = datumaro.Dataset.import_from(str(tmp_path / kind), reader)
        categories = dataset.categories()[datumaro.AnnotationType.label]
        for item in dataset:
            masks = [one for one in item.annotations if one.type == datumaro.AnnotationType.mask]
            found = [(categories[one.label].name, np.asarray(one.image) > 0) for one in masks]
            name = next(name for name in expected if Path(name).stem == Path(item.id).stem)
            assert same_regions(found, expected[name]), kind


def test_label_studios_own_decoder_reads_the_brushes(root, labels, tmp_path):
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    convert_labels(labels, tmp_path, "label-studio", with_stuff=True)
    expected = expected_regions(root)
    for task in json.loads((tmp_path / "tasks.json").read_text()):
        name = task["data"]["image"].removeprefix("/data/local-files/?d=")
        found = []
        for result in task["predictions"][0]["result"]:
            size = result["original_height"], result["original_width"]
            mask = brush.decode_rle(result["value"]["rle"]).reshape(*size, 4)[:, :, 3] > 0
            found.append((result["value"]["brushlabels"][0], mask))
        assert same_regions(found, expected[name])
    offered = [label.get("value") for label in ElementTree.parse(tmp_path / "label_config.xml").iter("Label")]
    assert offered == NAMES


def test_brush_code_of_every_run_length():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (3, 5), (40, 70), (300, 200)):
        for density in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random(size) < density
            assert np.array_equal(decode_brush(encode_brush(mask), size), mask)
    with pytest.raises(ValueError, match="ends early"):
        decode_brush(encode_brush(np.ones((4, 4), bool))[:-1], (4, 4))
    with pytest.raises(ValueError, match="holds 64 values; expected 48"):
        decode_brush(encode_brush(np.ones((4, 4), bool)), (4, 3))


def regions_of_detections(detections):
    """(label, mask of 48 x 64) of FiftyOne's detections, by what its documentation says: relative boxes, masks inside them."""
    found = []
    for one in detections:
        mask = np.zeros((48, 64), bool)
        left, top = round(one.bounding_box[0] * 64), round(one.bounding_box[1] * 48)
        assert one.mask.shape == (round(one.bounding_box[3] * 48), round(one.bounding_box[2] * 64))
        mask[top : top + one.mask.shape[0], left : left + one.mask.shape[1]] = one.mask
        found.append((one.label, mask))
    return found


class FakeDataset(list):
    def __init__(self, name, persistent):
        super().__init__()
        assert persistent
        self.name = name

    add_samples = list.extend


class FakeSample(dict):
    def __init__(self, filepath):
        super().__init__()
        self.filepath = filepath


def test_fiftyone_gets_the_regions(root, labels, monkeypatch):
    made = []
    fake = SimpleNamespace(
        dataset_exists=lambda name: name in [one.name for one in made],
        Dataset=lambda *args, **kwargs: made.append(FakeDataset(*args, **kwargs)) or made[-1],
        Sample=FakeSample,
        Detections=SimpleNamespace,
        Detection=SimpleNamespace,
    )
    monkeypatch.setitem(sys.modules, "fiftyone", fake)
    assert convert_labels(labels, "somewhere/mine", FIFTYONE, with_stuff=True) == count(expected_regions(root))
    [dataset] = made
    assert dataset.name == "mine" and dataset.default_classes == NAMES and len(dataset) == 4
    for sample in dataset:
        found = regions_of_detections(sample["u2seg"].detections)
        assert same_regions(found, expected_regions(root)[Path(sample.filepath).name])
    with pytest.raises(ValueError, match="has a dataset 'mine' already"):
        convert_labels(labels, "mine", FIFTYONE)
    assert made == [dataset] and len(dataset) == 4
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'u2seg\[fiftyone\]'"):
        convert_labels(labels, "mine", FIFTYONE)


@pytest.mark.skipif(
    not (importlib.util.find_spec("fiftyone") and (shutil.which("mongod") or "FIFTYONE_DATABASE_URI" in os.environ)),
    reason="the package fiftyone or its database is not installed",
)
def test_fiftyone_gives_the_regions_back(root, labels):
    import fiftyone

    convert_labels(labels, "u2seg-test", FIFTYONE, with_stuff=True)
    for sample in fiftyone.load_dataset("u2seg-test"):
        found = regions_of_detections(sample["u2seg"].detections)
        assert same_regions(found, expected_regions(root)[Path(sample.filepath).name])
    fiftyone.delete_dataset("u2seg-test")


@pytest.mark.parametrize("kind", ["coco", "label-studio", "cvat"])
def test_what_is_not_corrected_comes_back_as_it_was(root, labels, tmp_path, kind):
    convert_labels(labels, tmp_path / "out", kind, with_stuff=True)
    made = import_corrected(tmp_path / "out", root / "train", tmp_path / "dataset", kind)
    back = load_panoptic_labels(tmp_path / "dataset/annotations/panoptic_train.json", tmp_path / "dataset/train")
    assert back.space.thing_names == labels.space.thing_names and back.space.stuff_names == labels.space.stuff_names
    assert made.images == 4 and made.regions == count(expected_regions(root)) and not made.new_categories
    again, expected = expected_regions(tmp_path / "dataset"), expected_regions(root)
    assert all(same_regions(again[name], expected[name]) for name in expected)
    assert all((tmp_path / "dataset/train" / name).is_file() for name in expected)


def test_corrections_become_a_dataset_that_detectron2_trains_on(root, labels, tmp_path, capsys):
    convert_labels(labels, tmp_path, "cvat", with_stuff=True)
    tree = ElementTree.parse(tmp_path / "annotations.xml")
    first = next(iter(tree.iter("image")))
    masks = list(first)
    # A person renames a box, deletes the rest of the first image, and draws a polygon.
    renamed = next(one for one in masks if one.get("label") == "box")
    renamed.set("label", "crate")
    for one in masks:
        if one is not renamed:
            first.remove(one)
    ElementTree.SubElement(
        first, "polygon", {"label": "disc", "points": "1.5,1.5;9.5,1.5;9.5,5.5;1.5,5.5", "z_order": "9"}
    )
    tree.write(tmp_path / "corrected.xml")
    words = [
        "convert",
        "corrected",
        str(tmp_path / "corrected.xml"),
        "--images",
        str(root / "train"),
        "--format",
        "cvat",
    ]
    assert main([*words, "--output", str(tmp_path / "dataset")]) == 0
    assert "new categories: crate" in capsys.readouterr().out
    description = CfgNode({"FORMAT": "coco_panoptic", "ROOT": str(tmp_path / "dataset"), "SPLIT": "train"})
    register_datasets({"corrected_by_hand": description})
    dicts = load_dicts("corrected_by_hand", description)
    # Things first: box, disc, crate; then stuff.
    corrected = next(one for one in dicts if one["file_name"].endswith(first.get("name")))
    assert sorted(a["category_id"] for a in corrected["annotations"]) == [1, 2]
    drawn = np.zeros((48, 64), bool)
    drawn[1:6, 1:10] = True
    areas = {a["category_id"]: a["bbox"] for a in corrected["annotations"]}
    assert areas[1] == [1, 1, 9, 5] == [1, 1, drawn.any(0).sum(), drawn.any(1).sum()]


def test_label_studio_exports_are_read_as_people_leave_them(tmp_path):
    mask = np.zeros((10, 20), bool)
    mask[2:4, 5:9] = True
    brush = {
        "type": "brushlabels",
        "original_width": 20,
        "original_height": 10,
        "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["cat"]},
    }
    polygon = {
        "type": "polygonlabels",
        "original_width": 20,
        "original_height": 10,
        "value": {"points": [[12.5, 25], [42.5, 25], [42.5, 75], [12.5, 75]], "polygonlabels": ["dog"]},
    }
    tasks = [
        {
            "data": {"image": "/data/local-files/?d=photos/a.jpg"},
            "annotations": [
                {"result": [brush]},
                {"result": [brush, polygon, {"type": "choices", "value": {}}]},
                {"result": [], "was_cancelled": True},
            ],
            "predictions": [{"result": []}],
        },
        {"data": {"image": "/data/upload/1/0a1b2c3d-b%20c.jpg"}, "predictions": [{"result": [brush]}]},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    (first, regions), (second, others) = read_label_studio(tmp_path / "export.json")
    assert (first, second) == ("photos/a.jpg", "data/upload/1/0a1b2c3d-b c.jpg")
    assert [one.category for one in regions] == ["cat", "dog"] and len(others) == 1
    assert np.array_equal(regions[0].mask, mask)
    # 12.5 % of 20 pixels is 2.5, the center of the pixel with index 2.
    assert regions[1].mask.any(0).nonzero()[0].tolist() == list(range(2, 9))
    assert regions[1].mask.any(1).nonzero()[0].tolist() == list(range(2, 8))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("coco", "[]", "no COCO instances JSON"),
        ("label-studio", '{"a": 1}', "no JSON export of Label Studio"),
        ("cvat", "<other/>", "expected <annotations>, got <other>"),
        ("cvat", "no xml", "is not XML"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, kind, text, message):
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        import_corrected(path, tmp_path, tmp_path / "out", kind)
    with pytest.raises(FileNotFoundError, match=f"no {kind} labels"):
        import_corrected(tmp_path, tmp_path, tmp_path / "out", kind)


def test_an_image_that_is_not_there_or_has_another_size_is_named(root, labels, tmp_path):
    convert_labels(labels, tmp_path, "cvat")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (10, 10)).save(tmp_path / "images" / "other.png")
    with pytest.raises(FileNotFoundError, match="names the image .* holds none of that name"):
        import_corrected(tmp_path, tmp_path / "images", tmp_path / "out", "cvat")
    for image in (root / "train").iterdir():
        Image.new("RGB", (10, 10)).save(tmp_path / "images" / image.name)
    with pytest.raises(ValueError, match=r"has 10 x 10 pixels .* its labels \(48, 64\)"):
        import_corrected(tmp_path, tmp_path / "images", tmp_path / "out", "cvat")


def test_coco_files_of_other_tools_have_polygons_and_must_have_masks(tmp_path):
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 10, "width": 20}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 3,
                "segmentation": [[2, 2, 6, 2, 6, 5, 2, 5], [9, 1, 12, 1, 12, 3, 9, 3]],
            },
            {
                "id": 2,
                "image_id": 5,
                "category_id": 3,
                "segmentation": {"size": [10, 20], "counts": [0, 200]},
                "iscrowd": 1,
            },
            {"id": 3, "image_id": 5, "category_id": 3, "segmentation": {"size": [10, 20], "counts": [190, 10]}},
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    [(name, regions)] = read_coco(tmp_path / "a.json")
    assert name == "a.jpg" and [int(one.mask.sum()) for one in regions] == [4 * 3 + 3 * 2, 10]
    assert regions[1].mask[:, 19].all()  # COCO counts column by column
    content["annotations"][0]["segmentation"] = []
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="1 annotations have no mask, the first one with id 1"):
        list(read_coco(tmp_path / "a.json"))
    del content["annotations"][0]["id"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="1 annotations have no mask, the first one with id None"):
        list(read_coco(tmp_path / "a.json"))
    content["annotations"][:] = [{**content["annotations"][2], "category_id": 77}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a\.json: annotation number 1 \(id 3\) has .*category_id 77; expected"):
        list(read_coco(tmp_path / "a.json"))


def test_a_cvat_mask_must_fill_its_window(tmp_path):
    attributes = 'label="a" left="0" top="0" width="2" height="2" rle="0, 3"'
    (tmp_path / "a.xml").write_text(
        f'<annotations><image id="0" name="a.jpg" width="4" height="4"><mask {attributes}/></image></annotations>'
    )
    with pytest.raises(ValueError, match="2 x 2 pixels has runs for 3"):
        list(read_cvat(tmp_path / "a.xml"))


@pytest.mark.parametrize(
    ("shape", "missing"), [('polygon points="0,0;3,0;3,3"', "label"), ('mask label="a"', "height")]
)
def test_a_cvat_shape_must_have_a_label_and_a_form(tmp_path, shape, missing):
    image = f'<image id="0" name="a.jpg" width="4" height="4"><{shape}/></image>'
    (tmp_path / "a.xml").write_text(f"<annotations>{image}</annotations>")
    with pytest.raises(
        ValueError, match=rf"a\.xml: shape 1 of the image a\.jpg, a {shape.split()[0]}, lacks its {missing}"
    ):
        list(read_cvat(tmp_path / "a.xml"))


def test_names_that_would_collide_are_refused(labels, tmp_path):
    from u2seg.export.label_tools.labeled_images import Category, checked_names, require_different_stems

    pair = [
        LabeledImage(name, tmp_path / name, (1, 1), [Region("a", np.ones((1, 1), bool))]) for name in ("x.jpg", "x.png")
    ]
    with pytest.raises(ValueError, match=r"x\.jpg and x\.png would share x"):
        require_different_stems(pair, "YOLO")
    with pytest.raises(ValueError, match="'a' cannot be one"):
        checked_names([Category("a", True), Category("a", True)])
    with pytest.raises(ValueError, match="'a': name of a thing and of a stuff category"):
        checked_names([Category("a", True), Category("a", False)])
    with pytest.raises(ValueError, match="unknown format 'pdf'; known: coco"):
        convert_labels(labels, tmp_path, "pdf")


def cvat_export(path, *images):
    """Writes an export with (name, width, height, shapes) for each image."""
    entries = [f'<image name="{name}" width="{w}" height="{h}">{shapes}</image>' for name, w, h, shapes in images]
    path.write_text(f"<annotations>{''.join(entries)}</annotations>")
    return path


SQUARE = '<polygon label="cat" points="1.5,1.5;4.5,1.5;4.5,4.5;1.5,4.5"/>'


def save_images(directory, *names, size=(20, 10), **options):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(directory / name, **options)
    return directory


def test_clusters_with_one_name_are_one_category(root, labels, tmp_path):
    expected = expected_regions(root)
    cats = load_panoptic_labels(root / "annotations" / "panoptic_train.json", root / "train")
    space = dataclasses.replace(cats.space, thing_names=("cat", "cat"), stuff_names=("cat", "sky"))
    cats = dataclasses.replace(cats, space=space)
    things = expected_regions(root, with_stuff=False)
    assert convert_labels(cats, tmp_path / "things", "coco") == count(things)
    content = json.loads((tmp_path / "things/instances.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["cat"] and len(content["annotations"]) == count(things)
    with pytest.raises(ValueError, match="'cat': name of a thing and of a stuff category"):
        convert_labels(cats, tmp_path / "both", "coco", with_stuff=True)
    cats = dataclasses.replace(cats, space=dataclasses.replace(space, stuff_names=("sky", "sky")))
    assert convert_labels(cats, tmp_path / "all", "coco", with_stuff=True) == count(expected)
    categories = json.loads((tmp_path / "all/categories.json").read_text())
    assert [(one["name"], one["isthing"]) for one in categories] == [("cat", 1), ("sky", 0)]


def test_labels_are_not_written_over_themselves(labels, tmp_path):
    copied = shutil.copytree(labels.png_directory, tmp_path / "made" / "panoptic")
    (tmp_path / "made/instances.json").write_text("{}")
    own = dataclasses.replace(labels, png_directory=copied)
    with pytest.raises(ValueError, match="holds the labels themselves"):
        convert_labels(own, tmp_path / "made" / "panoptic" / "..", "coco")
    assert (tmp_path / "made/instances.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/b.png", "a/b.png"),
        # Behind the directory of a tool's storage.
        ("photos/a/b.png", "a/b.png"),
        ("photos/d.png", "d.png"),
        # A bare or flat name, and that of an uploaded file.
        ("c.png", "a/c.png"),
        ("a_c.png", "a/c.png"),
        ("data/upload/1/0a1b2c3d-a_c.png", "a/c.png"),
        ("data/upload/1/0a1b2c3d-c.png", "a/c.png"),
    ],
)
def test_images_are_found_by_what_tools_make_of_their_names(tmp_path, name, found):
    images = save_images(tmp_path / "images", "a/b.png", "a/c.png", "b/b.png", "d.png")
    export = cvat_export(tmp_path / "a.xml", (name, 20, 10, SQUARE))
    made = import_corrected(export, images, tmp_path / "out", "cvat")
    content = json.loads((made.root / "annotations/panoptic_train.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [found.replace("/", "_")]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("b.png", "several"),
        ("other/c.png", "none"),
        ("x-c.png", "none"),
        ("0a1b2c3-c.png", "none"),
        ("up/c.png", "none"),
    ],
)
def test_images_are_not_guessed(tmp_path, name, number):
    images = save_images(tmp_path / "images", "a/b.png", "a/c.png", "b/b.png")
    export = cvat_export(tmp_path / "a.xml", (name, 20, 10, SQUARE))
    with pytest.raises(FileNotFoundError, match=f"holds {number} of that name"):
        import_corrected(export, images, tmp_path / "out", "cvat")


@pytest.mark.parametrize("pair", [("a/b.png", "a_b.png"), ("a_b.png", "a_b.jpg"), ("d.png", "d.png")])
def test_corrected_images_that_would_share_a_file_are_refused(tmp_path, pair):
    images = save_images(tmp_path / "images", *pair)
    export = cvat_export(tmp_path / "a.xml", *((name, 20, 10, SQUARE) for name in pair))
    with pytest.raises(ValueError, match=f"{pair[0]} and {pair[1]} would share"):
        import_corrected(export, images, tmp_path / "out", "cvat")
    assert not (tmp_path / "out").exists()


def test_sizes_are_those_of_upright_images(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6  # stored on its side
    images = save_images(tmp_path / "images", "a.jpg", size=(10, 20), exif=turned)
    export = cvat_export(tmp_path / "a.xml", ("a.jpg", 20, 10, SQUARE))
    assert import_corrected(export, images, tmp_path / "out", "cvat").regions == 1


def test_what_cannot_be_imported_is_one_message(tmp_path):
    images = save_images(tmp_path / "images", "a.png")
    empty = cvat_export(tmp_path / "empty.xml")
    with pytest.raises(ValueError, match='names no image; expected CVAT\'s export "CVAT for images 1.1"'):
        import_corrected(empty, images, tmp_path / "out", "cvat")
    export = cvat_export(tmp_path / "a.xml", ("a.png", 20, 10, SQUARE))
    with pytest.raises(ValueError, match="no category is called 'sky', which should be stuff; known: cat"):
        import_corrected(export, images, tmp_path / "out", "cvat", stuff=["sky"])
    boxes = '<box label="a"/><ellipse label="a"/><tag label="whole"/>'
    with pytest.raises(ValueError, match=r"b\.xml: the image a\.png has shapes of the kind box, ellipse; only masks"):
        list(read_cvat(cvat_export(tmp_path / "b.xml", ("a.png", 20, 10, boxes))))
    (tmp_path / "c.xml").write_text('<annotations><image name="a.png"/></annotations>')
    with pytest.raises(ValueError, match="the image 'a.png' lacks its name, height or width"):
        list(read_cvat(tmp_path / "c.xml"))
    results = [{"type": "rectanglelabels", "value": {}}, {"type": "choices", "value": {}}]
    tasks = [{"data": {"image": "/data/local-files/?d=/a+b&c.png"}, "annotations": [{"result": results}]}]
    (tmp_path / "d.json").write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=r"the image a\+b&c\.png has shapes of the kind rectanglelabels; only masks"):
        list(read_label_studio(tmp_path / "d.json"))
    results[:] = [{"type": "brushlabels", "value": {"brushlabels": ["cat"]}}]
    (tmp_path / "d.json").write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=r"a region of the image a\+b&c\.png lacks original_height"):
        list(read_label_studio(tmp_path / "d.json"))
    content = {"images": [{"id": 5, "file_name": "a.png"}], "annotations": [], "categories": []}
    (tmp_path / "e.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="the image with id 5 lacks its file_name, height or width"):
        list(read_coco(tmp_path / "e.json"))
