"""Views and the points that two of them share, on images whose pixels are their own coordinates."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from PIL import Image
from u2seg.config import add_u2seg_config
from u2seg.luss.data.multi_crop import CropBox, CropKind, MultiCropMapper, overlap_grids


def view_of(image, box, size):
    """Cuts a float image (C, H, W) as the mapper does, by bilinear sampling at the view's pixel centers."""
    centers = (torch.arange(size) + 0.5) / size
    x = box.x0 + centers * (box.x1 - box.x0)
    y = box.y0 + centers * (box.y1 - box.y0)
    if box.flipped:
        x = x.flip(0)
    height, width = image.shape[1:]
    grid = torch.stack(torch.meshgrid(2 * y / height - 1, 2 * x / width - 1, indexing="ij")[::-1], dim=-1)
    return F.grid_sample(image[None], grid[None].float(), align_corners=False, padding_mode="border")[0]


@pytest.mark.parametrize("flips", [(False, False), (True, False), (True, True)])
def test_both_views_show_the_same_points(flips):
    height, width = 96, 150
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.stack([x, y])
    first, second = CropBox(10, 20, 90, 80, flips[0]), CropBox(40, 5, 140, 75, flips[1])
    grids, overlaps = overlap_grids(first, second, 7)
    assert overlaps
    seen = [
        F.grid_sample(view_of(image, box, 64)[None], grid[None], align_corners=False, padding_mode="border")[0]
        for box, grid in zip((first, second), grids)
    ]
    # The overlap is x 40..90, y 20..75; its outermost points lie on a crop's edge, half a pixel beyond the last center.
    expected_x, expected_y = torch.linspace(40, 90, 7), torch.linspace(20, 75, 7)
    for points in seen:
        torch.testing.assert_close(points[0, 1:-1, 1:-1], expected_x[None, 1:-1].expand(5, 5), atol=0.5, rtol=0)
        torch.testing.assert_close(points[1, 1:-1, 1:-1], expected_y[1:-1, None].expand(5, 5), atol=0.5, rtol=0)
    assert (seen[0] - seen[1]).abs().max() < 1.0  # with the border continued, the ring agrees to a view's pixel too


def test_disjoint_boxes_have_no_overlap():
    grids, overlaps = overlap_grids(CropBox(0, 0, 10, 10, False), CropBox(10, 0, 20, 10, True), 7)
    assert not overlaps and not grids.any()


def mapper(**changes):
    settings = {
        "crops": [CropKind(2, 32, 0.2, 1.0), CropKind(3, 16, 0.05, 0.2)],
        "flip_probability": 0.5,
        "jitter": (0.4, 0.4, 0.4, 0.1),
        "jitter_probability": 0.8,
        "gray_probability": 0.2,
        "blur_probability": 0.5,
        "blur_radius": (0.1, 1.0),
        "grid_points": 7,
    }
    return MultiCropMapper(**{**settings, **changes})


@pytest.fixture
def image_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_views_have_their_sizes_and_depend_on_the_seed_alone(image_file):
    samples = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        samples.append(mapper()({"file_name": image_file, "image_id": 1}))
    sample = samples[0]
    assert [tuple(view.shape) for view in sample["views"]] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    assert all(view.dtype == torch.uint8 for view in sample["views"])
    assert (sample["height"], sample["width"]) == (40, 70)
    assert tuple(sample["overlap_grids"].shape) == (2, 7, 7, 2)
    assert all(torch.equal(a, b) for a, b in zip(sample["views"], samples[1]["views"]))
    assert not all(torch.equal(a, b) for a, b in zip(sample["views"], samples[2]["views"]))


def test_an_undistorted_view_shows_its_box(image_file):
    plain = mapper(jitter_probability=0, gray_probability=0, blur_probability=0)
    image = Image.open(image_file).convert("RGB")
    torch.manual_seed(0)
    view, box = plain.random_view(image, CropKind(2, 32, 0.2, 0.5))
    shown = image.resize((32, 32), Image.Resampling.BILINEAR, box=(box.x0, box.y0, box.x1, box.y1))
    pixels = np.asarray(shown)[:, ::-1] if box.flipped else np.asarray(shown)
    assert np.array_equal(view.permute(1, 2, 0).numpy(), pixels)
    share = (box.x1 - box.x0) * (box.y1 - box.y0) / (40 * 70)
    assert 0.18 < share < 0.52


def test_crops_that_cannot_give_codes_and_uneven_lists_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 crops.*\[1, 4\]"):
        mapper(crops=[CropKind(1, 32, 0.2, 1.0), CropKind(4, 16, 0.05, 0.2)])
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.INPUT.MULTI_CROP.SIZES = (224, 96)
    with pytest.raises(ValueError, match="one value for each kind of crop"):
        MultiCropMapper(cfg, True)
