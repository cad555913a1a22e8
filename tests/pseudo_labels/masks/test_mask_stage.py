import json
import multiprocessing
import shutil
import time

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from PIL import Image
from pycocotools import mask as coco_mask
from u2seg.config import add_u2seg_config
from u2seg.data.formats.mask_shards import iter_records
from u2seg.pseudo_labels.masks import make_masks
from u2seg.pseudo_labels.masks.mask_stage import reopen_failures
from u2seg.utils.manifest import FAILURES, StageMismatchError, TooManyFailuresError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.FEATURES.IMAGE_SIZE = (96, 128)  # not square
    cfg.FEATURES.DEVICE = "cpu"
    cfg.FEATURES.BATCH_SIZE = 3
    cfg.MASKS.CENTER_FEATURES = True
    cfg.MASKS.TAU = 0.6
    cfg.MASKS.SHARD_SIZE = 2
    cfg.MASKS.NUM_WORKERS = 0
    return cfg


def save_rectangle_image(path, size=(90, 150), box=(30, 20, 70, 65)):
    """A red rectangle x0, y0, x1, y1 on a green ground, both slightly noisy."""
    noise = np.random.default_rng(0).integers(-4, 5, (*size, 3))
    image = np.full((*size, 3), (40, 140, 60)) + noise
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = (200, 40, 40) + noise[y0:y1, x0:x1]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def images(tmp_path):
    directory = tmp_path / "images"
    for index in range(5):
        save_rectangle_image(directory / f"{index}.png", box=(20 + 10 * index, 20, 60 + 10 * index, 65))
    return directory


def test_finds_the_rectangle_at_the_image_s_own_size(cfg, images, tmp_path):
    records = list(iter_records(make_masks(cfg, images, tmp_path / "masks")))
    assert [record.file_name for record in records] == [f"{index}.png" for index in range(5)]
    for index, record in enumerate(records):
        assert (record.height, record.width) == (90, 150)
        expected = np.zeros((90, 150), bool)
        expected[20:65, 20 + 10 * index : 60 + 10 * index] = True
        best = coco_mask.decode(record.rles()[0]).astype(bool)
        assert (best & expected).sum() / (best | expected).sum() > 0.85
        assert record.embeddings.shape == (len(record.rle_counts), 8)
        assert np.all((record.scores >= 0) & (record.scores <= 1))
        assert np.all(np.diff(record.scores) <= 0)
        # Red lies on the positive side of Lab's a axis, channel 1 of the descriptor.
        assert record.embeddings[0, 1] > 0.2


def test_masks_do_not_overlap_where_that_is_asked_for(cfg, images, tmp_path):
    cfg.MASKS.ALLOW_OVERLAPS = False
    for record in iter_records(make_masks(cfg, images, tmp_path / "masks")):
        masks = coco_mask.decode(record.rles())
        assert masks.sum(axis=2).max() <= 1


def test_going_on_gives_the_same_bytes(cfg, images, tmp_path):
    whole = make_masks(cfg, images, tmp_path / "whole")
    resumed = make_masks(cfg, images, tmp_path / "resumed")
    (resumed / "shard-000001.parquet").unlink()
    manifest = json.loads((resumed / "manifest.json").read_text())
    del manifest["counts"]
    (resumed / "manifest.json").write_text(json.dumps(manifest))
    cfg.FEATURES.BATCH_SIZE = 1  # how the work is done may change
    make_masks(cfg, images, resumed)
    for path in sorted(whole.iterdir()):
        assert path.read_bytes() == (resumed / path.name).read_bytes(), path.name


def _make_in_child(cfg, images, output):
    torch.set_num_threads(1)  # a forked process must not use its parent's thread pool
    make_masks(cfg, images, output)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_killed_at_twenty_moments_nothing_is_lost_and_nothing_comes_twice(cfg, tmp_path):
    directory = tmp_path / "images"
    for index in range(8):
        save_rectangle_image(directory / f"{index}.png", box=(20 + 5 * index, 20, 60 + 5 * index, 65))
    (directory / "broken.png").write_bytes(b"not an image")
    cfg.MASKS.MAX_FAILURES = 1.0
    start = time.monotonic()
    whole = make_masks(cfg, directory, tmp_path / "whole")
    duration = time.monotonic() - start

    context = multiprocessing.get_context("fork")
    delays = np.random.default_rng(0).uniform(0, duration, 20)
    num_killed = 0
    for delay in delays:
        if num_killed % 3 == 0:
            shutil.rmtree(tmp_path / "killed", ignore_errors=True)  # so that early and late moments are both met
        child = context.Process(target=_make_in_child, args=(cfg, directory, tmp_path / "killed"))
        child.start()
        child.join(delay)
        num_killed += child.is_alive()
        child.kill()
        child.join()
    assert num_killed >= 5
    make_masks(cfg, directory, tmp_path / "killed")
    for path in sorted(whole.iterdir()):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name


def test_other_settings_are_refused(cfg, images, tmp_path):
    make_masks(cfg, images, tmp_path / "masks")
    cfg.MASKS.TAU = 0.5
    with pytest.raises(StageMismatchError, match=r"settings.MASKS.TAU: asked for 0.5, the directory has 0.6"):
        make_masks(cfg, images, tmp_path / "masks")


def test_broken_images_are_recorded(cfg, images, tmp_path):
    (images / "3.png").write_bytes(b"not an image")
    cfg.MASKS.MAX_FAILURES = 0.5
    output = make_masks(cfg, images, tmp_path / "masks")
    records = list(iter_records(output))
    assert [record.error is None for record in records] == [True, True, True, False, True]
    failures = json.loads((output / FAILURES).read_text())
    assert [row["file_name"] for row in failures] == ["3.png"]
    assert json.loads((output / "manifest.json").read_text())["counts"]["failures"] == 1


def test_too_many_broken_images_end_the_run_after_the_work(cfg, images, tmp_path):
    (images / "3.png").write_bytes(b"")
    with pytest.raises(TooManyFailuresError, match="1 of 5 images could not be read"):
        make_masks(cfg, images, tmp_path / "masks")
    assert len(list(iter_records(tmp_path / "masks"))) == 5


def test_a_stage_that_is_not_finished_can_be_reopened_for_repaired_images(cfg, images, tmp_path):
    whole, discarded = make_masks(cfg, images, tmp_path / "whole"), []
    good = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(b"")
    output = tmp_path / "masks"
    with pytest.raises(TooManyFailuresError, match="u2seg labels` with --retry-failures"):
        make_masks(cfg, images, output)

    def reopen():
        return reopen_failures(cfg, images, output, lambda: discarded.append(len(list(output.glob("shard-*")))))

    assert reopen() == 0
    (images / "3.png").write_bytes(good)
    cfg.MASKS.TAU = 0.5
    with pytest.raises(StageMismatchError, match=r"MASKS\.TAU: asked for 0\.5"):
        reopen()
    cfg.MASKS.TAU = 0.6
    assert reopen() == 1 and discarded == [3] and len(list(output.glob("shard-*"))) == 2
    assert reopen() == 0, "as after a kill"
    make_masks(cfg, images, output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 1000)])
def test_tiny_and_elongated_images_pass(cfg, tmp_path, size):
    directory = tmp_path / "images"
    directory.mkdir()
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(image).save(directory / "a.png")
    (record,) = iter_records(make_masks(cfg, directory, tmp_path / "masks"))
    assert (record.height, record.width) == size
    for rle in record.rles():
        assert coco_mask.decode(rle).shape == size


def test_uniform_images_have_no_masks(cfg, tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    for index in range(5):
        Image.new("RGB", (60, 40), (50 * index, 90, 10)).save(directory / f"{index}.png")
    output = make_masks(cfg, directory, tmp_path / "masks")
    assert [len(record.rle_counts) for record in iter_records(output)] == [0] * 5
    counts = json.loads((output / "manifest.json").read_text())["counts"]
    assert (counts["images"], counts["masks"], counts["failures"]) == (5, 0, 0)
