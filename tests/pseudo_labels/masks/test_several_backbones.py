"""Several backbones that vote: each on its own grid, in VoteCut alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_votecut import SETTINGS, image_of_an_object
from u2seg.config import setup_cfg
from u2seg.features import build_feature_extractor, build_voting_extractor
from u2seg.pseudo_labels.masks import AutomaticMaskGenerator, VoteCut
from u2seg.pseudo_labels.masks.votecut import VoteCutSettings, resize_nearest

OTHER = ["NAME", "RawPixels", "RAW_PIXELS.PATCH_SIZE", 16, "IMAGE_SIZE", [64, 80]]


def make_cfg(*others):
    cfg = setup_cfg("quick_schedules/scenes.yaml", ["FEATURES.DEVICE", "cpu", "MASKS.GENERATOR", "VoteCut"])
    cfg.FEATURES.OTHERS = others
    return cfg


def test_a_mask_on_another_grid():
    mask = np.array([[True, False, False], [False, False, True]])
    np.testing.assert_array_equal(resize_nearest(mask, (4, 6)), mask.repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_array_equal(resize_nearest(mask.repeat(3, axis=0).repeat(3, axis=1), (2, 3)), mask)
    np.testing.assert_array_equal(resize_nearest(mask, (2, 1)), [[False], [False]])


def test_what_all_backbones_see_has_all_votes_and_what_one_sees_its_share():
    generator = VoteCut(VoteCutSettings(**SETTINGS))
    first = image_of_an_object()
    second = F.interpolate(first, scale_factor=2, mode="nearest")
    (both,) = generator.from_views([first, second])
    assert both.masks.shape[1:] == (12, 15)
    assert both.masks[0, 4:8, 5:10].all() and not both.masks[0, :3].any() and both.scores[0] == 1
    blind = torch.ones_like(second)
    (one,) = generator.from_views([first, blind])
    (alone,) = generator(first)
    assert one.scores[0] == alone.scores[0] / 2
    np.testing.assert_array_equal(one.masks, alone.masks)


def test_the_configuration_names_them_and_the_first_one_embeds():
    cfg = make_cfg(OTHER, ["HANDMADE.COLOR_WEIGHT", 0.0])
    extractor = build_voting_extractor(cfg)
    images = torch.rand(2, 3, 128, 160)
    views = extractor.views(images)
    assert [tuple(view.shape[1:]) for view in views] == [(8, 32, 40), (3, 4, 5), (8, 32, 40)]
    torch.testing.assert_close(views[0], build_feature_extractor(cfg)(images))
    assert torch.equal(extractor(images), views[0]) and views[2][:, :3].abs().max() == 0
    smaller = F.interpolate(images, size=(64, 80), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    torch.testing.assert_close(views[1], F.avg_pool2d(smaller, 16))
    cfg.MASKS.REFINEMENT = "none"
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    assert isinstance(AutomaticMaskGenerator(cfg).generate(image), list)


def test_other_generators_and_wrong_keys_are_refused():
    cfg = make_cfg(OTHER)
    cfg.MASKS.GENERATOR, cfg.MASKS.REFINEMENT = "WholeImage", "none"
    with pytest.raises(
        ValueError, match=r"WholeImage takes the features of one backbone, FEATURES.OTHERS names 1 more"
    ):
        AutomaticMaskGenerator(cfg).generate(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match=r"names 'VIT.ARCHITECTURE', but there is no FEATURES.VIT.ARCHITECTURE"):
        build_voting_extractor(make_cfg(["VIT.ARCHITECTURE", "dino_vits8"]))
    with pytest.raises(ValueError, match=r"each entry of FEATURES.OTHERS is KEY VALUE"):
        build_voting_extractor(make_cfg(["NAME", "RawPixels", "IMAGE_SIZE"]))
