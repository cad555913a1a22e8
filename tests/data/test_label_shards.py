"""Labels in shards: the same training input as from COCO's files, held as bytes."""

import itertools
import json
import tarfile

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image
from u2seg.data import build_mapper, build_train_loader, register_dataset
from u2seg.data.build import seed_random
from u2seg.data.formats.coco_panoptic import instance_annotations, panoptic_annotation
from u2seg.data.formats.label_directory import find_panoptic_json
from u2seg.data.formats.label_shards import ImageLabels, read_label_shard, write_label_shard
from u2seg.data.serialized_records import SerializedRecords
from u2seg.evaluation import ScoreSettings
from u2seg.evaluation.evaluator import PanopticEvaluator
from u2seg.pseudo_labels import relabel as relabel_module
from u2seg.pseudo_labels.panoptic.panoptic_merge import merge_panoptic
from u2seg.pseudo_labels.panoptic.panoptic_stage import _PngFiles, _PngTar, count_labels, write_json_files
from u2seg.structures import LabelSpace
from u2seg.utils.image_io import read_stored_array, stored_name
from u2seg.utils.manifest import close_stage, open_stage, shard_path
from u2seg.visualization.label_page import load_panoptic_labels

SPACE = LabelSpace.of_clusters(3, 2)
# Ids in no order, images wide and high, one of them without an instance.
IMAGES = {9: (40, 56), 2: (56, 40), 30: (40, 56), 4: (40, 56), 7: (56, 40)}
WITHOUT_INSTANCE = 4


def make_labels(image_id: int, pngs, photos) -> ImageLabels:
    rng = np.random.default_rng(image_id)
    size, name = IMAGES[image_id], f"{image_id}.png"
    masks = np.zeros((0 if image_id == WITHOUT_INSTANCE else 2, *size), bool)
    for index in range(len(masks)):
        masks[index, 5 + 6 * index : 20 + 6 * index, 4 + 8 * index : 18 + 8 * index] = True
    semantic = np.zeros(size, np.uint8)
    semantic[20:], semantic[0] = 1, 255
    panoptic, segments = merge_panoptic(masks, rng.integers(0, 3, len(masks)), semantic)
    places = pngs.add(name, panoptic, segments)
    Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(photos / name)
    return ImageLabels(
        image={"id": image_id, "file_name": name, "height": size[0], "width": size[1]},
        panoptic=panoptic_annotation(image_id, name, panoptic, segments, SPACE),
        instances=instance_annotations(image_id, panoptic, segments, rng.random(2), SPACE),
        void_share=float((panoptic == 0).mean()),
        png_places=places,
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Names of two datasets of the same labels, from JSON and from shards; and their label directories."""
    root = tmp_path_factory.mktemp("labels")
    (root / "photos").mkdir()
    found = {}
    for kind in ("json", "shards"):
        directory = root / kind / "panoptic"
        open_stage(directory, "panoptic", {"things": 3, "stuff": 2})
        labels = []
        for index, ids in enumerate(([9, 2, 30], [4, 7])):
            shard = shard_path(directory, index)
            with (_PngFiles if kind == "json" else _PngTar)(shard, SPACE) as pngs:
                group = [make_labels(image_id, pngs, root / "photos") for image_id in ids]
            labels += group
            if kind == "shards":
                write_label_shard(shard, group)
                assert read_label_shard(shard) == group
        if kind == "json":
            write_json_files(directory, lambda labels=labels: iter(labels), SPACE)
        close_stage(directory, count_labels(iter(labels)))
        description = {"FORMAT": "pseudo_labels", "ROOT": str(root / kind), "IMAGES": str(root / "photos")}
        register_dataset(f"shard_test_{kind}", description)
        found[kind] = (f"shard_test_{kind}", root / kind, description)
    return found


def without_root(records, root):
    """The records with the names of their PNGs alone, whose places differ between the two sets."""
    directories = {"pan_seg_file_name": root / "panoptic/panoptic", "sem_seg_file_name": root / "panoptic/stuff"}
    return [
        {key: stored_name(value, directories[key]) if key in directories else value for key, value in record.items()}
        for record in records
    ]


def test_the_dicts_and_the_classes_are_those_of_the_json_files(sets):
    (json_name, json_root, _), (name, root, _) = sets["json"], sets["shards"]
    expected, got = DatasetCatalog.get(json_name), DatasetCatalog.get(name)
    assert isinstance(expected, list) and isinstance(got, SerializedRecords)
    assert [record["image_id"] for record in got] == sorted(IMAGES)
    assert without_root(got, root) == without_root(expected, json_root)
    kept = ("thing_classes", "stuff_classes", "thing_dataset_id_to_contiguous_id", "label_space", "evaluator_type")
    for key in kept:
        assert getattr(MetadataCatalog.get(name), key) == getattr(MetadataCatalog.get(json_name), key)


def test_pngs_lie_in_tars_that_any_program_opens(sets):
    (_, json_root, _), (name, root, _) = sets["json"], sets["shards"]
    assert sorted(path.name for path in (root / "panoptic").iterdir()) == [
        "manifest.json", "shard-000000.parquet", "shard-000000.tar", "shard-000001.parquet", "shard-000001.tar",
    ]  # fmt: skip
    with tarfile.open(root / "panoptic/shard-000001.tar") as archive:
        assert archive.getnames() == ["4.panoptic.png", "4.stuff.png", "7.panoptic.png", "7.stuff.png"]
        png = archive.extractfile("7.stuff.png").read()
    assert png == (json_root / "panoptic/stuff/7.png").read_bytes()
    record = next(record for record in DatasetCatalog.get(name) if record["image_id"] == 7)
    np.testing.assert_array_equal(
        read_stored_array(record["pan_seg_file_name"]), np.asarray(Image.open(json_root / "panoptic/panoptic/7.png"))
    )
    cut = record["sem_seg_file_name"].replace("#", "#9")
    with pytest.raises(ValueError, match=r"shard-000001\.tar#9.*/7\.png"):
        read_stored_array(cut)
    with pytest.raises(FileNotFoundError, match=r"gone\.tar: no such file"):
        read_stored_array(record["sem_seg_file_name"].replace("shard-000001", "gone"))


def test_one_class_and_a_subset_are_made_alike(sets, tmp_path):
    (tmp_path / "split.json").write_text('{"image_ids": [30, 2]}')
    found = []
    for kind, (_, root, description) in sets.items():
        more = {"CLASS_AGNOSTIC": True, "SUBSET": str(tmp_path / "split.json")}
        register_dataset(f"shard_test_few_{kind}", {**description, **more})
        found.append(without_root(DatasetCatalog.get(f"shard_test_few_{kind}"), root))
    assert found[0] == found[1] and [record["image_id"] for record in found[0]] == [2, 30]


def equal_samples(first: dict, second: dict) -> bool:
    a, b = first["instances"], second["instances"]
    return (
        first["image_id"] == second["image_id"]
        and torch.equal(first["image"], second["image"])
        and torch.equal(first["sem_seg"], second["sem_seg"])
        and torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
        and torch.equal(a.gt_classes, b.gt_classes)
        and (not len(a) or torch.equal(a.gt_masks.tensor, b.gt_masks.tensor))
    )


@pytest.mark.parametrize(("paste", "filter_empty"), [("off", False), ("reversed_batch", True), ("any_image", True)])
def test_the_loader_gives_the_same_batches(sets, tiny_cfg, tmp_path, paste, filter_empty):
    batches = {}
    for kind, (name, _, description) in sets.items():
        cfg = tiny_cfg(
            tmp_path, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "MODEL.ROI_HEADS.NUM_CLASSES", 3
        )
        cfg.DATASETS.BY_PATH[name] = CfgNode(description)
        cfg.DATASETS.TRAIN = (name,)
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
        if paste != "off":
            cfg.INPUT.COPY_PASTE.ENABLED, cfg.INPUT.COPY_PASTE.PARTNER = True, paste
        batches[kind] = list(itertools.islice(build_train_loader(cfg, seed=5), 6))
    pairs = [pair for both in zip(batches["json"], batches["shards"], strict=True) for pair in zip(*both, strict=True)]
    assert len(pairs) == 12 and all(equal_samples(*pair) for pair in pairs)
    left_out = {WITHOUT_INSTANCE} if filter_empty else set()
    assert {sample["image_id"] for sample, _ in pairs} == set(IMAGES) - left_out


class SeesNothing(torch.nn.Module):
    def forward(self, batch):
        size = batch[0]["height"], batch[0]["width"]
        nothing = {"pred_masks": torch.zeros(0, *size), "pred_classes": torch.zeros(0).long(), "scores": torch.zeros(0)}
        return [{"instances": Instances(size, **nothing)}]


def test_self_training_starts_from_shards_as_from_files(sets, tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(relabel_module, "_load_model", lambda cfg: SeesNothing())
    found = []
    for kind, (name, _, description) in sets.items():
        cfg = tiny_cfg(tmp_path, "MODEL.WEIGHTS", "same.pth")
        cfg.DATASETS.BY_PATH[name] = CfgNode(description)
        cfg.DATASETS.TRAIN = (name,)
        new = relabel_module.relabel(cfg, tmp_path / kind, 0.5)
        files = {path.relative_to(new).as_posix(): path.read_bytes() for path in new.rglob("*") if path.is_file()}
        manifest = json.loads(files["panoptic/manifest.json"])
        assert manifest["settings"].pop("labels")  # a digest of the old files, which differ
        found.append({**files, "panoptic/manifest.json": manifest})
    assert found[0] == found[1] and len(found[0]) == 3 + 2 * len(IMAGES)


def test_the_mapper_reads_an_image_without_an_instance(sets, tiny_cfg, tmp_path):
    mapper = build_mapper(tiny_cfg(tmp_path), True)
    record = next(r for r in DatasetCatalog.get(sets["shards"][0]) if r["image_id"] == WITHOUT_INSTANCE)
    seed_random((0,))
    sample = mapper(record)
    assert len(sample["instances"]) == 0 and set(sample["sem_seg"].unique().tolist()) == {1, 2, 255}


def test_what_needs_json_files_says_how_they_are_made(sets):
    name, root, _ = sets["shards"]
    remedy = "Repeat the `u2seg labels` command with PANOPTIC_LABELS.FORMAT coco"
    for labels in (root, root / "panoptic"):
        with pytest.raises(FileNotFoundError, match=remedy):
            find_panoptic_json(labels)
        with pytest.raises(FileNotFoundError, match=remedy):
            load_panoptic_labels(labels, root.parent / "photos")
    assert find_panoptic_json(sets["json"][1]).is_file()
    with pytest.raises(ValueError, match=r"no ground truth .* PANOPTIC_LABELS.FORMAT coco"):
        PanopticEvaluator(name, None, num_things=3, num_stuff=2, settings=ScoreSettings(protocols=("u2seg",)))


def test_shards_of_a_stage_that_is_not_finished_are_no_dataset(tmp_path):
    directory = tmp_path / "labels" / "panoptic"
    open_stage(directory, "panoptic", {"things": 3, "stuff": 2})
    write_label_shard(shard_path(directory, 0), [])
    (tmp_path / "photos").mkdir()
    description = {"FORMAT": "pseudo_labels", "ROOT": str(tmp_path / "labels"), "IMAGES": str(tmp_path / "photos")}
    with pytest.raises(FileNotFoundError, match=r"\[ \] .*panoptic\.json"):
        register_dataset("shard_test_open", description)


def test_serialized_records_are_a_sequence_of_dicts():
    dicts = [{"image_id": number, "mask": bytes(range(number % 7))} for number in range(2500)]
    records = SerializedRecords(iter(dicts))
    assert len(records) == 2500 and list(records) == dicts
    assert records[-1] == dicts[-1] and records[3:9:2] == dicts[3:9:2]
    chosen = records.select(np.array([7, 3]))
    assert list(SerializedRecords.joined([chosen, dicts[:2], records])) == [dicts[7], dicts[3], *dicts[:2], *dicts]
    assert list(SerializedRecords(())) == [] and len(SerializedRecords.joined([])) == 0
    with pytest.raises(IndexError):
        records[2500]
