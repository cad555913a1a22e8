"""Five crops of each image, cut when they are needed, and their features."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from u2seg.data.formats.mask_shards import ListedImage
from u2seg.features import FeatureExtractor, stack_on
from u2seg.utils.image_io import ImageReadError, ImageSource, read_listed_image
from u2seg.utils.progress import Progress

logger = logging.getLogger(__name__)

FIVE = 5  # top left, top right, bottom left, bottom right, center


def five_crop_box(size: tuple[int, int], ratio: float, position: int) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of one of the five crops of an image.

    Args:
        size: (height, width) of the image.
        ratio: share of its height and of its width that a crop has.
        position: 0..4, of ``FIVE``.

    Source: STEGO's released code (torchvision's ``FiveCrop``).
    """
    height, width = (max(1, int(side * ratio)) for side in size)
    below, right = size[0] - height, size[1] - width
    top, left = [(0, 0), (0, right), (below, 0), (below, right), (round(below / 2), round(right / 2))][position]
    return top, left, height, width


def central_square(image_rgb: np.ndarray) -> np.ndarray:
    """Returns the largest square around the center of an image, (side, side, 3)."""
    height, width = image_rgb.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image_rgb[top : top + side, left : left + side]


@dataclass(frozen=True)
class CropSet:
    """The training crops of a list of images, numbered: crop ``5 i + j`` is the j-th of image i.

    Attributes:
        images: where they are read.
        records: images that can be read.
        ratio: see :func:`five_crop_box`; 1.0: each image is one crop, itself.
    """

    images: ImageSource
    records: Sequence[ListedImage]
    ratio: float

    def __len__(self) -> int:
        return len(self.records) * self.per_image

    @property
    def per_image(self) -> int:
        """Crops of one image."""
        return 1 if self.ratio == 1 else FIVE

    def read(self, number: int) -> np.ndarray:
        """Returns the square center of a crop, uint8 (side, side, 3).

        Raises:
            ImageReadError: its image was damaged or removed.
        """
        record = self.records[number // self.per_image]
        size = (record.height, record.width)
        image_rgb = read_listed_image(self.images, record.file_name, size)
        if self.per_image == FIVE:
            top, left, height, width = five_crop_box(size, self.ratio, number % FIVE)
            image_rgb = image_rgb[top : top + height, left : left + width]
        return central_square(image_rgb)


class CropFeatures:
    """Features of crops by number: computed when they are asked for, or kept in memory where all of them fit.

    Kept or not, a crop's features are the same but for the rounding of a batch of another size; which of the two it is depends on
    the number and size of the crops alone, so that a training that is resumed sees the same bits.

    Attributes:
        crops: whose features they are.
        shape: (C, rows, columns) of one crop's features.
        device: where they are computed and returned.
        center: float32 (C,), what is subtracted from every feature.
    """

    def __init__(
        self, crops: CropSet, extractor: FeatureExtractor, *, batch_size: int, cache_mib: int, num_threads: int
    ):
        """Computes nothing yet.

        Args:
            crops: which.
            extractor: of the training size, on its device.
            batch_size: crops in one forward pass while all are gone through.
            cache_mib: the most that features may take in memory to be kept.
            num_threads: that read and resize images.
        """
        self.crops = crops
        self.lost: dict[int, str] = {}
        self._extractor = extractor
        self._batch_size = batch_size
        self.device = next((b.device for b in [*extractor.parameters(), *extractor.buffers()]), torch.device("cpu"))
        rows, columns = extractor.grid_size
        self.shape = (extractor.num_channels, rows, columns)
        mib = len(crops) * extractor.num_channels * rows * columns * 4 / 2**20
        self._is_kept = mib <= cache_mib
        self._kept: Tensor | None = None
        self._pool = ThreadPoolExecutor(num_threads)
        self.center = torch.zeros(extractor.num_channels)

    def __len__(self) -> int:
        return len(self.crops)

    def __call__(self, numbers: np.ndarray) -> Tensor:
        """Returns the features of crops, float32 (B, C, rows, columns), on the extractor's device.

        Args:
            numbers: int (B,).
        """
        center = self.center.to(self.device)[:, None, None]
        if not self._is_kept:
            return self._compute(numbers, self._extractor) - center
        if self._kept is None:
            # Filled in place: a list that is joined at the end would need the memory twice.
            self._kept = torch.empty((len(self), *self.shape))
            for start, features in self._batches("features"):
                self._kept[start : start + len(features)] = features.cpu()
        return self._kept[torch.from_numpy(np.asarray(numbers))].to(self.device) - center

    def means(self) -> np.ndarray:
        """Returns the mean feature of every crop, float32 (N, C), with nothing subtracted."""
        vectors = np.empty((len(self), self.shape[0]), np.float32)
        for start, features in self._batches("crops", self._extractor.mean_feature):
            vectors[start : start + len(features)] = features.cpu().numpy()
        return vectors

    def _batches(
        self, description: str, compute: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        with Progress(len(self), description, unit="crops", transient=True) as bar:
            for start in range(0, len(self), self._batch_size):
                numbers = np.arange(start, min(start + self._batch_size, len(self)))
                features = self._compute(numbers, compute or self._extractor)
                bar.update(len(features))
                yield start, features

    def warn_of_lost_images(self) -> None:
        """Says how many images were lost, if any."""
        if self.lost:
            first = min(self.lost)
            logger.warning(
                f"{len(self.lost)} of {len(self.crops.records)} images could not be read during the training; for each the next image "
                f"was taken. The first: {self.crops.records[first].file_name}: {self.lost[first]}"
            )

    @torch.no_grad()
    def _compute(self, numbers: np.ndarray, compute: Callable[[Tensor], Tensor]) -> Tensor:
        images = list(self._pool.map(self._prepared, map(int, numbers)))
        return compute(stack_on(images, self.device)).float()

    def _prepared(self, number: int) -> Tensor:
        """Returns a crop as the extractor takes it; of the next image that can be read where its own cannot.

        Raises:
            ImageReadError: no image can be read.
        """
        for step in range(0, len(self), self.crops.per_image):
            current = (number + step) % len(self)
            try:
                return self._extractor.preprocess(self.crops.read(current))
            except ImageReadError as error:
                self.lost[current // self.crops.per_image] = str(error)
        raise ImageReadError(
            f"none of the {len(self.crops.records)} training images can be read any more: {self.lost[number // self.crops.per_image]}. "
            "Put them back and go on"
        )


def batch_numbers(iteration: int, count: int, batch_size: int, seed: int) -> np.ndarray:
    """Returns which crops an iteration trains on, int64 (batch size,): each epoch is a new permutation, cut into batches.

    A permutation's last crops that fill no batch are left out. Where there are fewer crops than a batch holds, some come twice.

    Args:
        iteration: 0-based.
        count: crops in all.
        batch_size: crops in a batch.
        seed: of the permutations.
    """
    per_epoch = iterations_per_epoch(count, batch_size)
    epoch, step = divmod(iteration, per_epoch)
    rng = np.random.default_rng([seed, epoch])
    if count < batch_size:
        return rng.choice(count, batch_size)
    return rng.permutation(count)[step * batch_size : (step + 1) * batch_size]


def iterations_per_epoch(count: int, batch_size: int) -> int:
    """Returns how many whole batches there are, at least one."""
    return max(1, count // batch_size)
