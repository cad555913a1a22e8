"""The small ResNet as the bottom of a feature pyramid."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from u2seg.checkpoint import AtomicCheckpointer
from u2seg.config import setup_cfg
from u2seg.luss import export_backbone
from u2seg.modeling.backbone import build_small_resnet_backbone, build_small_resnet_fpn_backbone

TINY = ["MODEL.SMALL_RESNET.WIDTH", 8, "MODEL.SMALL_RESNET.BLOCKS_PER_STAGE", 1, "MODEL.FPN.OUT_CHANNELS", 16]


def build(builder, *opts):
    return builder(setup_cfg("quick_schedules/coco_mini_learned.yaml", [*TINY, *opts]), ShapeSpec(channels=3)).eval()


def test_the_pyramid_has_the_levels_that_the_detector_needs():
    found = build(build_small_resnet_fpn_backbone)(torch.rand(1, 3, 64, 96))
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == {
        "p2": (16, 16, 24),
        "p3": (16, 8, 12),
        "p4": (16, 4, 6),
        "p5": (16, 2, 3),
        "p6": (16, 1, 2),
    }


def test_weights_of_pretraining_with_other_strides_fit():
    pretrained = build(build_small_resnet_backbone, "MODEL.SMALL_RESNET.STRIDES", (2, 2, 2, 1)).state_dict()
    pyramid = build(build_small_resnet_fpn_backbone)
    result = pyramid.bottom_up.load_state_dict(pretrained)
    assert not result.missing_keys and not result.unexpected_keys


def test_strides_that_do_not_double_are_refused():
    with pytest.raises(
        ValueError, match=r"must double from one to the next, got \[4, 8, 16, 16\]; set MODEL\.SMALL_RESNET"
    ):
        build(build_small_resnet_fpn_backbone, "MODEL.SMALL_RESNET.STRIDES", (2, 2, 2, 1))


def test_a_detector_starts_from_the_backbone_of_pretraining(tmp_path):
    """The exported backbone reaches every weight and statistic below the pyramid, whatever the names above it are."""
    torch.manual_seed(0)
    pretrained = build_model(setup_cfg("LUSS/dense_contrast_photos_cpu.yaml", TINY[:4]))
    torch.save({"model": pretrained.state_dict()}, tmp_path / "model_ema.pth")
    export_backbone(tmp_path / "model_ema.pth", tmp_path / "backbone.pth")
    detector = build_model(setup_cfg("quick_schedules/coco_mini_learned.yaml", [*TINY, "MODEL.DEVICE", "cpu"]))
    AtomicCheckpointer(detector, str(tmp_path)).load(str(tmp_path / "backbone.pth"))
    found = detector.backbone.bottom_up.state_dict()
    expected = {name: value for name, value in pretrained.backbone.state_dict().items() if "num_batches" not in name}
    assert len(expected) > 30
    assert all(torch.equal(found[name], value) for name, value in expected.items())
