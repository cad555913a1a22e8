"""VoteCut: many coarse cuts of one image are grouped by overlap, and each group votes on one mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from scipy import ndimage
from torch import Tensor

from u2seg.pseudo_labels.masks.interfaces import MASK_GENERATOR_REGISTRY, MaskGenerator, PatchMasks
from u2seg.pseudo_labels.masks.maskcut import count_corners, prepare_features
from u2seg.pseudo_labels.masks.ncut import BinaryAffinity, second_eigenvectors
from u2seg.utils.manifest import reads

_KMEANS_ITERATIONS = 100  # a bound; one-dimensional k-means settles within a few dozen
_PIVOT_ROUNDS = 5  # [CuVLER]


@dataclass(frozen=True)
class VoteCutRules:
    """Where the default rules differ from CuVLER's published code: ``MASKS.VOTE.RULES`` of the configuration.

    Attributes:
        divide_by_degree: the eigenvector whose entries are grouped is MaskCut's x = D^-1/2 u; published: u itself.
        best_groups: the entries are split by the best k-means there is, which the published ten random starts look for; else one
            start from equally spaced centers.
        count_group_corners: corners are counted in a whole level group, and too many drop all its parts; else part by part.
        max_parts: level groups of more connected parts are dropped; 0: none is. Published: 30.
        min_side: parts narrower and lower than so many patches are dropped; 0: none is. Published: 5.
        refine_pivots: candidates are grouped by ``group_around_pivots``, which takes overlaps above ``min_iou``; else by
            ``group_by_overlap``, which takes those from ``min_iou``.
        keep_overlaps: masks may overlap; else the better voted ones take what they share with others.
        score_by_largest: a mask's score is the size of its group as a share of the image's largest group; else as a share of the
            votes that there are.
    """

    divide_by_degree: bool = True
    best_groups: bool = False
    count_group_corners: bool = False
    max_parts: int = 0
    min_side: int = 0
    refine_pivots: bool = False
    keep_overlaps: bool = False
    score_by_largest: bool = False

    @classmethod
    def published(cls) -> "VoteCutRules":
        """Returns the rules of the published code."""
        return cls(
            divide_by_degree=False,
            best_groups=True,
            count_group_corners=True,
            max_parts=30,
            min_side=5,
            refine_pivots=True,
            keep_overlaps=True,
            score_by_largest=True,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "VoteCutRules":
        """Returns the rules that ``cfg.MASKS.VOTE.RULES`` describes."""
        return cls(**{key.lower(): value for key, value in cfg.MASKS.VOTE.RULES.items()})


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
        rules: where the method differs from the published code.

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
    rules: VoteCutRules = VoteCutRules()

    def __post_init__(self) -> None:
        """Refuses what gives no candidates; see the class."""
        if not self.taus or not self.num_groups or min(self.num_groups) < 2:
            raise ValueError(
                "MASKS.VOTE.TAUS must name a threshold and MASKS.VOTE.NUM_GROUPS a number of at least 2, "
                f"got {tuple(self.taus)} and {tuple(self.num_groups)}"
            )


@MASK_GENERATOR_REGISTRY.register()
@reads("MASKS.VOTE", "MASKS.MIN_AREA", "MASKS.MAX_AREA", "MASKS.CENTER_FEATURES", "MASKS.EPS")
class VoteCut(MaskGenerator):
    """Consensus of the second eigenvectors of several graphs of one image.

    Source: CuVLER, CVPR 2024, section 3.1. Differs in where the graphs come from: several thresholds of one backbone, so that one
    forward pass does, unless ``FEATURES.OTHERS`` names more. ``VoteCutRules`` names every other difference; with
    ``VoteCutRules.published()`` the rules are the published code's, but that the best k-means is found for certain, and that a graph
    without structure (lambda = 1) gives no candidates.
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
            rules=VoteCutRules.from_config(cfg),
        )
        return {"settings": settings}

    def __call__(self, features: Tensor, images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks of each image, at most ``max_masks``, in the order of their groups; see the base class."""
        return self.from_views([features])

    def from_views(self, views: list[Tensor], images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks for which the graphs of several backbones voted, on the grid of the first.

        Each backbone's candidates are found on its own grid, and brought to the first one's by nearest neighbor.

        Args:
            views: float (B, Ci, rows i, columns i), one for each backbone.
            images_rgb: not used.
        """
        grid_size = (views[0].shape[2], views[0].shape[3])
        candidates: list[list[tuple[np.ndarray, float]]] = [[] for _ in range(len(views[0]))]
        for view in views:
            for found, own in zip(candidates, self._candidates_of(view)):
                resized = [(resize_nearest(mask, grid_size), value) for mask, value in own]
                found += [(mask, value) for mask, value in resized if mask.any()]
        return [self._consensus(found, grid_size, len(views)) for found in candidates]

    def _candidates_of(self, features: Tensor) -> list[list[tuple[np.ndarray, float]]]:
        """Returns each image's candidates on the grid of the features, with the cut value of the graph that each comes from."""
        batch, _, rows, columns = features.shape
        prepared = prepare_features(features, self.settings.center_features)
        none_removed = torch.zeros((batch, rows * columns), dtype=torch.bool, device=features.device)
        candidates: list[list[tuple[np.ndarray, float]]] = [[] for _ in range(batch)]
        for tau in self.settings.taus:
            affinity = BinaryAffinity(prepared, tau)
            cuts = second_eigenvectors(affinity, none_removed, self.settings.eps)
            vectors = cuts.vectors
            if not self.settings.rules.divide_by_degree:
                vectors = vectors * affinity.degrees(self.settings.eps).sqrt()
            for found, vector, value in zip(candidates, vectors.cpu().numpy(), cuts.cut_values.tolist()):
                if value < 1:
                    found += [(mask, value) for mask in self._candidates(vector.reshape(rows, columns))]
        return candidates

    def _candidates(self, vector: np.ndarray) -> list[np.ndarray]:
        """Returns the connected parts of an eigenvector's level groups that may be objects."""
        split = best_groups_1d if self.settings.rules.best_groups else kmeans_1d
        masks = []
        for count in self.settings.num_groups:
            groups = split(vector, count)
            for group in range(count):
                masks += [part for part in self._parts(groups == group) if self._is_acceptable(part)]
        return masks

    def _parts(self, group: np.ndarray) -> list[np.ndarray]:
        """Returns the 4-connected parts of a level group, none where the group as a whole is background."""
        rules = self.settings.rules
        if rules.count_group_corners and count_corners(group) >= self.settings.max_corners:
            return []
        labels, num_parts = ndimage.label(group)
        if rules.max_parts and num_parts > rules.max_parts:
            return []
        return [labels == part for part in range(1, num_parts + 1)]

    def _is_acceptable(self, mask: np.ndarray) -> bool:
        settings = self.settings
        if max(mask.any(axis=0).sum(), mask.any(axis=1).sum()) < settings.rules.min_side:
            return False
        # A part of a group that has passed has no more corners than the group.
        return bool(settings.min_area < mask.mean() <= settings.max_area and count_corners(mask) < settings.max_corners)

    def _consensus(
        self, candidates: list[tuple[np.ndarray, float]], grid_size: tuple[int, int], num_views: int = 1
    ) -> PatchMasks:
        """Returns each group's patches that enough of its members hold."""
        settings = self.settings
        taken = np.zeros(grid_size, bool)
        masks, values, scores = [], [], []
        if candidates:
            stack = np.stack([mask for mask, _ in candidates])
            cut_values = np.asarray([value for _, value in candidates])
            group = group_around_pivots if settings.rules.refine_pivots else group_by_overlap
            groups = group(stack, settings.min_iou)
            # Each graph and each number of groups has one vote; parts of one group do not overlap.
            num_votes = num_views * len(settings.taus) * len(settings.num_groups)
            full_score = max(map(len, groups)) if settings.rules.score_by_largest else num_votes
            for members in groups[: settings.max_masks]:
                mask = stack[members].mean(axis=0) > settings.min_share
                if not settings.rules.keep_overlaps:
                    mask &= ~taken
                if mask.mean() > settings.min_area:
                    masks.append(mask)
                    values.append(cut_values[members].mean())
                    scores.append(min(1.0, len(members) / full_score))
                    taken |= mask
        return PatchMasks(
            np.stack(masks) if masks else np.zeros((0, *grid_size), bool),
            np.asarray(values, np.float64),
            np.asarray(scores, np.float64),
        )


def resize_nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a mask on another grid, bool (rows, columns): each patch has the value of the patch in which its center lies.

    Args:
        mask: bool (R, C).
        size: (rows, columns) wanted.
    """
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, mask.shape))
    return mask[np.ix_(rows, columns)]


def group_by_overlap(masks: np.ndarray, min_iou: float) -> list[np.ndarray]:
    """Returns groups of masks, largest first: again and again the mask that most others overlap, with those others.

    Args:
        masks: bool (N, rows, columns), none empty.
        min_iou: from which two masks are of one group.

    Returns:
        Arrays of indices, together each of 0..N-1 once; among equally large groups that of the lowest index comes first.

    Source: CuVLER, section 3.1.
    """
    intersections, unions = _overlaps(masks)
    agrees = intersections >= min_iou * unions
    left = np.ones(len(masks), bool)
    groups = []
    while left.any():
        counts = (agrees & left).sum(axis=1) * left
        members = np.flatnonzero(agrees[counts.argmax()] & left)
        groups.append(members)
        left[members] = False
    return groups


def group_around_pivots(masks: np.ndarray, min_iou: float) -> list[np.ndarray]:
    """Returns groups of masks in the order in which they were found, each grown around a mask that moves to its middle.

    Masks are visited from the one that most others overlap to the one that fewest do. A group starts with the mask as its pivot.
    Five times at most, what overlaps the pivot joins the group, and the member with the largest sum of IoUs with the members
    becomes the pivot, until it is the same again. A visited mask or final pivot that is in an earlier group makes no group, and
    members that are in one are left out.

    Args:
        masks: bool (N, rows, columns), none empty.
        min_iou: above which two masks overlap.

    Returns:
        Arrays of indices, ascending; an index is in one of them at most. Of equal masks that of the lowest index comes first.

    Source: CuVLER, section 3.1, and the rules of its published code.
    """
    intersections, unions = _overlaps(masks)
    overlaps, ious = intersections > min_iou * unions, intersections / unions
    used = np.zeros(len(masks), bool)
    groups = []
    for pivot in np.argsort(-overlaps.sum(axis=1), kind="stable"):
        if used[pivot]:
            continue
        is_member = np.zeros(len(masks), bool)
        for _ in range(_PIVOT_ROUNDS):
            is_member |= overlaps[pivot]
            is_member[pivot] = True  # above an IoU of 1 it does not even overlap itself
            members = np.flatnonzero(is_member)
            previous, pivot = pivot, members[ious[np.ix_(members, members)].sum(axis=1).argmax()]
            if pivot == previous:
                break
        if not used[pivot]:
            groups.append(np.flatnonzero(is_member & ~used))
            used |= is_member
    return groups


def _overlaps(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the areas of the intersection and of the union of each pair of masks, float32 (N, N); whole numbers."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    intersections = flat @ flat.T
    areas = np.diag(intersections)
    return intersections, areas[:, None] + areas - intersections


def best_groups_1d(values: np.ndarray, num_groups: int) -> np.ndarray:
    """Returns the k-means grouping of least squared error, int64, same shape, groups ordered by their mean.

    In one dimension groups are stretches of the sorted values, so that dynamic programming finds the best split into K stretches
    from the best splits of all beginnings into K - 1. Values of which there are fewer than K make fewer groups.

    Args:
        values: float, any shape, not empty.
        num_groups: K.

    Source: Wang and Song, Ckmeans.1d.dp, The R Journal 2011.
    """
    ordered, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    centered = ordered - values.mean()
    sums = np.zeros((3, len(ordered) + 1))
    np.cumsum([counts, counts * centered, counts * centered**2], axis=1, out=sums[:, 1:])

    def error(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Returns the squared error of the stretches ordered[start:end], none empty."""
        count, total, squares = sums[:, end] - sums[:, start]
        return squares - total**2 / count

    ends = np.arange(1, len(ordered) + 1)
    errors = np.concatenate([[np.inf], error(np.zeros_like(ends), ends)])
    splits = []
    for _ in range(1, min(num_groups, len(ordered))):
        errors, split = _best_last_stretches(errors, error)
        splits.append(split)
    end, bounds = len(ordered), []
    for split in reversed(splits):
        end = split[end]
        bounds.append(end)
    return np.searchsorted(bounds[::-1], np.arange(len(ordered)), side="right")[inverse].reshape(values.shape)


def _best_last_stretches(
    errors: np.ndarray, error: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Adds one stretch to the best splits of all beginnings.

    The best start of the last stretch never falls as its end grows. So ends are taken from coarse to fine, each trying only the
    starts between those of its neighbors.

    Args:
        errors: float64 (n + 1,), least error of the first 0..n values with one stretch less; infinite where there are too few.
        error: of the stretches from ``start`` to ``end``, int64 arrays.

    Returns:
        The least errors, float64 (n + 1,), and the starts of the last stretches, int64 (n + 1,).
    """
    n = len(errors) - 1
    best, starts = np.full(n + 1, np.inf), np.zeros(n + 1, np.int64)
    step = 1 << n.bit_length()
    while step > 1:
        half = step // 2
        ends = np.arange(half, n + 1, step)
        lowest = starts[ends - half]
        highest = np.minimum(np.where(ends + half <= n, starts[np.minimum(ends + half, n)], n), ends - 1)
        lengths = highest - lowest + 1
        firsts = np.cumsum(lengths) - lengths
        tried = np.arange(lengths.sum()) - np.repeat(firsts - lowest, lengths)
        totals = errors[tried] + error(tried, np.repeat(ends, lengths))
        best[ends] = np.minimum.reduceat(totals, firsts)
        least = np.flatnonzero(totals == np.repeat(best[ends], lengths))
        starts[ends] = tried[least[np.searchsorted(least, firsts)]]
        step = half
    return best, starts


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
