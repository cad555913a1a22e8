"""Whole images in batches, without augmentation: what the features of a dataset are computed from."""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from u2seg.luss.data.semantic_mapper import read_for, resize_short_side, to_tensor
from u2seg.utils.image_io import ImageReadError


class _Images(Dataset):
    def __init__(self, records: Sequence[dict], numbers: list[int], resize: int, crop: int | None):
        self.records = records
        self.numbers = numbers
        self.resize = resize
        self.crop = crop

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[int, Tensor | None]:
        number = self.numbers[index]
        try:
            image = Image.fromarray(read_for(self.records[number]))
        except (ImageReadError, OSError):
            return number, None  # whoever needs the reason reads the image again
        image = resize_short_side(image, self.resize)
        if self.crop is not None:
            left, top = ((side - self.crop) // 2 for side in image.size)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return number, to_tensor(image)


def iter_image_batches(
    records: Sequence[dict],
    numbers: list[int],
    *,
    resize: int,
    crop: int | None,
    batch_size: int,
    num_workers: int,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields numbers and pixels of images, uint8 (B, 3, H, W), all of a batch equally large; those that can be read, once each.

    No global random number is drawn, so that a training that is interrupted by it goes on as if it had not been.

    Args:
        records: Detectron2's dicts of all images.
        numbers: of those wanted, indices into ``records``.
        resize: pixels of the short side.
        crop: side of a central crop, pixels; None gives the whole images.
        batch_size: images in a batch, at most.
        num_workers: decoding processes; 0: decode in this one.
    """
    loader = DataLoader(
        _Images(records, numbers, resize, crop),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # else the loader draws its workers' seed from the global one
    )
    for samples in loader:
        by_size: dict[tuple, list] = {}
        for number, pixels in samples:
            if pixels is not None:
                by_size.setdefault(tuple(pixels.shape), []).append((number, pixels))
        for group in by_size.values():
            yield [number for number, _ in group], torch.stack([pixels for _, pixels in group])
