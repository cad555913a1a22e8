"""Copy-paste: instances of a second image, rescaled and shifted, laid over the first; runs in the loader's workers.

Two classes, chosen by ``INPUT.COPY_PASTE.NAME``: :class:`CutLERCopyPaste` pastes as CutLER's code
does, :class:`LayeredCopyPaste` is ours. Which image is pasted from is another choice,
``INPUT.COPY_PASTE.PARTNER``; see :mod:`u2seg.data.paste_sources`.

Source: CutLER, section 3.3 (any instances); U2Seg, section 3.4, equation 4 (between instances of
one cluster, ``SAME_CLUSTER``; the paper gives neither counts nor scales, and no code was released).
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from detectron2.config import CfgNode

from u2seg.data.training_sample import Sample, boxes_of_masks
from u2seg.structures.label_space import THING_LABEL
from u2seg.utils.registry import NamedRegistry, get_registered

COPY_PASTE_REGISTRY = NamedRegistry("COPY_PASTE")
COPY_PASTE_REGISTRY.__doc__ = """
Ways to paste, chosen by ``INPUT.COPY_PASTE.NAME``; an entry is called with the settings that
:class:`CopyPaste` lists and returns a function from (target sample, function that loads the source
sample) to a sample.
"""


@dataclass(frozen=True)
class CopyPaste(ABC):
    """Pastes instances of one sample into another, by chance.

    A subclass says how many are pasted, in what shape, and what becomes of overlaps.

    Attributes:
        probability: of pasting into a sample, 0..1.
        same_cluster: paste only instances of a cluster that the target holds.
        scale_range: share of the target's sides that the source is made to fill, drawn uniformly.
        max_ioy: an instance is refused where it would cover at least this share of an instance that
            is there.
        max_instances: pasted at most; 0: no limit but the subclass's own.
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

    def __call__(self, target: Sample, load_source: Callable[[], Sample]) -> Sample:
        """Returns the target with instances of the source pasted in, or the target itself if none is.

        Args:
            target: is not changed.
            load_source: returns the sample to paste from; called only where something may be
                pasted.
        """
        # Python's generator, which the loader seeds for each sample.
        rng = np.random.default_rng(random.getrandbits(64))
        if rng.random() >= self.probability or (self.same_cluster and not len(target.classes)):
            return target
        source = load_source()
        chosen = self.choose(target, source, rng)
        if not len(chosen):
            return target
        return self.lay(target, source, chosen, rng)

    def choose(self, target: Sample, source: Sample, rng: np.random.Generator) -> np.ndarray:
        """Returns the indices of the source's instances to try, int64 (n,), ascending."""
        eligible = source.masks.any(axis=(1, 2))
        if self.same_cluster:
            eligible &= np.isin(source.classes, target.classes)
        candidates = np.flatnonzero(eligible)
        if not len(candidates):
            return candidates
        limit = min(self.most_of(len(candidates)), self.max_instances or len(candidates))
        return np.sort(rng.choice(candidates, rng.integers(1, limit + 1), replace=False))

    @abstractmethod
    def most_of(self, available: int) -> int:
        """Returns the largest number of instances to try; the number is drawn uniformly from 1 to it."""

    @abstractmethod
    def lay(self, target: Sample, source: Sample, chosen: np.ndarray, rng: np.random.Generator) -> Sample:
        """Returns the target with the chosen instances over it, but for those that ``max_ioy`` refuses."""


@COPY_PASTE_REGISTRY.register()
@dataclass(frozen=True)
class CutLERCopyPaste(CopyPaste):
    """Copy-paste as CutLER's code does it.

    * Of n instances, 1 to n - 1 are pasted, the number drawn uniformly; of a single one, that one.
    * The source is stretched to ``scale`` times the target's height and width, whatever its own
      shape, sides rounded down.
    * Image and masks are interpolated bilinearly without smoothing; gray levels are rounded down,
      and a mask holds every pixel that gets a share of it, so it grows by up to a pixel.
    * Pasted masks may overlap one another.
    * Every box is drawn anew around its mask, also where nothing was pasted over it.

    Differs from that code: it pastes in the trainer's main process, this class in the workers, with
    the same partner (``PARTNER: reversed_batch``). It exchanges the x and y shifts of boxes, which
    shows where the target holds no instance; here the boxes fit. It keeps pasted masks that have
    become empty; here they are left out. It has no semantic target; here that becomes "thing".
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_range[1] > 1:
            raise ValueError(
                "INPUT.COPY_PASTE.SCALE_RANGE must not exceed 1.0 for CutLERCopyPaste, which keeps the whole source "
                f"inside the target, got {self.scale_range}; LayeredCopyPaste takes larger ones"
            )

    def most_of(self, available: int) -> int:
        """Returns one less than there are, but at least 1."""
        return max(1, available - 1)

    def lay(self, target: Sample, source: Sample, chosen: np.ndarray, rng: np.random.Generator) -> Sample:
        """Returns the target with the chosen instances over it; see the class."""
        image, masks = place_stretched(source, chosen, target.size, rng.uniform(*self.scale_range), rng)
        pasted = paste(target, image, masks, source.classes[chosen], self.max_ioy, _scores_of(source, chosen))
        return pasted if pasted is target else replace(pasted, boxes_xyxy=boxes_of_masks(pasted.masks))


@COPY_PASTE_REGISTRY.register()
@dataclass(frozen=True)
class LayeredCopyPaste(CopyPaste):
    """Copy-paste of ours: objects keep their shape and lie in layers.

    * Of n instances, 1 to n are pasted, the number drawn uniformly.
    * The source keeps its aspect ratio and is made to fit into ``scale`` times the target's sides.
    * The image is reduced by averaging (enlarged bilinearly), masks by nearest neighbor.
    * Where pasted instances overlap, the later one lies on top and the others lose those pixels.
    * Boxes of masks that changed are drawn anew; the others stay as the labels gave them.
    """

    def most_of(self, available: int) -> int:
        """Returns all that there are."""
        return available

    def lay(self, target: Sample, source: Sample, chosen: np.ndarray, rng: np.random.Generator) -> Sample:
        """Returns the target with the chosen instances over it; see the class."""
        image, masks = place_fitted(source, chosen, target.size, rng.uniform(*self.scale_range), rng)
        # Refused instances hide nothing, so they go before the layers are formed.
        accepted = acceptable(masks, target.masks, self.max_ioy)
        kept = chosen[accepted]
        layers = in_layers(masks[accepted])
        return paste(target, image, layers, source.classes[kept], self.max_ioy, _scores_of(source, kept))


def build_copy_paste(cfg: CfgNode) -> CopyPaste:
    """Returns the copy-paste that ``INPUT.COPY_PASTE`` describes.

    Raises:
        UnknownNameError: ``NAME`` is not registered; the message lists what is.
        ValueError: a setting is out of its range.
    """
    keys = cfg.INPUT.COPY_PASTE
    return get_registered(COPY_PASTE_REGISTRY, keys.NAME, "INPUT.COPY_PASTE.NAME")(
        probability=keys.PROBABILITY,
        same_cluster=keys.SAME_CLUSTER,
        scale_range=tuple(keys.SCALE_RANGE),
        max_ioy=keys.MAX_IOY,
        max_instances=keys.MAX_INSTANCES,
    )


def place_stretched(
    source: Sample, chosen: np.ndarray, size: tuple[int, int], scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the source, stretched and shifted at random, on a canvas of the target's size.

    Args:
        source: the sample to paste from.
        chosen: indices of its instances, (n,).
        size: the target's (height, width).
        scale: share of the target's sides that the source fills, at most 1; its aspect ratio
            becomes the target's.
        rng: draws the shift.

    Returns:
        The image, uint8 (H, W, 3), interpolated bilinearly and rounded down, and the masks of the
        chosen instances, bool (n, H, W): the pixels with any share of them.
    """
    height, width = size
    new_height, new_width = max(1, int(scale * height)), max(1, int(scale * width))
    top = int(rng.integers(0, height - new_height + 1))
    left = int(rng.integers(0, width - new_width + 1))
    inside = slice(top, top + new_height), slice(left, left + new_width)

    def stretched(values: np.ndarray) -> np.ndarray:
        return cv2.resize(values.astype(np.float32), (new_width, new_height), interpolation=cv2.INTER_LINEAR)

    image = np.zeros((height, width, 3), np.uint8)
    image[inside] = stretched(source.image)  # the cast rounds down
    masks = np.zeros((len(chosen), height, width), bool)
    for mask, index in zip(masks, chosen):
        mask[inside] = stretched(source.masks[index]) > 0
    return image, masks


def place_fitted(
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


def in_layers(masks: np.ndarray) -> np.ndarray:
    """Returns masks, bool (n, H, W), of which each lacks what a later one covers; some may become empty."""
    layers = masks.copy()
    for index in range(len(layers) - 1):
        layers[index] &= ~masks[index + 1 :].any(axis=0)
    return layers


def _scores_of(source: Sample, chosen: np.ndarray) -> np.ndarray | None:
    """Returns the chosen instances' scores; None where the source's labels have none."""
    return None if source.scores is None else source.scores[chosen]


def paste(
    target: Sample,
    image: np.ndarray,
    masks: np.ndarray,
    classes: np.ndarray,
    max_ioy: float,
    scores: np.ndarray | None = None,
) -> Sample:
    """Returns the target with instances laid over it; image, masks, boxes and semantic target stay consistent.

    What is pasted hides what lies under it: the target's masks lose those pixels, and one that
    loses all is dropped. Boxes of masks that changed are drawn anew, tight; the others stay. The
    semantic target becomes "thing" under what is pasted. The pasted masks stay as they are, also
    where they overlap one another.

    Args:
        target: is not changed.
        image: uint8 (H, W, 3), the source on a canvas of the target's size.
        masks: bool (n, H, W), its instances on that canvas; empty ones are passed over.
        classes: int64 (n,), their classes.
        max_ioy: an instance is refused where it covers at least this share of one of the target's.
        scores: float32 (n,), their scores; None where they have none.
    """
    accepted = acceptable(masks, target.masks, max_ioy)
    if not accepted.any():
        return target
    pasted, pasted_classes = masks[accepted], classes[accepted]
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
        scores=_joined_scores(target, remains, scores, accepted),
    )


def _joined_scores(
    target: Sample, remains: np.ndarray, scores: np.ndarray | None, accepted: np.ndarray
) -> np.ndarray | None:
    """Returns the scores of what remains and of what is pasted, 1 for those without; None where neither has any."""
    if target.scores is None and scores is None:
        return None
    pasted = np.ones(len(accepted), np.float32) if scores is None else scores
    return np.concatenate([target.confidences[remains], pasted[accepted]])


def acceptable(masks: np.ndarray, others: np.ndarray, max_ioy: float) -> np.ndarray:
    """Returns bool (n,): which of n masks have a pixel and cover less than ``max_ioy`` of every other mask's area.

    Args:
        masks: bool (n, H, W), to be pasted.
        others: bool (N, H, W), there already; empty ones do not count.
        max_ioy: intersection over the other's area, 0..1; more than 1 accepts any.
    """
    others = others[others.any(axis=(1, 2))]
    areas = others.sum(axis=(1, 2))
    covered = [(others & mask).sum(axis=(1, 2)) / areas for mask in masks]
    return np.array([mask.any() and (shares < max_ioy).all() for mask, shares in zip(masks, covered)], bool)
