"""Several crops of one image, and where two of them show the same points: the input of PASS's pretraining."""

from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from detectron2.config import CfgNode, configurable
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop

from u2seg.data.dataset_mapper import DATASET_MAPPER_REGISTRY
from u2seg.utils.image_io import read_named_rgb

ASPECT_RATIOS = (3 / 4, 4 / 3)  # of a crop, before it is made square [SwAV]


@dataclass(frozen=True)
class CropBox:
    """Where a view was cut from its image, in pixels, and whether it was mirrored afterwards."""

    x0: float
    y0: float
    x1: float
    y1: float
    flipped: bool


@dataclass(frozen=True)
class CropKind:
    """How many crops of what side (pixels) and what share of the image's area (0..1)."""

    count: int
    size: int
    min_scale: float
    max_scale: float


def overlap_grids(first: CropBox, second: CropBox, points: int) -> tuple[Tensor, bool]:
    """Returns where ``points`` x ``points`` points of the two boxes' overlap lie in each view, and whether there is an overlap.

    The points are evenly spaced from edge to edge of the overlap rectangle.

    Args:
        first: box of the first view.
        second: box of the second.
        points: G.

    Returns:
        float32 (2, G, G, 2): for each view, x and y of each point, -1 and 1 at the view's edges (``grid_sample`` without
        ``align_corners``); all zero where there is no overlap.

    Source: LUSS, pixel-to-pixel alignment.
    """
    x0, x1 = max(first.x0, second.x0), min(first.x1, second.x1)
    y0, y1 = max(first.y0, second.y0), min(first.y1, second.y1)
    if x1 <= x0 or y1 <= y0:
        return torch.zeros(2, points, points, 2), False
    y, x = torch.meshgrid(
        torch.linspace(y0, y1, points, dtype=torch.float64),
        torch.linspace(x0, x1, points, dtype=torch.float64),
        indexing="ij",
    )
    grids = []
    for box in (first, second):
        u = 2 * (x - box.x0) / (box.x1 - box.x0) - 1
        v = 2 * (y - box.y0) / (box.y1 - box.y0) - 1
        grids.append(torch.stack([-u if box.flipped else u, v], dim=-1))
    return torch.stack(grids).float(), True


@DATASET_MAPPER_REGISTRY.register()
class MultiCropMapper:
    """Dataset dict -> views of the image, distorted in color, with the overlap of the first two.

    Source: SwAV, multi-crop (section 3.3) and its released augmentation; LUSS, pixel-to-pixel alignment.
    """

    @configurable
    def __init__(
        self,
        *,
        crops: list[CropKind],
        flip_probability: float,
        jitter: tuple[float, float, float, float],
        jitter_probability: float,
        gray_probability: float,
        blur_probability: float,
        blur_radius: tuple[float, float],
        grid_points: int,
    ):
        """Makes the mapper from the settings of ``INPUT.MULTI_CROP``.

        Args:
            crops: the kinds of views, in order; the first must count at least 2.
            flip_probability: of mirroring a view.
            jitter: strength of brightness, contrast, saturation and hue changes.
            jitter_probability: of any such change.
            gray_probability: of losing all color.
            blur_probability: of Gaussian blur.
            blur_radius: smallest and largest, pixels.
            grid_points: G of `overlap_grids`.

        Raises:
            ValueError: fewer than two crops of the first kind.
        """
        if not crops or crops[0].count < 2:
            raise ValueError(
                f"INPUT.MULTI_CROP.COUNTS must begin with at least 2 crops, since two views of one size give the codes; got "
                f"{[kind.count for kind in crops]}"
            )
        self.crops = crops
        self.flip_probability = flip_probability
        self.jitter = ColorJitter(*jitter)
        self.jitter_probability = jitter_probability
        self.gray_probability = gray_probability
        self.blur_probability = blur_probability
        self.blur_radius = blur_radius
        self.grid_points = grid_points

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Returns the constructor's arguments."""
        settings = cfg.INPUT.MULTI_CROP
        lists = (settings.COUNTS, settings.SIZES, settings.MIN_SCALES, settings.MAX_SCALES)
        if len({len(values) for values in lists}) != 1:
            raise ValueError(
                f"INPUT.MULTI_CROP.COUNTS, SIZES, MIN_SCALES and MAX_SCALES must have one value for each kind of crop, got "
                f"{', '.join(str(tuple(values)) for values in lists)}"
            )
        return {
            "crops": [CropKind(*values) for values in zip(*lists)],
            "flip_probability": settings.FLIP_PROBABILITY,
            "jitter": tuple(settings.JITTER),
            "jitter_probability": settings.JITTER_PROBABILITY,
            "gray_probability": settings.GRAY_PROBABILITY,
            "blur_probability": settings.BLUR_PROBABILITY,
            "blur_radius": tuple(settings.BLUR_RADIUS),
            "grid_points": cfg.MODEL.PASS.P2P_GRID,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Returns ``file_name``, ``image_id``, ``height``, ``width`` and the views of one image.

        Args:
            dataset_dict: Detectron2's, of which ``file_name`` is read and annotations are not.

        Returns:
            A dict with ``views`` (list of uint8 (3, size, size), RGB), ``overlap_grids`` (float32 (2, G, G, 2)) and ``overlaps``
            (bool) of the first two views.
        """
        image = Image.fromarray(read_named_rgb(dataset_dict["file_name"]))
        views, boxes = zip(*(self.random_view(image, kind) for kind in self.crops for _ in range(kind.count)))
        grids, overlaps = overlap_grids(boxes[0], boxes[1], self.grid_points)
        return {
            "file_name": dataset_dict["file_name"],
            "image_id": dataset_dict.get("image_id"),
            "height": image.height,
            "width": image.width,
            "views": list(views),
            "overlap_grids": grids,
            "overlaps": overlaps,
        }

    def random_view(self, image: Image.Image, kind: CropKind) -> tuple[Tensor, CropBox]:
        """Returns one random view, uint8 (3, size, size) in RGB, and its box; randomness comes from torch's generator."""
        top, left, height, width = RandomResizedCrop.get_params(image, (kind.min_scale, kind.max_scale), ASPECT_RATIOS)
        box = (left, top, left + width, top + height)
        view = image.resize((kind.size, kind.size), Image.Resampling.BILINEAR, box=box)
        flipped = _happens(self.flip_probability)
        if flipped:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        view = self.distort(view)
        pixels = torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()
        return pixels, CropBox(float(box[0]), float(box[1]), float(box[2]), float(box[3]), flipped)

    def distort(self, view: Image.Image) -> Image.Image:
        """Returns the view with random changes of color and sharpness."""
        if _happens(self.jitter_probability):
            view = self.jitter(view)
        if _happens(self.gray_probability):
            view = TF.to_grayscale(view, num_output_channels=3)
        if _happens(self.blur_probability):
            low, high = self.blur_radius
            view = view.filter(ImageFilter.GaussianBlur(low + (high - low) * float(torch.rand(()))))
        return view


def _happens(probability: float) -> bool:
    return float(torch.rand(())) < probability
