"""Exported models against the model that they were made from, with random weights."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from u2seg.cli.main import main
from u2seg.export import ExportedModel, ExportError, export_model
from u2seg.export.exported_model import _instance_differences, _same_pixels, compare
from u2seg.modeling import build_model
from u2seg.predictor import Prediction, Predictor

# Height and width differ in parity and in what the network pads them to.
SIZES = ((48, 64), (80, 50), (64, 131))
needs_onnx = pytest.mark.skipif(
    not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")),
    reason="the packages onnx and onnxruntime (extra 'export') are not installed",
)


def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def random_predictor(tiny_cfg, directory, *opts):
    cfg = tiny_cfg(directory, "INPUT.MIN_SIZE_TEST", "64", "TEST.DETECTIONS_PER_IMAGE", "8", *opts)
    torch.manual_seed(3)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, directory / "model.pth")
    cfg.MODEL.WEIGHTS = str(directory / "model.pth")
    return Predictor(cfg)


@pytest.fixture(scope="module")
def predictor(tiny_cfg, tmp_path_factory):
    return random_predictor(tiny_cfg, tmp_path_factory.mktemp("random"))


@pytest.mark.parametrize("name", [pytest.param("model.onnx", marks=needs_onnx), "model.ts"])
def test_an_exported_model_predicts_as_the_model_does(predictor, name, tmp_path):
    path = export_model(predictor, tmp_path / name, images())
    exported = ExportedModel(path)
    agreement = compare(predictor, exported, images())
    assert agreement.is_close, agreement
    assert agreement.images == agreement.sizes == 3 and agreement.detections == 24
    # An image without a detection: the trace has seen only ones with some.
    exported.settings["combine"]["instance_score"] = 2.0
    assert not [s for s in exported(images()[0]).segments_info if s["isthing"]]
    assert exported.settings["thing_classes"] == ["box", "disc"]


@pytest.mark.parametrize("name", [pytest.param("model.onnx", marks=needs_onnx), "model.ts"])
def test_equal_proposals_are_taken_in_the_same_order(predictor, name, tmp_path):
    """All proposals of a level get one score: which of them pass the cut is then a matter of their order alone."""
    rpn, head = predictor.model.proposal_generator, predictor.model.proposal_generator.rpn_head.objectness_logits
    before = head.weight.detach().clone(), dict(rpn.pre_nms_topk)
    with torch.no_grad():
        head.weight.zero_()
    rpn.pre_nms_topk[False] = 20
    try:
        exported = ExportedModel(export_model(predictor, tmp_path / name, images()))
        agreement = compare(predictor, exported, images())
    finally:
        rpn.pre_nms_topk.update(before[1])
        with torch.no_grad():
            head.weight.copy_(before[0])
    assert agreement.is_close and agreement.detections > 0, agreement


@pytest.mark.parametrize("name", [pytest.param("model.onnx", marks=needs_onnx), "model.ts"])
def test_an_image_in_which_nothing_is_found(predictor, name, tmp_path):
    """The scores of another image decide what is traced; here no score reaches the threshold of the graph."""
    black = np.zeros((48, 64, 3), np.uint8)
    heads = predictor.model.roi_heads.box_predictor[-1]
    before, shown = heads.test_score_thresh, predictor(black).instances.scores
    noisy = predictor(images()[0]).instances.scores
    heads.test_score_thresh = (float(shown.max()) + float(noisy.max())) / 2
    try:
        if shown.max() >= noisy.max():
            pytest.fail("the random weights of this test no longer score noise above black; choose another seed")
        exported = ExportedModel(export_model(predictor, tmp_path / name, images()))
        assert len(exported(black).instances) == len(predictor(black).instances) == 0
        assert len(exported(images()[0]).instances) > 0
        with pytest.raises(ExportError, match="finds nothing in 1 images"):
            export_model(predictor, tmp_path / name, [black])
    finally:
        heads.test_score_thresh = before


def test_a_model_without_a_semantic_head(tiny_cfg, tmp_path):
    predictor = random_predictor(tiny_cfg, tmp_path, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    exported = ExportedModel(export_model(predictor, tmp_path / "model.ts", images()))
    assert exported(images()[1]).semantic_map is None
    assert compare(predictor, exported, images()).is_close


def test_the_command_writes_checks_and_prints_a_table(predictor, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(predictor.cfg.dump())
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images()):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    words = ["--format", "torchscript", "--output", str(tmp_path / "small"), "--images", str(tmp_path / "photos")]
    assert main(["export", "--config-file", str(tmp_path / "config.yaml"), *words]) == 0
    shown = capsys.readouterr().out
    assert "small.ts" in shown and "the file agrees with the model" in shown and "3, 3" in shown
    assert (tmp_path / "small.ts").is_file() and (tmp_path / "small.json").is_file()


def test_what_cannot_be_exported_says_so(predictor, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=r"must end in \.onnx or \.ts"):
        export_model(predictor, tmp_path / "model.pb", images())
    other = SimpleNamespace(model=torch.nn.Linear(1, 1), cfg=predictor.cfg)
    with pytest.raises(ExportError, match="Linear cannot be exported: it has no backbone and no proposal_generator"):
        export_model(other, tmp_path / "model.ts", images())
    with pytest.raises(FileNotFoundError, match="u2seg export"):
        ExportedModel(tmp_path / "model.ts")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"u2seg\[export\]"):
        export_model(predictor, tmp_path / "model.onnx", images())
    assert not list(tmp_path.iterdir())


def prediction(boxes, scores, classes, panoptic, segments):
    masks = torch.zeros(len(boxes), 4, 4, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    fields = {"scores": torch.tensor(scores), "pred_classes": torch.tensor(classes), "pred_masks": masks}
    found = Instances((4, 4), pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)), **fields)
    infos = [{"id": i, "isthing": thing, "category_id": c} for i, thing, c in segments]
    return Prediction(np.array(panoptic, np.int32), infos, found)


def test_differences_are_found_whatever_the_order():
    halves = np.repeat([[1, 1, 2, 2]], 4, axis=0)
    segments = [(1, True, 0), (2, False, 1)]
    first = prediction([[0, 0, 2, 4], [2, 0, 4, 4]], [0.9, 0.8], [0, 1], halves, segments)
    swapped = prediction([[2, 0, 4, 4], [0, 0, 2, 4]], [0.8, 0.9], [1, 0], 3 - halves, [(2, True, 0), (1, False, 1)])
    assert _instance_differences(first, swapped) == (0, 0.0, 0.0, 1.0)
    assert _same_pixels(first, swapped) == 1.0
    # One score less, a box that is half as high, and a class that the other does not have.
    other = prediction([[0, 0, 2, 2], [2, 0, 4, 4]], [0.9, 0.5], [0, 0], halves, [(1, True, 0), (2, True, 1)])
    unmatched, box, score, iou = _instance_differences(first, other)
    assert (unmatched, box, score, iou) == (2, 2.0, 0.0, 0.5)
    assert _same_pixels(first, other) == 0.5
    merged = prediction([[0, 0, 2, 4]], [0.9], [0], np.ones((4, 4)), [(1, True, 0)])
    assert _instance_differences(first, merged)[0] == 1 and _same_pixels(first, merged) == 0.5
