"""The dataset mapper of LUSS's segmentation stages: images with maps of 16-bit ids."""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from u2seg.data.dataset_mapper import DATASET_MAPPER_REGISTRY
from u2seg.luss.data.id_maps import read_id_map
from u2seg.luss.data.label_store import LabelStore
from u2seg.luss.data.multi_crop import ASPECT_RATIOS, MultiCropMapper
from u2seg.utils.image_io import ImageReadError, read_image_rgb, read_stored_rgb


@DATASET_MAPPER_REGISTRY.register()
class LussSemanticMapper:
    """Dataset dict -> image and, in training, its map of ids: one random resized crop; whole images for inference.

    Source: LUSS, fine-tuning (training) and inference (short side 256, whole image); ImageNetSegModel for ``distort``.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        crop_size: int,
        scale: tuple[float, float],
        flip_probability: float,
        threshold: float,
        distort: MultiCropMapper | None,
        test_size: int,
    ):
        """Makes the mapper from the settings of ``INPUT.SEMANTIC_CROP``.

        Args:
            is_train: whether the map is wanted.
            crop_size: side of the crop in pixels.
            scale: smallest and largest share of the image's area.
            flip_probability: of mirroring.
            threshold: attention below which a pseudo-label is "other".
            distort: changes colors as its views'; None: colors stay.
            test_size: short side for inference, pixels; the long side follows, whatever it is.
        """
        self.is_train = is_train
        self.crop_size = crop_size
        self.scale = scale
        self.flip_probability = flip_probability
        self.threshold = threshold
        self.distort = distort
        self.test_size = test_size

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """Returns the constructor's arguments."""
        settings = cfg.INPUT.SEMANTIC_CROP
        return {
            "is_train": is_train,
            "crop_size": settings.SIZE,
            "scale": tuple(settings.SCALE),
            "flip_probability": settings.FLIP_PROBABILITY,
            "threshold": cfg.LUSS.THRESHOLD,
            "distort": MultiCropMapper(cfg, is_train) if settings.DISTORT_COLOR else None,
            "test_size": cfg.INPUT.MIN_SIZE_TEST,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Returns the sample: ``image`` (uint8 (3, h, w), RGB), ``height`` and ``width`` of the image, ``sem_seg`` (int64 (h, w)).

        Raises:
            ValueError: the map has another size than the image.
        """
        pixels = read_for(dataset_dict)
        height, width = pixels.shape[:2]
        kept = {key: dataset_dict[key] for key in ("file_name", "image_id") if key in dataset_dict}
        sample = {**kept, "height": height, "width": width}
        if not self.is_train:
            return {**sample, "image": to_tensor(resize_short_side(Image.fromarray(pixels), self.test_size))}
        return {**sample, **self._crop(Image.fromarray(pixels), self.load_labels(dataset_dict, (height, width)))}

    def load_labels(self, dataset_dict: dict, size: tuple[int, int]) -> np.ndarray:
        """Returns the map of ids at the image's size, int (height, width)."""
        if "luss_labels" in dataset_dict:
            directory, number = dataset_dict["luss_labels"]
            return LabelStore(directory).labels(number, size, self.threshold)
        labels = read_id_map(dataset_dict["sem_seg_file_name"])
        if labels.shape != size:
            raise ValueError(
                f"{dataset_dict['sem_seg_file_name']} has (height, width) {labels.shape}, its image {size}"
            )
        return labels

    def _crop(self, image: Image.Image, labels: np.ndarray) -> dict[str, Tensor]:
        top, left, height, width = RandomResizedCrop.get_params(image, self.scale, ASPECT_RATIOS)
        box = (left, top, left + width, top + height)
        side = (self.crop_size, self.crop_size)
        view = image.resize(side, Image.Resampling.BILINEAR, box=box)
        # Pillow's 32-bit integer images keep ids above 255, and nearest neighbor makes no new ones.
        target = Image.fromarray(labels.astype(np.int32)).resize(side, Image.Resampling.NEAREST, box=box)
        if float(torch.rand(())) < self.flip_probability:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            target = target.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.distort is not None:
            view = self.distort.distort(view)
        return {"image": to_tensor(view), "sem_seg": torch.from_numpy(np.array(target)).long()}


def read_for(dataset_dict: dict) -> np.ndarray:
    """Returns an image, uint8 (H, W, 3): as stored where it has a mask drawn on it, else turned upright.

    ImageNet-S's masks were drawn on images loaded without regard to their EXIF orientation.

    Raises:
        ImageReadError: it cannot be read; the message names it.
    """
    as_stored = "sem_seg_file_name" in dataset_dict or "submission_name" in dataset_dict
    path = dataset_dict["file_name"]
    try:
        return read_stored_rgb(path) if as_stored else read_image_rgb(path)
    except ImageReadError as error:
        raise ImageReadError(f"{path}: {error}") from error


def resize_short_side(image: Image.Image, size: int) -> Image.Image:
    """Returns the image with its short side at ``size`` pixels, bilinear, aspect ratio kept up to a pixel."""
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> Tensor:
    """Returns an image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
