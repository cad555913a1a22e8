"""ResNet patch features: strides, dilation that changes nothing but density, weights from every kind of checkpoint."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone
from u2seg.config import setup_cfg
from u2seg.features import build_feature_extractor
from u2seg.features.resnet import dilate_to_stride, load_backbone_weights

SMALL = ("MODEL.SMALL_RESNET.WIDTH", 8)


def backbone_of(*opts):
    torch.manual_seed(0)
    cfg = setup_cfg("LUSS/pass_scenes.yaml", ["MODEL.DEVICE", "cpu", *SMALL, *opts])
    backbone = build_backbone(cfg).eval()
    for module in backbone.modules():  # norms that do something, so that an error in their order shows
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return backbone


def detectron_resnet(depth):
    width = 64 if depth == 18 else 256
    return backbone_of(
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", depth),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", width, "MODEL.RESNETS.STRIDE_IN_1X1", depth == 50),
    )


def extractor(tmp_path, *opts):
    config = tmp_path / "network.yaml"
    cfg = setup_cfg("LUSS/pass_scenes.yaml", [*SMALL])
    config.write_text(cfg.dump())
    settings = ["FEATURES.NAME", "ResNetFeatures", "FEATURES.RESNET.CONFIG_FILE", str(config), "FEATURES.DEVICE", "cpu"]
    return build_feature_extractor(
        setup_cfg("LUSS/pass_scenes.yaml", [*settings, "FEATURES.IMAGE_SIZE", (64, 96), *opts])
    )


@pytest.mark.parametrize("build", [backbone_of, lambda: detectron_resnet(18), lambda: detectron_resnet(50)])
def test_dilation_adds_features_between_and_changes_none(build):
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        plain = build()(images)["res5"]
        backbone = build()
        own = backbone.output_shape()["res5"].stride
        dilate_to_stride(backbone, "res5", own // 4)
        dense = backbone(images)["res5"]
    assert dense.shape[2:] == (64 // (own // 4), 96 // (own // 4))
    torch.testing.assert_close(dense[:, :, ::4, ::4], plain, atol=5e-4, rtol=1e-3)  # float32, sums in another order


def test_impossible_strides_are_refused():
    with pytest.raises(ValueError, match="power of two from the stem's stride 2 to res5's own 16; got 12"):
        dilate_to_stride(backbone_of(), "res5", 12)


def test_features_have_the_interfaces_shape_and_are_centered(tmp_path):
    features = extractor(tmp_path)
    assert (features.patch_size, features.num_channels, features.grid_size) == (8, 32, (8, 12))
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    batch = torch.stack([features.preprocess(image)] * 2)
    with torch.no_grad():
        output = features(batch)
        embedding = features.embed(batch)
    assert output.shape == (2, 32, 8, 12) and output.dtype == torch.float32
    assert output.mean(dim=(2, 3)).abs().max() < 1e-5
    assert embedding.shape == (2, 32) and embedding.abs().max() > 1e-3


def test_a_smaller_stride_and_uncentered_features_are_options(tmp_path):
    dense = extractor(tmp_path, "FEATURES.RESNET.STRIDE", 4, "FEATURES.RESNET.CENTER", False)
    assert dense.grid_size == (16, 24)
    with torch.no_grad():
        assert dense(torch.rand(1, 3, 64, 96)).min() >= 0  # what a ReLU gives


def test_without_weights_they_are_random_but_always_the_same(tmp_path):
    before = torch.get_rng_state()
    first = extractor(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # and nobody else's random numbers change
    torch.manual_seed(5)
    second = extractor(tmp_path)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_an_image_size_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(60, 96\) must be a multiple of the network's stride 8"):
        extractor(tmp_path, "FEATURES.IMAGE_SIZE", (60, 96))


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up."])
def test_weights_come_from_a_backbone_a_pretrainer_or_a_detector(tmp_path, prefix):
    source, target = backbone_of(), backbone_of("MODEL.RESNETS.OUT_FEATURES", ["res4"])
    with torch.no_grad():
        for param in target.parameters():
            param.zero_()
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save({"model": {**state, "projector.hidden.weight": torch.zeros(1)}}, tmp_path / "w.pth")
    load_backbone_weights(target, str(tmp_path / "w.pth"))
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_weights_that_do_not_fit_are_refused(tmp_path):
    torch.save({"model": backbone_of().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"does not fit the network.*stem.conv1.weight is \(4, 3, 3, 3\), the network has \(8"
    ):
        load_backbone_weights(backbone_of("MODEL.SMALL_RESNET.WIDTH", 16), str(tmp_path / "w.pth"))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no ResNet under Detectron2's names.*u2seg convert pass"):
        load_backbone_weights(backbone_of(), str(tmp_path / "other.pth"))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_backbone_weights(backbone_of(), str(tmp_path / "none.pth"))
