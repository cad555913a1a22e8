"""The label maker as a user meets it: any directory of images, killed at any moment, broken files, clear errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from u2seg.cli.main import main
from u2seg.config import setup_cfg
from u2seg.data.formats.coco_panoptic import read_panoptic_png
from u2seg.pseudo_labels.pipeline import make_pseudo_labels
from u2seg.utils.manifest import StageMismatchError, TooManyFailuresError, is_complete, reopen_stage

TOOL = Path(__file__).parents[2] / "tools" / "make_pseudo_labels.py"
OPTIONS = [
    *("FEATURES.IMAGE_SIZE", "(72,108)", "FEATURES.HANDMADE.PATCH_SIZE", "4", "FEATURES.BATCH_SIZE", "3"),
    *("MASKS.NUM_WORKERS", "0", "MASKS.SHARD_SIZE", "3", "MASKS.MIN_AREA", "0.005", "MASKS.MAX_FAILURES", "0.5"),
    *("CLUSTERS.NUM_CLUSTERS", "2", "CLUSTERS.NUM_RESTARTS", "1"),
    *("SEMANTICS.NUM_CLUSTERS", "2", "SEMANTICS.NUM_RESTARTS", "1"),
]


def draw_photo(seed: int, size=(60, 90)) -> np.ndarray:
    """Returns an image with two blobs of two kinds on a noisy two-part background, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = np.full((height, width, 3), (120, 160, 220), np.int32)
    image[height // 2 :] = (60, 120, 50)
    rows, columns = np.mgrid[:height, :width]
    for x, color in ((0.3, (230, 40, 40)), (0.7, (240, 220, 40))):
        y, x = rng.uniform(0.3, 0.7) * height, (x + rng.uniform(-0.08, 0.08)) * width
        image[np.hypot(rows - y, columns - x) < height / 4.5] = color
    return (image + rng.integers(-12, 13, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A directory tree of eight images with every kind of trouble, and two files that are none."""
    root = tmp_path_factory.mktemp("photos")
    (root / "deep" / "er").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(draw_photo(number)).save(root / f"{'abcd'[number]}.jpg", quality=95)
    Image.fromarray(draw_photo(9)[..., 0]).save(root / "deep" / "gray.png")
    Image.fromarray(draw_photo(10)).convert("CMYK").save(root / "deep" / "er" / "cmyk.jpg")
    Image.fromarray(draw_photo(11)).convert("P").save(root / "deep" / "a.png")
    Image.fromarray(draw_photo(12)[:1, :1]).save(root / "tiny.webp", lossless=True)
    (root / "empty.jpg").write_bytes(b"")
    (root / "cut.jpg").write_bytes((root / "a.jpg").read_bytes()[:600])
    return root


@pytest.fixture(scope="module")
def cfg():
    return setup_cfg("quick_schedules/scenes.yaml", OPTIONS)


@pytest.fixture(scope="module")
def labels(photos, cfg, tmp_path_factory):
    """The result of an uninterrupted run."""
    return make_pseudo_labels(cfg, photos, tmp_path_factory.mktemp("labels"))


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_everything_is_labeled_or_recorded(labels, photos):
    failures = json.loads((labels / "failures.json").read_text())
    assert [row["file_name"] for row in failures] == ["cut.jpg", "empty.jpg"]
    assert "truncated" in failures[0]["reason"].lower() and "empty" in failures[1]["reason"]
    panoptic = json.loads((labels / "panoptic" / "panoptic.json").read_text())
    readable = {"a.jpg", "b.jpg", "c.jpg", "d.jpg", "deep/a.png", "deep/gray.png", "deep/er/cmyk.jpg", "tiny.webp"}
    assert {image["file_name"] for image in panoptic["images"]} == readable
    assert len(panoptic["annotations"]) == len(readable)


def test_the_three_files_agree_with_one_another(labels):
    directory = labels / "panoptic"
    panoptic = json.loads((directory / "panoptic.json").read_text())
    coco = COCO(directory / "instances.json")
    sizes = {image["id"]: (image["height"], image["width"]) for image in panoptic["images"]}
    assert [c["id"] for c in panoptic["categories"]] == [1, 2, 3, 4]
    assert [c["isthing"] for c in panoptic["categories"]] == [1, 1, 0, 0]
    num_things = 0
    for row in panoptic["annotations"]:
        pixels = read_panoptic_png(directory / "panoptic" / row["file_name"])
        stuff = np.asarray(Image.open(directory / "stuff" / row["file_name"]))
        assert pixels.shape == stuff.shape == sizes[row["image_id"]]
        assert set(np.unique(pixels)) - {0} == {segment["id"] for segment in row["segments_info"]}
        assert (stuff[pixels == 0] == 255).all()
        instances = coco.loadAnns(coco.getAnnIds(imgIds=[row["image_id"]]))
        things = [segment for segment in row["segments_info"] if segment["category_id"] <= 2]
        assert len(instances) == len(things)
        for segment in row["segments_info"]:
            region = pixels == segment["id"]
            assert region.sum() == segment["area"]
            expected = 0 if segment["category_id"] <= 2 else segment["category_id"] - 2
            assert (stuff[region] == expected).all()
        for segment, instance in zip(things, instances):
            np.testing.assert_array_equal(coco.annToMask(instance).astype(bool), pixels == segment["id"])
            assert instance["category_id"] == segment["category_id"] and 0 <= instance["score"] <= 1
            assert instance["bbox"] == segment["bbox"]
        num_things += len(things)
    assert num_things >= 8, "most of the two blobs of each image should be found"


def test_whole_instances_cover_the_things_and_hold_what_is_seen_of_them(labels, photos, tmp_path):
    output = tmp_path / "labels"
    shutil.copytree(labels, output, ignore=shutil.ignore_patterns("panoptic"))
    whole = setup_cfg("quick_schedules/scenes.yaml", [*OPTIONS, "PANOPTIC_LABELS.CARVE_INSTANCES", "False"])
    with pytest.raises(StageMismatchError, match="carve_instances: asked for False, the directory has True"):
        make_pseudo_labels(whole, photos, labels, stages=["panoptic"])
    make_pseudo_labels(whole, photos, output, stages=["panoptic"])
    carved = snapshot(labels / "panoptic")
    changed = {name for name, content in snapshot(output / "panoptic").items() if carved[name] != content}
    assert changed <= {"instances.json", "manifest.json"}  # the maps are the same
    coco = COCO(output / "panoptic" / "instances.json")
    panoptic = json.loads((output / "panoptic" / "panoptic.json").read_text())
    for row in panoptic["annotations"]:
        pixels = read_panoptic_png(output / "panoptic" / "panoptic" / row["file_name"])
        masks = [coco.annToMask(a).astype(bool) for a in coco.loadAnns(coco.getAnnIds(imgIds=[row["image_id"]]))]
        things = [pixels == s["id"] for s in row["segments_info"] if s["category_id"] <= 2]
        assert all(any((seen <= mask).all() for mask in masks) for seen in things)
        assert (np.any(masks, axis=0) == np.any(things, axis=0)).all()


def test_the_two_kinds_of_blobs_fall_into_two_clusters(labels):
    coco = COCO(labels / "panoptic" / "instances.json")
    kinds = {"red": set(), "yellow": set()}
    for image_id, image in coco.imgs.items():
        if image["file_name"] in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image_id])):
                center = annotation["bbox"][0] + annotation["bbox"][2] / 2
                kinds["red" if center < image["width"] / 2 else "yellow"].add(annotation["category_id"])
    assert sorted(map(len, kinds.values())) == [1, 1] and kinds["red"] != kinds["yellow"]


def test_a_second_run_changes_nothing(labels, photos, cfg):
    before = snapshot(labels)
    make_pseudo_labels(cfg, photos, labels)
    assert snapshot(labels) == before


def test_interrupted_at_every_write_the_result_is_the_same(labels, photos, cfg, tmp_path, monkeypatch):
    expected = snapshot(labels)
    replace, countdown = os.replace, [0]

    def interrupting(source, target):
        countdown[0] -= 1
        if countdown[0] == 0:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupting)
    interruptions = 0
    while True:
        # A panoptic shard of three images is seven files, the largest unit of work; each attempt gets about one unit on.
        countdown[0] = 8 + interruptions % 3
        try:
            make_pseudo_labels(cfg, photos, tmp_path / "labels")
            break
        except KeyboardInterrupt:
            interruptions += 1
        if interruptions > 30:
            pytest.fail("the run does not get on")
    assert interruptions >= 4
    assert snapshot(tmp_path / "labels") == expected


def test_killed_for_real_it_goes_on(labels, photos, tmp_path):
    output = tmp_path / "labels"
    command = [sys.executable, str(TOOL), str(photos), "--config-file", "quick_schedules/scenes.yaml"]
    command += ["--output", str(output), *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(output.glob("masks/shard-*.parquet")):
            assert process.poll() is None, "it ended before its first shard"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not (output / "panoptic" / "panoptic.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert snapshot(output) == snapshot(labels)


def test_too_many_failures_end_the_run_with_the_list(photos, tmp_path):
    cfg = setup_cfg("quick_schedules/scenes.yaml", [*OPTIONS, "MASKS.MAX_FAILURES", "0.01"])
    with pytest.raises(TooManyFailuresError, match=r"(?s)2 of 10 images.*cut\.jpg: .*empty\.jpg: .*empty"):
        make_pseudo_labels(cfg, photos, tmp_path / "labels")


def test_the_command_ends_non_zero_and_says_why(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()

    def run(*arguments) -> str:
        common = [str(photos), "--config-file", "quick_schedules/scenes.yaml", "--output", str(tmp_path / "o")]
        assert main(["labels", *common, *arguments]) == 1
        return capsys.readouterr().err

    assert "no image below" in run()
    assert "MASKS.NO_SUCH_KEY" in run("--stages", "masks,clusters", "MASKS.NO_SUCH_KEY", "1")
    with pytest.raises(SystemExit, match="2"):
        run("--stages", "mask", "MASKS.TAU", "0.2")
    assert "comma-separated list of masks, clusters, semantics, panoptic; got 'mask'" in capsys.readouterr().err


def test_a_stage_whose_input_is_missing_is_named(photos, cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match="the clusters stage needs a finished masks stage"):
        make_pseudo_labels(cfg, photos, tmp_path, stages=["clusters"])
    with pytest.raises(ValueError, match=r"unknown stages \['mask'\]; choose from masks, clusters"):
        make_pseudo_labels(cfg, photos, tmp_path, stages=["mask"])


def test_an_output_among_the_images_and_a_strangers_manifest_are_refused(photos, cfg, tmp_path):
    with pytest.raises(ValueError, match="lies in the image directory"):
        make_pseudo_labels(cfg, photos, photos / "labels")
    (tmp_path / "manifest.json").write_text('{"mine": 1}')
    with pytest.raises(StageMismatchError, match="not written by this command"):
        make_pseudo_labels(cfg, photos, tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"mine": 1}'


def test_an_image_replaced_under_its_name_is_noticed(photos, cfg, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    make_pseudo_labels(cfg, copy, tmp_path / "labels", stages=["masks"])
    Image.fromarray(draw_photo(99, (50, 70))).save(copy / "a.jpg")
    with pytest.raises(StageMismatchError, match="IMAGES.digest"):
        make_pseudo_labels(cfg, copy, tmp_path / "labels", stages=["masks"])


def test_other_features_are_refused_by_a_finished_semantic_stage(labels, photos):
    cfg = setup_cfg("quick_schedules/scenes.yaml", [*OPTIONS, "FEATURES.NAME", "RawPixels"])
    with pytest.raises(
        StageMismatchError, match="features.NAME: asked for 'RawPixels', the directory has 'HandmadeDescriptor'"
    ):
        make_pseudo_labels(cfg, photos, labels, stages=["semantics"])


def test_a_name_that_is_no_utf8_is_recorded(photos, cfg, tmp_path):
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    try:
        os.rename(os.fsencode(copy / "b.jpg"), os.fsencode(copy) + b"/\xe9.jpg")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    output = make_pseudo_labels(cfg, copy, tmp_path / "labels")
    failures = {row["file_name"]: row["reason"] for row in json.loads((output / "failures.json").read_text())}
    assert failures["\\udce9.jpg"] == "its name is not UTF-8; rename it"


def test_stages_can_be_run_one_by_one(labels, photos, cfg, tmp_path):
    for stage in ("masks", "clusters", "semantics", "panoptic"):
        make_pseudo_labels(cfg, photos, tmp_path / "labels", stages=[stage])
    assert snapshot(tmp_path / "labels") == snapshot(labels)


def interrupt(*args, **others):
    raise KeyboardInterrupt


def test_a_repaired_image_is_read_and_gives_the_labels_of_a_new_run(photos, cfg, tmp_path, capsys, monkeypatch):
    repaired, output = tmp_path / "photos", tmp_path / "labels"
    shutil.copytree(photos, repaired)
    command = ["labels", str(repaired), "--config-file", "quick_schedules/scenes.yaml", "--output", str(output)]
    command += [*OPTIONS]
    assert main([*command, "--worker", "0/2", "--retry-failures"]) == 1
    assert "in a run without it" in capsys.readouterr().err
    assert main([*command, "--retry-failures"]) == 1
    assert "no mask stage was begun" in capsys.readouterr().err
    assert main(command) == 0
    before = snapshot(output)
    assert main([*command, "--retry-failures"]) == 0
    assert "0 of the unreadable images can be read now" in capsys.readouterr().out
    assert snapshot(output) == before

    shutil.copy(repaired / "b.jpg", repaired / "cut.jpg")
    assert main(command) == 1, "without the option, other images need another directory"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupt)
        assert main([*command, "--retry-failures"]) == 130
    assert not is_complete(output / "panoptic") and is_complete(output / "masks")
    assert main([*command, "--retry-failures"]) == 0
    assert "1 of the unreadable images can be read now" in capsys.readouterr().out
    assert snapshot(output) == snapshot(make_pseudo_labels(cfg, repaired, tmp_path / "new"))
    untouched = {
        name for name, content in before.items() if "masks/shard" in name and content == snapshot(output)[name]
    }
    assert len(untouched) == 3

    shutil.copy(repaired / "b.jpg", repaired / "empty.jpg")
    shutil.copy(repaired / "b.jpg", repaired / "a.jpg")
    kept = snapshot(output)
    capsys.readouterr()
    assert main([*command, "--retry-failures"]) == 1
    assert "other images of" in capsys.readouterr().err
    assert snapshot(output) == kept


def test_labels_may_stay_in_shards_and_become_cocos_files_later(labels, photos, tmp_path):
    output = tmp_path / "labels"
    shutil.copytree(labels, output, ignore=shutil.ignore_patterns("panoptic", "manifest.json"))
    for stage in ("masks", "clusters", "semantics"):
        shutil.copy(labels / stage / "manifest.json", output / stage / "manifest.json")
    shards = setup_cfg("quick_schedules/scenes.yaml", [*OPTIONS, "PANOPTIC_LABELS.FORMAT", "shards"])
    make_pseudo_labels(shards, photos, output)
    made = snapshot(output / "panoptic")
    assert set(made) == {"manifest.json", *(f"shard-{i:06d}.{kind}" for i in range(4) for kind in ("parquet", "tar"))}
    assert made["manifest.json"] == (labels / "panoptic/manifest.json").read_bytes()
    make_pseudo_labels(shards, photos, output)
    assert snapshot(output / "panoptic") == made
    # A run that was begun with shards may go on without.
    reopen_stage(output / "panoptic", "panoptic", json.loads(made["manifest.json"])["settings"])
    (output / "panoptic/shard-000002.parquet").unlink()
    with_files = setup_cfg("quick_schedules/scenes.yaml", OPTIONS)
    for _ in range(2):
        make_pseudo_labels(with_files, photos, output)
        assert snapshot(output) == snapshot(labels)
    # COCO's files that are there stay.
    make_pseudo_labels(shards, photos, output)
    assert snapshot(output) == snapshot(labels)


def test_workers_in_any_order_give_the_same_bytes(labels, photos, tmp_path):
    output = tmp_path / "labels"
    command = ["labels", str(photos), "--config-file", "quick_schedules/scenes.yaml", "--output", str(output)]
    for worker, shards in (
        ("2/3", {2}),
        ("0/3", {0, 2, 3}),
        ("2/3", {0, 2, 3}),
    ):  # 1/3 never runs: the rest is made later
        assert main([*command, "--worker", worker, *OPTIONS]) == 0
        assert {int(path.stem[-6:]) for path in output.glob("masks/shard-*")} == shards
    assert main([*command, *OPTIONS]) == 0
    assert snapshot(output) == snapshot(labels)


def test_two_local_processes_give_the_same_bytes(labels, photos, cfg, tmp_path):
    output = make_pseudo_labels(cfg, photos, tmp_path / "labels", num_workers=2)
    assert snapshot(output) == snapshot(labels)


@pytest.mark.parametrize("worker", ["3/3", "0/0", "1", "-1/2", "a/b"])
def test_a_worker_that_does_not_exist_is_refused(photos, tmp_path, capsys, worker):
    command = ["labels", str(photos), "--config-file", "quick_schedules/scenes.yaml", "--output", str(tmp_path / "o")]
    assert main([*command, f"--worker={worker}"]) == 1
    assert "INDEX/COUNT" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_more_clusters_than_masks_is_a_clear_error(photos, tmp_path):
    cfg = setup_cfg("quick_schedules/scenes.yaml", [*OPTIONS, "CLUSTERS.NUM_CLUSTERS", "500"])
    message = (
        r"fewer than the 500 clusters asked for .* change what RecursiveCut reads.*: MASKS\.RECURSIVE, MASKS\.MIN_AREA"
    )
    with pytest.raises(ValueError, match=message):
        make_pseudo_labels(cfg, photos, tmp_path / "labels")


@pytest.mark.parametrize("embedding", ["masked_crop", "random_vectors"])
def test_other_embeddings_run_the_same_chain(photos, tmp_path, embedding):
    cfg = setup_cfg("quick_schedules/scenes.yaml", [*OPTIONS, "CLUSTERS.EMBEDDING", embedding])
    output = make_pseudo_labels(cfg, photos, tmp_path / "labels")
    histogram = json.loads((output / "clusters" / "histogram.json").read_text())
    assert sum(histogram["masks_per_cluster"]) >= 8 and histogram["empty_clusters"] == 0
    assert not list(output.glob("clusters/.*"))
