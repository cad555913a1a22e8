"""A trained model on its way to the Hugging Face Hub and back, by a server on this machine."""

import json
import shutil
import tempfile

import pytest
import torch
from hub_server import running_hub, use_hub
from u2seg.checkpoint import read_weights, save_to_disk
from u2seg.cli.main import main
from u2seg.config import setup_cfg
from u2seg.export.hub_upload import HubUploadError, upload, write_hub_files
from u2seg.modeling import build_model
from u2seg.predictor import Predictor
from u2seg.web_app import open_model

LABEL_MAP = {
    "provenance": {"protocol": "hungarian", "weights_sha256": "ab12"},
    "thing_clusters": [1, 0],
    "stuff_clusters": [2, -1],
    "categories": {"thing_names": ["cat", "dog"], "stuff_names": ["sky"]},
}


@pytest.fixture(scope="module")
def run(tiny_cfg, tmp_path_factory):
    """A training's directory as it is left behind: random weights, scores, a label map for each protocol."""
    path = tmp_path_factory.mktemp("runs") / "model"
    cfg = tiny_cfg(path, "TEST.PROTOCOLS", "('hungarian', 'cups')")
    torch.manual_seed(0)
    (path / "inference" / "val").mkdir(parents=True)
    save_to_disk({"model": build_model(cfg).state_dict()}, path / "model_final.pth")
    (path / "config.yaml").write_text(cfg.dump())
    (path / "run.json").write_text(json.dumps({"u2seg": "0.1", "torch": "2", "seed": 7, "weights": ""}))
    scores = {
        "panoptic_seg": {"hungarian": {"PQ": 12.5}},
        "record": {"dataset": "val", "images": 5, "fitted_on": "val"},
    }
    (path / "inference/val/metrics.json").write_text(json.dumps(scores))
    paths = {"weights": str(path / "a.pth"), "last_checkpoint": str(path / "b.pth"), "fitted_on": str(path / "c.json")}
    saved = {**LABEL_MAP, "provenance": {**LABEL_MAP["provenance"], **paths}}
    (path / "inference/val/label_map_hungarian.json").write_text(json.dumps(saved))
    (path / "inference/val/label_map_cups.json").write_text(json.dumps({**LABEL_MAP, "thing_clusters": [0, 0]}))
    return path


def test_a_pushed_model_is_used_by_its_name(run, monkeypatch, tmp_path, capsys):
    with running_hub() as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        (tmp_path / "temporary").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        assert main(["push", str(run), "--to", "org/scenes", "--license", "cc-by-4.0"]) == 0
        assert not list((tmp_path / "temporary").glob("u2seg-push-*"))
        assert "uploaded: http://127.0.0.1" in capsys.readouterr().out
        files = hub.repositories["org/scenes"]["main"]
        assert sorted(files) == ["README.md", "config.yaml", "label_map.json", "model.safetensors"]
        card = files["README.md"].decode()
        assert "license: cc-by-4.0" in card and "# scenes" in card and "12.50" in card and "seed | 7" in card
        assert "--config-file hf://org/scenes/config.yaml" in card
        assert str(run.parent).encode() not in b"".join(files.values())
        assert json.loads(files["label_map.json"]) == LABEL_MAP

        predictor = Predictor(setup_cfg("hf://org/scenes/config.yaml", ["MODEL.DEVICE", "cpu"]))
        trained = read_weights(run / "model_final.pth")
        for name, value in predictor.model.state_dict().items():
            torch.testing.assert_close(value, trained[name], rtol=1e-3, atol=1e-6, msg=name)
        assert open_model("hf://org/scenes").label_space.num_things == 2


def test_without_uploading_only_files_are_written(run, tmp_path, capsys):
    words = ["push", str(run), "--to", "org/name", "--no-upload"]
    assert main(words) == 1 and "--no-upload needs --output" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert setup_cfg(tmp_path / "out/config.yaml").MODEL.WEIGHTS == "hf://org/name/model.safetensors"
    # The output of `u2seg run` holds the model in a directory of its own.
    other = write_hub_files(run.parent, tmp_path / "other", "org/name")
    assert (other / "README.md").read_bytes() == (tmp_path / "out/README.md").read_bytes()


def test_what_cannot_be_uploaded_is_one_message(run, monkeypatch, tmp_path):
    with running_hub() as hub:
        use_hub(monkeypatch, hub.url, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(HubUploadError, match="org/name could not be uploaded: .*hf auth login"):
            upload(tmp_path, "org/name")
        # A port where nobody listens: the HTTP library's own error.
        use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        with pytest.raises(HubUploadError, match="org/name could not be uploaded: .*hf auth login"):
            upload(tmp_path, "org/name")
    with pytest.raises(ValueError, match="named org/name, got 'name'"):
        upload(tmp_path, "name")
    for name in ("name", "org/na me"):
        with pytest.raises(ValueError, match="name"):
            write_hub_files(run, tmp_path / "none", name)
        assert not (tmp_path / "none").exists()
    (tmp_path / "no_map.json").write_text("{}")
    with pytest.raises(ValueError, match="is no label map"):
        write_hub_files(run, tmp_path / "out", "org/name", label_map=tmp_path / "no_map.json")


def test_a_training_is_never_overwritten_and_an_old_label_map_goes(run, tmp_path):
    before = (run / "config.yaml").read_bytes()
    for directory in (run, run.parent):
        with pytest.raises(ValueError, match="is the training's own"):
            write_hub_files(directory, run / "../model", "org/name")
    assert (run / "config.yaml").read_bytes() == before and not (run / "README.md").exists()
    unscored = tmp_path / "unscored"
    unscored.mkdir()
    for name in ("config.yaml", "model_final.pth", "run.json"):
        shutil.copy(run / name, unscored)
    output = write_hub_files(run, tmp_path / "out", "org/name")
    assert (output / "label_map.json").is_file()
    write_hub_files(unscored, output, "org/name")
    assert not (output / "label_map.json").exists()
