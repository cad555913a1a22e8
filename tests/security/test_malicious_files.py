"""Files from strangers: none of them runs code, none reaches out of its directory, each is refused in one line that names it."""

import io
import json
import os
import pickle
import tarfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from u2seg.checkpoint import AtomicCheckpointer, convert_torchvision_resnet, load_weights, read_weights
from u2seg.config import setup_cfg
from u2seg.data import register_dataset
from u2seg.data.datasets.registration import load_dicts
from u2seg.data.formats.mask_shards import read_shard, write_shard
from u2seg.evaluation.tables.ground_truth import PanopticGroundTruth
from u2seg.features.resnet import read_backbone_state
from u2seg.features.vit_weights import read_state_dict
from u2seg.luss.convert import convert_pass, export_backbone
from u2seg.luss.data.imagenet_s import imagenet_s_records, pseudo_label_records
from u2seg.luss.data.label_store import INDEX, write_label_shard
from u2seg.luss.image_list import load_model
from u2seg.pseudo_labels.clusters.cluster_stage import load_centroids
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import UnsafeNameError, confined_path
from u2seg.visualization.label_page import load_panoptic_labels

BASE = "quick_schedules/Base-Scenes-R18-FPN.yaml"


@pytest.fixture
def marker(tmp_path):
    """A directory that comes into being if any of the files runs its code."""
    return tmp_path / "marker"


def refused(call, marker, *names):
    """Asserts that a call ends in an error of one line that holds ``names``, and that no code ran."""
    with pytest.raises((ValueError, RuntimeError, OSError)) as error:
        call()
    text = str(error.value)
    assert not marker.exists(), "the file ran code"
    assert "\n" not in text and all(name in text for name in names), text


# --- YAML ------------------------------------------------------------------------------------------------------------------------

TAGS = {
    "apply": '!!python/object/apply:os.mkdir ["{marker}"]',
    "eval": "!!python/object/apply:eval [\"__import__('os').mkdir('{marker}')\"]",
    "new": '!!python/object/new:os.mkdir ["{marker}"]',
    "state": '!!python/object/new:tuple [!!python/object/new:map [!!python/name:os.mkdir , ["{marker}"]]]',
}


def through_config_file(path):
    setup_cfg(path)


def through_base(path):
    child = path.parent / "child.yaml"
    child.write_text(f"_BASE_: {path.name}\nSEED: 3\n")
    setup_cfg(child)


def through_features(path):
    from u2seg.features import build_feature_extractor

    build_feature_extractor(
        setup_cfg(BASE, ["FEATURES.NAME", "ResNetFeatures", "FEATURES.RESNET.CONFIG_FILE", str(path)])
    )


@pytest.mark.parametrize("place", [through_config_file, through_base, through_features])
@pytest.mark.parametrize("tag", TAGS)
def test_tags_in_yaml_run_nothing(tmp_path, marker, tag, place):
    path = tmp_path / "evil.yaml"
    path.write_text(f"SEED: 1\nOUTPUT_DIR: {TAGS[tag].format(marker=marker)}\n")
    refused(lambda: place(path), marker, "evil.yaml, line 2", "plain values alone")


def test_tuples_and_dumped_configurations_are_read(tmp_path):
    cfg = setup_cfg("COCO-PanopticSegmentation/u2seg_R50_800.yaml")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = setup_cfg(tmp_path / "config.yaml")
    assert json.dumps(again, sort_keys=True) == json.dumps(cfg, sort_keys=True)
    (tmp_path / "tuple.yaml").write_text("SOLVER: {STEPS: !!python/tuple [3, 4]}\n")
    assert setup_cfg(tmp_path / "tuple.yaml").SOLVER.STEPS == (3, 4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("_BASE_: evil.yaml\n", "is its own _BASE_"),
        ("SEED: [1\n", "line 2: not valid YAML"),
        ("- 1\n", "must hold KEY: value lines, got a list"),
        ("_BASE_: 3\n", "_BASE_ must be a file name or a list of them, got 3"),
        ("VERSION: 1\n", "written for VERSION 1"),
        ("a: \x00\n", "not a YAML text file"),
        ("a: !!int x\n", "not a YAML text file"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "not a YAML text file"),
        ("a: &a [*a]\n", "more than 100000 values"),
        (
            "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstu")),
            "more than",
        ),
    ],
)
def test_yaml_that_is_no_configuration(tmp_path, marker, text, expected):
    path = tmp_path / "evil.yaml"
    path.write_text(text)
    refused(lambda: setup_cfg(path), marker, "evil.yaml", expected)


def test_bases_are_merged_in_order(tmp_path):
    (tmp_path / "a.yaml").write_text("SEED: 1\nSOLVER: {MAX_ITER: 5, BASE_LR: 0.5}\n")
    (tmp_path / "b.yaml").write_text("SOLVER: {MAX_ITER: 6}\n")
    (tmp_path / "c.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nSOLVER: {IMS_PER_BATCH: 3}\n")
    cfg = setup_cfg(tmp_path / "c.yaml")
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (1, 6, 0.5, 3)


# --- pickles ---------------------------------------------------------------------------------------------------------------------


class Evil:
    """Makes the marker's directory when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def pkl_in_the_model(path, marker):
    path = path.with_suffix(".pkl")
    path.write_bytes(pickle.dumps({"model": {"w": Evil(marker)}, "__author__": "somebody"}))
    return path


def bare_pkl(path, marker):
    path = path.with_suffix(".pkl")
    path.write_bytes(pickle.dumps(Evil(marker), protocol=0))
    return path


def pth(path, marker):
    path = path.with_suffix(".pth")
    torch.save({"model": {"w": torch.zeros(1)}, "trainer": Evil(marker)}, path)
    return path


def old_pth(path, marker):
    path = path.with_suffix(".pth")
    torch.save({"w": Evil(marker)}, path, _use_new_zipfile_serialization=False)
    return path


def pyth(path, marker):
    path = path.with_suffix(".pyth")
    torch.save({"model_state": Evil(marker)}, path)
    return path


def tar(path, marker):
    """The format of PyTorch before 0.1.10, in which versions before 2.6 ran code in spite of ``weights_only``."""
    path = path.with_suffix(".pth")
    content = pickle.dumps(Evil(marker))
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def safetensors(path, marker):
    path = path.with_suffix(".safetensors")
    path.write_bytes(pickle.dumps(Evil(marker)))
    return path


PICKLES = [pkl_in_the_model, bare_pkl, pth, old_pth, pyth, tar, safetensors]


def in_training(path):
    AtomicCheckpointer(torch.nn.Linear(1, 1)).resume_or_load(str(path), resume=False)


def in_resuming(path):
    (path.parent / "last_checkpoint").write_text(path.name)
    AtomicCheckpointer(torch.nn.Linear(1, 1), str(path.parent)).resume_or_load("", resume=True)


def in_evaluation(path):
    load_weights(torch.nn.Linear(1, 1), setup_cfg(BASE), str(path))


def in_luss(path):
    load_model(
        setup_cfg("LUSS/pass_tiny_attention.yaml", ["MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu"]),
        "PASSPixelAttention",
    )


PLACES = {
    "training": in_training,
    "resuming": in_resuming,
    "evaluation": in_evaluation,
    "luss": in_luss,
    "ResNet features": read_backbone_state,
    "ViT features": read_state_dict,
    "convert torchvision": lambda path: convert_torchvision_resnet(str(path), path.parent / "out.pkl"),
    "convert pass": lambda path: convert_pass(path, path.parent / "out.pth"),
    "export": lambda path: export_backbone(path, path.parent / "out.pth"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", PICKLES)
def test_pickles_run_nothing_wherever_weights_are_named(tmp_path, marker, make, place):
    path = make(tmp_path / "evil", marker)
    refused(lambda: PLACES[place](path), marker, path.name, "read safely")


def test_the_files_would_run_code_if_they_were_trusted(tmp_path):
    # Else the tests above could not fail.
    for number, make in enumerate(PICKLES[:5]):
        marker = tmp_path / f"ran-{number}"
        path = make(tmp_path / f"evil-{number}", marker)
        with path.open("rb") as file:
            pickle.load(file) if path.suffix == ".pkl" else torch.load(file, weights_only=False)
        assert marker.is_dir(), make.__name__


def test_pickled_arrays_run_nothing(tmp_path, marker):
    path = tmp_path / "centroids.npy"
    np.save(path, np.array([Evil(marker)], object), allow_pickle=True)
    refused(lambda: load_centroids(path, 1, "CLUSTERS"), marker, "allow_pickle=False")


def test_safetensors_and_foreign_formats_are_loaded(tmp_path):
    from safetensors.torch import save_file

    weights = {"weight": torch.full((1, 1), 2.0), "bias": torch.zeros(1)}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save({"model_state": weights}, tmp_path / "b.pyth")
    arrays = {**{k: v.numpy() for k, v in weights.items()}, "weight_momentum": np.zeros(1, np.float32)}
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"blobs": arrays}))
    torch.save(weights, tmp_path / "d.pth")
    for name in ("a.safetensors", "b.pyth", "c.pkl", "d.pth", "d.pth?matching_heuristics=True"):
        model = torch.nn.Linear(1, 1)
        AtomicCheckpointer(model).load(str(tmp_path / name))
        assert model.weight.item() == 2.0, name
    assert torch.equal(read_weights(tmp_path / "a.safetensors")["weight"], weights["weight"])


def test_checkpoints_that_are_none_are_refused(tmp_path, marker):
    torch.save({"model": {"w": 1}}, tmp_path / "a.pth")
    refused(lambda: in_training(tmp_path / "a.pth"), marker, "a.pth must hold tensors", "'w' is a int")
    torch.save({"model": {}}, tmp_path / "b.pth")
    refused(lambda: in_training(tmp_path / "b.pth"), marker, "b.pth must hold tensors", "it holds none")
    torch.save({"model": {"w": torch.tensor([float("nan")])}}, tmp_path / "c.pth")
    for place in (in_training, in_evaluation, in_luss):
        refused(lambda place=place: place(tmp_path / "c.pth"), marker, "c.pth holds NaN or infinity in w")
    refused(lambda: in_training(tmp_path / "d.pth"), marker, "no checkpoint at", "d.pth")
    refused(lambda: in_training(f"{tmp_path / 'a.pth'}?x=1"), marker, "a.pth")


# --- names -----------------------------------------------------------------------------------------------------------------------

NAMES = ["../outside.png", "/outside.png", "a/../../outside.png", ""]


@pytest.fixture
def labels(tmp_path, write_coco_panoptic):
    """A tiny dataset, and a function that writes a name into one of its JSON files."""
    root = write_coco_panoptic(tmp_path / "tiny")
    Image.new("RGB", (64, 48)).save(root / "outside.png")

    def rename(kind, section, name):
        path = root / "annotations" / f"{kind}_train.json"
        content = json.loads(path.read_text())
        content[section][1]["file_name"] = name
        path.write_text(json.dumps(content))
        return path

    return root, rename


def coco(root):
    return {"FORMAT": "coco_panoptic", "ROOT": str(root), "SPLIT": "train"}


def read_panoptic_dataset(root):
    load_dicts("evil", coco(root))


def read_instances_dataset(root):
    path = root / "annotations" / "instances_train.json"
    load_dicts("evil", {"FORMAT": "coco_instances", "JSON": str(path), "IMAGES": str(root / "train")})


def read_evaluation_dataset(root):
    path = root / "annotations" / "panoptic_train.json"
    load_dicts("evil", {"FORMAT": "evaluation_only", "PANOPTIC_JSON": str(path), "IMAGES": str(root / "train")})


def read_ground_truth(root):
    gt = PanopticGroundTruth(root / "annotations" / "panoptic_train.json", root / "panoptic_train")
    for image_id in gt.annotations:
        gt.read(image_id)


def read_label_page(root):
    load_panoptic_labels(root / "annotations" / "panoptic_train.json", root / "train")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "section", "read"),
    [
        ("panoptic", "images", read_panoptic_dataset),
        ("panoptic", "annotations", read_panoptic_dataset),
        ("instances", "images", read_instances_dataset),
        ("panoptic", "images", read_evaluation_dataset),
        ("panoptic", "annotations", read_ground_truth),
        ("panoptic", "images", read_label_page),
        ("panoptic", "annotations", read_label_page),
    ],
)
def test_names_in_json_stay_below_their_directory(labels, marker, kind, section, read, name):
    root, rename = labels
    path = rename(kind, section, name)
    refused(lambda: read(root), marker, path.name, name, "directory")


def test_self_training_writes_nothing_outside(labels, tmp_path, tiny_cfg, monkeypatch):
    from detectron2.config import CfgNode
    from u2seg.pseudo_labels import relabel as relabel_module

    root, rename = labels
    directory = tmp_path / "labels" / "panoptic"
    (directory / "stuff").mkdir(parents=True)
    (directory / "panoptic").symlink_to(root / "panoptic_train")
    rename("panoptic", "annotations", "../../../../victim.png")
    for kind in ("panoptic", "instances"):
        (directory / f"{kind}.json").write_text((root / "annotations" / f"{kind}_train.json").read_text())
    description = {"FORMAT": "pseudo_labels", "ROOT": str(tmp_path / "labels"), "IMAGES": str(root / "train")}
    cfg = tiny_cfg(tmp_path / "run")
    cfg.DATASETS.BY_PATH["evil_labels"] = CfgNode(description)
    cfg.DATASETS.TRAIN = ("evil_labels",)
    register_dataset("evil_labels", description)
    monkeypatch.setattr(relabel_module, "_load_model", lambda cfg: pytest.fail("went on"))
    with pytest.raises(
        ValueError, match=r'panoptic\.json: annotations\[1\] has file_name "\.\./\.\./\.\./\.\./victim\.png"'
    ):
        relabel_module.relabel(cfg, tmp_path / "a" / "b" / "c" / "out", 0.5)
    assert not list(tmp_path.rglob("victim*"))


@pytest.mark.parametrize("name", NAMES)
def test_names_in_mask_shards_stay_below_the_images(tmp_path, marker, name):
    write_shard(tmp_path / "shard-000000.parquet", [ImageMasks(1, name, 4, 4)])
    refused(lambda: read_shard(tmp_path / "shard-000000.parquet"), marker, "shard-000000.parquet", repr(name))


@pytest.mark.parametrize("name", NAMES)
def test_names_in_luss_labels_stay_below_the_images(tmp_path, marker, name):
    write_label_shard(tmp_path / "shard-000000.npz", {0: (np.ones((2, 2)), np.ones((2, 2)))})
    (tmp_path / INDEX).write_text(json.dumps({"file_names": [name], "num_clusters": 2, "shard_size": 4}))
    refused(lambda: pseudo_label_records({"ROOT": tmp_path, "IMAGES": tmp_path}), marker, "index.json", repr(name))


def test_names_in_imagenet_s_lists_stay_below_the_images(tmp_path, marker):
    (tmp_path / "lists" / "mapping").mkdir(parents=True)
    (tmp_path / "images" / "val").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "images" / "outside.png")
    mapping = tmp_path / "lists" / "mapping" / "ImageNetS_im50_mapping_validation.txt"
    mapping.write_text("val/../outside.png n1/a.png\n")
    description = {"CLASSES": 50, "SPLIT": "val", "IMAGES": tmp_path / "images", "LISTS": tmp_path / "lists"}
    refused(lambda: imagenet_s_records({**description, "MASKS": tmp_path}), marker, "'../outside.png'")


def test_the_last_checkpoint_lies_in_its_run(tmp_path):
    torch.save({"model": {"weight": torch.ones(1, 1)}}, tmp_path / "other.pth")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").write_text("../other.pth")
    with pytest.raises(UnsafeNameError, match="last_checkpoint names the file"):
        AtomicCheckpointer(torch.nn.Linear(1, 1), str(tmp_path / "run")).resume_or_load("", resume=True)


def test_confined_names(tmp_path):
    for name in ("a.png", "a/b.png", "a..b/c..png", "ä b.png", ".hidden/a.png"):
        assert confined_path(tmp_path, name, "f") == tmp_path / name
    for name in ("..", "a/..", "\0", "a\0b", ".", 3, None, "//x"):
        with pytest.raises(UnsafeNameError, match="f names the file"):
            confined_path(tmp_path, name, "f")
    (tmp_path / "link").symlink_to(Path("/"))
    assert confined_path(tmp_path, "link/tmp", "f") == tmp_path / "link" / "tmp"  # the user's own link is followed
