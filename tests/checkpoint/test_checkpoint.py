import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone, build_model
from u2seg.checkpoint.loading import load_weights, take_class_counts
from u2seg.checkpoint.reading import CheckpointError, read_weights
from u2seg.checkpoint.torchvision import convert_torchvision_resnet, torchvision_to_detectron2
from u2seg.cli.main import main
from u2seg.config import setup_cfg
from u2seg.modeling import complete_config

ROOT = Path(__file__).parents[2]


def random_resnet50(seed=0):
    """A torchvision ResNet-50 whose running statistics are not the trivial ones."""
    torch.manual_seed(seed)
    model = torchvision.models.resnet50(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def small_cfg(architecture="PanopticFPN", things=7, stuff=3):
    cfg = setup_cfg("quick_schedules/Base-Scenes-R18-FPN.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.CLUSTERS.NUM_CLUSTERS, cfg.SEMANTICS.NUM_CLUSTERS = things, stuff
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    return complete_config(cfg, eval_only=True)


def saved(path, weights, **more):
    torch.save({"model": weights, **more}, path)
    return str(path)


# --- DINO's ResNet-50 ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_converted_resnet_gives_torchvisions_features(tmp_path):
    theirs = random_resnet50()
    authors = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    torch.save(authors, tmp_path / "dino_resnet50_pretrain.pth")
    # 53 convolutions, each with a batch norm of four tensors: weight, bias, running mean and variance.
    output = tmp_path / "dino.pkl"
    assert convert_torchvision_resnet(str(tmp_path / "dino_resnet50_pretrain.pth"), output) == 53 * 5

    cfg = setup_cfg(str(ROOT / "configs" / "Base-U2Seg.yaml"))
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "BN"
    cfg.MODEL.DEVICE = "cpu"
    ours = build_backbone(cfg).eval()  # ResNet inside an FPN: the names must be found below bottom_up
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    DetectionCheckpointer(ours).load(str(output))
    loaded = ours.state_dict()
    untouched = [
        k for k in loaded if "bottom_up" in k and not k.endswith("tracked") and torch.equal(loaded[k], before[k])
    ]
    assert not untouched

    image = torch.randn(1, 3, 64, 96)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    features = ours.bottom_up(image)
    for index, stage in enumerate((theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)):
        x = stage(x)
        torch.testing.assert_close(features[f"res{index + 2}"], x, rtol=1e-4, atol=1e-4)


def test_names_after_conversion():
    layout = {"conv1.weight": 0, "bn1.running_var": 1, "layer1.0.conv2.weight": 2, "layer2.3.bn3.bias": 3}
    layout |= {
        "layer3.0.downsample.0.weight": 4,
        "layer4.0.downsample.1.weight": 5,
        "fc.weight": 6,
        "bn1.num_batches_tracked": 7,
    }
    renamed = torchvision_to_detectron2({key: torch.tensor(float(value)) for key, value in layout.items()})
    assert {key: int(value) for key, value in renamed.items()} == {
        "stem.conv1.weight": 0,
        "stem.conv1.norm.running_var": 1,
        "res2.0.conv2.weight": 2,
        "res3.3.conv3.norm.bias": 3,
        "res4.0.shortcut.weight": 4,
        "res5.0.shortcut.norm.weight": 5,
    }


def test_other_networks_are_refused():
    state = {"conv1.weight": torch.zeros(1), "blocks.0.attn.qkv.weight": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match="not understood: blocks.0.attn.qkv.weight; missing after renaming: res2., res3."
    ):
        torchvision_to_detectron2(state)


def run_tool(*arguments) -> int:
    return main(["convert", "dino-resnet", *map(str, arguments)])


def test_convert_tool(tmp_path, capsys):
    state = {key: value for key, value in random_resnet50().state_dict().items() if not key.startswith("fc.")}
    torch.save(state, tmp_path / "in.pth")
    assert run_tool(tmp_path / "in.pth", tmp_path / "out.pkl") == 0
    assert capsys.readouterr().out == f"265 tensors in {tmp_path}/out.pkl\n"
    with (tmp_path / "out.pkl").open("rb") as file:
        content = pickle.load(file)
    assert content["__author__"] == "DINO" and content["matching_heuristics"] is True
    assert all(isinstance(value, np.ndarray) for value in content["model"].values())


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [("absent.pth", "out.pkl", "error: no checkpoint at"), ("in.pth", "out.pth", "error: the output must end in .pkl")],
)
def test_convert_tool_fails_in_one_line(tmp_path, monkeypatch, capsys, source, output, message):
    torch.save({"a": torch.zeros(1)}, tmp_path / "in.pth")
    assert run_tool(tmp_path / source, tmp_path / output) == 1
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


# --- published models ---------------------------------------------------------------------------------------------------------


class Layout(dict):
    """Names and shapes."""

    def norm(self, name, width):
        self.update({f"{name}.norm.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        self[f"{name}.norm.num_batches_tracked"] = ()

    def layer(self, name, *weight):
        self[f"{name}.weight"] = weight
        self[f"{name}.bias"] = weight[:1]

    def backbone(self):
        self["backbone.bottom_up.stem.conv1.weight"] = (64, 3, 7, 7)
        self.norm("backbone.bottom_up.stem.conv1", 64)
        width_in = 64
        for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512)), start=2):
            for block in range(blocks):
                convs = {
                    "conv1": (width, width_in, 1, 1),
                    "conv2": (width, width, 3, 3),
                    "conv3": (4 * width, width, 1, 1),
                }
                if block == 0:
                    convs["shortcut"] = (4 * width, width_in, 1, 1)
                for conv, shape in convs.items():
                    name = f"backbone.bottom_up.res{stage}.{block}.{conv}"
                    self[f"{name}.weight"] = shape
                    self.norm(name, shape[0])
                width_in = 4 * width
        for level, width in zip((2, 3, 4, 5), (256, 512, 1024, 2048)):
            for name, shape in (("lateral", (256, width, 1, 1)), ("output", (256, 256, 3, 3))):
                self[f"backbone.fpn_{name}{level}.weight"] = shape
                self.norm(f"backbone.fpn_{name}{level}", 256)

    def instance_heads(self, things):
        self.layer("proposal_generator.rpn_head.conv", 256, 256, 3, 3)
        self.layer("proposal_generator.rpn_head.objectness_logits", 3, 256, 1, 1)
        self.layer("proposal_generator.rpn_head.anchor_deltas", 12, 256, 1, 1)
        for stage in range(3):
            self.layer(f"roi_heads.box_head.{stage}.fc1", 1024, 256 * 7 * 7)
            self.layer(f"roi_heads.box_head.{stage}.fc2", 1024, 1024)
            self.layer(f"roi_heads.box_predictor.{stage}.cls_score", things + 1, 1024)
            self.layer(f"roi_heads.box_predictor.{stage}.bbox_pred", 4, 1024)
        for index in range(1, 5):
            self.layer(f"roi_heads.mask_head.mask_fcn{index}", 256, 256, 3, 3)
        self.layer("roi_heads.mask_head.deconv", 256, 256, 2, 2)
        self.layer("roi_heads.mask_head.predictor", things, 256, 1, 1)

    def semantic_head(self, stuff):
        # p2 needs one convolution, p3..p5 one for each doubling; 128 channels, group norm.
        for level, convs in (("p2", 1), ("p3", 1), ("p4", 2), ("p5", 3)):
            for index in range(convs):
                name = f"sem_seg_head.{level}.{2 * index}"
                self[f"{name}.weight"] = (128, 256 if index == 0 else 128, 3, 3)
                self[f"{name}.norm.weight"] = self[f"{name}.norm.bias"] = (128,)
        self.layer("sem_seg_head.predictor", stuff + 1, 128, 1, 1)


def published_layout(things, stuff=None):
    """Names and shapes of U2Seg's checkpoints (``stuff`` clusters) and CutLER's (None: no semantic head), Cascade R50-FPN."""
    layout = Layout()
    layout.backbone()
    layout.instance_heads(things)
    if stuff is not None:
        layout.semantic_head(stuff)
    return dict(layout)


@pytest.mark.parametrize(
    ("config", "things", "stuff"),
    [
        ("COCO-PanopticSegmentation/u2seg_R50_300.yaml", 300, 27),
        ("COCO-PanopticSegmentation/u2seg_R50_800.yaml", 800, 27),
        ("ImageNet-InstanceSegmentation/cutler_R50.yaml", 1, None),
    ],
)
def test_our_models_have_the_published_names_and_shapes(config, things, stuff):
    cfg = setup_cfg(config)
    cfg.MODEL.DEVICE = "meta"  # names and shapes only
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()  # no dataset is at hand: counts from CLUSTERS and SEMANTICS
    if stuff is None:
        cfg.CLUSTERS.NUM_CLUSTERS = things
    complete_config(cfg, eval_only=True)
    with torch.device("meta"):
        model = build_model(cfg)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == published_layout(things, stuff)


def shaped_checkpoint(path, things, stuff):
    """A file of the published names and shapes; one stored number stands for every tensor."""
    layout = published_layout(things, stuff)
    return saved(path, {key: torch.zeros(()).expand(shape) for key, shape in layout.items()}, __author__="them")


@pytest.mark.parametrize(("things", "stuff"), [(300, 27), (800, 27), (1, None)])
def test_class_counts_come_from_the_tensors(tmp_path, things, stuff):
    path = shaped_checkpoint(tmp_path / "model.pth", things, stuff)
    cfg = setup_cfg(str(ROOT / "configs" / "Base-U2Seg.yaml"))
    counts = take_class_counts(cfg, path)
    assert counts["MODEL.ROI_HEADS.NUM_CLASSES"] == cfg.CLUSTERS.NUM_CLUSTERS == things
    if stuff is None:
        assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES" not in counts
    else:
        assert counts["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] == 28 and cfg.SEMANTICS.NUM_CLUSTERS == 27


def test_a_backbone_is_no_segmenter(tmp_path):
    path = saved(tmp_path / "model.pth", {"stem.conv1.weight": torch.zeros(64, 3, 7, 7)})
    with pytest.raises(CheckpointError, match="neither a box head nor a semantic head"):
        take_class_counts(small_cfg(), path)


def test_load_and_refuse(tmp_path):
    cfg = small_cfg()
    model = build_model(cfg)
    path = saved(tmp_path / "model.pth", model.state_dict(), iteration=3, scheduler={"last_epoch": 3})
    other = build_model(cfg)
    load_weights(other, cfg, path)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())

    eight = small_cfg(things=8)
    with pytest.raises(
        ValueError, match=r"MODEL.ROI_HEADS.NUM_CLASSES: 7 there, 8 here.*set CLUSTERS.NUM_CLUSTERS to 7"
    ):
        load_weights(build_model(eight), eight, path)

    instances_only = small_cfg("GeneralizedRCNN")
    detector = build_model(instances_only)
    with pytest.raises(CheckpointError, match="It has a semantic head: set MODEL.META_ARCHITECTURE to PanopticFPN"):
        load_weights(detector, instances_only, path)
    cutler = saved(tmp_path / "cutler.pth", detector.state_dict())
    with pytest.raises(
        CheckpointError, match="no semantic head, as CutLER's: set MODEL.META_ARCHITECTURE to GeneralizedRCNN"
    ):
        load_weights(model, cfg, cutler)


def test_a_backbone_is_no_trained_model(tmp_path):
    cfg = small_cfg()
    model = build_model(cfg)
    path = saved(tmp_path / "model.pth", {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")})
    with pytest.raises(CheckpointError, match="has no heads: it is a backbone to start a training from"):
        load_weights(model, cfg, path)


def test_other_sizes_are_named(tmp_path):
    cfg = small_cfg()
    weights = build_model(cfg).state_dict()
    key = "roi_heads.mask_head.mask_fcn1.weight"
    weights[key] = torch.zeros(1, 2)
    del weights["backbone.fpn_lateral2.weight"]
    path = saved(tmp_path / "model.pth", weights)
    with pytest.raises(CheckpointError) as error:
        load_weights(build_model(cfg), cfg, path)
    assert "1 missing there: backbone.fpn_lateral2.weight" in str(error.value)
    assert f"1 of another shape: {key}: (1, 2) there, (64, 64, 3, 3) here" in str(error.value)


def test_old_buffers_and_wrapped_models_load(tmp_path):
    cfg = small_cfg()
    model = build_model(cfg)
    weights = {f"module.{key}": value for key, value in model.state_dict().items()}
    weights |= {
        "module.pixel_mean": torch.zeros(3, 1, 1),
        "module.proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
    }
    load_weights(model, cfg, saved(tmp_path / "model.pth", weights))


def test_pkl_of_the_model_zoo_format(tmp_path):
    cfg = small_cfg()
    model = build_model(cfg)
    content = {"model": {k: v.numpy() for k, v in model.state_dict().items()}, "__author__": "Detectron2 Model Zoo"}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content))
    weights = read_weights(str(path))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("numpy_1", [False, True])
def test_numpys_numbers_beside_the_weights_are_read(tmp_path, numpy_1):
    path = tmp_path / "model.pth"
    content = {
        "model": {"a": torch.ones(2), "b": np.ones(3, np.float32)},
        "trainer": {"x": np.float64(2), "i": np.int64(3)},
    }
    torch.save(content, path)
    if numpy_1:  # which pickled the same functions under another name
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "old.pth", "w") as target:
            for name in source.namelist():
                target.writestr(name, source.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        path = tmp_path / "old.pth"
    weights = read_weights(str(path))
    assert weights.keys() == {"a", "b"} and torch.equal(weights["b"], torch.ones(3))


class Evil:
    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_no_code_is_run_from_a_file(tmp_path, suffix, capsys):
    path = tmp_path / f"model{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": Evil()}))
    else:
        torch.save({"model": Evil()}, path)
    with pytest.raises(CheckpointError, match="no checkpoint that can be read safely"):
        read_weights(str(path))
    assert "must not" not in capsys.readouterr().out


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_weights(str(tmp_path / "absent.pth"))
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CheckpointError, match="read safely"):
        read_weights(str(tmp_path / "empty.pth"))
    torch.save({"model": {"a": 1}}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_weights(str(tmp_path / "none.pth"))
