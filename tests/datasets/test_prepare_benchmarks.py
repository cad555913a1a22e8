"""Every prepare script on tiny files in its dataset's true format."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
from PIL import Image
from pycocotools import mask as mask_utils
from torchvision.transforms.functional import InterpolationMode, center_crop, resize
from u2seg.data import DatasetFilesError
from u2seg.data.benchmarks import BENCHMARKS, PREPARE
from u2seg.data.datasets.registration import load_dicts, require_dataset_files
from u2seg.evaluation.tables.ground_truth import InstanceGroundTruth, PanopticGroundTruth

ROOT = Path(__file__).parents[2]


def script(name: str):
    return PREPARE[name.removeprefix("prepare_")]


def load_benchmark(name: str, root: Path) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        return load_dicts(name, BENCHMARKS[name])


def save(path: Path, pixels: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def palette(path: Path, values: np.ndarray) -> None:
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([i // 3 for i in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


VOC_XML = """<annotation><directory>VOC2007</directory><filename>{name}.jpg</filename>
<size><width>50</width><height>30</height><depth>3</depth></size><segmented>0</segmented>
<object><name>dog</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>50</xmax><ymax>30</ymax></bndbox>
<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part></object>
<object><name>person</name><pose>Unspecified</pose><truncated>0</truncated><difficult>1</difficult>
<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>10</ymax></bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2007"
    for split, name in (("trainval", "000005"), ("test", "000001")):
        text(root / "ImageSets/Main" / f"{split}.txt", f"{name}\n")
        text(root / "Annotations" / f"{name}.xml", VOC_XML.format(name=name))
        save(root / "JPEGImages" / f"{name}.jpg", np.zeros((30, 50, 3), np.uint8))
    return root


def test_voc_boxes_count_from_one_and_include_the_last_pixel(voc):
    path = script("prepare_voc").prepare_boxes(voc, ["trainval", "test"])
    assert path.name == Path(BENCHMARKS["voc_2007_trainval_test_boxes"]["INSTANCES_JSON"]).name
    content = json.loads(path.read_text())
    assert [(i["file_name"], i["height"], i["width"]) for i in content["images"]] == [
        ("000005.jpg", 30, 50),
        ("000001.jpg", 30, 50),
    ]
    dog, person = content["annotations"][:2]
    assert dog["bbox"] == [0, 0, 50, 30] and dog["area"] == 1500  # the whole image
    assert person["bbox"] == [10, 5, 10, 5] and person["iscrowd"] == 0
    assert [content["categories"][a["category_id"] - 1]["name"] for a in (dog, person)] == ["dog", "person"]
    assert len(content["annotations"]) == 4  # parts are not objects
    regions = InstanceGroundTruth(path).read(1)
    assert regions.masks is None and regions.labels.tolist() == [11, 14]


def test_voc_difficult_objects_may_be_crowds(voc):
    content = json.loads(script("prepare_voc").prepare_boxes(voc, ["test"], difficult_as_crowd=True).read_text())
    assert [a["iscrowd"] for a in content["annotations"]] == [0, 1]


def test_files_that_are_no_voc_annotation_are_named(voc):
    prepare, file = script("prepare_voc").prepare_boxes, voc / "Annotations/000001.xml"
    for broken in ("<annotation><size>", "<annotation/>", VOC_XML.replace("<xmin>1<", "<xmin>left<")):
        text(file, broken)
        with pytest.raises(ValueError, match=r"000001.xml is not a VOC annotation \(.*\); expected XML with size"):
            prepare(voc, ["test"])
    text(file, VOC_XML.replace("person", "unicorn"))
    with pytest.raises(
        ValueError, match="000001.xml holds an object of class 'unicorn'; expected one of aeroplane, bic"
    ):
        prepare(voc, ["test"])


CROSS_DOMAIN_XML = """<annotation verified="yes"><directory>{name}</directory><filename>{image}</filename>
<source><database>Unknown</database></source><size><width>40</width><height>25</height><depth>3</depth></size>
<segmented>0</segmented><object><name>{kind}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>2</ymin><xmax>12</xmax><ymax>6</ymax></bndbox></object></annotation>"""


def cross_domain_tree(root: Path, kind: str) -> None:
    """A tree of the cross-domain sets: VOC's, with the lists train, test and extra."""
    for split, image in (("train", "142090457"), ("test", "9"), ("extra", "77")):
        text(root / "ImageSets/Main" / f"{split}.txt", f"{image}\n")
        text(root / "Annotations" / f"{image}.xml", CROSS_DOMAIN_XML.format(name=root.name, image=image, kind=kind))
        save(root / "JPEGImages" / f"{image}.jpg", np.zeros((25, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("name", "benchmark", "kind", "classes"),
    [
        ("clipart", "clipart1k_train_test_boxes", "pottedplant", 20),
        ("watercolor", "watercolor2k_train_test_boxes", "person", 6),
        ("comic", "comic2k_train_test_boxes", "bicycle", 6),
    ],
)
def test_cross_domain(tmp_path, name, benchmark, kind, classes):
    cross_domain_tree(tmp_path / name, kind)
    path = script("prepare_cross_domain").prepare(name, tmp_path / name)
    content = json.loads(path.read_text())
    assert [i["file_name"] for i in content["images"]] == ["142090457.jpg", "9.jpg"]  # extra has no true boxes
    assert [a["bbox"] for a in content["annotations"]] == [[2, 1, 10, 5]] * 2
    assert len(content["categories"]) == classes
    assert content["categories"][content["annotations"][0]["category_id"] - 1]["name"] == kind
    assert not InstanceGroundTruth(path).has_masks
    images = load_benchmark(benchmark, tmp_path)
    assert [(p["height"], p["width"]) for p in images] == [(25, 40)] * 2
    assert all(Path(p["file_name"]).is_file() for p in images)


def test_cross_domain_refuses_what_it_cannot_read(tmp_path):
    prepare = script("prepare_cross_domain").prepare
    with pytest.raises(
        DatasetFilesError, match=r"(?s)\[ \] ImageSets/Main/test.txt .*is not there. Unpack .*comic.zip"
    ):
        prepare("comic", tmp_path / "comic")
    cross_domain_tree(tmp_path / "comic", "pottedplant")  # one of Clipart's classes
    with pytest.raises(ValueError, match="object of class 'pottedplant'; expected one of bicycle, bird, car, cat, dog"):
        prepare("comic", tmp_path / "comic")


OPENIMAGES_CSV = """\
ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside
0001eeaf4aed83f9,xclick,/m/0cmf2,1,0.25,0.5,0,0.75,0,0,0,0,0
000595fe6fee6369,xclick,/m/02wbm,1,0,1,0,1,0,0,1,0,0
000595fe6fee6369,xclick,/m/01g317,1,0.1,0.2,0.5,1,1,1,0,1,0
"""


def test_openimages(tmp_path):
    root = tmp_path / "openimages"
    with pytest.raises(DatasetFilesError, match=r"\[ \] validation-annotations-bbox.csv   boxes"):
        script("prepare_openimages").prepare(root)
    text(root / "validation-annotations-bbox.csv", OPENIMAGES_CSV)
    save(root / "validation/000595fe6fee6369.jpg", np.zeros((20, 40, 3), np.uint8))
    with pytest.raises(DatasetFilesError, match=r"\[ \] validation/0001eeaf4aed83f9.jpg   the first of 1 images, of 2"):
        script("prepare_openimages").prepare(root)
    text(root / "validation/0001eeaf4aed83f9.jpg", "<html>404</html>")
    with pytest.raises(ValueError, match="0001eeaf4aed83f9.jpg: not readable as an image: .*; download it again"):
        script("prepare_openimages").prepare(root)
    turned = Image.Exif()
    turned[0x0112] = 6  # stored as 8 x 32, shown as 32 x 8
    save(root / "validation/0001eeaf4aed83f9.jpg", np.zeros((8, 32, 3), np.uint8), exif=turned)
    save(root / "validation/00075905539074f2.jpg", np.zeros((9, 9, 3), np.uint8))  # without a box
    path = script("prepare_openimages").prepare(root)
    content = json.loads(path.read_text())
    sizes = [(i["id"], i["file_name"], i["height"], i["width"]) for i in content["images"]]
    assert sizes == [(1, "0001eeaf4aed83f9.jpg", 32, 8), (2, "000595fe6fee6369.jpg", 20, 40)]
    assert [c["name"] for c in content["categories"]] == ["/m/01g317", "/m/02wbm", "/m/0cmf2"]
    boxes = [(a["image_id"], a["category_id"], a["iscrowd"], *a["bbox"]) for a in content["annotations"]]
    np.testing.assert_allclose(boxes, [[1, 3, 0, 2, 0, 2, 24], [2, 2, 1, 0, 0, 40, 20], [2, 1, 0, 4, 10, 4, 10]])
    assert [(p["height"], p["width"]) for p in load_benchmark("openimages_v6_val_boxes", tmp_path)] == [
        (32, 8),
        (20, 40),
    ]


def test_openimages_names_what_is_wrong_with_the_csv(tmp_path):
    file = tmp_path / "validation-annotations-bbox.csv"
    (tmp_path / "validation").mkdir()
    text(file, "ImageID,Source,LabelName,Confidence\n0001eeaf4aed83f9,verification,/m/0cmf2,1\n")  # the labels' CSV
    with pytest.raises(
        ValueError, match="lacks the columns XMin, XMax, YMin, YMax, IsGroupOf; expected Open Images' boxes"
    ):
        script("prepare_openimages").prepare(tmp_path)
    text(file, OPENIMAGES_CSV.replace(",0.2,0.5,1,1,1,0,1,0", ""))
    with pytest.raises(
        ValueError, match="line 4: XMin, XMax, YMin, YMax, IsGroupOf must be numbers, got 0.1, None, None"
    ):
        script("prepare_openimages").prepare(tmp_path)


def test_voc_segments(tmp_path):
    root = tmp_path / "VOC2012"
    classes, objects = np.zeros((20, 30), int), np.zeros((20, 30), int)
    classes[2:8, 3:12], objects[2:8, 3:12] = 12, 1  # a dog
    classes[10:18, 15:28], objects[10:18, 15:28] = 15, 2  # a person
    classes[2, 3:12] = objects[2, 3:12] = 255  # a white contour
    palette(root / "SegmentationClass" / "2007_000033.png", classes)
    palette(root / "SegmentationObject" / "2007_000033.png", objects)
    save(root / "JPEGImages" / "2007_000033.jpg", np.zeros((20, 30, 3), np.uint8))
    text(root / "ImageSets/Segmentation/val.txt", "2007_000033\n")
    path = script("prepare_voc").prepare_segments(root, "val")
    gt = PanopticGroundTruth(path, root / "panoptic_val")
    segment_map, segments = gt.read(1)
    names = gt.space.thing_names + gt.space.stuff_names
    areas = {names[s.label]: s.area for s in segments}
    assert areas == {"dog": 45, "person": 104, "background": 600 - 54 - 104}
    assert (segment_map == 0).sum() == 9
    instances = InstanceGroundTruth(root / "annotations/instances_val.json", gt.space).read(1)
    assert instances.masks.sum((1, 2)).tolist() == [45, 104]


@pytest.mark.parametrize(("classes", "things", "stuff"), [(19, 8, 11), (27, 10, 17)])
def test_cityscapes(tmp_path, classes, things, stuff):
    root = tmp_path / "cityscapes"
    ids = np.full((20, 40), 7, np.uint16)  # road
    ids[:5] = 23  # sky
    ids[5:8, :10], ids[5:8, 12:20] = 26000, 26001  # two cars
    ids[5:8, 25:30] = 26  # a group of cars
    ids[8:10, :3], ids[8:10, 3:6] = 29000, 29001  # two caravans: no class of the 19
    ids[19] = 1  # ego vehicle
    save(root / "gtFine/val/aachen/aachen_000000_000019_gtFine_instanceIds.png", ids)
    save(root / "leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit.png", np.zeros((20, 40, 3), np.uint8))
    path = script("prepare_cityscapes").prepare(root, classes=classes)
    gt = PanopticGroundTruth(path, root / f"panoptic{classes}/panoptic_val")
    assert (gt.space.num_things, gt.space.num_stuff) == (things, stuff)
    segment_map, segments = gt.read(1)
    names = gt.space.thing_names + gt.space.stuff_names
    found = sorted((names[s.label], s.area, s.crowd) for s in segments)
    expected = [
        ("car", 15, True),
        ("car", 24, False),
        ("car", 30, False),
        ("road", 428 - 12, False),
        ("sky", 200, False),
    ]
    expected[3] = ("road", 20 * 40 - 200 - 69 - 12 - 40, False)
    assert found == sorted(expected + ([("caravan", 6, False)] * 2 if classes == 27 else []))
    assert (segment_map == 0).sum() == 40 + (0 if classes == 27 else 12)
    assert json.loads(path.read_text())["images"][0]["file_name"] == "aachen/aachen_000000_000019_leftImg8bit.png"
    # The registered set finds what was written.
    assert load_benchmark(f"cityscapes_val_panoptic{classes}", tmp_path)[0]["height"] == 20


def test_kitti(tmp_path):
    root = tmp_path / "kitti"
    save(root / "training/image_2/000000.png", np.zeros((37, 122, 3), np.uint8))
    text(
        root / "training/label_2/000000.txt",
        "Pedestrian 0.00 0 -0.20 71.24 14.30 81.07 30.92 1.89 0.48 1.20 1.84 1.47 8.41 0.01\n"
        "DontCare -1 -1 -10 50.00 10.00 60.00 20.00 -1 -1 -1 -1000 -1000 -1000 -10\n",
    )
    path = script("prepare_kitti").prepare(root)
    regions = InstanceGroundTruth(path).read(1)
    np.testing.assert_allclose(regions.boxes_xywh, [[71.24, 14.30, 9.83, 16.62], [50, 10, 10, 10]])
    assert regions.crowds.tolist() == [False, True]
    text(root / "training/label_2/000000.txt", "Unicorn 1 2 3\n")
    with pytest.raises(ValueError, match="holds 'Unicorn 1 2 3'; expected a class of Car, Van"):
        script("prepare_kitti").prepare(root)


def test_lvis(tmp_path):
    source = {
        "images": [
            {
                "id": 397133,
                "coco_url": "http://images.cocodataset.org/val2017/000000397133.jpg",
                "height": 427,
                "width": 640,
                "neg_category_ids": [1],
                "not_exhaustive_category_ids": [],
            }
        ],
        "annotations": [
            {
                "id": 9,
                "image_id": 397133,
                "category_id": 3,
                "bbox": [1, 2, 3, 4],
                "area": 6.0,
                "segmentation": [[1, 2, 4, 2, 4, 6]],
            }
        ],
        "categories": [{"id": i, "name": f"c{i}", "synset": "x.n.01", "frequency": "r"} for i in (1, 2, 3)],
    }
    text(tmp_path / "lvis_v1_val.json", json.dumps(source))
    path = script("prepare_lvis").prepare(tmp_path / "lvis_v1_val.json", tmp_path / "out.json")
    content = json.loads(path.read_text())
    assert content["images"][0]["file_name"] == "val2017/000000397133.jpg"
    assert content["annotations"][0]["iscrowd"] == 0 and content["annotations"][0]["area"] == 6.0
    assert InstanceGroundTruth(path).has_masks
    size = {"height": 427, "width": 640}
    for change, message in (
        ({"images": [{"id": 397133, **size}]}, "not an LVIS v1 file: image 397133 has no coco_url"),
        ({"categories": [{"id": 3, "name": "c3"}]}, "not an LVIS v1 file: category 3 has no synset"),
        ({"images": None}, "coco.json is not a COCO instances JSON: images is null"),
    ):
        text(tmp_path / "coco.json", json.dumps({**source, **change}))
        with pytest.raises(ValueError, match=message):
            script("prepare_lvis").prepare(tmp_path / "coco.json", tmp_path / "out.json")


def test_lvis_with_cocos_categories(tmp_path):
    module = script("prepare_lvis")
    synsets = module.coco_synsets()
    # Detectron2 ships the category list of LVIS v1, which has no frankfurter.
    assert len(synsets) == 80 and set(synsets) - {c["synset"] for c in LVIS_CATEGORIES} == {"frank.n.02"}
    assert synsets["beef.n.01"]["name"] == "cow" and synsets["teddy.n.01"]["id"] == 88
    rest = {"bbox": [1, 2, 3, 4], "area": 6.0, "segmentation": [[1, 2, 4, 2, 4, 6]], "image_id": 5}
    source = {
        "images": [{"id": 5, "coco_url": "http://x.org/train2017/000000000005.jpg", "height": 9, "width": 9}],
        "annotations": [{"id": i, "category_id": i, **rest} for i in (1, 2, 3)],
        "categories": [
            {"id": 1, "name": "aerosol_can", "synset": "aerosol.n.02"},
            {"id": 2, "name": "teddy_bear", "synset": "teddy.n.01"},
            {"id": 3, "name": "person", "synset": "person.n.01"},
        ],
    }
    text(tmp_path / "lvis_v1_val.json", json.dumps(source))
    content = json.loads(module.prepare(tmp_path / "lvis_v1_val.json", tmp_path / "o.json", "coco").read_text())
    assert [a["category_id"] for a in content["annotations"]] == [88, 1]
    assert len(content["categories"]) == 80 and len(content["images"]) == 1


def test_objects365(tmp_path):
    root = tmp_path / "objects365"
    (root / "val").mkdir(parents=True)
    source = {
        "images": [
            {"id": 420917, "file_name": "images/v1/patch8/objects365_v1_00420917.jpg", "height": 512, "width": 769}
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 420917,
                "category_id": 84,
                "bbox": [1.5, 2.5, 10.0, 4.0],
                "area": 40.0,
                "iscrowd": 1,
                "isfake": 0,
            }
        ],
        "categories": [{"id": i, "name": f"c{i}"} for i in range(1, 366)],
    }
    text(root / "zhiyuan_objv2_val.json", json.dumps(source))
    content = json.loads(script("prepare_objects365").prepare(root).read_text())
    assert content["images"][0]["file_name"] == "patch8/objects365_v1_00420917.jpg"
    assert content["annotations"] == [
        {"id": 1, "image_id": 420917, "category_id": 84, "bbox": [1.5, 2.5, 10.0, 4.0], "area": 40.0, "iscrowd": 1}
    ]
    text(root / "zhiyuan_objv2_val.json", "[]")
    with pytest.raises(ValueError, match=r"zhiyuan_objv2_val.json holds \[\]; expected a COCO instances JSON"):
        script("prepare_objects365").prepare(root)


def encoded(mask: np.ndarray) -> dict:
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def test_uvo_dense_becomes_frames_with_classes(tmp_path):
    left = np.zeros((9, 16), bool)
    left[2:5, 1:7] = True
    source = {
        "videos": [
            {"id": 4, "ytid": "abc", "height": 9, "width": 16, "file_names": ["abc/0.png", "abc/1.png", "abc/2.png"]},
            {"id": 9, "ytid": "gone", "height": 9, "width": 16, "file_names": ["gone/0.png"]},
        ],
        "annotations": [
            # Seen in the first frame and, as uncompressed run lengths of the whole image, in the last.
            {
                "id": 1,
                "video_id": 4,
                "category_id": 1,
                "segmentations": [encoded(left), None, {"size": [9, 16], "counts": [0, 144]}],
            },
            {"id": 2, "video_id": 4, "category_id": 81, "segmentations": [None, encoded(left), None]},
            {"id": 3, "video_id": 9, "category_id": 1, "segmentations": [encoded(left)]},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 81, "name": "other animal"}],
    }
    text(tmp_path / "val.json", json.dumps(source))
    prepare, frames = script("prepare_uvo").prepare_dense, tmp_path / "uvo/uvo_videos_dense_frames"
    with pytest.raises(DatasetFilesError, match=r"\[ \] abc/0.png   the first of the frames"):
        prepare(tmp_path / "val.json", tmp_path / "uvo", frames)
    for frame in range(3):
        save(frames / f"abc/{frame}.png", np.zeros((9, 16, 3), np.uint8))
    path = prepare(tmp_path / "val.json", tmp_path / "uvo", frames)
    content = json.loads(path.read_text())
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [
        (1, "abc/0.png"),
        (2, "abc/1.png"),
        (3, "abc/2.png"),
    ]
    rows = [(a["image_id"], a["category_id"], a["area"], a["bbox"]) for a in content["annotations"]]
    assert rows == [(1, 1, 18, [1, 2, 6, 3]), (3, 1, 144, [0, 0, 16, 9])]
    assert content["categories"] == [{"id": 1, "name": "person"}]
    assert InstanceGroundTruth(path).read(1).masks.sum() == 18
    assert [p["image_id"] for p in load_benchmark("uvo_dense_val", tmp_path)] == [1, 2, 3]


def test_uvo_dense_refuses_other_files(tmp_path):
    prepare = script("prepare_uvo").prepare_dense
    video = {"id": 4, "height": 9, "width": 16, "file_names": ["abc/0.png"]}
    track = {"id": 1, "video_id": 4, "category_id": 1, "segmentations": [None, None]}
    cats = [{"id": 1, "name": "person"}]
    for content, message in (
        ({"images": [], "annotations": [], "categories": cats}, "not a JSON in video format: videos is missing"),
        ([{"id": 1}], "expected a JSON in video format, an object with videos"),
        ({"videos": [{"id": 4}], "annotations": [], "categories": cats}, r"videos\[0\] has no 'height'"),
        ({"videos": [video], "annotations": [{}], "categories": cats}, r"annotations\[0\] has no 'video_id'"),
        ({"videos": [video], "annotations": [track], "categories": cats}, "has 2 segmentations, its video 4 has 1 fr"),
        (
            {"videos": [video], "annotations": [], "categories": [{"id": 1, "name": "object"}]},
            "the file without labels",
        ),
    ):
        text(tmp_path / "val.json", json.dumps(content))
        with pytest.raises(ValueError, match=message):
            prepare(tmp_path / "val.json", tmp_path / "uvo", tmp_path / "frames")


def test_uvo_sparse_is_one_class(tmp_path):
    annotation = {"bbox": [0, 0, 16, 9], "area": 144, "segmentation": encoded(np.ones((9, 16)))}
    source = {
        "images": [
            {"id": 1, "file_name": "abc/12.png", "height": 9, "width": 16},
            {"id": 2, "file_name": "gone/3.png", "height": 9, "width": 16},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, **annotation},
            {"id": 3, "image_id": 2, "category_id": 1, **annotation},
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    text(tmp_path / "val.json", json.dumps(source))
    frames = tmp_path / "uvo/uvo_videos_sparse_frames"
    save(frames / "abc/12.png", np.zeros((9, 16, 3), np.uint8))
    path = script("prepare_uvo").prepare_sparse(tmp_path / "val.json", tmp_path / "uvo", frames)
    content = json.loads(path.read_text())
    assert [a["category_id"] for a in content["annotations"]] == [1] and len(content["images"]) == 1
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert [p["image_id"] for p in load_benchmark("uvo_sparse_val_cls_agnostic", tmp_path)] == [1]
    text(tmp_path / "dense.json", json.dumps({"videos": []}))
    with pytest.raises(ValueError, match="not a COCO instances JSON: images is missing"):
        script("prepare_uvo").prepare_sparse(tmp_path / "dense.json", tmp_path / "uvo", frames)


SIZES = [(640, 427), (427, 640), (640, 424), (640, 480), (480, 640), (320, 320), (321, 320), (500, 375), (333, 500)]
SIZES += [(int(w), int(h)) for w, h in np.random.default_rng(0).integers(240, 700, (30, 2))]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_crop_of_cocostuff27_is_torchvisions(size):
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    # Each pixel says where it comes from.
    pixels = np.stack([columns % 256, rows % 256, (columns // 256) * 16 + rows // 256], axis=2).astype(np.uint8)
    image = Image.fromarray(pixels)
    resized = resize(image, [320], InterpolationMode.NEAREST)
    expected = np.asarray(center_crop(resized, [320, 320]))
    np.testing.assert_array_equal(np.asarray(script("prepare_cocostuff27").center_crop(image)), expected)


def test_cocostuff27(tmp_path):
    module = script("prepare_cocostuff27")
    lookup = module.coarse_ids()
    assert len(module.NAMES) == 27 and set(lookup) == set(range(28))
    assert (lookup[182:] == 0).all() and (lookup[:182] > 0).all()  # 182 classes, all of them in a group
    # Person 1, tree 169, sky-other 157; a pixel holds the class minus one.
    for value, name in ((0, "person"), (168, "plant"), (156, "sky")):
        assert module.NAMES[lookup[value] - 1] == name
    pixels = np.full((400, 640), 156, np.uint8)
    pixels[200:], pixels[:40] = 168, 255
    save(tmp_path / "coco/stuffthingmaps/val2017/000000000139.png", pixels)
    save(tmp_path / "coco/val2017/000000000139.jpg", np.full((400, 640, 3), 99, np.uint8))
    text(tmp_path / "list.txt", "000000000139\n")
    output = tmp_path / "cocostuff27"
    path = module.prepare(tmp_path / "coco", tmp_path / "coco/stuffthingmaps/val2017", output, tmp_path / "list.txt")
    segment_map, segments = PanopticGroundTruth(path, output / "panoptic_val").read(1)
    # Short side 400 to 320: unlabeled 40 rows become 32, sky 160 become 128, trees 160.
    assert segment_map.shape == (320, 320)
    assert {module.NAMES[s.id - 1]: s.area for s in segments} == {"sky": 128 * 320, "plant": 160 * 320}
    with Image.open(output / "val/000000000139.png") as image:
        assert image.size == (320, 320)
    assert [p["height"] for p in load_benchmark("cocostuff27_val", tmp_path)] == [320]


def test_missing_files_show_the_tree_and_the_command(tmp_path):
    (tmp_path / "VOC2012/JPEGImages").mkdir(parents=True)
    with pytest.raises(DatasetFilesError) as error:
        load_benchmark("voc_2012_val_panoptic", tmp_path)
    message = str(error.value)
    assert f"[x] {tmp_path}/VOC2012/JPEGImages/   the images: found" in message
    assert f"[ ] {tmp_path}/VOC2012/annotations/panoptic_val.json   COCO panoptic annotations: missing" in message
    assert "`u2seg prepare voc segments`" in message and f"{tmp_path}/VOC2012" in message
    with pytest.raises(DatasetFilesError, match="`u2seg prepare uvo dense`"):
        load_benchmark("uvo_dense_val", tmp_path / "nowhere")
    with pytest.raises(DatasetFilesError, match=r"`u2seg prepare cross_domain watercolor` \(datasets/README.md"):
        load_benchmark("watercolor2k_train_test_boxes", tmp_path)
    require_dataset_files("somebody_elses")  # not ours to check


def test_every_benchmark_is_registered_without_opening_a_file():
    for name, description in BENCHMARKS.items():
        assert name in DatasetCatalog.list()
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "u2seg_panoptic"
        assert (metadata.get("panoptic_json") is None) == ("PANOPTIC_JSON" not in description)


def test_every_benchmark_has_its_command_and_its_configuration():
    configs = "".join(p.read_text() for p in (ROOT / "configs/evaluation").glob("*.yaml"))
    readme = (ROOT / "datasets/README.md").read_text()
    for name, description in BENCHMARKS.items():
        if "PREPARED_BY" in description:
            assert description["PREPARED_BY"].split()[2] in PREPARE
        assert f'"{name}"' in configs, name
        assert f"`{name}`" in readme, name
