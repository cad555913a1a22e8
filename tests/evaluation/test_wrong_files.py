"""Files from elsewhere that are wrong in one place: each is one ValueError of one line, with the file, the row and the field."""

import json
import multiprocessing
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from u2seg.data.datasets.label_splits import read_label_split
from u2seg.data.formats.coco_panoptic import write_panoptic_png
from u2seg.data.formats.coco_schema import compressed_counts
from u2seg.evaluation.matching.label_map import load_label_map, save_label_map
from u2seg.evaluation.matching.protocols import build_protocol
from u2seg.evaluation.metrics.mask_quality import evaluate_masks
from u2seg.evaluation.scoring import ScoreSettings, evaluate_tables
from u2seg.evaluation.tables.panoptic_files import tables_from_panoptic_files
from u2seg.evaluation.tables.segment_tables import load_tables, save_tables

HEIGHT, WIDTH = 6, 8
SQUARE = np.zeros((HEIGHT, WIDTH), np.uint8)
SQUARE[1:4, 2:6] = 1


def run_lengths(mask=SQUARE):
    encoded = mask_utils.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def panoptic():
    """A right COCO panoptic JSON of two images with two segments each."""
    infos = [{"id": 1, "category_id": 3, "iscrowd": 0}, {"id": 2, "category_id": 7, "iscrowd": 0}]
    return {
        "categories": [{"id": 3, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}],
        "annotations": [
            {"image_id": i, "file_name": f"{i}.png", "segments_info": json.loads(json.dumps(infos))} for i in (1, 2)
        ],
    }


def instances():
    """A right COCO instances JSON of two images with an object each."""
    row = {"category_id": 3, "iscrowd": 0, "bbox": [2, 1, 4, 3], "area": 12}
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in (1, 2)],
        "annotations": [{"id": 10 + i, "image_id": i, "segmentation": run_lengths(), **row} for i in (1, 2)],
        "categories": [{"id": 3, "name": "cat"}],
    }


def results():
    """Right COCO results: a mask in each image."""
    return [{"image_id": i, "category_id": 1, "score": 0.5, "segmentation": run_lengths()} for i in (1, 2)]


def put(*path_and_value):
    """Returns a change: content[path...] = value."""
    *path, last, value = path_and_value

    def change(content):
        for key in path:
            content = content[key]
        content[last] = value

    return change


def drop(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def uncompressed(counts):
    return put(0, "segmentation", {"size": [HEIGHT, WIDTH], "counts": counts})


SEGMENT = ("annotations", 0, "segments_info", 1)
PANOPTIC = [
    ("no isthing", drop("categories", 1, "isthing"), r"categories\[1\] has no 'isthing'; expected 1 for things, 0 for"),
    ("isthing is text", put("categories", 0, "isthing", "yes"), r"categories\[0\] has isthing \"yes\"; expected 1 for"),
    ("category twice", put("categories", 1, "id", 3), r"categories\[1\] has id 3, which an earlier row has too"),
    ("no categories", drop("categories"), "not a COCO panoptic JSON: categories is missing; expected the lists"),
    ("category without a name", drop("categories", 0, "name"), r"categories\[0\] has no 'name'"),
    ("unknown category", put(*SEGMENT, "category_id", 9999), r"segments_info\[1\] has category_id 9999, which the cat"),
    (
        "segment twice",
        put(*SEGMENT, "id", 1),
        r"annotations\[0\].segments_info\[1\] has id 1, which an earlier row has",
    ),
    ("segment 0", put(*SEGMENT, "id", 0), r"segments_info\[1\] has id 0; expected an integer in 1\.\.16777215"),
    ("segment is a number", put(*SEGMENT, 5), r"segments_info\[1\] must be an object, got 5"),
    ("score is NaN", put(*SEGMENT, "score", float("nan")), r"has score NaN; expected a finite number"),
    ("area is negative", put(*SEGMENT, "area", -4), r"has area -4; expected a finite number, not negative"),
    ("crowd is 7", put(*SEGMENT, "iscrowd", 7), r"has iscrowd 7; expected 0 or 1"),
    ("image twice", put("annotations", 1, "image_id", 1), r"annotations\[1\] has image_id 1, which an earlier row has"),
    (
        "name leaves the directory",
        put("annotations", 0, "file_name", "../x.png"),
        "expected the name of a PNG below its",
    ),
    (
        "no segments",
        drop("annotations", 0, "segments_info"),
        r"annotations\[0\] has no 'segments_info'; expected a list",
    ),
    ("nothing annotated", put("annotations", []), "lists no image|has no annotation for"),
]
INSTANCES = [
    (
        "box of three",
        put("annotations", 1, "bbox", [1, 2, 3]),
        r"annotations\[1\] has bbox \[1, 2, 3\]; expected four fin",
    ),
    ("negative width", put("annotations", 1, "bbox", [1, 2, -3, 1]), "the last two not negative"),
    ("area is infinite", put("annotations", 0, "area", float("inf")), "has area Infinity; expected a finite number"),
    ("unknown category", put("annotations", 0, "category_id", 4), "has category_id 4, which the categories of this"),
    ("unknown image", put("annotations", 0, "image_id", 77), r"annotations\[0\] has image_id 77, which the images of"),
    ("image twice", put("images", 1, "id", 1), r"images\[1\] has id 1, which an earlier row has too"),
    ("object twice", put("annotations", 1, "id", 11), r"annotations\[1\] has id 11, which an earlier row has too"),
    ("no height", drop("images", 0, "height"), r"images\[0\] has no 'height'; expected an integer above 0"),
    (
        "transposed",
        put("annotations", 0, "segmentation", run_lengths(SQUARE.T)),
        r"size \[8, 6\]; its image has .*\(6, 8\)",
    ),
    (
        "polygon of two points",
        put("annotations", 0, "segmentation", [[1, 2, 3, 4]]),
        "at least three finite x, y pairs",
    ),
    ("no annotations", drop("annotations"), "not a COCO instances JSON: annotations is missing"),
]
RESULTS = [
    ("score is NaN", put(1, "score", float("nan")), r"entry\[1\] has score NaN; expected a finite number"),
    ("no masks", drop(0, "segmentation"), r"entry\[0\] has no 'segmentation'; expected polygons or run lengths"),
    ("an entry is a list", put(0, [1, 2]), r"entry\[0\] must be an object, got \[1, 2\]"),
    ("transposed", put(0, "segmentation", run_lengths(SQUARE.T)), r"run lengths of size \[8, 6\]; its image has"),
    ("another size", put(0, "segmentation", run_lengths(np.ones((5, 5), np.uint8))), r"run lengths of size \[5, 5\]"),
    ("too few run lengths", uncompressed([3, 4]), "run lengths that cover 7 pixels; its image has 6 x 8 = 48"),
    ("no run lengths", uncompressed([]), "run lengths that cover 0 pixels"),
    ("negative run length", uncompressed([50, -2]), "has a negative run length in counts"),
    ("run lengths of text", uncompressed(["a", "b"]), "has counts that are not all integers"),
    ("damaged string", uncompressed("\x01zz\x7f"), "counts are not compressed run lengths"),
    ("cut string", uncompressed(run_lengths()["counts"][:-2]), "run lengths that cover|not compressed run lengths"),
    ("counts is a number", uncompressed(5), "has counts 5; expected a list of run lengths or a string"),
]


def refused(function, *arguments, match):
    with pytest.raises(ValueError, match=match) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def files(tmp_path):
    """Right files: gt.json and predicted.json with the PNGs in png/, instances.json, results.json."""
    segment_map = np.full((HEIGHT, WIDTH), 2, np.int32)
    segment_map[SQUARE > 0] = 1
    for name in ("1.png", "2.png"):
        write_panoptic_png(tmp_path / "png" / name, segment_map)
    for name, content in (
        ("gt", panoptic()),
        ("predicted", panoptic()),
        ("instances", instances()),
        ("results", results()),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def score(files):
    return tables_from_panoptic_files(
        files / "gt.json", files / "png", files / "predicted.json", files / "png", progress=False
    )


def masks(files):
    return evaluate_masks(files / "results.json", files / "instances.json")


def test_the_right_files_are_scored(files):
    assert (
        evaluate_tables(score(files), ScoreSettings(("hungarian",))).results["panoptic_seg"]["hungarian"]["PQ"] == 100
    )
    assert masks(files)["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in PANOPTIC], ids=[c[0] for c in PANOPTIC])
@pytest.mark.parametrize("role", ["gt", "predicted"])
def test_wrong_panoptic_json(files, role, change, message):
    content = panoptic()
    change(content)
    (files / f"{role}.json").write_text(json.dumps(content))
    assert f"{role}.json" in refused(score, files, match=message)


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in INSTANCES], ids=[c[0] for c in INSTANCES])
def test_wrong_instances_json(files, change, message):
    content = instances()
    change(content)
    (files / "instances.json").write_text(json.dumps(content))
    assert "instances.json" in refused(masks, files, match=message)


def evaluate_to(queue, files):
    try:
        queue.put(masks(files))
    except ValueError as error:
        queue.put(str(error))


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in RESULTS], ids=[c[0] for c in RESULTS])
def test_wrong_results(files, change, message):
    content = results()
    change(content)
    (files / "results.json").write_text(json.dumps(content))
    assert "results.json" in refused(masks, files, match=message)


def test_run_lengths_that_are_too_short_do_not_hang(files):
    content = results()
    uncompressed([3, 4])(content)
    (files / "results.json").write_text(json.dumps(content))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=evaluate_to, args=(queue, files))
    process.start()
    try:
        assert "cover 7 pixels" in queue.get(timeout=20)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "gt",
            "[1, 2]",
            r"gt.json holds \[1, 2\]; expected a COCO panoptic JSON, an object with annotations, categories",
        ),
        ("predicted", json.dumps(results()), "predicted.json holds .*; expected a COCO panoptic JSON"),
        ("gt", json.dumps(instances()), r"annotations\[0\] .* this is an instances JSON, expected a panoptic one"),
        ("gt", "{", "gt.json is not valid JSON"),
        ("gt", "[" * 100_000, "gt.json is not valid JSON"),
    ],
)
def test_another_kind_of_panoptic_file(files, name, text, message):
    (files / f"{name}.json").write_text(text)
    refused(score, files, match=message)


def test_another_kind_of_instances_file(files):
    (files / "instances.json").write_text(json.dumps(panoptic()))
    refused(masks, files, match="not a COCO instances JSON: images is missing")
    (files / "instances.json").write_text(json.dumps(results()))
    refused(masks, files, match="instances.json holds a list|instances.json holds .*; expected a COCO instances JSON")


def test_bytes_that_are_no_text_and_a_directory(files):
    (files / "gt.json").write_bytes(b"\xff\xfe\x00")
    refused(score, files, match="gt.json is not valid JSON")
    refused(evaluate_masks, files / "results.json", files, match="is a directory; expected a JSON file")


def test_segments_that_the_map_does_not_show(files):
    for role, message in (
        ("gt", r"the ground truth lists segment ids that its map lacks: \[5\]"),
        ("predicted", r"\[5\]"),
    ):
        content = panoptic()
        content["annotations"][1]["segments_info"].append({"id": 5, "category_id": 3})
        (files / f"{role}.json").write_text(json.dumps(content))
        text = refused(score, files, match=message)
        assert f"{role}.json" in text and "image 2" in text
        (files / f"{role}.json").write_text(json.dumps(panoptic()))


def test_a_map_with_segments_that_are_not_listed(files):
    content = panoptic()
    content["annotations"][0]["segments_info"].pop()
    (files / "predicted.json").write_text(json.dumps(content))
    refused(score, files, match=r"image 1 of .*: the predicted map holds segment ids that its list lacks: \[2\]")


def test_a_damaged_png_is_named(files):
    png = files / "png" / "2.png"
    png.write_bytes(png.read_bytes()[:60])
    refused(score, files, match="2.png is not readable as an image")


def test_other_ids_under_the_same_names(files, caplog):
    content = panoptic()
    for annotation in content["annotations"]:
        annotation["image_id"] += 100
    (files / "predicted.json").write_text(json.dumps(content))
    with caplog.at_level("WARNING"):
        score(files)  # paired by name, and said
    assert "Image ids of" in caplog.text and "paired by the names of their PNGs" in caplog.text
    images = [{"id": 2, "file_name": "1.jpg"}, {"id": 1, "file_name": "2.jpg"}]
    (files / "results.json").write_text(json.dumps({"images": images, "annotations": results()}))
    refused(masks, files, match=r"results.json: images\[0\] gives '1.jpg' the id 2, the ground truth has it under 1")


def test_two_maps_of_one_name_cannot_be_paired(files):
    content = panoptic()
    content["annotations"][0].update(image_id=101, file_name="a/1.png")
    content["annotations"][1].update(image_id=102, file_name="b/1.png")
    (files / "predicted.json").write_text(json.dumps(content))
    refused(score, files, match="two images, 101 and 102, whose PNGs are named '1'")


def test_an_empty_directory_of_masks(files):
    (files / "masks").mkdir()
    with pytest.raises(FileNotFoundError, match="masks holds no masks: expected a label directory"):
        evaluate_masks(files / "masks", files / "instances.json")


@pytest.fixture
def tables(files):
    made = score(files)
    save_tables(files / "tables.npz", made)
    return made


def rewritten(path: Path, **changes):
    with np.load(path) as archive:
        content = {**{name: archive[name] for name in archive.files}, **changes}
    np.savez(path, **{name: value for name, value in content.items() if value is not None})


def header(path: Path) -> dict:
    with np.load(path) as archive:
        return json.loads(archive["header"].tobytes())


def as_header(values) -> np.ndarray:
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def test_wrong_tables(files, tables):
    path = files / "tables.npz"
    whole = path.read_bytes()

    def changed(block, column, value):
        rows = getattr(tables, block).copy()
        rows[column][0] = value
        return {block: rows}

    cases = [
        (lambda: path.write_text(json.dumps(panoptic())), "expected an .npz that an evaluation saved"),
        (lambda: path.write_bytes(whole[: len(whole) // 2]), "expected an .npz|is damaged"),
        (lambda: path.write_bytes(b""), "expected an .npz"),
        (lambda: np.save(path.open("wb"), np.zeros(3)), "expected an .npz"),
        (lambda: zipfile.ZipFile(path, "w").close(), "lacks detections"),
        (lambda: rewritten(path, ious=None), "it lacks ious"),
        (
            lambda: rewritten(path, gt=np.zeros(3)),
            r"gt must be rows of \('image', 'label', 'area', 'crowd'\), got float",
        ),
        (
            lambda: rewritten(path, **changed("detections", "score", np.nan)),
            r"detections\[0\] has score nan; expected fin",
        ),
        (
            lambda: rewritten(path, **changed("predicted", "label", 99)),
            r"predicted\[0\] has label 99; its header allows",
        ),
        (lambda: rewritten(path, **changed("overlaps", "gt", 99)), "overlaps: gt points outside the 4 rows of gt"),
        (lambda: rewritten(path, **changed("gt", "image", -3)), "gt: image points outside the 2 rows of images"),
        (lambda: rewritten(path, header=as_header({"dataset": "x"})), "header does not describe segment tables"),
        (lambda: rewritten(path, header=as_header([1])), "header does not describe segment tables"),
        (lambda: rewritten(path, header=np.zeros(4, np.uint8)), "header"),
    ]
    for spoil, message in cases:
        path.write_bytes(whole)
        spoil()
        assert "tables.npz" in refused(load_tables, path, match=message)
    refused(load_tables, files, match="is a directory; expected a file of segment tables")
    with pytest.raises(FileNotFoundError):
        load_tables(files / "none.npz")


def test_wrong_label_maps(files, tables):
    path = files / "map.json"
    save_label_map(path, build_protocol("hungarian").fit(tables), tables.space)
    right = json.loads(path.read_text())
    assert load_label_map(path, tables.space).panoptic.tolist() == [0, 1]
    cases = [
        (put("thing_clusters", 0, "cat"), r"thing_clusters\[0\] is 'cat'; expected an integer in -1\.\.1"),
        (put("stuff_clusters", 0, 44), r"stuff_clusters\[0\] is 44; expected an integer in -1\.\.1"),
        (put("thing_clusters", None), "thing_clusters must be a list, got a NoneType"),
        (put("error_category", []), "error_category has 0 entries; expected one for each of the 2 clusters"),
        (put("semantic", "source", "guess"), "semantic.source is 'guess'; expected one of panoptic, head"),
        (put("semantic", "labels", [0]), "semantic.labels has 1 entries; expected 2"),
        (put("semantic", "gt", 0, 9), r"semantic.gt\[0\] is 9; expected an integer in -1\.\.1"),
        (drop("semantic", "names"), "semantic lacks names"),
        (drop("error_category"), "no label map: it lacks error_category"),
    ]
    for change, message in cases:
        content = json.loads(json.dumps(right))
        change(content)
        path.write_text(json.dumps(content))
        assert "map.json" in refused(load_label_map, path, tables.space, match=message)
    path.write_text("[1]")
    refused(load_label_map, path, tables.space, match="no label map: expected an object, got a list")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "lists no images: expected an object with image_ids or images, got a list"),
        ({"image_ids": []}, "image_ids must be a list with at least one image"),
        ({"image_ids": [1, "b"]}, r"image_ids\[1\] has no integer id: b"),
        ({"images": [{"id": 1}, {}]}, r"images\[1\] has no integer id"),
        ({"images": 3}, "images must be a list with at least one image, got 3"),
    ],
)
def test_wrong_split_files(tmp_path, content, message):
    (tmp_path / "1perc.json").write_text(json.dumps(content))
    assert "1perc.json" in refused(read_label_split, tmp_path / "1perc.json", match=message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bootstrap": -3}, "must be a number of resamples, 0 for none, got -3"),
        ({"nms_across_clusters": 50}, r"must be an IoU in 0\.\.1, 0 for none, got 50"),
        ({"nms_across_clusters": float("nan")}, r"must be an IoU in 0\.\.1, 0 for none, got nan"),
        ({"fit_on": "a.npz", "label_map": "b.json"}, "not both"),
    ],
)
def test_wrong_settings(settings, message):
    refused(lambda: ScoreSettings(("hungarian",), **settings), match=message)


def test_compressed_run_lengths_are_read_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.3, 0.9, 1):
        mask = (rng.random((37, 53)) < share).astype(np.uint8)
        flat = mask.ravel(order="F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        expected = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
        expected = [0, *expected] if flat[0] else expected
        assert compressed_counts(run_lengths(mask)["counts"]).tolist() == expected
    long = np.zeros((3000, 4000), np.uint8)
    long[-1, -1] = 1
    assert compressed_counts(run_lengths(long)["counts"]).tolist() == [11_999_999, 1]
