"""Labels on a full disk, in a directory that is read-only or deleted, and killed at any file operation."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
from fault_injection import PARTIAL, Faults, KilledError, contents
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.pseudo_labels.pipeline import STAGES, make_pseudo_labels, retry_failures
from u2seg.utils.manifest import TooManyFailuresError
from u2seg.utils.write_errors import WriteError

OPTIONS = [
    *("FEATURES.IMAGE_SIZE", "(24,32)", "FEATURES.HANDMADE.PATCH_SIZE", "4", "MASKS.NUM_WORKERS", "0"),
    *("MASKS.NUM_THREADS", "1", "MASKS.SHARD_SIZE", "1", "MASKS.MIN_AREA", "0.005"),
    *("CLUSTERS.NUM_CLUSTERS", "1", "CLUSTERS.NUM_RESTARTS", "1", "CLUSTERS.EMBEDDING", "masked_crop"),
    *("SEMANTICS.NUM_CLUSTERS", "2", "SEMANTICS.NUM_RESTARTS", "1"),
]


CFG = ("quick_schedules/scenes.yaml", OPTIONS)


def draw(path, number):
    rng = np.random.default_rng(number)
    pixels = np.full((24, 32, 3), (120, 160, 220)) + rng.integers(-9, 10, (24, 32, 3))
    pixels[7:17, 4 + 4 * number : 15] = (230, 40, 40)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A directory of three images."""
    root = tmp_path_factory.mktemp("faults") / "photos"
    root.mkdir()
    for number in range(3):
        draw(root / f"{number}.png", number)
    return root


@pytest.fixture(scope="module")
def labels(photos):
    """Returns a function that makes the labels of the images in a directory, and what it writes undisturbed."""
    cfg = setup_cfg(*CFG)

    def make(output):
        return make_pseudo_labels(cfg, photos, output)

    return make, contents(make(photos.parent / "whole"))


def no_partial_file(root):
    return not list(root.rglob(PARTIAL))


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; free some space on that disk, then run the same command again"),
        (errno.EROFS, "Read-only file system; make it writable or choose another output directory"),
    ],
)
def test_wherever_writing_fails_one_line_says_what_to_do_and_labeling_goes_on(
    labels, tmp_path, monkeypatch, code, remedy
):
    make, whole = labels
    faults = Faults(monkeypatch, tmp_path, kill=False, code=code, only=("mkdir", "mkstemp", "replace"))

    def check(error):
        assert str(error).startswith(str(tmp_path)) and remedy in str(error) and "\n" not in str(error)
        assert no_partial_file(tmp_path)

    assert faults.runs(lambda: make(tmp_path / "o"), WriteError, check) > 60
    assert contents(tmp_path / "o") == whole


def test_killed_at_every_file_operation_the_labels_are_the_same(labels, tmp_path, monkeypatch):
    make, whole = labels
    faults = Faults(monkeypatch, tmp_path, kill=True)
    kills = faults.runs(lambda: make(tmp_path / "o"), KilledError, lambda error: None)
    assert kills > 100
    assert contents(tmp_path / "o") == whole


def test_a_stage_whose_directory_is_deleted_is_not_made_again_without_what_was_there(labels, tmp_path, monkeypatch):
    make, whole = labels
    replace = os.replace
    for stage in ("masks", "clusters", "semantics", "panoptic"):
        output = tmp_path / stage

        def deleting(source, target, output=output, stage=stage):
            replace(source, target)
            if str(target).startswith(str(output / stage)) and "manifest" not in str(target):
                shutil.rmtree(output / stage)

        with monkeypatch.context() as patch, pytest.raises(WriteError) as error:
            patch.setattr(os, "replace", deleting)
            make(output)
        assert str(output) in str(error.value) and "was deleted or moved, wholly or in part" in str(error.value)
        assert not (output / stage).exists()
        assert contents(make(output)) == whole


@pytest.mark.parametrize("stage", ["clusters", "semantics"])
def test_an_image_lost_between_two_stages_is_recorded_and_may_be_put_back(photos, labels, tmp_path, stage, caplog):
    _, whole = labels
    copy, output = tmp_path / "photos", tmp_path / "o"
    shutil.copytree(photos, copy)
    cfg = setup_cfg(*CFG)
    before = STAGES[: STAGES.index(stage)]
    make_pseudo_labels(cfg, copy, output, stages=before)
    data = (copy / "1.png").read_bytes()
    (copy / "1.png").unlink() if stage == "clusters" else (copy / "1.png").write_bytes(data[:90])
    with pytest.raises(TooManyFailuresError, match="1 of 3 images could not be read"):
        make_pseudo_labels(cfg, copy, output, stages=[stage])
    # With the limit that it passes, the other image is labeled.
    shutil.copytree(output, tmp_path / "part")
    rest = [name for name in STAGES if name not in before]
    tolerant = setup_cfg(CFG[0], [*OPTIONS, "MASKS.MAX_FAILURES", "0.5"])
    make_pseudo_labels(tolerant, copy, tmp_path / "part", stages=rest)
    rows = json.loads((tmp_path / "part" / "failures.json").read_text())
    assert [row["file_name"] for row in rows] == ["1.png"]
    assert ("no such file" if stage == "clusters" else "truncated") in rows[0]["reason"]
    assert "get no labels" in caplog.text
    panoptic = json.loads((tmp_path / "part/panoptic/panoptic.json").read_text())
    assert [image["file_name"] for image in panoptic["images"]] == ["0.png", "2.png"]
    # Put back, it is read, in an unfinished stage by itself and in finished labels on demand.
    (copy / "1.png").write_bytes(data)
    make_pseudo_labels(cfg, copy, output, stages=rest)
    assert contents(output) == whole
    assert retry_failures(cfg, copy, tmp_path / "part") == 1
    make_pseudo_labels(cfg, copy, tmp_path / "part")
    assert contents(tmp_path / "part") == whole


def test_a_damaged_or_missing_shard_is_named(labels, photos, tmp_path):
    make, _ = labels
    output = make(tmp_path / "o")
    shutil.rmtree(output / "panoptic")
    for stage in ("masks", "clusters", "semantics"):
        shard = output / stage / "shard-000001.parquet"
        whole = shard.read_bytes()
        for spoil, message in (
            (lambda shard=shard, whole=whole: shard.write_bytes(whole[:-9]), "is damaged: "),
            (lambda shard=shard: shard.write_text("no shard"), "is damaged: "),
            (lambda shard=shard: shard.unlink(), "its manifest.json says 3|is missing: |semantics has 2 shards"),
        ):
            spoil()
            with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
                make_pseudo_labels(setup_cfg(*CFG), photos, output, stages=["panoptic"])
            assert str(shard.parent) in str(error.value) and "\n" not in str(error.value)
        shard.write_bytes(whole)
