import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from u2seg.cli.main import main
from u2seg.data.formats.coco_panoptic import write_panoptic_png
from u2seg.data.formats.mask_shards import write_shard
from u2seg.structures.label_space import LabelSpace
from u2seg.structures.mask_records import ImageMasks
from u2seg.visualization.label_page import load_panoptic_labels
from u2seg.visualization.mask_labels import load_labels


def write_labels(root, sizes=((40, 60), (50, 30))):
    """Images with one thing on the left (of clusters 1 and 2 by turns) and one stuff region on the right."""
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes, start=1):
        name = f"deep/{number}.jpg"
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), 20 * number, np.uint8)).save(path)
        ids = np.ones((height, width), np.int32)
        ids[:, width // 2 :] = 2
        write_panoptic_png(root / "labels" / "panoptic" / f"deep/{number}.png", ids)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        segments = [{"id": 1, "category_id": 1 + number % 2}, {"id": 2, "category_id": 4}]
        annotations.append({"image_id": number, "file_name": f"deep/{number}.png", "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": LabelSpace.of_clusters(3, 2).categories()}
    (root / "labels" / "panoptic.json").write_text(json.dumps(content))
    return root / "labels"


def run_tool(*arguments) -> int:
    return main(["show", *map(str, arguments)])


def test_page_shows_counts_clusters_and_images(tmp_path, capsys):
    labels = write_labels(tmp_path)
    status = run_tool(
        labels,
        "--images",
        tmp_path / "images",
        "--output",
        tmp_path / "out",
        "--title",
        "Mine",
    )
    assert status == 0
    assert capsys.readouterr().out == f"page in {tmp_path}/out/index.html\n"
    page = (tmp_path / "out" / "index.html").read_text()
    for text in (
        "<h1>Mine</h1>",
        "deep/1.jpg",
        "deep/2.jpg",
        "2 of 3",
        "1 of 2",
        "Thing class 1: 1 segment<",
        "Stuff class 4: 2 segments",
    ):
        assert text in page
    # Two clusters of things with one crop each, one of stuff with two, two images with two views each.
    assert len(list((tmp_path / "out" / "images").iterdir())) == 8


def test_limit_takes_images_evenly(tmp_path, monkeypatch):
    labels = write_labels(tmp_path, sizes=[(20, 30)] * 9)
    options = [labels, "--images", tmp_path / "images", "--output", tmp_path / "out"]
    assert run_tool(*options, "--limit", 3, "--clusters", 0) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert [n for n in range(1, 10) if f"<h3>deep/{n}.jpg</h3>" in page] == [1, 5, 9]


def test_images_that_do_not_fit_their_labels_are_named(tmp_path, capsys):
    labels = write_labels(tmp_path, sizes=[(20, 30)] * 4)
    Image.new("RGB", (20, 30)).save(tmp_path / "images" / "deep" / "1.jpg")
    (tmp_path / "images" / "deep" / "2.jpg").unlink()
    (labels / "panoptic" / "deep" / "3.png").unlink()
    options = [labels, "--images", tmp_path / "images", "--output", tmp_path / "out"]
    assert run_tool(*options) == 1
    # Beside the progress display's lines; each image is named once, though its row and two examples fail.
    errors = sorted(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert len(errors) == 3
    assert errors[0] == "error: deep/1.jpg: it has size (30, 20), its labels (20, 30)"
    assert errors[1] == "error: deep/2.jpg: no such file"
    assert errors[2].startswith("error: deep/3.jpg: its labels cannot be read")
    assert "<h3>deep/4.jpg</h3>" in (tmp_path / "out" / "index.html").read_text()


def test_label_sets_stand_side_by_side(tmp_path, monkeypatch):
    labels = write_labels(tmp_path)
    content = json.loads((labels / "panoptic.json").read_text())
    content["annotations"] = content["annotations"][1:]  # the second set lacks the first image
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "panoptic").symlink_to(labels / "panoptic")
    (tmp_path / "other" / "panoptic.json").write_text(json.dumps(content))
    sets = [f"ours={labels}", f"theirs={tmp_path / 'other'}"]
    options = ["--images", tmp_path / "images", "--output", tmp_path / "out", "--clusters", 0]
    assert run_tool(*sets, *options) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert '<th scope="col">ours</th><th scope="col">theirs</th>' in page
    assert page.count("<figcaption>ours</figcaption>") == 2 and page.count("<figcaption>theirs</figcaption>") == 1
    assert page.count("<figcaption>image</figcaption>") == 2


def test_two_sets_of_one_name_are_refused(tmp_path, capsys):
    labels = write_labels(tmp_path)
    options = ["--images", tmp_path / "images", "--output", tmp_path / "out"]
    assert run_tool(labels, f"{labels}/", *options) == 1
    assert f"two sets of labels are called 'labels', the second in {labels}/; give each a name: NAME=" in (
        capsys.readouterr().err
    )


def test_a_path_may_hold_an_equals_sign(tmp_path):
    (tmp_path / "lr=0.1").mkdir()
    labels = write_labels(tmp_path).rename(tmp_path / "lr=0.1" / "labels")
    options = ["--images", tmp_path / "images", "--output", tmp_path / "out", "--clusters", 0]
    assert run_tool(labels, f"again={labels}", *options) == 0
    assert '<th scope="col">labels</th><th scope="col">again</th>' in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("depth", ["", "panoptic"])
def test_labels_are_found_in_all_layouts(tmp_path, depth):
    labels = write_labels(tmp_path)
    if depth:
        (tmp_path / "run").mkdir()
        labels.rename(tmp_path / "run" / depth)
        labels = tmp_path / "run"
    found = load_panoptic_labels(labels, tmp_path / "images")
    image, panoptic_map = found.read(found.annotations[0])
    assert image.shape == (40, 60, 3) and (panoptic_map[:, 30:] == 2).all()


def test_cocos_layout(tmp_path):
    labels = write_labels(tmp_path)
    (tmp_path / "annotations").mkdir()
    (labels / "panoptic.json").rename(tmp_path / "annotations" / "panoptic_val.json")
    (labels / "panoptic").rename(tmp_path / "panoptic_val")
    found = load_panoptic_labels(tmp_path / "annotations" / "panoptic_val.json", tmp_path / "images")
    assert found.read(found.annotations[1])[1].shape == (50, 30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no panoptic labels in .*; expected"),
        ("{}", "is not a COCO panoptic JSON"),
        (
            '{"images": [], "categories": [{"id": 1, "name": "a", "isthing": 1}], "annotations": [{"image_id": 1}]}',
            r"panoptic.json: annotations\[0\] has no 'file_name'",
        ),
    ],
)
def test_what_is_missing_is_said(tmp_path, monkeypatch, capsys, content, message):
    if content:
        (tmp_path / "labels" / "panoptic").mkdir(parents=True)
        (tmp_path / "labels" / "panoptic.json").write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        load_panoptic_labels(tmp_path / "labels", tmp_path)
    assert run_tool(tmp_path / "labels", "--images", tmp_path, "--output", tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith("error: ")


def write_masks(root):
    """Two images, the first with a large and a small mask within it, and one that could not be read."""
    write_labels(root)
    masks = np.zeros((2, 40, 60), np.uint8)
    masks[0, 5:12, 10:20] = 1
    masks[1, :30, :40] = 1
    counts = tuple(mask_utils.encode(np.asfortranarray(mask))["counts"] for mask in masks)
    numbers = np.array([0.9, 0.5], np.float32)
    records = [
        ImageMasks(1, "deep/1.jpg", 40, 60, counts, numbers, numbers, numbers, np.ones((2, 3), np.float32)),
        ImageMasks(2, "deep/2.jpg", 50, 30),
        ImageMasks(3, "deep/3.jpg", error="broken"),
    ]
    write_shard(root / "made" / "masks" / "shard-00000.parquet", records)
    return root / "made"


def test_a_directory_of_masks_alone_is_shown(tmp_path):
    labels = write_masks(tmp_path)
    loaded = load_labels(labels, tmp_path / "images")
    image_rgb, segments = loaded.read(loaded.annotations[0])
    assert image_rgb.shape == (40, 60, 3)
    # The smaller mask lies on the larger one.
    assert np.bincount(segments.ravel()).tolist() == [40 * 60 - 1200, 70, 1130]
    assert run_tool(labels, "--images", tmp_path / "images", "--output", tmp_path / "out") == 0
    page = (tmp_path / "out" / "index.html").read_text()
    for text in ("deep/1.jpg", "deep/2.jpg", "Thing class object: 2 segments"):
        assert text in page
    assert "deep/3.jpg" not in page


def test_an_image_of_another_size_than_its_masks_is_told(tmp_path, capsys):
    labels = write_masks(tmp_path)
    Image.new("RGB", (8, 9)).save(tmp_path / "images" / "deep" / "1.jpg")
    assert run_tool(labels, "--images", tmp_path / "images", "--output", tmp_path / "out", "--clusters", 0) == 1
    assert "deep/1.jpg: it has size (9, 8), its masks (40, 60)" in capsys.readouterr().err


def test_masks_are_converted_to_coco(tmp_path, capsys):
    labels = write_masks(tmp_path)
    assert main(["convert", "masks", str(labels), str(tmp_path / "masks.json")]) == 0
    assert capsys.readouterr().out == f"2 masks of 2 images in {tmp_path}/masks.json\n"
    content = json.loads((tmp_path / "masks.json").read_text())
    assert content["images"] == [
        {"id": 1, "file_name": "deep/1.jpg", "height": 40, "width": 60},
        {"id": 2, "file_name": "deep/2.jpg", "height": 50, "width": 30},
    ]
    small, large = content["annotations"]
    assert (small["bbox"], small["area"], small["id"]) == ([10.0, 5.0, 10.0, 7.0], 70, 1)
    assert (large["bbox"], large["area"], large["score"]) == ([0.0, 0.0, 40.0, 30.0], 1200, 0.5)
    assert mask_utils.decode(small["segmentation"])[5:12, 10:20].all()
    assert main(["convert", "masks", str(tmp_path / "images"), str(tmp_path / "masks.json")]) == 1
    assert "holds no masks: expected a label directory with masks/" in capsys.readouterr().err
