"""Published PASS weights: the backbone gives exactly torchvision's outputs, heads are found or named as left out."""

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from u2seg.checkpoint.reading import CheckpointError
from u2seg.config import setup_cfg
from u2seg.luss.convert import convert_pass, export_backbone, pass_to_detectron2


def random_network(depth):
    torch.manual_seed(depth)
    network = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight, 1, 0.2)
    return network.eval()


def published(network, channels):
    """A state dict as the release saves it: torchvision's names, its heads, ``module.`` before all."""
    heads = {
        "projection_head": torch.nn.Sequential(
            torch.nn.Linear(channels, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(),
            torch.nn.Linear(16, 8), torch.nn.BatchNorm1d(8, affine=False),
        ),
        "fbg": torch.nn.Sequential(
            torch.nn.Conv2d(channels, channels, 1), torch.nn.BatchNorm2d(channels), torch.nn.ReLU(),
            torch.nn.Conv2d(channels, channels, 1), torch.nn.BatchNorm2d(channels),
        ),
        "prototypes": torch.nn.Linear(8, 6, bias=False),
    }  # fmt: skip
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    for name, head in heads.items():
        state.update({f"{name}.{k}": v for k, v in head.state_dict().items()})
    return {f"module.{name}": value for name, value in state.items()}, heads


@pytest.mark.parametrize("depth", [18, 50])
def test_the_backbone_differs_by_nothing(depth):
    network = random_network(depth)
    state, heads = published(network, 512 if depth == 18 else 2048)
    converted = pass_to_detectron2(state)
    name = "LUSS/pass_R18_s50_attention.yaml" if depth == 18 else "LUSS/pass_R50_s300_attention.yaml"
    small = ["MODEL.PASS.HIDDEN_DIM", 16, "MODEL.PASS.FEAT_DIM", 8, "MODEL.PASS.NUM_PROTOTYPES", 6]
    model = build_model(setup_cfg(name, ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", *small])).eval()
    missing, unexpected = model.load_state_dict(converted.weights, strict=False)
    assert not unexpected and not converted.left_out
    assert {m for m in missing if "num_batches_tracked" not in m} <= {
        "attention.bias", "swapped.queue", "swapped.num_queued", "swapped.iteration",
        "projector.out_norm.weight", "projector.out_norm.bias",  # ones and zeros here, absent there
    }  # fmt: skip
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(network, stage)(x)
        found = model.backbone(images)["res5"]
        assert torch.equal(found, x)
        normalized = torch.nn.functional.normalize(x, dim=1)
        expected = torch.sigmoid(heads["fbg"].eval()(normalized))
        torch.testing.assert_close(model.attention(normalized), expected, atol=1e-5, rtol=1e-5)
        embedding = torch.nn.functional.normalize(heads["projection_head"].eval()(x.mean(dim=(2, 3))), dim=1)
        torch.testing.assert_close(model.projector(x), embedding, atol=1e-5, rtol=1e-4)


def test_a_file_is_converted_and_unknown_heads_are_named(tmp_path):
    state, _ = published(random_network(18), 512)
    torch.save(
        {"epoch": 200, "state_dict": {**state, "module.unheard_of.weight": torch.zeros(3)}}, tmp_path / "a.pth.tar"
    )
    converted = convert_pass(tmp_path / "a.pth.tar", tmp_path / "out.pth")
    assert converted.left_out == ["unheard_of.weight"]
    saved = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert set(saved) == set(converted.weights) and "backbone.res5.1.conv2.norm.weight" in saved


def test_files_without_a_whole_resnet_are_refused(tmp_path):
    state, _ = published(random_network(18), 512)
    with pytest.raises(CheckpointError, match="missing after renaming: res5"):
        pass_to_detectron2({k: v for k, v in state.items() if "layer4" not in k})
    with pytest.raises(CheckpointError, match="no ResNet under torchvision's names: fbg"):
        pass_to_detectron2({k: v for k, v in state.items() if "fbg" in k})
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        convert_pass(tmp_path / "none.pth", tmp_path / "out.pth")


def test_a_pretrained_backbone_starts_a_detector(tmp_path, tiny_cfg):
    from detectron2.checkpoint import DetectionCheckpointer

    small = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.RESNETS.NORM",
        "BN",
        "MODEL.PASS.QUEUE_LENGTH",
        0,
        "MODEL.PASS.HIDDEN_DIM",
        16,
    ]
    source = build_model(setup_cfg("LUSS/pass_R18_s50_pretrain.yaml", small))
    torch.save({"model": source.state_dict()}, tmp_path / "pass.pth")
    count = export_backbone(tmp_path / "pass.pth", tmp_path / "backbone.pth")
    detector = build_model(setup_cfg("quick_schedules/Base-Scenes-R18-FPN.yaml", ["MODEL.DEVICE", "cpu"]))
    DetectionCheckpointer(detector).load(str(tmp_path / "backbone.pth"))
    own, given = detector.backbone.bottom_up.state_dict(), source.backbone.state_dict()
    assert count == len(given) and set(own) == set(given)
    assert all(torch.equal(own[name], given[name]) for name in own)
    torch.save({"model": {"head.weight": torch.zeros(1)}}, tmp_path / "no.pth")
    with pytest.raises(CheckpointError, match="holds no backbone"):
        export_backbone(tmp_path / "no.pth", tmp_path / "x.pth")
