"""The rendered scenes are a well-formed COCO panoptic dataset, reproducible, and hold what they promise."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from u2seg.data.benchmarks import scenes as scenes_module


@pytest.fixture(scope="module")
def module():
    return scenes_module


@pytest.fixture(scope="module")
def scenes(module, tmp_path_factory):
    return module.prepare_scenes(tmp_path_factory.mktemp("data") / "scenes", 3, 12, seed=0, annotate_train=False)


def test_only_validation_images_have_ground_truth(scenes):
    assert len(list((scenes / "train").iterdir())) == 3
    assert sorted(path.name for path in (scenes / "annotations").iterdir()) == [
        "instances_val.json",
        "panoptic_val.json",
    ]
    assert not (scenes / "panoptic_train").exists()


def test_ground_truth_is_complete_and_consistent(scenes, module):
    panoptic = json.loads((scenes / "annotations" / "panoptic_val.json").read_text())
    coco = COCO(scenes / "annotations" / "instances_val.json")
    is_thing = {category["id"]: category["isthing"] for category in panoptic["categories"]}
    seen = set()
    for row in panoptic["annotations"]:
        pixels = np.asarray(Image.open(scenes / "panoptic_val" / row["file_name"])).astype(int)
        assert pixels.shape == (module.HEIGHT, module.WIDTH, 3)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        assert set(np.unique(ids)) == {segment["id"] for segment in row["segments_info"]}, "no pixel is void"
        stuff = [s["category_id"] for s in row["segments_info"] if not is_thing[s["category_id"]]]
        assert len(stuff) == len(set(stuff)), "one segment for each kind of stuff"
        things = [s for s in row["segments_info"] if is_thing[s["category_id"]]]
        instances = coco.loadAnns(coco.getAnnIds(imgIds=[row["image_id"]]))
        assert len(things) == len(instances)
        for thing, instance in zip(things, instances):
            assert thing["area"] == instance["area"] >= 24
            np.testing.assert_array_equal(coco.annToMask(instance).astype(bool), ids == thing["id"])
        seen |= {s["category_id"] for s in row["segments_info"]}
    assert len(seen) >= 10, "twelve images should show nearly all of the twelve kinds"


def test_an_image_depends_on_its_number_alone(module, scenes, tmp_path):
    more = module.prepare_scenes(tmp_path / "more", 5, 1, seed=0, annotate_train=True)
    for name in ("000001.jpg", "000003.jpg"):
        assert (more / "train" / name).read_bytes() == (scenes / "train" / name).read_bytes()
    other = module.prepare_scenes(tmp_path / "other", 1, 1, seed=1, annotate_train=False)
    assert (other / "train" / "000001.jpg").read_bytes() != (scenes / "train" / "000001.jpg").read_bytes()


def test_no_threshold_on_one_channel_finds_the_things(module):
    """The best threshold on any RGB channel, chosen with the ground truth, overlaps the things with an IoU below one half."""
    things, images = [], []
    for number in range(12):
        image, segments, kinds = module.render_scene(np.random.default_rng([7, number]))
        images.append(image)
        things.append(np.array([kind in module.THINGS for kind in kinds])[segments])
    images, things = np.stack(images), np.stack(things)
    best = 0.0
    for channel in range(3):
        for level in range(10, 250, 10):
            for chosen in (images[..., channel] > level, images[..., channel] < level):
                best = max(best, (chosen & things).sum() / (chosen | things).sum())
    assert best < 0.5
