"""The mapper: equal to Detectron2's stock mapper on the same files, and right where that one does not go."""

import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from PIL import Image
from u2seg.config import add_u2seg_config
from u2seg.data import PanopticMapper, build_mapper, register_dataset
from u2seg.data.build import seed_random
from u2seg.data.training_sample import Sample, boxes_of_masks, segment_targets, to_instances
from u2seg.structures import semantic_target
from u2seg.utils.image_io import ImageReadError


def make_cfg(**keys):
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 56)
    cfg.INPUT.MAX_SIZE_TRAIN = 96
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


@pytest.fixture(scope="module")
def dicts(tmp_path_factory, write_coco_panoptic):
    root = write_coco_panoptic(tmp_path_factory.mktemp("mapper"))
    register_dataset("mapper_set", {"FORMAT": "coco_panoptic", "ROOT": str(root), "SPLIT": "train"})
    records = DatasetCatalog.get("mapper_set")
    # Stuff PNGs for the stock mapper, which cannot derive the semantic target.
    stuff = root / "stuff"
    stuff.mkdir()
    for record in records:
        pixels = np.asarray(Image.open(record["pan_seg_file_name"]))[:, :, 0]
        lookup = np.array([255, 1, 2, 0, 0], np.uint8)  # void, sky, ground, two instances
        Image.fromarray(lookup[pixels]).save(stuff / f"{record['image_id']}.png")
        record["stuff"] = str(stuff / f"{record['image_id']}.png")
    return records


@pytest.mark.parametrize(("image_format", "crop"), [("RGB", False), ("BGR", False), ("RGB", True)])
def test_output_equals_stock_mappers(dicts, image_format, crop):
    cfg = make_cfg(INPUT__FORMAT=image_format, INPUT__CROP__ENABLED=crop)
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "relative", [0.6, 0.6]
    stock, ours = DatasetMapper(cfg, True), PanopticMapper(cfg, True)
    for position, record in enumerate(dicts):
        if crop and not record["annotations"]:
            continue  # stock Detectron2 ends with an error there
        seed_random((position,))
        expected = stock({**record, "sem_seg_file_name": record["stuff"]})
        seed_random((position,))
        got = ours(record)  # the semantic target comes from the panoptic PNG
        assert torch.equal(got["image"], expected["image"])
        assert torch.equal(got["sem_seg"], expected["sem_seg"])
        assert len(got["instances"]) == len(expected["instances"])
        assert torch.equal(got["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
        assert torch.equal(got["instances"].gt_classes, expected["instances"].gt_classes)
        assert got["instances"].has("gt_masks") == expected["instances"].has("gt_masks")
        if got["instances"].has("gt_masks"):
            assert torch.equal(got["instances"].gt_masks.tensor, expected["instances"].gt_masks.tensor)


def test_boxes_given_as_integers_are_scaled_without_truncation(dicts):
    # Stock Detectron2 scales an integer array in place and cuts off the fractions.
    mapper = PanopticMapper(is_train=True, augmentations=[T.ResizeTransform(48, 64, 24, 32)], image_format="RGB")
    record = {**dicts[0], "annotations": [{**dicts[0]["annotations"][0], "bbox": [5, 7, 9, 10]}]}
    assert mapper.load(record).boxes_xyxy.tolist() == [[2.5, 3.5, 7.0, 8.5]]


def test_what_becomes_targets_does_not_travel_and_the_dict_stays(dicts):
    before = {**dicts[0]}
    packed = PanopticMapper(make_cfg(), True)(dicts[0])
    assert dicts[0] == before
    assert {"annotations", "segments_info", "pan_seg_file_name"} & set(packed) == set()
    assert packed["image_id"] == 1 and packed["file_name"] == dicts[0]["file_name"]


def test_test_samples_carry_the_original_size_even_where_the_dict_lacks_it(dicts):
    cfg = make_cfg()
    cfg.INPUT.MIN_SIZE_TEST = 24
    bare = {"file_name": dicts[0]["file_name"], "image_id": 1}
    sample = build_mapper(cfg, False)(bare)
    assert (sample["height"], sample["width"]) == (48, 64)
    assert tuple(sample["image"].shape) == (3, 24, 32)


def test_gray_images_and_polygons(tmp_path):
    Image.fromarray(np.arange(30, dtype=np.uint8).reshape(5, 6)).save(tmp_path / "gray.png")
    annotation = {
        "bbox": [1, 1, 3, 2], "bbox_mode": 1, "category_id": 0, "iscrowd": 0,
        "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]],
    }  # fmt: skip
    crowd = {**annotation, "iscrowd": 1}
    mapper = PanopticMapper(is_train=True, augmentations=[T.NoOpTransform()], image_format="RGB")
    sample = mapper.load({"file_name": str(tmp_path / "gray.png"), "annotations": [annotation, crowd]})
    assert sample.image.shape == (5, 6, 3) and (sample.image[..., 0] == sample.image[..., 2]).all()
    assert len(sample.masks) == 1  # the crowd is no target
    expected = np.zeros((5, 6), bool)
    expected[1:3, 1:4] = True
    assert (sample.masks[0] == expected).all()
    assert sample.sem_seg is None


def test_errors_name_the_file(tmp_path, dicts):
    mapper = PanopticMapper(make_cfg(), True)
    with pytest.raises(ImageReadError, match=r"nowhere\.png: no such file"):
        mapper({**dicts[0], "file_name": str(tmp_path / "nowhere.png")})
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png is not readable as an image"):
        mapper({**dicts[0], "pan_seg_file_name": str(tmp_path / "broken.png")})
    with pytest.raises(ValueError, match=r"\(48, 64\), its annotation says \(48, 65\)"):
        mapper({**dicts[0], "width": 65})
    with pytest.raises(ValueError, match="INPUT.FORMAT must be RGB or BGR, got 'L'"):
        PanopticMapper(make_cfg(INPUT__FORMAT="L"), True)


def test_an_unknown_mapper_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"PanopticMaper.*registered:.*PanopticMapper"):
        build_mapper(make_cfg(INPUT__DATASET_MAPPER_NAME="PanopticMaper"), True)


def test_boxes_of_masks_on_a_hand_made_case():
    masks = np.zeros((3, 4, 6), bool)
    masks[0, 1, 2] = True  # one pixel: box of area 1
    masks[1, 0, 5] = masks[1, 3, 0] = True  # two corners: the whole image
    assert boxes_of_masks(masks).tolist() == [[2, 1, 3, 2], [0, 0, 6, 4], [0, 0, 0, 0]]
    assert boxes_of_masks(masks[:0]).shape == (0, 4)


def test_semantic_target_on_a_hand_made_case():
    # Segment 300 is a thing, 5 is stuff class 2, 9 is listed nowhere and 0 is void.
    panoptic_map = np.array([[0, 5, 5], [300, 300, 9]])
    info = [{"id": 5, "isthing": False, "category_id": 2}, {"id": 300, "isthing": True, "category_id": 17}]
    target = semantic_target(panoptic_map, segment_targets(info))
    assert target.dtype == np.uint8
    assert target.tolist() == [[255, 2, 2], [0, 0, 255]]
    assert semantic_target(panoptic_map, {}).tolist() == [[255] * 3] * 2


def test_instances_without_pixels_or_box_are_left_out():
    masks = np.zeros((3, 4, 4), bool)
    masks[0, 1:3, 1:3] = masks[2, 0, 0] = True
    boxes = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [1, 1, 1, 2]], float)  # the last one is 0 pixels wide
    sample = Sample(np.zeros((4, 4, 3), np.uint8), masks, boxes, np.array([4, 5, 6]), None)
    assert to_instances(sample).gt_classes.tolist() == [4]


def test_seed_random_fixes_all_three_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    seed_random((3, 1))
    first = draw()
    seed_random((3, 2))
    second = draw()
    seed_random((3, 1))
    assert draw() == first
    assert all(a != b for a, b in zip(first, second))


def test_a_wrong_semantic_target_is_named(dicts, tmp_path):
    mapper = PanopticMapper(make_cfg(MODEL__SEM_SEG_HEAD__NUM_CLASSES=3), True)
    path = tmp_path / "stuff.png"
    record = {**dicts[0], "sem_seg_file_name": str(path)}
    with pytest.raises(FileNotFoundError, match=r"stuff\.png: no such file"):
        mapper(record)
    whole = np.full((48, 64), 255, np.uint8)
    whole[0, :3] = 0, 1, 2
    Image.fromarray(whole).save(path)
    assert set(mapper(record)["sem_seg"].unique().tolist()) <= {0, 1, 2, 255}
    data = path.read_bytes()
    whole[3, 3] = 3
    cases = (
        (lambda: Image.fromarray(whole).save(path), r"stuff\.png holds the id 3; expected 0\.\.2 \(MODEL"),
        (
            lambda: Image.fromarray(whole.T).save(path),
            r"stuff\.png has \(height, width\) \(64, 48\), its image \(48, 64\)",
        ),
        (
            lambda: Image.fromarray(whole).convert("RGB").save(path),
            r"stuff\.png must be an 8-bit map of ids, got uint8 of",
        ),
        (lambda: path.write_bytes(data[: len(data) - 20]), r"stuff\.png is not readable as an image"),
        (lambda: path.write_bytes(b""), r"stuff\.png: the file is empty"),
    )
    for spoil, message in cases:
        spoil()
        with pytest.raises(ValueError, match=message):
            mapper(record)


def test_an_ignore_value_that_the_targets_do_not_hold_is_refused(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0)
    with pytest.raises(ValueError, match="IGNORE_VALUE is 0; expected 255"):
        PanopticMapper(cfg, True)
