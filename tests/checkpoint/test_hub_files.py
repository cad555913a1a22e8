"""Weights and configurations by their names on the Hugging Face Hub, from a server on this machine."""

import hashlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from detectron2.utils.file_io import PathManager
from hub_server import running_hub, use_hub
from safetensors.torch import save as safetensors_bytes
from u2seg.checkpoint import AtomicCheckpointer, read_weights
from u2seg.config import setup_cfg
from u2seg.features.vit_weights import WeightsError, find_weights, get_architecture
from u2seg.utils.files import short_file_digest
from u2seg.utils.hub_files import HubFileError, HubFileMissingError, hub_file, local_file


def layer(value):
    return {"weight": torch.full((2, 3), float(value)), "bias": torch.arange(2.0)}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as server:
        server.repositories["org/model"] = {
            "main": {"model.safetensors": safetensors_bytes(layer(1)), "config.yaml": b"SEED: 7\n"},
            "v2": {"model.safetensors": safetensors_bytes(layer(2))},
        }
        use_hub(monkeypatch, server.url, tmp_path / "cache")
        yield server


def test_weights_are_read_by_name_and_revision(hub):
    first, second = (read_weights(f"hf://org/model{at}/model.safetensors") for at in ("", "@v2"))
    assert torch.equal(first["weight"], torch.full((2, 3), 1.0)) and second["weight"][0, 0] == 2
    # A model's repository as timm names it: the file is understood.
    assert read_weights("hf-hub:org/model@v2")["weight"][0, 0] == 2


def test_detectron2s_checkpointer_loads_from_the_hub(hub, tmp_path):
    model = torch.nn.Linear(3, 2)
    AtomicCheckpointer(model, str(tmp_path)).load("hf://org/model@v2/model.safetensors")
    assert model.weight.eq(2).all() and model.bias.tolist() == [0, 1]


def test_a_repository_without_safetensors_gives_its_pytorch_file(hub, tmp_path):
    torch.save(layer(3), tmp_path / "weights.bin")
    hub.repositories["org/old"] = {"main": {"pytorch_model.bin": (tmp_path / "weights.bin").read_bytes()}}
    assert read_weights("hf-hub:org/old")["weight"].eq(3).all()


def test_a_configuration_comes_from_the_hub(hub):
    assert setup_cfg("hf://org/model/config.yaml").SEED == 7
    with pytest.raises(FileNotFoundError, match=r"no configuration file hf://org/model/other\.yaml"):
        setup_cfg("hf://org/model/other.yaml")


def test_features_take_timms_name(hub):
    architecture = get_architecture("dino_vits16")
    assert find_weights(architecture, "hf-hub:org/model").name == "model.safetensors"
    with pytest.raises(WeightsError, match=r"FEATURES\.VIT\.WEIGHTS: the Hub has no hf-hub:org/none"):
        find_weights(architecture, "hf-hub:org/none")


def test_a_name_of_the_hub_stands_for_its_file_in_the_cache_and_a_path_for_itself(hub, tmp_path):
    one, two = (short_file_digest(local_file(f"hf://org/model{at}/model.safetensors")) for at in ("", "@v2"))
    assert one == hashlib.sha256(safetensors_bytes(layer(1))).hexdigest()[:16] and one != two
    assert local_file("hf-hub:org/model") == hub_file("hf://org/model/model.safetensors")
    assert local_file("weights/none.pth") == Path("weights/none.pth")


def test_a_name_of_any_other_kind_that_detectron2_knows_stands_for_its_file_too(monkeypatch, tmp_path):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    (tmp_path / "served").mkdir()
    (tmp_path / "served/weights.pth").write_bytes(b"weights")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = local_file(f"http://127.0.0.1:{server.server_port}/weights.pth")
    finally:
        server.shutdown()
        server.server_close()
    assert found.read_bytes() == b"weights" and tmp_path in found.parents


def test_without_a_network_the_cache_serves_and_everything_else_is_one_message(hub, monkeypatch, tmp_path):
    path = "hf://org/model@v2/model.safetensors"
    cached = hub_file(path)
    asked = len(hub.requests)
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # the port of "discard", where nobody listens
    assert hub_file(path) == cached and len(hub.requests) == asked
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # else a missing file is asked for six times, in 23 s
    assert hub_file(path) == cached
    with pytest.raises(HubFileError, match="not in the cache") as caught:
        hub_file("hf://org/model@v3/model.safetensors")
    assert not isinstance(caught.value, HubFileMissingError)
    assert "hf download org/model model.safetensors --revision v3" in str(caught.value)


@pytest.mark.parametrize(
    "path", ["hf://org/model@v9/config.yaml", "hf://org/none/config.yaml", "hf://org/model/none.yaml"]
)
def test_what_the_hub_does_not_have_is_named(hub, path):
    with pytest.raises(HubFileMissingError, match=f"the Hub has no {path}"):
        hub_file(path)
    assert not PathManager.isfile(path) and not PathManager.exists(path)


@pytest.mark.parametrize(
    "path",
    [
        "hf://org",
        "hf://org/model",
        "hf://datasets/org/name/file",
        "hf-hub:org/model/file",
        "hf-hub:",
        "hf://org/model/../../x",
        "hf://org/model@..%2F..%2Fx/config.yaml",
    ],
)
def test_other_names_are_refused_before_anything_is_asked(hub, path):
    with pytest.raises(ValueError, match="hf"):
        hub_file(path)
    assert not hub.requests


def test_the_hub_is_not_written_to(hub):
    with pytest.raises(ValueError, match="u2seg push"):
        PathManager.open("hf://org/model/config.yaml", "w")
    with PathManager.open("hf://org/model/config.yaml", "rb") as file:
        assert file.read() == b"SEED: 7\n"
    assert not PathManager.isdir("hf://org/model")
    assert Path(PathManager.get_local_path("hf://org/model/config.yaml", force=True)).is_file()
