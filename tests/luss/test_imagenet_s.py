"""ImageNet-S from list files, the id maps' way through the mapper, the pseudo-label store."""

from multiprocessing import get_context

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from luss_toy import SYNSETS, make_toy
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.data import build_mapper, register_datasets
from u2seg.luss.data.id_maps import LUSS_IGNORE, read_id_map, write_id_map
from u2seg.luss.data.imagenet_s import COUNTS, MERGED_919, ImageNetS, imagenet_s_records
from u2seg.luss.data.label_store import INDEX, LabelStore, threshold_labels, write_label_shard
from u2seg.utils.files import write_json
from u2seg.utils.manifest import shard_path


@pytest.fixture(scope="module", params=[True, False], ids=["flat", "sorted"])
def toy(request, tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("toy"), train=12, semi=8, val=6, flat_val=request.param)


def test_every_split_is_found_where_the_lists_say(toy):
    records = {split: imagenet_s_records(description) for split, description in toy.items()}
    assert {split: len(found) for split, found in records.items()} == {
        "train": 12,
        "train_semi": 8,
        "val": 6,
        "test": 6,
    }
    assert [r["image_class"] for r in records["train"]] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for record in records["val"]:
        labels = set(np.unique(read_id_map(record["sem_seg_file_name"]))) - {0, LUSS_IGNORE}
        # The mask's directory is the class in this set; its id is the synset's line, counted from 1.
        assert labels == {SYNSETS.index(record["sem_seg_file_name"].split("/")[-2]) + 1}
    assert "sem_seg_file_name" not in records["test"][0] and "image_class" not in records["val"][0]
    assert len({r["image_id"] for r in records["train"]}) == 12


def test_registered_classes_are_named_by_synset(toy):
    register_datasets({"toy_val": toy["val"]})
    metadata = MetadataCatalog.get("toy_val")
    assert metadata.stuff_classes == ["other", *SYNSETS]
    assert (metadata.evaluator_type, metadata.ignore_label) == ("luss", 1000)
    assert len(DatasetCatalog.get("toy_val")) == 6


def test_a_wrong_number_of_images_is_refused(toy, monkeypatch):
    monkeypatch.setitem(COUNTS, 4, {"val": 752})
    with pytest.raises(ValueError, match="split val of ImageNet-S 4 has 752 images, 6 were found"):
        imagenet_s_records(toy["val"])


def test_published_counts_and_merges():
    # Source: the table of ImageNet-S's README.
    assert [COUNTS[n]["val"] for n in (50, 300, 919)] == [752, 4097, 12419]
    assert [COUNTS[n]["train_semi"] for n in (50, 300, 919)] == [500, 3000, 9190]
    assert len(MERGED_919) == 5 and not set(MERGED_919) & set(MERGED_919.values())


def test_images_of_merged_synsets_take_their_targets_class(tmp_path):
    target, source = "n04355933", "n04356056"
    synsets = sorted({target, *(f"n9{i:07d}" for i in range(918))})
    (tmp_path / "lists/categories").mkdir(parents=True)
    (tmp_path / "lists/categories/ImageNetS_categories_im919.txt").write_text("\n".join(synsets))
    for synset in [*synsets, *MERGED_919]:
        (tmp_path / "imagenet/train" / synset).mkdir(parents=True)
    for synset in (target, source):
        Image.new("RGB", (4, 4)).save(tmp_path / "imagenet/train" / synset / f"{synset}_0.JPEG")
    images = ImageNetS(919, "train", tmp_path / "imagenet", tmp_path / "lists", None)
    assert [r["image_class"] for r in images._train()] == [synsets.index(target)] * 2


def test_missing_parts_are_told(toy, tmp_path):
    with pytest.raises(FileNotFoundError, match="no list file.*LUSSeg/ImageNet-S"):
        imagenet_s_records({**toy["val"], "LISTS": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="no image ILSVRC2012_val_00000000.JPEG: looked for"):
        imagenet_s_records({**toy["val"], "IMAGES": str(tmp_path)})
    with pytest.raises(ValueError, match="split val of ImageNet-S needs MASKS.*validation-segmentation"):
        imagenet_s_records({key: value for key, value in toy["val"].items() if key != "MASKS"})
    with pytest.raises(ValueError, match="must be one of train, train_semi, val, test, got 'validation'"):
        imagenet_s_records({**toy["val"], "SPLIT": "validation"})


def mapper(is_train, *opts):
    cfg = setup_cfg("LUSS/pass_tiny_finetune.yaml", ["INPUT.SEMANTIC_CROP.SIZE", 32, *opts])
    return build_mapper(cfg, is_train)


def test_large_ids_survive_crop_resize_and_flip(tmp_path):
    ids = np.array([0, 255, 256, 919, 1000])[np.arange(60)[:, None] // 12 * np.ones((1, 90), int)]
    write_id_map(tmp_path / "a.png", ids)
    Image.fromarray((ids % 251).astype(np.uint8)).save(tmp_path / "a.jpg", quality=100)
    record = {"file_name": str(tmp_path / "a.jpg"), "image_id": 3, "sem_seg_file_name": str(tmp_path / "a.png")}
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        sample = mapper(True, "INPUT.SEMANTIC_CROP.SCALE", (0.2, 1.0))(record)
        assert sample["image"].shape == (3, 32, 32) and sample["sem_seg"].shape == (32, 32)
        assert sample["sem_seg"].dtype == torch.int64
        seen |= set(sample["sem_seg"].unique().tolist())
        # Image and map are cut alike: away from the four borders the gray value is the id's.
        gray = sample["image"][0].int()
        assert ((gray - sample["sem_seg"] % 251).abs() < 8).float().mean() > 0.8
    assert seen == {0, 255, 256, 919, 1000}


def test_whole_images_for_inference(tmp_path):
    Image.new("RGB", (150, 100)).save(tmp_path / "a.jpg")
    sample = mapper(False)({"file_name": str(tmp_path / "a.jpg"), "image_id": 1})
    assert sample["image"].shape == (3, 64, 96) and (sample["height"], sample["width"]) == (100, 150)
    assert "sem_seg" not in sample


def test_masks_are_drawn_on_unrotated_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees for display
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg", exif=exif)
    write_id_map(tmp_path / "a.png", np.zeros((60, 90), int))
    record = {"file_name": str(tmp_path / "a.jpg")}
    labeled = mapper(False)({**record, "sem_seg_file_name": str(tmp_path / "a.png")})
    assert (labeled["height"], labeled["width"]) == (60, 90)
    assert mapper(False)(record)["height"] == 90
    write_id_map(tmp_path / "b.png", np.zeros((90, 60), int))
    with pytest.raises(ValueError, match=r"\(90, 60\), its image \(60, 90\)"):
        mapper(True)({**record, "sem_seg_file_name": str(tmp_path / "b.png")})


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    maps = {n: (rng.integers(1, 400, (3, 5)), rng.random((3, 5)).astype(np.float16)) for n in (0, 1, 3)}
    write_label_shard(shard_path(tmp_path / "s", 0, ".npz"), {n: maps[n] for n in (0, 1)})
    write_label_shard(shard_path(tmp_path / "s", 1, ".npz"), {3: maps[3]})  # number 2 could not be read
    write_json(tmp_path / "s" / INDEX, {"file_names": list("abcd"), "num_clusters": 400, "shard_size": 2})
    return LabelStore(tmp_path / "s"), maps


def test_labels_from_the_store_are_those_of_direct_computation(store):
    labels, maps = store
    assert list(labels.numbers()) == [0, 1, 3]
    clusters, attention = maps[3]
    size = (47, 31)
    direct = torch.nn.functional.interpolate(torch.from_numpy(clusters)[None, None].float(), size=size)[0, 0].long()
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(attention.astype(np.float32))[None, None], size=size, mode="bilinear", align_corners=False
    )[0, 0]
    expected = torch.where(smooth < 0.5, 0, direct).numpy()
    found = labels.labels(3, size, 0.5)
    certain = (smooth - 0.5).abs().numpy() > 1e-5  # rounding may decide on the threshold itself
    assert np.array_equal(found[certain], expected[certain]) and certain.mean() > 0.99


def test_thresholds_at_the_extremes(store):
    labels, maps = store
    assert (labels.labels(0, (20, 30), 0.0) > 0).all()
    assert not labels.labels(0, (20, 30), 1.01).any()
    assert np.array_equal(threshold_labels(*maps[1], (3, 5), 0.0), maps[1][0])


def read_often(store, maps, number):
    for _ in range(100):
        np.testing.assert_array_equal(store.load(number)[0], maps[number][0])


def test_forked_loader_workers_read_a_shard_at_the_same_time(tmp_path):
    rng = np.random.default_rng(0)
    maps = {n: (rng.integers(1, 60000, (90, 90)), rng.random((90, 90))) for n in (0, 1)}
    write_label_shard(shard_path(tmp_path, 0, ".npz"), maps)
    write_json(tmp_path / INDEX, {"file_names": ["a", "b"], "num_clusters": 60000, "shard_size": 2})
    store, fork = LabelStore(tmp_path), get_context("fork")
    assert list(store.numbers()) == [0, 1]  # as the main process lists the dataset before the workers begin
    workers = [fork.Process(target=read_often, args=(store, maps, number)) for number in maps]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_the_store_is_a_training_set(store, tmp_path):
    for name in "abcd":
        Image.new("RGB", (40, 30)).save(tmp_path / name, format="PNG")
    register_datasets(
        {"toy_pseudo": {"FORMAT": "luss_pseudo_labels", "ROOT": str(tmp_path / "s"), "IMAGES": str(tmp_path)}}
    )
    records = DatasetCatalog.get("toy_pseudo")
    assert [r["file_name"].rsplit("/", 1)[1] for r in records] == ["a", "b", "d"]
    assert len(MetadataCatalog.get("toy_pseudo").stuff_classes) == 401
    sample = mapper(True, "LUSS.THRESHOLD", 0.0)(records[2])
    assert set(sample["sem_seg"].unique().tolist()) <= set(np.unique(store[1][3][0]).tolist())
    with pytest.raises(FileNotFoundError, match="no LUSS pseudo-labels"):
        LabelStore(tmp_path)
