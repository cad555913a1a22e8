import pytest
import torch
from detectron2.config import get_cfg
from u2seg.config import add_u2seg_config
from u2seg.features import FEATURE_EXTRACTOR_REGISTRY, HandmadeDescriptor, build_feature_extractor
from u2seg.features.handmade import rgb_to_lab


def descriptor(height=48, width=64, patch_size=8, color=1.0, texture=1.0):
    return HandmadeDescriptor(
        image_size=(height, width), patch_size=patch_size, color_weight=color, texture_weight=texture
    )


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        # Published CIELAB (D65) values of sRGB's primaries.
        ((1, 1, 1), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
    ],
)
def test_lab_of_known_colors(rgb, lab):
    image = torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1)
    torch.testing.assert_close(rgb_to_lab(image).flatten(), torch.tensor(lab, dtype=torch.float32), atol=0.02, rtol=0)


def test_shape_follows_the_grid():
    model = descriptor(48, 64)
    features = model(torch.rand(3, 3, 48, 64))
    assert features.shape == (3, model.num_channels, 6, 8) == (3, 8, *model.grid_size)


def test_a_plain_image_has_its_color_and_no_texture():
    image = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 48, 64)
    features = descriptor()(image)
    torch.testing.assert_close(
        features[:, :3], torch.tensor([0.5324, 0.8009, 0.6720]).view(1, 3, 1, 1).expand(1, 3, 6, 8), atol=1e-3, rtol=0
    )
    assert features[:, 3:].abs().max() == 0


def test_stripes_answer_in_their_orientation():
    # Vertical stripes: lightness changes along x, so the gradient's angle is 0: channel 4; horizontal ones pi/2: channel 6.
    stripes = (torch.arange(64) // 4 % 2).float()
    vertical = stripes.expand(1, 3, 64, 64)
    for image, strong, weak in ((vertical, 4, 6), (vertical.transpose(2, 3), 6, 4)):
        energy = descriptor(64, 64)(image).mean(dim=(0, 2, 3))
        assert energy[strong] > 20 * energy[weak]
        # 45 and 135 degrees share equally: cos^2(45 degrees) = 1/2 of the magnitude (channel 3).
        torch.testing.assert_close(energy[5], energy[7])
        torch.testing.assert_close(energy[5], 0.5 * energy[3])


def test_weights_scale_their_channels():
    image = torch.rand(1, 3, 48, 64)
    plain, weighted = descriptor()(image), descriptor(color=2.0, texture=3.0)(image)
    torch.testing.assert_close(weighted[:, :3], 2 * plain[:, :3])
    torch.testing.assert_close(weighted[:, 3:], 3 * plain[:, 3:])


def test_turning_the_image_turns_the_features():
    # Upside down, gradients change their sign, which orientations modulo pi do not see.
    image = torch.rand(1, 3, 48, 64)
    model = descriptor()
    torch.testing.assert_close(model(image.flip(2, 3)), model(image).flip(2, 3), atol=1e-5, rtol=1e-4)


def test_embed_is_the_mean():
    image = torch.rand(2, 3, 48, 64)
    torch.testing.assert_close(descriptor().embed(image), descriptor()(image).mean(dim=(2, 3)))


def test_registry_names_what_there_is():
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.FEATURES.DEVICE = "cpu"
    assert isinstance(build_feature_extractor(cfg), HandmadeDescriptor)
    cfg.FEATURES.NAME = "HandmadeDescriptr"
    with pytest.raises(
        ValueError, match="Unknown FEATURES.NAME 'HandmadeDescriptr'; registered: HandmadeDescriptor, .*TimmViT"
    ):
        build_feature_extractor(cfg)
    assert {"HandmadeDescriptor", "ResNetFeatures", "TimmViT"} <= {name for name, _ in FEATURE_EXTRACTOR_REGISTRY}
