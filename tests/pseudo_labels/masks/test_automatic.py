"""The mask generator that works on one image in memory."""

import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image
from pycocotools import mask as mask_utils
from u2seg.config import add_u2seg_config
from u2seg.data.formats.mask_shards import iter_records
from u2seg.pseudo_labels.masks import AutomaticMaskGenerator, make_masks
from u2seg.utils.image_io import read_image_rgb


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.FEATURES.IMAGE_SIZE = (96, 128)
    cfg.FEATURES.DEVICE = "cpu"
    cfg.MASKS.CENTER_FEATURES = True
    cfg.MASKS.TAU = 0.6
    cfg.MASKS.NUM_WORKERS = 0
    return cfg


def two_rectangles(size=(90, 150)):
    """A red and a blue rectangle on a green ground, all slightly noisy."""
    noise = np.random.default_rng(0).integers(-4, 5, (*size, 3))
    image = np.full((*size, 3), (40, 140, 60)) + noise
    image[20:65, 20:60] += (160, -100, -20)
    image[30:70, 95:130] += (0, -100, 150)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("generator", ["MaskCut", "VoteCut", "KMeansRegions", "WholeImage"])
def test_gives_what_the_stage_writes(cfg, tmp_path, generator):
    cfg.MASKS.GENERATOR = generator
    cfg.MASKS.REFINEMENT = "guided_filter"
    (tmp_path / "images").mkdir()
    Image.fromarray(two_rectangles()).save(tmp_path / "images" / "a.png")
    Image.fromarray(two_rectangles((70, 140))).save(tmp_path / "images" / "b.png")
    build_once = AutomaticMaskGenerator(cfg)
    num_masks = 0
    for record in iter_records(make_masks(cfg, tmp_path / "images", tmp_path / "masks")):
        found = build_once.generate(read_image_rgb(tmp_path / "images" / record.file_name))
        num_masks += len(found)
        assert [mask["segmentation"]["counts"].encode() for mask in found] == list(record.rle_counts)
        assert [mask["score"] for mask in found] == record.scores.tolist()
        assert [mask["refined_iou"] for mask in found] == record.refined_ious.tolist()
        cut_values = [np.nan if mask["cut_value"] is None else mask["cut_value"] for mask in found]
        np.testing.assert_array_equal(cut_values, record.cut_values)
    assert num_masks


def test_boxes_and_areas_are_those_of_the_masks(cfg):
    image = two_rectangles()
    masks = AutomaticMaskGenerator(cfg).generate(image)
    red = np.zeros((90, 150), bool)
    red[20:65, 20:60] = True
    decoded = [mask_utils.decode(mask["segmentation"]).astype(bool) for mask in masks]
    assert max((mask & red).sum() / (mask | red).sum() for mask in decoded) > 0.85
    for mask, pixels in zip(masks, decoded):
        rows, columns = np.nonzero(pixels)
        assert pixels.shape == (90, 150)
        assert mask["area"] == pixels.sum()
        assert mask["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert 0 <= mask["score"] <= 1 and 0 <= mask["cut_value"] <= 1
    assert [mask["score"] for mask in masks] == sorted((mask["score"] for mask in masks), reverse=True)
    assert json.loads(json.dumps(masks, allow_nan=False)) == masks


def test_an_image_without_objects_has_no_masks(cfg):
    assert AutomaticMaskGenerator(cfg).generate(np.full((40, 60, 3), 90, np.uint8)) == []


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((4, 5, 3)), r"float64 \(4, 5, 3\)"),
        (np.zeros((4, 5), np.uint8), r"uint8 \(4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), r"uint8 \(3, 4, 5\)"),
        (np.zeros((4, 5, 4), np.uint8), r"uint8 \(4, 5, 4\)"),
        (np.zeros((0, 5, 3), np.uint8), r"uint8 \(0, 5, 3\)"),
        (Image.new("RGB", (4, 5)), "Image"),
        ("photo.jpg", "str"),
    ],
)
def test_other_input_is_refused(cfg, image, got):
    with pytest.raises(ValueError, match=rf"image_rgb must be a numpy array, uint8 of shape .*got {got}"):
        AutomaticMaskGenerator(cfg).generate(image)
