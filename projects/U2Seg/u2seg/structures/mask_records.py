"""The class-agnostic masks of one image, as the mask stage leaves them."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ImageMasks:
    """The class-agnostic masks of one image.

    Attributes:
        image_id: positive, unique in the dataset; 0 for an image that belongs to none.
        file_name: relative to the image directory, POSIX; "" for an image that was in memory only.
        height, width: of the upright image, in pixels; 0 where it could not be read.
        rle_counts: N compressed COCO run-length strings, for masks of (height, width), best first; they may overlap.
        scores: float32 (N,), range 0..1, confidence in each mask.
        cut_values: float32 (N,), normalized-cut value (the eigenvalue) that gave the mask; NaN where there is none.
        refined_ious: float32 (N,), IoU between the mask before and after refinement.
        embeddings: float32 (N, C), patch features averaged over the mask.
        error: why the image could not be read; None if it could.
    """

    image_id: int
    file_name: str
    height: int = 0
    width: int = 0
    rle_counts: tuple[bytes, ...] = ()
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    cut_values: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    refined_ious: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    embeddings: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    error: str | None = None

    def rles(self) -> list[dict]:
        """Returns the masks as pycocotools RLE dicts (``size`` (height, width), ``counts`` bytes)."""
        return [{"size": [self.height, self.width], "counts": counts} for counts in self.rle_counts]
