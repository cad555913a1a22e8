"""VoteCut: many coarse cuts of one image are grouped by overlap, and each group votes on one mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from scipy import ndimage
from torch import Tensor

from u2seg.pseudo_labels.masks.interfaces import MASK_GENERATOR_REGISTRY, MaskGenerator, PatchMasks
from u2seg.pseudo_labels.masks.maskcut import count_corners, prepare_features
from u2seg.pseudo_labels.masks.ncut import BinaryAffinity, second_eigenvectors

_KMEANS_ITERATIONS = 100  # a bound; one-dimensional k-means settles within a few dozen


@dataclass(frozen=True)
class VoteCutSettings:
    """What VoteCut is built with: ``MASKS`` and ``MASKS.VOTE`` of the configuration.

    Attributes:
        center_features: whether the mean over patches is subtracted first.
        taus: similarities, -1..1, at which patches are joined; one graph each, at least one.
        num_groups: numbers, at least 2, of level groups into which each eigenvector is split.
        eps: weight of the links between patches that are not joined.
        min_iou: overlap, 0..1, from which two candidates are of one group.
        min_share: share, 0..1, of a group's candidates that must hold a patch of its mask.
        max_masks: masks per image at most.
        max_corners: a candidate holds fewer image corners than this.
        min_area, max_area: shares, 0..1, of the image between which a candidate's area lies.

    Raises:
        ValueError: no threshold, no number of groups, or one below 2.
    """

    center_features: bool
    taus: tuple[float, ...]
    num_groups: tuple[int, ...]
    eps: float
    min_iou: float
    min_share: float
    max_masks: int
    max_corners: int
    min_area: float
    max_area: float

    def __post_init__(self) -> None:
        """Refuses what gives no candidates; see the class."""
        if not self.taus or not self.num_groups or min(self.num_groups) < 2:
            raise ValueError(
                "MASKS.VOTE.TAUS must name a threshold and MASKS.VOTE.NUM_GROUPS a number of at least 2, "
                f"got {tuple(self.taus)} and {tuple(self.num_groups)}"
            )


@MASK_GENERATOR_REGISTRY.register()
class VoteCut(MaskGenerator):
    """Consensus of the second eigenvectors of several graphs of one image.

    Source: CuVLER, CVPR 2024, section 3.1. Differs in where the graphs come from: thresholds instead of backbones, so that one forward
    pass does; and in that masks do not overlap, better voted ones taking what they share with others.
    """

    @configurable
    def __init__(self, settings: VoteCutSettings):
        """Takes its settings."""
        self.settings = settings

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        vote = cfg.MASKS.VOTE
        settings = VoteCutSettings(
            center_features=cfg.MASKS.CENTER_FEATURES,
            taus=tuple(vote.TAUS),
            num_groups=tuple(vote.NUM_GROUPS),
            eps=cfg.MASKS.EPS,
            min_iou=vote.MIN_IOU,
            min_share=vote.MIN_SHARE,
            max_masks=vote.MAX_MASKS,
            max_corners=vote.MAX_CORNERS,
            min_area=cfg.MASKS.MIN_AREA,
            max_area=cfg.MASKS.MAX_AREA,
        )
        return {"settings": settings}

    def __call__(self, features: Tensor, images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks of each image, at most ``max_masks``, most votes first; see the base class."""
        batch, _, rows, columns = features.shape
        prepared = prepare_features(features, self.settings.center_features)
        none_removed = torch.zeros((batch, rows * columns), dtype=torch.bool, device=features.device)
        candidates: list[list[tuple[np.ndarray, float]]] = [[] for _ in range(batch)]
        for tau in self.settings.taus:
            cuts = second_eigenvectors(BinaryAffinity(prepared, tau), none_removed, self.settings.eps)
            for found, vector, value in zip(candidates, cuts.vectors.cpu().numpy(), cuts.cut_values.tolist()):
                if value < 1:
                    found += [(mask, value) for mask in self._candidates(vector.reshape(rows, columns))]
        return [self._consensus(found, (rows, columns)) for found in candidates]

    def _candidates(self, vector: np.ndarray) -> list[np.ndarray]:
        """Returns the connected parts of an eigenvector's level groups that may be objects."""
        masks = []
        for count in self.settings.num_groups:
            groups = kmeans_1d(vector, count)
            for group in range(count):
                labels, num_parts = ndimage.label(groups == group)  # 4-connected
                parts = (labels == part for part in range(1, num_parts + 1))
                masks += [part for part in parts if self._is_acceptable(part)]
        return masks

    def _is_acceptable(self, mask: np.ndarray) -> bool:
        return bool(
            self.settings.min_area < mask.mean() <= self.settings.max_area
            and count_corners(mask) < self.settings.max_corners
        )

    def _consensus(self, candidates: list[tuple[np.ndarray, float]], grid_size: tuple[int, int]) -> PatchMasks:
        taken = np.zeros(grid_size, bool)
        masks, values, scores = [], [], []
        if candidates:
            stack = np.stack([mask for mask, _ in candidates])
            cut_values = np.asarray([value for _, value in candidates])
            for members in group_by_overlap(stack, self.settings.min_iou)[: self.settings.max_masks]:
                mask = (stack[members].mean(axis=0) > self.settings.min_share) & ~taken
                if mask.mean() > self.settings.min_area:
                    masks.append(mask)
                    values.append(cut_values[members].mean())
                    # Each graph and each number of groups has one vote; parts of one group do not overlap.
                    scores.append(min(1.0, len(members) / (len(self.settings.taus) * len(self.settings.num_groups))))
                    taken |= mask
        return PatchMasks(
            np.stack(masks) if masks else np.zeros((0, *grid_size), bool),
            np.asarray(values, np.float64),
            np.asarray(scores, np.float64),
        )


def group_by_overlap(masks: np.ndarray, min_iou: float) -> list[np.ndarray]:
    """Returns groups of masks, largest first: again and again the mask that most others overlap, with those others.

    Args:
        masks: bool (N, rows, columns), none empty.
        min_iou: from which two masks are of one group.

    Returns:
        Arrays of indices, together each of 0..N-1 once; among equally large groups that of the lowest index comes first.

    Source: CuVLER, section 3.1.
    """
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    intersections = flat @ flat.T
    areas = np.diag(intersections)
    agrees = intersections >= min_iou * (areas[:, None] + areas - intersections)
    left = np.ones(len(masks), bool)
    groups = []
    while left.any():
        counts = (agrees & left).sum(axis=1) * left
        members = np.flatnonzero(agrees[counts.argmax()] & left)
        groups.append(members)
        left[members] = False
    return groups


def kmeans_1d(values: np.ndarray, num_groups: int) -> np.ndarray:
    """Returns the k-means group of each value, int64, same shape, groups ordered by their mean; some may be empty.

    Starts from equally spaced centers between the extremes, so that it is deterministic, and flipping the sign flips the groups.

    Args:
        values: float, any shape.
        num_groups: K.
    """
    low, high = float(values.min()), float(values.max())
    centers = low + (high - low) * (np.arange(num_groups) + 0.5) / num_groups
    groups = np.zeros(values.shape, np.int64)
    for _ in range(_KMEANS_ITERATIONS):
        groups = np.searchsorted((centers[1:] + centers[:-1]) / 2, values)
        counts = np.bincount(groups.ravel(), minlength=num_groups)
        sums = np.bincount(groups.ravel(), weights=values.ravel(), minlength=num_groups)
        moved = np.where(counts > 0, sums / np.maximum(counts, 1), centers)
        if np.array_equal(moved, centers):
            break
        centers = moved
    return groups
