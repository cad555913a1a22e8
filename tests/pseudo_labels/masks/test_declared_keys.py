"""What generators, refinements and extractors declare to read is what they read, and nothing else stands in a manifest."""

from collections.abc import Iterator

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.features import FEATURE_EXTRACTOR_REGISTRY, feature_settings
from u2seg.pseudo_labels.masks import MASK_GENERATOR_REGISTRY, MASK_REFINEMENT_REGISTRY, make_masks
from u2seg.pseudo_labels.masks.interfaces import generator_keys
from u2seg.pseudo_labels.masks.recursive_cut import RecursiveCut
from u2seg.utils.files import read_json, write_json
from u2seg.utils.manifest import StageMismatchError, keys_read_by

# They say how the work is done, not what comes out.
HOW = {"FEATURES.DEVICE"}


class RecordingNode:
    """A configuration that notes the names of the values that are read."""

    def __init__(self, node: CfgNode, seen: set[str], path: str = ""):
        self._node, self._seen, self._path = node, seen, path

    def __getitem__(self, key):
        value, path = self._node[key], f"{self._path}{key}"
        if isinstance(value, CfgNode):
            return RecordingNode(value, self._seen, f"{path}.")
        self._seen.add(path)
        return value

    def __getattr__(self, key):
        return self[key]

    def items(self):
        return [(key, self[key]) for key in self._node]


def leaves(node: CfgNode, path: str) -> Iterator[str]:
    for key, value in node.items():
        yield from leaves(value, f"{path}.{key}") if isinstance(value, CfgNode) else [f"{path}.{key}"]


def named(cfg: CfgNode, keys: tuple[str, ...]) -> set[str]:
    """Returns the full names of all values that keys and nodes stand for."""
    found = set()
    for key in keys:
        value = cfg
        for part in key.split("."):
            value = value[part]
        found |= set(leaves(value, key)) if isinstance(value, CfgNode) else {key}
    return found


PARTS = [
    (name, part)
    for registry in (MASK_GENERATOR_REGISTRY, MASK_REFINEMENT_REGISTRY, FEATURE_EXTRACTOR_REGISTRY)
    for name, part in registry
    if part.__module__.startswith("u2seg.")
]


@pytest.mark.parametrize(("name", "part"), PARTS, ids=[name for name, _ in PARTS])
def test_every_part_declares_what_it_reads(name, part):
    cfg, seen = setup_cfg("quick_schedules/scenes.yaml"), set()
    getattr(part, "from_config", part)(RecordingNode(cfg, seen))
    declared = named(cfg, keys_read_by(part))
    assert seen - HOW <= declared, "read and not declared"
    # Both refinements by CRF declare the whole node.
    assert declared - seen <= {"MASKS.CRF.MIN_BOX_IOU"}, "declared and not read"


def image_directory(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(2):
        image = np.full((32, 40, 3), (30, 120, 60), np.uint8)
        image[8:24, 8 + index : 24 + index] = (200, 40, 40)
        Image.fromarray(image).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


def config(*options):
    options = ("FEATURES.IMAGE_SIZE", (32, 40), "FEATURES.DEVICE", "cpu", "MASKS.NUM_WORKERS", 0, *options)
    return setup_cfg("quick_schedules/scenes.yaml", [str(option) for option in options])


def test_keys_of_parts_that_are_not_in_use_do_not_count(tmp_path):
    images, masks = image_directory(tmp_path), tmp_path / "masks"
    make_masks(config(), images, masks)
    settings = read_json(masks / "manifest.json")["settings"]
    assert set(settings["MASKS"]) == {
        "GENERATOR", "REFINEMENT", "MIN_REFINED_IOU", "SCORE_TIMES_IOU", "ALLOW_OVERLAPS", "SHARD_SIZE",
        "RECURSIVE", "MIN_AREA", "MAX_AREA", "MAX_CORNERS", "EPS", "CRF",
    }  # fmt: skip
    assert set(settings["FEATURES"]) == {"NAME", "IMAGE_SIZE", "POSITION_SHARE", "OTHERS", "HANDMADE"}
    make_masks(
        config("MASKS.HIERARCHY.MAX_IMAGE_BORDER", 0.3, "MASKS.TAU", 0.5, "FEATURES.VIT.BLOCK", 3), images, masks
    )
    with pytest.raises(StageMismatchError, match=r"settings\.MASKS\.RECURSIVE\.RADIUS: asked for 0\.2"):
        make_masks(config("MASKS.RECURSIVE.RADIUS", 0.2), images, masks)
    with pytest.raises(StageMismatchError, match=r"settings\.FEATURES\.HANDMADE\.COLOR_WEIGHT: asked for 3"):
        make_masks(config("FEATURES.HANDMADE.COLOR_WEIGHT", 3.0), images, masks)


def test_a_directory_that_names_more_keys_goes_on(tmp_path):
    # As versions left it that wrote down all keys: one more of a part in use, and those of others.
    images, masks = image_directory(tmp_path), tmp_path / "masks"
    make_masks(config("MASKS.SHARD_SIZE", 1), images, masks)
    whole = (masks / "shard-000001.parquet").read_bytes()
    (masks / "shard-000001.parquet").unlink()
    manifest = read_json(masks / "manifest.json")
    del manifest["counts"]
    manifest["settings"]["MASKS"].update(TAU=0.15, HIERARCHY={"WINDOW": 9})
    write_json(masks / "manifest.json", manifest)
    make_masks(config("MASKS.SHARD_SIZE", 1), images, masks)
    assert (masks / "shard-000001.parquet").read_bytes() == whole


def test_a_part_that_declares_nothing_is_taken_to_read_all(monkeypatch):
    class OwnGenerator(RecursiveCut):
        """Its base class' declaration is not its own."""

    monkeypatch.setitem(MASK_GENERATOR_REGISTRY._obj_map, "OwnGenerator", OwnGenerator)
    assert generator_keys(config("MASKS.GENERATOR", "OwnGenerator")) == ("MASKS",)


def test_the_features_of_every_backbone_count():
    cfg = config("MASKS.GENERATOR", "VoteCut", "FEATURES.OTHERS", [["NAME", "RawPixels", "RAW_PIXELS.PATCH_SIZE", 8]])
    assert set(feature_settings(cfg)) == {"NAME", "IMAGE_SIZE", "POSITION_SHARE", "OTHERS", "HANDMADE", "RAW_PIXELS"}


def test_weights_count_by_their_content(tmp_path):
    def settings(path, content):
        path.write_bytes(content)
        section = ("FEATURES.NAME", "ResNetFeatures", "FEATURES.RESNET.WEIGHTS", path)
        others = ("FEATURES.OTHERS", [["NAME", "TimmViT", "VIT.WEIGHTS", str(path), "VIT.BLOCK", 3]])
        return feature_settings(config(*section, *others))

    first = settings(tmp_path / "a.pth", b"1")
    assert settings(tmp_path / "b.pth", b"1") == first
    other = settings(tmp_path / "a.pth", b"2")
    assert other["RESNET"].pop("WEIGHTS") != first["RESNET"].pop("WEIGHTS")
    assert other["OTHERS"][0].pop(3) != first["OTHERS"][0].pop(3)
    assert other == first and first["OTHERS"] == [["NAME", "TimmViT", "VIT.WEIGHTS", "VIT.BLOCK", 3]]
    with pytest.raises(FileNotFoundError, match=r"FEATURES names the weights '.*gone.pth', and there is no such file"):
        feature_settings(config("FEATURES.NAME", "TimmViT", "FEATURES.VIT.WEIGHTS", tmp_path / "gone.pth"))
