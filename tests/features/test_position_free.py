"""Features whose positional part is projected out, by an extractor that adds a known one."""

import pytest
import torch
import torch.nn.functional as F
from u2seg.config import setup_cfg
from u2seg.features import FeatureExtractor, PositionFreeFeatures, build_feature_extractor
from u2seg.features.position_free import position_directions


class Placed(FeatureExtractor):
    """Mean colors of 2 x 2 patches in channels 0 to 2, a constant in 3, row and column in 4 and 5 whatever the image shows."""

    def __init__(self):
        super().__init__()
        self.patch_size, self.num_channels, self.image_size = 2, 6, (8, 12)

    def forward(self, images):
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, 4), torch.linspace(-1, 1, 6), indexing="ij")
        fixed = torch.stack([torch.ones(4, 6), rows, columns]).expand(len(images), -1, -1, -1)
        return torch.cat([F.avg_pool2d(images, 2), fixed], dim=1)


def test_what_tells_the_position_goes_and_the_rest_stays():
    images = torch.rand(2, 3, 1, 1).expand(
        -1, -1, 8, 12
    )  # one color each: a patch's feature depends on its place alone
    found = PositionFreeFeatures(Placed(), share=0.5)
    assert found.directions.shape == (6, 3)  # the lengths vary with the place as well, and so does the constant's share
    free = found(images)
    torch.testing.assert_close(free, free[:, :, :1, :1].expand_as(free), atol=1e-5, rtol=0)
    torch.testing.assert_close(free[:, :3, 0, 0], F.normalize(images[:, :, 0, 0], dim=1), atol=1e-5, rtol=0)
    assert found.embed(images).shape == (2, 6) and found.grid_size == (4, 6)


def test_directions_are_orthonormal_and_no_more_than_there_are():
    features = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    directions = position_directions(features, 3)
    torch.testing.assert_close(directions.T @ directions, torch.eye(3), atol=1e-5, rtol=0)
    assert position_directions(torch.ones(5, 30), 3).shape == (5, 0)
    assert position_directions(features, 0).shape == (5, 0)


@pytest.mark.parametrize(("share", "kind"), [("0.0", "HandmadeDescriptor"), ("0.25", "PositionFreeFeatures")])
def test_it_is_off_unless_asked_for(share, kind):
    cfg = setup_cfg("quick_schedules/scenes.yaml", ["FEATURES.POSITION_SHARE", share, "FEATURES.DEVICE", "cpu"])
    extractor = build_feature_extractor(cfg)
    assert type(extractor).__name__ == kind
    # An all-zero image has the same hand-made features everywhere: there is nothing to project out.
    images = torch.rand(1, 3, 128, 160)
    plain = build_feature_extractor(setup_cfg("quick_schedules/scenes.yaml", ["FEATURES.DEVICE", "cpu"]))(images)
    expected = plain if kind == "HandmadeDescriptor" else F.normalize(plain, dim=1)
    torch.testing.assert_close(extractor(images), expected)
