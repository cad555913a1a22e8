import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from fault_injection import Faults, KilledError, contents
from PIL import Image
from pycocotools import mask as mask_utils
from u2seg.cli.main import main
from u2seg.config import setup_cfg
from u2seg.data.formats.coco_panoptic import read_panoptic_png
from u2seg.evaluation.matching.label_map import LabelMap, save_label_map
from u2seg.evaluation.tables.segment_tables import TableSpace
from u2seg.modeling import complete_config
from u2seg.predictor import Predictor, find_images, predict_files
from u2seg.structures.label_space import LabelSpace
from u2seg.utils.files import write_json
from u2seg.visualization import cluster_color
from u2seg.visualization.class_style import style_from_label_map

ROOT = Path(__file__).parents[1]
CONFIG = "quick_schedules/Base-Scenes-R18-FPN.yaml"
THINGS, STUFF = 5, 3


def small_cfg(**opts):
    cfg = setup_cfg(CONFIG)
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    cfg.CLUSTERS.NUM_CLUSTERS, cfg.SEMANTICS.NUM_CLUSTERS = THINGS, STUFF
    cfg.merge_from_list([part for pair in opts.items() for part in (pair[0].replace("__", "."), pair[1])])
    return cfg


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model with random weights that calls most of what it finds thing 2, and the ground stuff 1."""
    torch.manual_seed(0)
    model = build_model(complete_config(small_cfg(), eval_only=True))
    with torch.no_grad():
        for stage in model.roi_heads.box_predictor:
            stage.cls_score.bias[2] = 3.0
        model.sem_seg_head.predictor.bias[1] = 1000.0
    path = tmp_path_factory.mktemp("model") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor(small_cfg(MODEL__WEIGHTS=checkpoint))


def photo(path, height=90, width=140, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 9, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def test_prediction_is_consistent(predictor, tmp_path):
    image = np.asarray(Image.open(photo(tmp_path / "a.png")))
    prediction = predictor(image)
    assert prediction.panoptic_map.shape == prediction.semantic_map.shape == (90, 140)
    assert prediction.instances.pred_masks.shape[1:] == (90, 140)
    ids = set(np.unique(prediction.panoptic_map)) - {0}
    assert ids == {info["id"] for info in prediction.segments_info}
    assert {info["category_id"] for info in prediction.segments_info if info["isthing"]} == {2}
    assert {info["category_id"] for info in prediction.segments_info if not info["isthing"]} == {1}
    assert predictor.draw(image, prediction).dtype == np.uint8


def test_equals_detectron2s_own_predictor(predictor, checkpoint, tmp_path):
    from detectron2.engine import DefaultPredictor

    image = np.asarray(Image.open(photo(tmp_path / "a.png")))
    cfg = complete_config(small_cfg(MODEL__WEIGHTS=checkpoint), eval_only=True)
    theirs = DefaultPredictor(cfg)(image[:, :, ::-1])  # it takes BGR
    ours = predictor(image)
    assert (theirs["panoptic_seg"][0].numpy() == ours.panoptic_map).all()
    assert torch.equal(theirs["instances"].scores, ours.instances.scores)


def test_bgr_models_get_bgr(predictor, checkpoint, tmp_path):
    # The same network, told that it reads BGR, with its first layer's channels swapped to match, must say the same.
    weights = torch.load(checkpoint, weights_only=True)["model"]
    weights["backbone.bottom_up.stem.conv1.weight"] = weights["backbone.bottom_up.stem.conv1.weight"].flip(1)
    torch.save(weights, tmp_path / "bgr.pth")
    cfg = small_cfg(MODEL__WEIGHTS=str(tmp_path / "bgr.pth"), INPUT__FORMAT="BGR")
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = cfg.MODEL.PIXEL_MEAN[::-1], cfg.MODEL.PIXEL_STD[::-1]
    image = np.asarray(Image.open(photo(tmp_path / "a.png")))
    torch.testing.assert_close(Predictor(cfg)(image).instances.scores, predictor(image).instances.scores)


def test_files_agree_with_each_other(predictor, tmp_path):
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "deep" / "b.jpg", 120, 80, seed=1)
    failures = predict_files(predictor, [tmp_path / "in"], tmp_path / "out")
    assert failures == []
    panoptic = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    results = json.loads((tmp_path / "out" / "coco_results.json").read_text())
    assert [image["file_name"] for image in panoptic["images"]] == ["a.png", "deep/b.jpg"]
    assert [c["id"] for c in panoptic["categories"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    for image, annotation in zip(panoptic["images"], panoptic["annotations"]):
        stem = image["file_name"].rsplit(".", 1)[0]
        assert annotation == json.loads((tmp_path / "out" / "panoptic" / f"{stem}.json").read_text())
        ids = read_panoptic_png(tmp_path / "out" / "panoptic" / annotation["file_name"])
        assert ids.shape == (image["height"], image["width"])
        for segment in annotation["segments_info"]:
            assert segment["area"] == (ids == segment["id"]).sum()
            # Thing cluster 2 is dataset id 3; stuff 1 comes after five things.
            assert segment["category_id"] == (3 if segment["isthing"] else 6)
        assert Image.open(tmp_path / "out" / "visualizations" / f"{stem}.jpg").width >= image["width"]
        mine = [row for row in results if row["image_id"] == image["id"]]
        assert mine == json.loads((tmp_path / "out" / "instances" / f"{stem}.json").read_text())
        for row in mine:
            assert row["category_id"] in range(1, THINGS + 1) and 0 <= row["score"] <= 1
            assert mask_utils.decode(row["segmentation"]).shape == ids.shape


def test_a_killed_run_goes_on_where_it_was(predictor, tmp_path):
    for seed, name in enumerate("abc"):
        photo(tmp_path / "in" / f"{name}.png", seed=seed)
    predict_files(predictor, [tmp_path / "in"], tmp_path / "whole")
    calls = []

    def dies_at_the_third(image_rgb):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predictor(image_rgb)

    half = Mock(
        side_effect=dies_at_the_third, **{k: getattr(predictor, k) for k in ("digest", "label_space", "style", "draw")}
    )
    with pytest.raises(KeyboardInterrupt):
        predict_files(half, [tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out" / "panoptic.json").exists()
    predict_files(half, [tmp_path / "in"], tmp_path / "out")
    assert len(calls) == 4, "two done before the kill, the third twice"
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes(), path
    # Another image under the same name: everything anew.
    photo(tmp_path / "in" / "b.png", seed=9)
    predict_files(half, [tmp_path / "in"], tmp_path / "out")
    assert len(calls) == 7
    # Other images: what was written of the ones before is gone.
    photo(tmp_path / "in" / "b.png", seed=9).rename(tmp_path / "in" / "d.png")
    (tmp_path / "out" / "panoptic" / "notes.txt").write_text("mine")
    predict_files(half, [tmp_path / "in"], tmp_path / "out")
    left = {path.stem for path in (tmp_path / "out").rglob("*.*") if path.parent != tmp_path / "out"}
    assert left == {"a", "c", "d", "notes"}


@pytest.mark.parametrize("name", ["manifest.json", "panoptic.json", "panoptic/a.png"])
def test_files_that_are_no_predictions_are_not_replaced(predictor, tmp_path, name):
    photo(tmp_path / "in" / "a.png")
    labels = tmp_path / "labels" / name
    labels.parent.mkdir(parents=True)
    labels.write_text('{"stage": "panoptic"}')
    with pytest.raises(ValueError, match=f"holds {name.split('/')[0]}, which u2seg predict did not write"):
        predict_files(predictor, [tmp_path / "in"], tmp_path / "labels")
    assert [path for path in (tmp_path / "labels").rglob("*") if path.is_file()] == [labels]


def test_killed_at_every_file_operation_the_predictions_are_those_of_this_run(predictor, tmp_path, monkeypatch):
    remembered = functools.lru_cache(lambda data, shape: predictor(np.frombuffer(data, np.uint8).reshape(shape)))
    quick = Mock(
        side_effect=lambda image_rgb: remembered(image_rgb.tobytes(), image_rgb.shape),
        digest=predictor.digest,
        label_space=predictor.label_space,
        style=predictor.style,
        draw=lambda image_rgb, prediction: image_rgb,
    )
    # The directory holds the predictions of another run, which must not be taken for this one's.
    for seed, name in enumerate("ab"):
        photo(tmp_path / "in" / f"{name}.png", 30, 40, seed=seed)
    predict_files(quick, [tmp_path / "in"], tmp_path / "out")
    for seed, name in enumerate("ab"):
        photo(tmp_path / "in" / f"{name}.png", 30, 40, seed=seed + 7)
    predict_files(quick, [tmp_path / "in"], tmp_path / "whole")
    faults = Faults(monkeypatch, tmp_path / "out", kill=True)
    kills = faults.runs(
        lambda: predict_files(quick, [tmp_path / "in"], tmp_path / "out"), KilledError, lambda error: None
    )
    assert kills > 40
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_pycocotools_reads_the_results(predictor, tmp_path):
    from pycocotools.coco import COCO

    predict_files(predictor, [photo(tmp_path / "a.png")], tmp_path / "out")
    panoptic = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    gt = COCO()
    gt.dataset = {**panoptic, "annotations": []}
    gt.createIndex()
    loaded = gt.loadRes(str(tmp_path / "out" / "coco_results.json"))
    assert len(loaded.anns) > 0


def test_models_without_a_semantic_head(tmp_path):
    cfg = small_cfg(MODEL__META_ARCHITECTURE="GeneralizedRCNN", CLUSTERS__NUM_CLUSTERS=1)
    torch.manual_seed(0)
    model = build_model(complete_config(cfg.clone(), eval_only=True))
    with torch.no_grad():
        for stage in model.roi_heads.box_predictor:
            stage.cls_score.bias[0] = 3.0
    torch.save(model.state_dict(), tmp_path / "cutler.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "cutler.pth")
    cutler = Predictor(cfg)
    prediction = cutler(np.asarray(Image.open(photo(tmp_path / "a.png"))))
    assert prediction.semantic_map is None
    assert prediction.segments_info and all(info["isthing"] for info in prediction.segments_info)
    predict_files(cutler, [tmp_path / "a.png"], tmp_path / "out")


def test_names_come_from_the_training_set(checkpoint, tmp_path):
    space = LabelSpace((1, 2, 3, 4, 5), (6, 7, 8), tuple("abcde"), ("sky", "ground", "water"))
    name = "u2seg_test_names"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(**space.metadata(), label_space=space)
    try:
        cfg = small_cfg(MODEL__WEIGHTS=checkpoint)
        cfg.DATASETS.TRAIN = (name,)
        cfg.CLUSTERS.NUM_CLUSTERS = 99  # not asked where the training set is known
        named = Predictor(cfg)
        assert named.style.thing_names == list("abcde") and named.style.stuff_names == [
            "things",
            "sky",
            "ground",
            "water",
        ]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


def test_absent_training_files_do_not_matter(checkpoint):
    cfg = small_cfg(MODEL__WEIGHTS=checkpoint)
    cfg.DATASETS.BY_PATH.absent = CfgNode({"FORMAT": "pseudo_labels", "ROOT": "nowhere", "IMAGES": "nowhere"})
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("absent",)
    assert Predictor(cfg).label_space == LabelSpace.of_clusters(THINGS, STUFF)
    assert cfg.DATASETS.TEST == ("absent",), "the caller's configuration stays as it was"


def test_refusals(checkpoint):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS names no checkpoint"):
        Predictor(small_cfg())
    with pytest.raises(ValueError, match="ROI_HEADS.NUM_CLASSES: 5 there, 6 here"):
        Predictor(small_cfg(MODEL__WEIGHTS=checkpoint, CLUSTERS__NUM_CLUSTERS=6))


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)],
    ids=["float", "gray", "rgba"],
)
def test_images_of_another_type_or_shape_are_refused(predictor, image):
    with pytest.raises(ValueError, match=r"image_rgb must be uint8 of shape \(H, W, 3\), got"):
        predictor(image)


def saved_map(path, things, stuff):
    """A label map for categories cat, dog (things) and sky, ground (stuff); joint categories 0..3, -1 for none."""
    categories = LabelSpace((1, 2), (3, 4), ("cat", "dog"), ("sky", "ground"))
    space = TableSpace("set", len(things), len(stuff), categories, ("panoptic",))
    joint = np.array([*things, *stuff])
    save_label_map(path, LabelMap(joint, np.full(len(joint), -1)), space)
    return path


def test_label_map_names_and_colors(tmp_path):
    space = LabelSpace.of_clusters(3, 2)
    path = saved_map(tmp_path / "map.json", things=[1, -1, 0], stuff=[-1, 2])
    style = style_from_label_map(path, space)
    assert style.thing_names == ["dog", "2", "cat"] and style.stuff_names == ["things", "4", "sky"]
    # As the ground truth is drawn: dog is its thing 1, cat its thing 0, sky its first stuff class.
    assert style.thing_colors[0] == cluster_color("thing", 1) and style.thing_colors[2] == cluster_color("thing", 0)
    assert style.stuff_colors[2] == cluster_color("stuff", 0)
    taken = {cluster_color("thing", i) for i in range(2)} | {cluster_color("stuff", i) for i in range(2)}
    assert style.thing_colors[1] not in taken and style.stuff_colors[1] not in taken

    with pytest.raises(ValueError, match="maps 3 thing and 2 stuff clusters, the model has 5 and 3"):
        style_from_label_map(path, LabelSpace.of_clusters(5, 3))
    write_json(path, [1])
    with pytest.raises(ValueError, match="no label map"):
        style_from_label_map(path, space)


def test_find_images_names_are_unique(tmp_path):
    for name in ("x/a.png", "y/a.png", "y/deep/c.jpg"):
        photo(tmp_path / name)
    (tmp_path / "y" / "notes.txt").touch()
    found = find_images([tmp_path / "x" / "a.png", tmp_path / "y", tmp_path / "x" / "a.png"])
    assert found == {
        "x/a.png": tmp_path / "x" / "a.png",
        "y/a.png": tmp_path / "y" / "a.png",
        "y/deep/c.jpg": tmp_path / "y" / "deep" / "c.jpg",
    }
    assert list(find_images([tmp_path / "x" / "a.png"])) == ["a.png"]


# --- the command line ---------------------------------------------------------------------------------------------------------


def run_tool(*arguments) -> int:
    return main(["predict", *map(str, arguments)])


def test_demo_tool_goes_on_after_broken_images(checkpoint, tmp_path, capsys):
    photo(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    inputs = [tmp_path / "broken.jpg", tmp_path / "good.png", tmp_path / "absent.jpg"]
    saved_map(tmp_path / "map.json", things=[-1, -1, 0, -1, -1], stuff=[2, -1, -1])
    options = [
        "--config-file",
        CONFIG,
        *inputs,
        "--output",
        tmp_path / "out",
        "--label-map",
        tmp_path / "map.json",
    ]
    keys = [
        "MODEL.WEIGHTS",
        checkpoint,
        "MODEL.DEVICE",
        "cpu",
        "CLUSTERS.NUM_CLUSTERS",
        THINGS,
        "SEMANTICS.NUM_CLUSTERS",
        STUFF,
    ]
    assert run_tool(*options, *keys) == 1
    printed = capsys.readouterr()
    assert f"error: {tmp_path}/broken.jpg: not readable as an image" in printed.err
    assert f"error: {tmp_path}/absent.jpg: no such file" in printed.err
    assert "2 images could not be read" in printed.out and "Traceback" not in printed.err
    assert (tmp_path / "out" / "visualizations" / "good.jpg").is_file()
    assert len(json.loads((tmp_path / "out" / "failures.json").read_text())) == 2
    categories = json.loads((tmp_path / "out" / "panoptic.json").read_text())["categories"]
    assert [c["name"] for c in categories] == ["1", "2", "cat", "4", "5", "sky", "7", "8"]


def test_demo_tool_says_what_is_wrong_in_one_line(tmp_path, capsys):
    arguments = ["--config-file", CONFIG, tmp_path, "--output", tmp_path / "out", "MODEL.DEVICE", "cpu"]
    assert run_tool(*arguments) == 1
    assert (
        capsys.readouterr().err == "error: MODEL.WEIGHTS names no checkpoint; set it to the model that is to predict\n"
    )


def test_the_documented_scripts_run_outside_the_repository(checkpoint, tmp_path):
    text = (ROOT / "docs" / "predict.md").read_text()
    scripts = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(scripts) == 2
    photo(tmp_path / "photo.jpg")
    size = f"cfg.CLUSTERS.NUM_CLUSTERS, cfg.SEMANTICS.NUM_CLUSTERS, cfg.MODEL.DEVICE = {THINGS}, {STUFF}, 'cpu'"
    for number, script in enumerate(scripts):
        assert "COCO-PanopticSegmentation/u2seg_R50_800.yaml" in script and '"model.pth"' in script
        script = script.replace("COCO-PanopticSegmentation/u2seg_R50_800.yaml", CONFIG)
        script = script.replace('cfg.MODEL.WEIGHTS = "model.pth"', f'cfg.MODEL.WEIGHTS = "{checkpoint}"\n{size}')
        (tmp_path / f"script{number}.py").write_text(script)
    # One process for both: importing everything takes longer than all the rest.
    both = "import runpy; runpy.run_path('script0.py'); runpy.run_path('script1.py')"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", both], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("segments") == 2
    assert (tmp_path / "prediction.jpg").is_file()
