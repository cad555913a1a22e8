"""The shipped training configurations: they load, say what they are for, and hold the recipe of the sources that they name."""

import re
from pathlib import Path

import pytest
from u2seg.config import get_config_file, setup_cfg

ROOT = Path(get_config_file("Base-U2Seg.yaml")).parent
DIRECTORIES = [
    "COCO-PanopticSegmentation",
    "ImageNet-PanopticSegmentation",
    "COCO-ImageNet-PanopticSegmentation",
    "ImageNet-InstanceSegmentation",
    "COCO-FewLabels",
]
LEAVES = sorted(
    path.relative_to(ROOT).as_posix() for directory in DIRECTORIES for path in (ROOT / directory).glob("[!B]*.yaml")
)


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_loads_and_says_how_to_run_it(name):
    cfg = setup_cfg(name)
    text = (ROOT / name).read_text()
    head = text[: text.index("_BASE_")]
    assert all(line.startswith("#") for line in head.strip().splitlines())
    assert re.search(r"u2seg (train|self-train) --config-file " + re.escape(name), head), "no command for itself"
    assert len(text[text.index("_BASE_") :].splitlines()) <= 20
    assert set(cfg.DATASETS.TRAIN) | set(cfg.DATASETS.TEST) <= set(cfg.DATASETS.BY_PATH)
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.FPN.NORM == "SyncBN"
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80  # Detectron2's default: the count is written in CLUSTERS alone


@pytest.mark.parametrize("clusters", [300, 800, 2911])
def test_the_number_of_clusters_is_in_the_name_and_in_the_labels(clusters):
    for directory in DIRECTORIES[:2] + DIRECTORIES[3:4]:
        cfg = setup_cfg(f"{directory}/u2seg_R50_{clusters}.yaml")
        assert clusters == cfg.CLUSTERS.NUM_CLUSTERS
        assert cfg.DATASETS.BY_PATH[cfg.DATASETS.TRAIN[0]].ROOT.endswith(f"_{clusters}")
        assert cfg.OUTPUT_DIR.endswith(f"_{clusters}")


def test_the_published_recipe():
    cfg = setup_cfg("COCO-PanopticSegmentation/u2seg_R50_800.yaml")
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS)) == (
        16, 0.01, 90000, (),
    )  # fmt: skip
    assert cfg.SOLVER.WEIGHT_DECAY == 5e-5 and cfg.SOLVER.AMP.ENABLED
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN == 4000 and cfg.MODEL.RPN.NMS_THRESH == 0.65
    assert cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT == 0.5 and not cfg.MODEL.ROI_HEADS.DROP_LOSS.ENABLED
    assert cfg.INPUT.FORMAT == "RGB" and tuple(cfg.INPUT.MIN_SIZE_TRAIN)[-1] == 1024
    assert not cfg.INPUT.COPY_PASTE.ENABLED
    recipe = setup_cfg("COCO-PanopticSegmentation/u2seg_R50_800_recipe.yaml")
    assert recipe.MODEL.ROI_HEADS.DROP_LOSS.ENABLED and recipe.INPUT.COPY_PASTE.SAME_CLUSTER
    assert (recipe.INPUT.COPY_PASTE.NAME, recipe.INPUT.COPY_PASTE.PARTNER) == ("CutLERCopyPaste", "any_image")
    scenes = setup_cfg("quick_schedules/scenes.yaml").INPUT.COPY_PASTE
    assert (scenes.NAME, scenes.PARTNER) == ("LayeredCopyPaste", "any_image")


def test_the_coco_scores_hold_the_row_with_the_releases_faults():
    assert {"u2seg_release", "u2seg_release_faults"} <= set(setup_cfg("evaluation/coco.yaml").TEST.PROTOCOLS)


def test_cutlers_recipe():
    cfg = setup_cfg("ImageNet-InstanceSegmentation/cutler_R50.yaml")
    assert (cfg.SOLVER.MAX_ITER, tuple(cfg.SOLVER.STEPS), cfg.SOLVER.GAMMA) == (160000, (80000,), 0.02)
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and cfg.MODEL.ROI_HEADS.DROP_LOSS.ENABLED
    assert cfg.DATASETS.BY_PATH.imagenet_train.CLASS_AGNOSTIC
    paste = cfg.INPUT.COPY_PASTE
    assert (paste.ENABLED, paste.NAME, paste.PARTNER) == (True, "CutLERCopyPaste", "reversed_batch")
    assert cfg.CLUSTERS.NUM_CLUSTERS == 1 and cfg.MODEL.ROI_HEADS.DROP_LOSS.TARGETS == "labels"
    mask_rcnn = setup_cfg("ImageNet-InstanceSegmentation/cutler_mask_rcnn_R50.yaml")
    assert mask_rcnn.MODEL.ROI_HEADS.NAME == "DropLossStandardROIHeads"
    rounds = setup_cfg("ImageNet-InstanceSegmentation/cutler_R50_self_training.yaml")
    assert (rounds.SOLVER.MAX_ITER, rounds.SOLVER.BASE_LR) == (80000, 0.005)
    assert not rounds.MODEL.ROI_HEADS.DROP_LOSS.ENABLED and tuple(rounds.INPUT.COPY_PASTE.SCALE_RANGE) == (0.5, 1.0)


@pytest.mark.parametrize(("percent", "iterations"), [(1, 3600), (5, 4500), (10, 9000), (50, 45000)])
def test_few_label_schedules(percent, iterations):
    cfg = setup_cfg(f"COCO-FewLabels/panoptic_R50_{percent}perc.yaml")
    assert iterations == cfg.SOLVER.MAX_ITER
    assert cfg.DATASETS.BY_PATH.coco_few.SUBSET.endswith(f"/{percent}perc.json")
    heads = dict(cfg.SOLVER.LR_MULTIPLIERS)
    assert cfg.SOLVER.BASE_LR * heads["roi_heads"] == (0.02 if percent == 50 else 0.04)
