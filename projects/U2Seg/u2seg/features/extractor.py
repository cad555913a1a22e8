"""The one interface of all feature extractors."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from u2seg.utils.registry import NamedRegistry

FEATURE_EXTRACTOR_REGISTRY = NamedRegistry("FEATURE_EXTRACTOR")
FEATURE_EXTRACTOR_REGISTRY.__doc__ = "Feature extractors: images in, patch features out. Called as NAME(cfg)."


class FeatureExtractor(nn.Module):
    """Turns a batch of images into patch features.

    Attributes:
        patch_size: side of a patch in pixels of the resized image; the grid is ``image_size // patch_size``.
        num_channels: C, the length of one patch's feature.
        image_size: (height, width) in pixels to which images are resized, a multiple of ``patch_size``.
    """

    patch_size: int
    num_channels: int
    image_size: tuple[int, int]

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def preprocess(self, image_rgb: np.ndarray) -> Tensor:
        """Returns an image as float32 (3, height, width), range 0..1, resized by LANCZOS, aspect ratio not kept.

        Args:
            image_rgb: uint8 (H, W, 3).
        """
        height, width = self.image_size
        resized = Image.fromarray(image_rgb).resize((width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().div_(255)

    def forward(self, images: Tensor) -> Tensor:
        """Returns patch features, float32 (B, C, grid rows, grid columns), not normalized.

        Args:
            images: float32 (B, 3, height, width), range 0..1, RGB, of ``image_size``; each extractor normalizes by itself.
        """
        raise NotImplementedError

    def mean_feature(self, images: Tensor) -> Tensor:
        """Returns the mean patch feature of each image, float32 (B, C), before any centering of the image by itself."""
        return self(images).mean(dim=(2, 3))

    def views(self, images: Tensor) -> list[Tensor]:
        """Returns the features of one or more backbones, each on a grid of its own; the first is what :meth:`forward` returns.

        Args:
            images: as for :meth:`forward`.
        """
        return [self(images)]

    def embed(self, images: Tensor) -> Tensor:
        """Returns one vector an image, float32 (B, D): a ViT's CLS token, or the mean over patches where there is none."""
        return self(images).mean(dim=(2, 3))


def resolve_device(name: str) -> torch.device:
    """Returns the device that a config names; ``"auto"`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def stack_on(images: Sequence[Tensor], device: torch.device) -> Tensor:
    """Returns preprocessed images as one batch on a device; a copy to a GPU does not wait for what the GPU computes meanwhile.

    Args:
        images: float32 (3, height, width) each.
        device: of the result.
    """
    batch = torch.stack(list(images))
    # From memory that may be paged out, the copy would wait for the GPU, and then the GPU for the copy.
    return (batch.pin_memory() if device.type == "cuda" else batch).to(device, non_blocking=True)
