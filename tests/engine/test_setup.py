"""Completing a configuration; optimizers and their learning rates; scoring through the registries."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import nn
from u2seg.checkpoint.loading import check_class_counts
from u2seg.config import setup_cfg
from u2seg.data import DatasetFilesError
from u2seg.engine import U2SegTrainer
from u2seg.engine.expected_results import (
    refuse_impossible_results,
    refuse_impossible_scoring,
    verify_expected_results,
)
from u2seg.modeling import complete_config
from u2seg.solver import build_optimizer
from u2seg.solver.build import lr_factors

BASE = "quick_schedules/Base-Scenes-R18-FPN.yaml"


def described(root, *names, split="train"):
    cfg = setup_cfg(BASE)
    for name in names:
        cfg.DATASETS.BY_PATH[name] = CfgNode({"FORMAT": "coco_panoptic", "ROOT": str(root), "SPLIT": split})
    return cfg


@pytest.fixture
def coco_root(tmp_path, write_coco_panoptic):
    return write_coco_panoptic(tmp_path / "tiny")


def test_class_counts_come_from_the_training_set(coco_root):
    cfg = described(coco_root, "setup_train")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("setup_train",), ()
    cfg.MODEL.FPN.NORM = "SyncBN"
    cfg.freeze()
    assert complete_config(cfg) is cfg and cfg.is_frozen()
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert cfg.MODEL.FPN.NORM == "BN"  # one process
    assert ("cuda" if torch.cuda.is_available() else "cpu") == cfg.MODEL.DEVICE
    cfg.defrost()
    cfg.MODEL.DEVICE = "auto"
    assert ("cuda" if torch.cuda.is_available() else "cpu") == complete_config(cfg).MODEL.DEVICE


def test_evaluation_needs_no_training_files_and_training_does(coco_root, tmp_path):
    cfg = described(coco_root, "setup_val")
    cfg.DATASETS.BY_PATH["setup_gone"] = CfgNode(
        {"FORMAT": "pseudo_labels", "ROOT": str(tmp_path / "gone"), "IMAGES": str(tmp_path / "gone")}
    )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("setup_gone",), ("setup_val",)
    with pytest.raises(DatasetFilesError, match="setup_gone"):
        complete_config(cfg.clone())
    cfg.CLUSTERS.NUM_CLUSTERS, cfg.SEMANTICS.NUM_CLUSTERS = 12, 5
    complete_config(cfg, eval_only=True)
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (12, 6)
    assert MetadataCatalog.get("setup_val").thing_classes == ["box", "disc"]


def test_an_unregistered_dataset_is_named(coco_root):
    cfg = described(coco_root, "setup_train")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("setup_tarin",), ()
    with pytest.raises(ValueError, match=r"setup_tarin, which nobody registered.*setup_train"):
        complete_config(cfg)


def test_a_checkpoint_of_other_class_counts_is_refused(coco_root):
    cfg = described(coco_root, "setup_train")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 800, 28
    shapes = {"roi_heads.box_predictor.0.cls_score.bias": (801,), "sem_seg_head.predictor.bias": (28,)}
    check_class_counts(cfg, shapes, "model.pth")
    shapes["roi_heads.box_predictor.0.cls_score.bias"] = (301,)
    with pytest.raises(ValueError, match=r"model\.pth .*300 there, 800 here.*CLUSTERS\.NUM_CLUSTERS to 300"):
        check_class_counts(cfg, shapes, "model.pth")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.roi_heads = nn.ModuleDict({"box": nn.Linear(2, 2), "mask": nn.Linear(2, 2)})


def test_learning_rate_multipliers_take_effect():
    cfg = setup_cfg(BASE)
    cfg.SOLVER.BASE_LR = 0.5
    cfg.SOLVER.LR_MULTIPLIERS = (("roi_heads", 4.0), ("roi_heads.mask", 2.0))
    model = Two()
    optimizer = build_optimizer(cfg, model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    got = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert got == {
        "backbone.weight": 0.5, "backbone.bias": 0.5,
        "roi_heads.box.weight": 2.0, "roi_heads.box.bias": 2.0,
        "roi_heads.mask.weight": 1.0, "roi_heads.mask.bias": 1.0,
    }  # fmt: skip
    # The schedule keeps their ratio.
    scheduler = U2SegTrainer.build_lr_scheduler(cfg, optimizer)
    scheduler.step()
    assert max(g["lr"] for g in optimizer.param_groups) / min(g["lr"] for g in optimizer.param_groups) == 4.0


def test_a_multiplier_without_effect_is_refused():
    with pytest.raises(
        ValueError, match=r"no parameter's name begins with 'roi_head'; modules: backbone\.weight, roi_heads\.box"
    ):
        lr_factors((("roi_head", 4.0),), ["backbone.weight", "roi_heads.box.weight"])


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_optimisers_by_name(name, kind):
    cfg = setup_cfg(BASE, ["SOLVER.OPTIMIZER", name])
    assert isinstance(build_optimizer(cfg, Two()), kind)
    with pytest.raises(ValueError, match="Unknown SOLVER.OPTIMIZER 'ADAM'; registered: AdamW"):
        build_optimizer(setup_cfg(BASE, ["SOLVER.OPTIMIZER", "ADAM"]), Two())


def test_full_model_clipping_bounds_the_common_norm():
    cfg = setup_cfg(BASE, ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", 1.0, "SOLVER.WEIGHT_DECAY", 0.0])
    model = Two()
    optimizer = build_optimizer(cfg, model)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    for p in model.parameters():
        p.grad = torch.full_like(p, 10.0)
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(1.0, rel=1e-4)  # CLIP_VALUE 1.0 over all of them together


class CountsImages(DatasetEvaluator):
    def __init__(self, name, cfg, output_dir):
        self.output_dir = output_dir

    def reset(self):
        self.seen = 0

    def process(self, inputs, outputs):
        self.seen += len(inputs)
        assert {"panoptic_seg", "instances", "sem_seg"} <= set(outputs[0])

    def evaluate(self):
        return {"panoptic_seg": {"PQ": float(self.seen)}}


def test_scoring_runs_one_pass_with_the_evaluator_of_the_dataset(tiny_cfg, tmp_path, coco_root, monkeypatch):
    from u2seg.data import register_dataset
    from u2seg.evaluation import EVALUATOR_REGISTRY

    register_dataset("setup_scored", {"FORMAT": "coco_panoptic", "ROOT": str(coco_root), "SPLIT": "train"})
    register_dataset("setup_bare", {"FORMAT": "images", "ROOT": str(coco_root / "train")})
    monkeypatch.setitem(EVALUATOR_REGISTRY._obj_map, "u2seg_panoptic", CountsImages)
    cfg = tiny_cfg(tmp_path)
    cfg.DATASETS.TEST = ("setup_scored",)
    model = U2SegTrainer.build_model(cfg)
    results = U2SegTrainer.test(cfg, model)
    assert results["panoptic_seg"]["PQ"] == 6.0  # each image once
    evaluator = U2SegTrainer.build_evaluator(cfg, "setup_scored")
    assert evaluator.output_dir == str(tmp_path / "inference" / "setup_scored")
    with pytest.raises(ValueError, match="'setup_bare' cannot be scored: it has no ground truth"):
        U2SegTrainer.build_evaluator(cfg, "setup_bare")


def test_a_run_that_misses_its_expected_results_fails(tiny_cfg, tmp_path, coco_root, monkeypatch):
    from u2seg.data import register_dataset
    from u2seg.evaluation import EVALUATOR_REGISTRY

    register_dataset("setup_expected", {"FORMAT": "coco_panoptic", "ROOT": str(coco_root), "SPLIT": "train"})
    monkeypatch.setitem(EVALUATOR_REGISTRY._obj_map, "u2seg_panoptic", CountsImages)
    cfg = tiny_cfg(tmp_path, "SOLVER.MAX_ITER", 1)
    cfg.DATASETS.TEST = ("setup_expected",)
    cfg.TEST.EXPECTED_RESULTS = [["panoptic_seg", "PQ", 6.0, 0.5]]
    assert U2SegTrainer(cfg).train()["panoptic_seg"]["PQ"] == 6.0
    cfg.TEST.EXPECTED_RESULTS = [["panoptic_seg", "PQ", 7.0, 0.5]]
    with pytest.raises(SystemExit):
        U2SegTrainer(cfg).train()


def test_the_traceback_of_an_error_in_training_goes_to_the_log_alone(tiny_cfg, tmp_path, capfd, monkeypatch):
    from u2seg.engine import run_training
    from u2seg.luss.recipe import _close_logs

    (tmp_path / "in.yaml").write_text(tiny_cfg(tmp_path / "run", "SOLVER.MAX_ITER", 1).dump())
    monkeypatch.setattr(U2SegTrainer, "run_step", lambda self: (_ for _ in ()).throw(ValueError("of one line")))
    try:
        with pytest.raises(ValueError, match="of one line"):
            run_training(SimpleNamespace(config_file=str(tmp_path / "in.yaml"), opts=[], eval_only=False, resume=False))
    finally:
        _close_logs()
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


def test_eval_only_without_a_model_says_what_to_give(tiny_cfg, tmp_path):
    from u2seg.engine import run_training

    path = tmp_path / "in.yaml"
    path.write_text(tiny_cfg(tmp_path).dump())
    with pytest.raises(ValueError, match="--eval-only needs a model: MODEL.WEIGHTS FILE, or --resume"):
        run_training(SimpleNamespace(config_file=str(path), opts=[], eval_only=True, resume=False))


@pytest.mark.parametrize(
    ("tests", "row", "message"),
    [
        ((), ["panoptic_seg", "PQ", 6.0, 0.5], r"'panoptic_seg', but DATASETS\.TEST is empty: nothing is scored"),
        (
            ("tiny_train",),
            ["panoptic", "PQ", 6.0, 0.5],
            r"'panoptic', which is not scored on tiny_train; there are panoptic_seg, bbox",
        ),
        (("tiny_train",), ["bbox/majority", "AP", 6.0, 0.5], "'bbox/majority', which is not scored on tiny_train"),
        (
            ("tiny_train", "setup_other"),
            ["panoptic_seg", "PQ", 6.0, 0.5],
            "with several test sets it must begin with one of tiny_train/, setup_other/",
        ),
    ],
)
def test_expected_results_that_no_run_can_reach_are_refused_before_it(tiny_cfg, tmp_path, tests, row, message):
    cfg = tiny_cfg(tmp_path)
    cfg.DATASETS.TEST, cfg.TEST.EXPECTED_RESULTS = tests, [row]
    with pytest.raises(ValueError, match=message):
        refuse_impossible_results(cfg)


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("PROTOCOLS", ("hungarain",), ValueError, "Unknown protocol .* 'hungarain'; registered: cups"),
        ("LABEL_MAP.FILE", "none.json", FileNotFoundError, "LABEL_MAP.FILE names none.json, which is not there"),
        ("LABEL_MAP.FILE", "map.json", ValueError, "maps 9 thing and 1 stuff clusters, the predictions have 2 and 2"),
        ("LABEL_MAP.FIT_ON", "my_trian", FileNotFoundError, "FIT_ON is 'my_trian', but .* it names tiny_train"),
        ("LABEL_MAP.FIT_ON", "none.npz", FileNotFoundError, "FIT_ON is 'none.npz'"),
    ],
)
def test_scoring_that_cannot_succeed_is_refused_before_training(
    tiny_cfg, tmp_path, monkeypatch, key, value, error, message
):
    monkeypatch.chdir(tmp_path)
    fields = {"error_category": [], "semantic": None, "categories": [], "provenance": {}}
    Path("map.json").write_text(json.dumps({"thing_clusters": [0] * 9, "stuff_clusters": [0], **fields}))
    cfg = tiny_cfg(tmp_path)
    cfg.DATASETS.TEST = ("tiny_train",)
    cfg.TEST.LABEL_MAP.FIT_ON = "tiny_train"
    refuse_impossible_scoring(cfg)
    cfg.TEST.LABEL_MAP.FIT_ON = ""
    cfg.merge_from_list([f"TEST.{key}", value])
    with pytest.raises(error, match=message):
        refuse_impossible_scoring(cfg)


def test_expected_results_that_were_not_scored_are_named(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path)
    cfg.DATASETS.TEST = ("tiny_train",)
    scores = {"panoptic_seg": {"PQ": 40.0, "SQ": 70.0}, "bbox/cups": {"AP": 3.0}}
    for row, message in (
        (["segm", "AP", 3.0, 1.0], "names segm, which was not scored; there are panoptic_seg, bbox/cups"),
        (["panoptic_seg", "RQ", 3.0, 1.0], "the metric 'RQ' of panoptic_seg, which was not scored; there are PQ, SQ"),
    ):
        cfg.TEST.EXPECTED_RESULTS = [row]
        refuse_impossible_results(cfg)
        with pytest.raises(ValueError, match=message):
            verify_expected_results(cfg, scores)
    cfg.TEST.EXPECTED_RESULTS = [["panoptic_seg", "PQ", 40.0, 1.0]]
    verify_expected_results(cfg, scores)
    part = {f"partial/{task}": row for task, row in scores.items()}
    with pytest.raises(
        ValueError, match=r"only a part of the images was scored: the score is called partial/panoptic_seg"
    ):
        verify_expected_results(cfg, part)
    cfg.DATASETS.TEST = ("a", "b")
    cfg.TEST.EXPECTED_RESULTS = [["b/panoptic_seg", "PQ", 40.0, 1.0]]
    with pytest.raises(ValueError, match="the score is called b/partial/panoptic_seg"):
        verify_expected_results(cfg, {"a": scores, "b": part})
