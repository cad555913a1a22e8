"""The frozen plan against the lists that it replaces."""

import json
import random

import pytest
from u2seg.pseudo_labels import image_plan
from u2seg.pseudo_labels.image_plan import PlannedImage, automatic_shard_size, find_plan, remove_other_plans, write_plan
from u2seg.utils.files import list_digest
from u2seg.utils.image_io import ImageSource, image_ids, png_names


class Names(ImageSource):
    """Images that exist by name alone."""

    def __init__(self, names):
        self.description, self.root, self._names = "some names", None, names

    def names(self):
        return iter(self._names)

    def digest(self, name):
        return f"digest of {name!a}"


def random_names(rng):
    stems = ["1", "01", "2", "a", "A", "a.jpg", "d/a", "D/a", "n" * 300]
    return sorted({rng.choice(stems) + rng.choice([".jpg", ".JPG", ".png"]) for _ in range(rng.randrange(1, 12))})


def test_ids_names_and_digest_are_those_of_the_whole_list(tmp_path, monkeypatch):
    monkeypatch.setattr(image_plan, "_SHARDS_PER_FILE", 2)
    for seed in range(60):
        names = random_names(random.Random(seed)) if seed % 3 else [f"{seed + i:04d}.jpg" for i in range(7)]
        plan = write_plan(Names(names), tmp_path / str(seed), 2)
        digests = [f"digest of {name!a}" for name in names]
        expected = [PlannedImage(*row) for row in zip(image_ids(names), names, png_names(names), digests)]
        assert list(plan) == expected
        assert [image for shard in range(plan.num_shards) for image in plan.images(shard)] == expected
        assert (plan.count, plan.num_shards) == (len(names), -(-len(names) // 2))
        assert plan.digest == list_digest([f"{name}\t{digest}" for name, digest in zip(names, digests)])


def test_a_name_that_is_no_utf8_is_kept(tmp_path):
    (image,) = write_plan(Names(["\udce9.jpg"]), tmp_path, 2)
    assert (image.name, image.png_name) == ("\udce9.jpg", "\\udce9.png")


def test_it_is_written_once_and_found_by_the_manifest(tmp_path):
    plan = write_plan(Names(["a.jpg", "b.jpg", "c.jpg"]), tmp_path, 2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert write_plan(Names(["a.jpg", "b.jpg", "c.jpg"]), tmp_path, 2) == plan
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert find_plan(tmp_path) is None
    settings = {"IMAGES": {"digest": plan.digest}, "MASKS": {"SHARD_SIZE": 2}}
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": settings}))
    assert find_plan(tmp_path) == plan

    other = write_plan(Names(["a.jpg", "b.jpg"]), tmp_path, 2)
    assert find_plan(tmp_path) == plan and other.key != plan.key
    remove_other_plans(plan)
    assert find_plan(tmp_path) == plan
    assert {path for path in tmp_path.iterdir() if path.name != "manifest.json"} == set(files)


def test_nothing_and_twice_the_same_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image below some names"):
        write_plan(Names([]), tmp_path, 0)
    with pytest.raises(ValueError, match=r"some names lists 'b\.jpg' twice"):
        write_plan(Names(["b.jpg", "a.jpg", "b.jpg"]), tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_small_sets_keep_small_shards_and_large_ones_stay_under_some_thousand_files():
    assert {automatic_shard_size(count) for count in (1, 1000, 64_000)} == {64}
    for count in (64_001, 500_000, 8_000_000):
        assert count / automatic_shard_size(count) <= 1000
    assert automatic_shard_size(10**12) == 8192
