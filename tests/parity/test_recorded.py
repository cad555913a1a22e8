"""This project beside small recorded numbers of the authors' systems; README.md says where each comes from."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.modeling import build_model
from u2seg.config import setup_cfg
from u2seg.data import CutLERCopyPaste, LayeredCopyPaste
from u2seg.data.datasets.coco_supercategories import NUM_COCO_THINGS, STUFF_SUPERCATEGORIES
from u2seg.data.training_sample import Sample, boxes_of_masks
from u2seg.evaluation.matching.protocols.u2seg import PAPER_THRESHOLDS, RELEASE_THRESHOLDS, SEMANTIC_VOTE_IOU, aliased

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text())
CONFIGS = {
    "u2seg_panoptic_R50": [
        "COCO-PanopticSegmentation/u2seg_R50_300.yaml",
        "COCO-PanopticSegmentation/u2seg_R50_800.yaml",
    ],
    "cutler_stage_1": ["ImageNet-InstanceSegmentation/cutler_R50.yaml"],
    "cutler_self_training": ["ImageNet-InstanceSegmentation/cutler_R50_self_training.yaml"],
}
CASES = [(name, key) for group, names in CONFIGS.items() for name in names for key in RECORDED[group]]


def value_at(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, (list, tuple)) else cfg


@pytest.fixture(scope="module")
def configs():
    return {name: setup_cfg(name) for names in CONFIGS.values() for name in names}


@pytest.mark.parametrize(("name", "key"), CASES)
def test_a_setting_is_the_published_one(configs, name, key):
    group = next(group for group, names in CONFIGS.items() if name in names)
    assert value_at(configs[name], key) == RECORDED[group][key]


def build(name, things, stuff):
    cfg = setup_cfg(name, ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = things, stuff
    return build_model(cfg)


@pytest.mark.parametrize("clusters", [300, 800])
def test_the_panoptic_model_has_the_checkpoints_tensors(clusters):
    model = build(f"COCO-PanopticSegmentation/u2seg_R50_{clusters}.yaml", clusters, 28)
    assert len(model.state_dict()) == RECORDED["tensors"]["u2seg_state"]


def test_cutlers_model_trains_the_tensors_that_were_counted_there():
    model = build("ImageNet-InstanceSegmentation/cutler_R50.yaml", 1, 28)
    assert sum(p.requires_grad for p in model.parameters()) == RECORDED["tensors"]["cutler_trainable"]


def sample_of(masks):
    size = masks.shape[1:]
    return Sample(np.zeros((*size, 3), np.uint8), masks, boxes_of_masks(masks), np.arange(len(masks)), None)


@pytest.mark.parametrize(("kind", "column"), [(CutLERCopyPaste, "theirs"), (LayeredCopyPaste, "ours")])
def test_as_many_instances_are_pasted(kind, column):
    recorded, rng = RECORDED["copy_paste"], np.random.default_rng(0)
    for available, means in recorded["mean_pasted"].items():
        source = sample_of(np.ones((int(available), 4, 4), bool))
        drawn = [len(kind().choose(source, source, rng)) for _ in range(recorded["draws"])]
        # Both means are of 400 draws; their difference has a standard deviation of at most 0.06.
        assert np.mean(drawn) == pytest.approx(means[column], abs=0.2)


@pytest.mark.parametrize(("kind", "column"), [(CutLERCopyPaste, "theirs"), (LayeredCopyPaste, "ours")])
def test_a_pasted_square_has_the_recorded_shape(kind, column):
    masks = np.zeros((1, 80, 80), bool)
    masks[0, 20:60, 20:60] = True
    target = sample_of(np.zeros((0, 160, 240), bool))
    got = kind(scale_range=(1.0, 1.0)).lay(target, sample_of(masks), np.array([0]), np.random.default_rng(0))
    width, height = got.boxes_xyxy[0, 2:] - got.boxes_xyxy[0, :2]
    assert width / height == pytest.approx(RECORDED["copy_paste"]["square_on_240_wide_160_high"][column], abs=0.03)


def test_evaluation_thresholds_are_the_published_ones():
    recorded = RECORDED["release_evaluation"]
    assert (recorded["instance_vote_iou"], recorded["instance_vote_score"]) == RELEASE_THRESHOLDS
    assert recorded["semantic_vote_iou"] == SEMANTIC_VOTE_IOU
    for benchmark, thresholds in PAPER_THRESHOLDS.items():
        assert {str(k): list(pair) for k, pair in thresholds.items()} == recorded[f"paper_{benchmark}"]


def test_the_supercategories_of_stuff_are_the_releases():
    recorded = RECORDED["release_evaluation"]
    groups = {}
    for identifier, name in STUFF_SUPERCATEGORIES.items():
        groups.setdefault(name, []).append(identifier)
    assert [sorted(ids) for ids in groups.values()] == recorded["stuff_supercategories"]
    assert len(STUFF_SUPERCATEGORIES) == 53
    assert NUM_COCO_THINGS + len(groups) == recorded["panoptic_categories"]


def test_relabeling_in_place_spoils_as_many_clusters():
    """Random many-to-one maps of 27 clusters to 15 categories, 30 % unmapped, 16 written for "none"; label 0 is "things"."""
    rng = np.random.default_rng(0)
    spoiled = []
    for _ in range(2000):
        intended = np.append(0, np.where(rng.random(27) < 0.3, -1, rng.integers(1, 16, 27)))
        spoiled.append((aliased(intended, none=16) != intended)[1:].sum())
    assert np.mean(spoiled) == pytest.approx(RECORDED["release_evaluation"]["aliased_clusters_of_27"], abs=0.3)
