"""Published heads: files of STEGO's and CAUSE's names and shapes load, run and stay inert."""

import os
import sys
import types

import numpy as np
import pytest
import torch
from u2seg.checkpoint import CheckpointError
from u2seg.checkpoint.inert_objects import InertObject, read_with_inert_objects
from u2seg.cli.main import main
from u2seg.config import setup_cfg
from u2seg.pseudo_labels.semantics.learned.code_heads import CodeHead, ConceptDecoderHead
from u2seg.pseudo_labels.semantics.learned.published_heads import convert_cause, convert_stego
from u2seg.pseudo_labels.semantics.learned.semantic_head import load_semantic_head

CHANNELS, DIM, CLUSTERS = 384, 70, 27


class RunsCode:
    """Makes a directory when it is unpickled by pickle itself."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def cfg(*opts):
    return setup_cfg("semantics/stego_cocostuff27_vits8.yaml", list(opts))


def branches(prefix: str, names: tuple[str, str, str], dim: int, channels: int) -> dict:
    shapes = zip(names, ((dim, channels), (channels, channels), (dim, channels)))
    return {
        f"{prefix}{name}.{kind}": torch.randn(*shape, 1, 1) if kind == "weight" else torch.randn(shape[0])
        for name, shape in shapes
        for kind in ("weight", "bias")
    }


def stego_file(path, hyper_parameters):
    state = {
        **branches("net.", ("cluster1.0", "cluster2.0", "cluster2.2"), DIM, CHANNELS),
        "net.model.patch_embed.proj.weight": torch.randn(CHANNELS, 3, 8, 8),
        "cluster_probe.clusters": torch.randn(CLUSTERS, DIM),
        "train_cluster_probe.clusters": torch.randn(CLUSTERS, DIM),
        "linear_probe.weight": torch.randn(CLUSTERS, DIM, 1, 1),
        "decoder.weight": torch.randn(CHANNELS, DIM, 1, 1),
    }
    torch.save({"state_dict": state, "hyper_parameters": hyper_parameters, "epoch": 3}, path)
    return state


@pytest.fixture
def foreign_settings():
    """An object of a module that is gone when the file is read, with a list, a dict and itself inside."""
    module = types.ModuleType("vanished_library")
    exec("class Settings(dict):\n    pass\nclass Values(list):\n    pass", module.__dict__)
    for name in ("Settings", "Values"):
        getattr(module, name).__module__ = "vanished_library"
    sys.modules["vanished_library"] = module
    settings = module.Settings(dim=70, values=module.Values([1, 2]))
    settings.own = settings
    yield settings
    sys.modules.pop("vanished_library", None)


def test_a_stego_checkpoint_is_read_without_its_code(tmp_path, foreign_settings):
    marker = tmp_path / "marker"
    state = stego_file(tmp_path / "a.ckpt", {"cfg": foreign_settings, "bad": RunsCode(marker)})
    del sys.modules["vanished_library"]
    content = read_with_inert_objects(tmp_path / "a.ckpt")
    assert isinstance(content["hyper_parameters"]["cfg"], InertObject) and content["epoch"] == 3
    found = convert_stego(tmp_path / "a.ckpt", tmp_path / "head.pth")
    assert not marker.exists()
    assert found.left_out == sorted(k for k in state if k.startswith(("net.model", "train_", "linear_", "decoder")))
    words = "SEMANTICS.PROVIDER STEGO SEMANTICS.NUM_CLUSTERS 27 SEMANTICS.STEGO.DIM 70 FEATURES.VIT.ARCH dino_vits8"
    assert found.settings == words.split()

    model = load_semantic_head(cfg(*found.settings), tmp_path / "head.pth", "STEGO")
    assert isinstance(model.head, CodeHead) and model.num_channels == CHANNELS
    features = torch.randn(1, CHANNELS, 2, 3)
    flat = {key: value.flatten(1) if value.ndim == 4 else value for key, value in state.items()}
    tokens = features[0].flatten(1).T
    hidden = (tokens @ flat["net.cluster2.0.weight"].T + flat["net.cluster2.0.bias"]).clamp_min(0)
    expected = tokens @ flat["net.cluster1.0.weight"].T + flat["net.cluster1.0.bias"]
    expected = expected + hidden @ flat["net.cluster2.2.weight"].T + flat["net.cluster2.2.bias"]
    torch.testing.assert_close(model.codes(features)[0].flatten(1).T, expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("nested", [True, False])
def test_causes_tr_files_become_one(tmp_path, nested):
    dim, channels, words = 90, 64, 16
    tr = "tr." if nested else ""
    reference = ConceptDecoderHead(torch.randn(words, channels), (3, 3), dim, 0.0)
    decoder = {f"{tr}{k}": v for k, v in reference.decoder.state_dict().items()}
    head = {
        "query_pos": reference.query_position[:, 0],
        **decoder,
        **branches(tr, ("f1", "f2.0", "f2.2"), dim, channels),
    }
    head = {key: value.detach() for key, value in head.items()}
    others = {"projection_head.f.weight": torch.randn(8, dim, 1, 1), "linear.f.weight": torch.randn(27, dim, 1, 1)}
    segment = {f"{name}.{key}": value for name in ("head", "head_ema") for key, value in head.items()} | others
    torch.save(segment, tmp_path / "segment_tr.pth")
    codebook = reference.codebook
    torch.save({"codebook": codebook * 0, "cluster_probe": torch.randn(27, dim)}, tmp_path / "cluster_tr.pth")
    np.save(tmp_path / "modular.npy", codebook.numpy())

    paths = [tmp_path / name for name in ("segment_tr.pth", "cluster_tr.pth", "head.pth", "modular.npy")]
    found = convert_cause(*paths)
    assert found.settings[-4:] == ["SEMANTICS.CAUSE.HEAD", "TR", "SEMANTICS.CAUSE.DIM", "90"]
    assert all(name.startswith("head.") or name in others for name in found.left_out)
    model = load_semantic_head(cfg(*found.settings), tmp_path / "head.pth", "CAUSE")
    names = ("linear", "nonlinear.0", "nonlinear.2")
    for ours, theirs in zip(names, ("f1", "f2.0", "f2.2")):
        layer = reference.branches.get_submodule(ours)
        layer.weight.data, layer.bias.data = head[f"{tr}{theirs}.weight"], head[f"{tr}{theirs}.bias"]
    features = torch.randn(2, channels, 3, 3)
    torch.testing.assert_close(model.codes(features), reference.eval()(features), atol=1e-3, rtol=1e-3)


def test_causes_mlp_files_and_the_command(tmp_path, capsys):
    head = branches("head_ema.", ("f1", "f2.0", "f2.2"), 90, 32)
    torch.save(head, tmp_path / "segment_mlp.pth")
    torch.save({"cluster_probe": torch.randn(21, 90)}, tmp_path / "cluster_mlp.pth")
    command = f"convert cause {tmp_path}/segment_mlp.pth {tmp_path}/out.pth --clusters {tmp_path}/cluster_mlp.pth"
    assert main(command.split()) == 0
    assert "SEMANTICS.NUM_CLUSTERS 21 SEMANTICS.CAUSE.HEAD MLP" in capsys.readouterr().out
    model = load_semantic_head(cfg("SEMANTICS.NUM_CLUSTERS", "21"), tmp_path / "out.pth", "CAUSE")
    assert model.num_channels == 32 and model.probe.logit_scale == 3.0


def test_other_files_are_refused(tmp_path):
    torch.save({"state_dict": {"layer.weight": torch.zeros(2)}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt is no STEGO: cluster_probe\.clusters, net\.cluster1\.0\.bias"):
        convert_stego(tmp_path / "a.ckpt", tmp_path / "out.pth")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "script.ckpt")
    with pytest.raises(CheckpointError, match="is a TorchScript program"):
        convert_stego(tmp_path / "script.ckpt", tmp_path / "out.pth")
    (tmp_path / "b.ckpt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is no zip archive of PyTorch's"):
        convert_stego(tmp_path / "b.ckpt", tmp_path / "out.pth")
    torch.save({"head.f1.weight": torch.zeros(2)}, tmp_path / "c.pth")
    torch.save({"cluster_probe": torch.zeros(2, 3)}, tmp_path / "d.pth")
    with pytest.raises(CheckpointError, match=r"no head of CAUSE: expected head_ema"):
        convert_cause(tmp_path / "c.pth", tmp_path / "d.pth", tmp_path / "out.pth")
    with pytest.raises(CheckpointError, match="cluster_probe are missing"):
        convert_cause(tmp_path / "c.pth", tmp_path / "c.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
