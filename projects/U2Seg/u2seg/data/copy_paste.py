"""Copy-paste: instances of a second image, rescaled and shifted, laid over the first; runs in the loader's workers.

Source: U2Seg, section 3.4, equation 4 (between instances of one cluster); CutLER, section 3.3 (any instances). CutLER pastes in the
trainer's process, after collation, and leaves the semantic target as it was; here both are otherwise.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from detectron2.config import CfgNode

from u2seg.data.training_sample import Sample, boxes_of_masks
from u2seg.structures.label_space import THING_LABEL


@dataclass(frozen=True)
class CopyPaste:
    """Pastes instances of one sample into another, by chance.

    Attributes:
        probability: of pasting into a sample, 0..1.
        same_cluster: paste only instances of a cluster that the target holds.
        scale_range: the source image, aspect ratio kept, is made to fit this share of the target's sides, drawn uniformly.
        max_ioy: an instance is refused where it would cover at least this share of an instance that is there.
        max_instances: pasted at most; 0: no limit. How many are tried is drawn uniformly from 1 to what there is.
    """

    probability: float = 1.0
    same_cluster: bool = False
    scale_range: tuple[float, float] = (0.3, 1.0)
    max_ioy: float = 0.5
    max_instances: int = 0

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"INPUT.COPY_PASTE.SCALE_RANGE must be 0 < low <= high, got {self.scale_range}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"INPUT.COPY_PASTE.PROBABILITY must be in 0..1, got {self.probability}")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "CopyPaste":
        """Returns the copy-paste that ``INPUT.COPY_PASTE`` describes."""
        keys = cfg.INPUT.COPY_PASTE
        return cls(keys.PROBABILITY, keys.SAME_CLUSTER, tuple(keys.SCALE_RANGE), keys.MAX_IOY, keys.MAX_INSTANCES)

    def __call__(self, target: Sample, load_source: Callable[[], Sample]) -> Sample:
        """Returns the target with instances of the source pasted into it, or the target itself where chance or space forbid.

        Args:
            target: is not changed.
            load_source: returns the sample to paste from; called only where something may be pasted.
        """
        rng = np.random.default_rng(
            random.getrandbits(64)
        )  # Python's generator, which the loader seeds for each sample
        if rng.random() >= self.probability or (self.same_cluster and not len(target.classes)):
            return target
        source = load_source()
        chosen = self.choose(target, source, rng)
        if not len(chosen):
            return target
        image, masks = place(source, chosen, target.size, rng.uniform(*self.scale_range), rng)
        return paste(target, image, masks, source.classes[chosen], self.max_ioy)

    def choose(self, target: Sample, source: Sample, rng: np.random.Generator) -> np.ndarray:
        """Returns the indices of the source's instances to try, int64 (n,), ascending."""
        eligible = source.masks.any(axis=(1, 2))
        if self.same_cluster:
            eligible &= np.isin(source.classes, target.classes)
        candidates = np.flatnonzero(eligible)
        if not len(candidates):
            return candidates
        limit = min(len(candidates), self.max_instances or len(candidates))
        return np.sort(rng.choice(candidates, rng.integers(1, limit + 1), replace=False))


def place(
    source: Sample, chosen: np.ndarray, size: tuple[int, int], scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the source, rescaled and shifted at random, on a canvas of the target's size.

    Args:
        source: the sample to paste from.
        chosen: indices of its instances, (n,).
        size: the target's (height, width).
        scale: share of the target's sides that the source is to fit into, its aspect ratio kept.
        rng: draws the shift; the whole source stays inside the canvas where it fits.

    Returns:
        The image, uint8 (H, W, 3), and the masks of the chosen instances, bool (n, H, W).
    """
    height, width = size
    factor = scale * min(height / source.size[0], width / source.size[1])
    new_height = max(1, round(source.size[0] * factor))
    new_width = max(1, round(source.size[1] * factor))
    shift_y = int(rng.integers(0, abs(height - new_height) + 1)) * (1 if new_height <= height else -1)
    shift_x = int(rng.integers(0, abs(width - new_width) + 1)) * (1 if new_width <= width else -1)
    inside_y = slice(max(0, shift_y), min(height, shift_y + new_height))
    inside_x = slice(max(0, shift_x), min(width, shift_x + new_width))
    from_y = slice(inside_y.start - shift_y, inside_y.stop - shift_y)
    from_x = slice(inside_x.start - shift_x, inside_x.stop - shift_x)
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    image = np.zeros((height, width, 3), np.uint8)
    image[inside_y, inside_x] = cv2.resize(source.image, (new_width, new_height), interpolation=interpolation)[
        from_y, from_x
    ]
    masks = np.zeros((len(chosen), height, width), bool)
    for mask, index in zip(masks, chosen):
        small = cv2.resize(source.masks[index].view(np.uint8), (new_width, new_height), interpolation=cv2.INTER_NEAREST)
        mask[inside_y, inside_x] = small[from_y, from_x].astype(bool)
    return image, masks


def paste(target: Sample, image: np.ndarray, masks: np.ndarray, classes: np.ndarray, max_ioy: float) -> Sample:
    """Returns the target with instances laid over it; image, masks, boxes and semantic target stay consistent.

    What is pasted hides what lies under it: the target's masks lose those pixels, and one that loses all is dropped. Boxes of
    masks that changed are drawn anew, tight; the others stay. The semantic target becomes "thing" under what is pasted.

    Args:
        target: is not changed.
        image: uint8 (H, W, 3), the source on a canvas of the target's size.
        masks: bool (n, H, W), its instances on that canvas; where two overlap, the later one lies on top.
        classes: int64 (n,), their classes.
        max_ioy: an instance is refused where it covers at least this share of one of the target's.
    """
    accepted = [
        index for index, mask in enumerate(masks) if mask.any() and _covers_at_most(mask, target.masks) < max_ioy
    ]
    if not accepted:
        return target
    pasted = masks[accepted].copy()
    for index in range(len(pasted) - 1):
        pasted[index] &= ~pasted[index + 1 :].any(axis=0)
    pasted_classes = classes[accepted]
    visible = pasted.any(axis=(1, 2))
    pasted, pasted_classes = pasted[visible], pasted_classes[visible]
    cover = pasted.any(axis=0)

    carved = target.masks & ~cover
    remains = carved.any(axis=(1, 2))
    touched = (target.masks & cover).any(axis=(1, 2))
    boxes = np.where(touched[:, None], boxes_of_masks(carved), target.boxes_xyxy)
    new_image = target.image.copy()
    new_image[cover] = image[cover]
    sem_seg = target.sem_seg
    if sem_seg is not None:
        sem_seg = sem_seg.copy()
        sem_seg[cover] = THING_LABEL
    return replace(
        target,
        image=new_image,
        masks=np.concatenate([carved[remains], pasted]),
        boxes_xyxy=np.concatenate([boxes[remains], boxes_of_masks(pasted)]),
        classes=np.concatenate([target.classes[remains], pasted_classes]),
        sem_seg=sem_seg,
    )


def _covers_at_most(mask: np.ndarray, others: np.ndarray) -> float:
    """Returns the largest share, 0..1, of another mask that ``mask`` covers; 0 where there is no other with a pixel."""
    areas = others.sum(axis=(1, 2))
    if not areas.any():
        return 0.0
    shared = (others & mask).sum(axis=(1, 2))
    return float((shared[areas > 0] / areas[areas > 0]).max())
