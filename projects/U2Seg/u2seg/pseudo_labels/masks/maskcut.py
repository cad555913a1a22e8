"""MaskCut: several objects an image by repeated normalized cuts, what was found being removed before the next one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from scipy import ndimage
from scipy.linalg import eigh
from torch import Tensor

from u2seg.pseudo_labels.masks.interfaces import MASK_GENERATOR_REGISTRY, MaskGenerator, PatchMasks
from u2seg.pseudo_labels.masks.ncut import BinaryAffinity, second_eigenvectors
from u2seg.structures import mask_iou
from u2seg.utils.manifest import reads

ROUNDING = 1e-9  # share of the largest magnitude below which entries of an eigenvector count as equal [ours]


@dataclass(frozen=True)
class MaskCutRules:
    """Where the default rules differ from the published code: ``MASKS.RULES`` of the configuration.

    Attributes:
        live_seeds: the region grows from the most extreme patch of its side that is still there; published: from the most extreme
            one, which may lie in what was found before.
        check_first_area: the first region must be larger than ``min_area`` as well; published: later ones only.
        measure_new_patches: areas are those of the patches that no earlier mask holds; published: of the whole region.
        reject_corners: a region that itself owns ``max_corners`` image corners is rejected; published: corners only choose the side.
        max_live_share: share, 0..1, of the patches that are still there above which a region is rejected as "all the rest"; 1:
            never [published].
        remove_rejected: a rejected region is removed from the graph like a mask; published: it is not, so that the next round solves
            the same problem, compares with nothing, and accepts what was rejected as a repeat.
    """

    live_seeds: bool = True
    check_first_area: bool = True
    measure_new_patches: bool = True
    reject_corners: bool = True
    max_live_share: float = 0.95
    remove_rejected: bool = True

    @classmethod
    def published(cls) -> "MaskCutRules":
        """Returns the rules of the published code."""
        return cls(
            live_seeds=False,
            check_first_area=False,
            measure_new_patches=False,
            reject_corners=False,
            max_live_share=1.0,
            remove_rejected=False,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "MaskCutRules":
        """Returns the rules that ``cfg.MASKS.RULES`` describes."""
        return cls(**{key.lower(): value for key, value in cfg.MASKS.RULES.items()})


@dataclass(frozen=True)
class MaskCutSettings:
    """What both kinds of MaskCut are built with: ``MASKS`` of the configuration.

    Attributes:
        center_features: whether the mean over patches is subtracted first.
        tau: cosine similarity, -1..1, above which two patches are joined.
        eps: weight of the links between patches that are not joined, above 0 and below 1.
        rounds: masks sought in an image, at least 1.
        min_area, max_area: shares, 0..1, of the image between which a mask's area lies; the published code has no upper one.
        max_corners: number of the image's corners from which a mask counts as background.
        max_previous_iou: IoU, 0..1, with the previous mask above which a later one is rejected.

    Raises:
        ValueError: ``rounds`` or ``eps`` is out of its range.
    """

    center_features: bool
    tau: float
    eps: float
    rounds: int
    min_area: float
    max_corners: int
    max_previous_iou: float
    max_area: float = 1.0

    def __post_init__(self) -> None:
        """Refuses what gives no cuts; see the class."""
        if self.rounds < 1:
            raise ValueError(f"MASKS.ROUNDS must be at least 1, got {self.rounds}")
        if not 0 < self.eps < 1:
            raise ValueError(f"MASKS.EPS must be above 0 and below 1, got {self.eps}")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "MaskCutSettings":
        """Returns the settings that ``cfg.MASKS`` describes."""
        return cls(**{field.name: cfg.MASKS[field.name.upper()] for field in fields(cls)})

    def affinity(self, features: Tensor) -> BinaryAffinity:
        """Returns the patch graphs of a batch of images.

        Args:
            features: float (B, C, rows, columns).
        """
        return BinaryAffinity(prepare_features(features, self.center_features), self.tau)


_SETTINGS_KEYS = tuple(f"MASKS.{field.name.upper()}" for field in fields(MaskCutSettings))


@MASK_GENERATOR_REGISTRY.register()
@reads(*_SETTINGS_KEYS, "MASKS.RULES")
class MaskCut(MaskGenerator):
    """The rounds of MaskCut, batched over images.

    Source: CutLER, section 3.1. ``MaskCutRules`` names every rule in which the default differs from the published code; with
    ``MaskCutRules.published()`` the masks are those of ``StrictMaskCut`` but for two things that the published code leaves to its
    solver. *The sign*: where the side of the larger peak owns three corners, the published code takes either side, as the arbitrary
    sign of LAPACK's vector falls; here it is always the other side. *Graphs without structure* (lambda = 1): every vector is a
    solution, and the published code cuts along whichever it is given; here the image is finished.
    """

    @configurable
    def __init__(self, settings: MaskCutSettings, rules: MaskCutRules = MaskCutRules()):
        """Takes its settings and rules."""
        self.settings = settings
        self.rules = rules

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {"settings": MaskCutSettings.from_config(cfg), "rules": MaskCutRules.from_config(cfg)}

    def __call__(self, features: Tensor, images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks of each image, at most ``rounds``; see the base class."""
        batch, _, rows, columns = features.shape
        affinity = self.settings.affinity(features)
        progress = [_Progress.start(rows, columns) for _ in range(batch)]
        for round_index in range(self.settings.rounds):
            if all(image.is_finished for image in progress):
                break
            removed = torch.from_numpy(np.stack([image.removed.ravel() for image in progress]))
            cuts = second_eigenvectors(affinity, removed.to(features.device), self.settings.eps)
            for image, vector, value in zip(progress, cuts.vectors.cpu().numpy(), cuts.cut_values.tolist()):
                if not image.is_finished:
                    self._one_round(image, vector.reshape(rows, columns), value, is_first=round_index == 0)
        return [image.result() for image in progress]

    def _one_round(self, image: "_Progress", vector: np.ndarray, cut_value: float, is_first: bool) -> None:
        if cut_value >= 1:  # nothing to cut: the image is uniform, or all of it has been taken
            image.is_finished = True
            return
        live = ~image.removed
        region = select_object(vector, live if self.rules.live_seeds else np.ones_like(live))
        if self._is_acceptable(region, live, image.previous, is_first):
            fresh = region & live
            # An empty one leaves the graph as it is, so that all later rounds find the same.
            image.is_finished = not fresh.any()
            if not image.is_finished:
                image.masks.append(fresh)
                image.cut_values.append(cut_value)
                image.previous = region
                image.removed |= region
        elif self.rules.remove_rejected:
            image.is_finished = not (region & live).any()
            image.removed |= region
        else:
            image.previous = None

    def _is_acceptable(self, region: np.ndarray, live: np.ndarray, previous: np.ndarray | None, is_first: bool) -> bool:
        if previous is not None and mask_iou(region, previous) > self.settings.max_previous_iou:
            return False
        fresh = region & live
        if fresh.sum() > self.rules.max_live_share * live.sum():
            return False
        if self.rules.reject_corners and count_corners(region) >= self.settings.max_corners:
            return False
        area = (fresh if self.rules.measure_new_patches else region).mean()
        is_large_enough = area > self.settings.min_area or (is_first and not self.rules.check_first_area)
        return bool(is_large_enough and area <= self.settings.max_area)


@dataclass
class _Progress:
    """How far one image has come: what was found, and what is removed (found or rejected)."""

    masks: list[np.ndarray]
    cut_values: list[float]
    removed: np.ndarray
    previous: np.ndarray | None = None
    is_finished: bool = False

    @classmethod
    def start(cls, rows: int, columns: int) -> "_Progress":
        return cls([], [], np.zeros((rows, columns), bool))

    def result(self) -> PatchMasks:
        return _patch_masks(self.masks, self.cut_values, self.removed.shape)


def select_object(vector: np.ndarray, live: np.ndarray) -> np.ndarray:
    """Returns the connected region that an eigenvector marks as an object, whatever the vector's sign.

    The patches above and below the mean are the two candidates for "object". The side that owns fewer of the four corners is
    taken; with equal counts the side that holds the entry of largest magnitude. Of that side the 4-connected component
    with the most extreme live entry is returned. Entries that differ by less than 1e-9 of the largest magnitude count as equal;
    equal extremes go to the lowest index.

    Args:
        vector: float64 (rows, columns).
        live: bool (rows, columns), patches that may seed an object.

    Returns:
        bool (rows, columns); empty where the chosen side has no live patch: the cut tells what was removed from the rest, and the
        rest is not thereby an object.

    Source: CutLER, section 3.1, made independent of the sign: the published code flips the sides when "above" owns three corners
    or lacks the peak. The four corners being shared out, that is the same where the peak is positive and no corner is at the mean.
    """
    largest = np.abs(vector).max(initial=0.0)
    if largest == 0 or not live.any():
        return np.zeros_like(live)
    # On a grid of 1e-9 of the largest entry, symmetric about zero, so that a flipped vector gives the flipped grid.
    grid = np.rint(vector / (largest * ROUNDING))
    above_mean = grid - np.rint(grid.mean())
    sides = [_side(direction * above_mean, np.abs(grid)) for direction in (1, -1)]
    candidates = [side for side in sides if side is not None]
    if not candidates:
        return np.zeros_like(live)
    # No step of the comparison knows which side is "above".
    *_, height = min(candidates, key=lambda candidate: candidate[:3])
    side = height > 0
    if not (side & live).any():
        return np.zeros_like(live)
    seed = int(np.where(side & live, height, 0.0).argmax())  # the lowest index among equals
    labels, _ = ndimage.label(side)  # 4-connected
    return labels == labels.flat[seed]


def _side(height: np.ndarray, magnitude: np.ndarray) -> tuple[int, float, int, np.ndarray] | None:
    """Returns (corners, minus the peak's magnitude, its index, ``height``) of where ``height`` is positive; None if nowhere."""
    side = height > 0
    if not side.any():
        return None
    peak = int(np.where(side, magnitude, -1.0).argmax())
    return count_corners(side), -float(magnitude.flat[peak]), peak, height


def count_corners(mask: np.ndarray) -> int:
    """Returns how many of a mask's four corner patches are set, 0..4."""
    return int(mask[0, 0]) + int(mask[0, -1]) + int(mask[-1, 0]) + int(mask[-1, -1])


@MASK_GENERATOR_REGISTRY.register()
@reads(*_SETTINGS_KEYS)
class StrictMaskCut(MaskGenerator):
    """MaskCut as its published code has it, for parity: slow, and one image at a time.

    SciPy's dense generalized solver gives the sign of the eigenvector, on which the chosen side depends; the first mask may have any
    area; and a mask that is rejected may come back in the next round, which solves the same problem and compares with nothing.

    Source: CutLER, section 3.1, and the rules of its published code.
    """

    @configurable
    def __init__(
        self,
        settings: MaskCutSettings,
        solver: Callable[[np.ndarray], tuple[np.ndarray, float]] | None = None,
    ):
        """Takes its settings, of which it ignores ``max_area``.

        Args:
            settings: see there.
            solver: from an affinity, float64 (n, n), to the second eigenvector, with its sign, and eigenvalue.
        """
        self.settings = settings
        self.solver = solver or scipy_second_eigenvector

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {"settings": MaskCutSettings.from_config(cfg)}

    def __call__(self, features: Tensor, images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks of each image, at most ``rounds``; see the base class."""
        rows, columns = features.shape[2:]
        affinity = self.settings.affinity(features)
        return [self._one_image(affinity.dense(index).cpu().numpy(), rows, columns) for index in range(len(features))]

    def _one_image(self, joined: np.ndarray, rows: int, columns: int) -> PatchMasks:
        removed = np.zeros((rows, columns), bool)
        previous = np.zeros((rows, columns), bool)
        masks, cut_values = [], []
        solved = None  # of an unchanged graph; a rejection leaves it unchanged
        for round_index in range(self.settings.rounds):
            if solved is None:
                live = ~removed.ravel()
                solved = self.solver(np.where(joined.astype(bool) & live[:, None] & live, 1.0, self.settings.eps))
            vector, value = solved
            region = self._select(vector.reshape(rows, columns))
            is_rejected = round_index > 0 and (
                mask_iou(region, previous) > self.settings.max_previous_iou or region.mean() <= self.settings.min_area
            )
            previous = np.zeros_like(region) if is_rejected else region
            fresh = previous & ~removed
            if fresh.any():
                masks.append(fresh)
                cut_values.append(value)
                removed |= fresh
                solved = None
        return _patch_masks(masks, cut_values, (rows, columns))

    def _select(self, vector: np.ndarray) -> np.ndarray:
        side = vector > vector.mean()
        seed = int(np.abs(vector).argmax())
        if count_corners(side) >= self.settings.max_corners or not side.flat[seed]:
            side = ~side
            seed = int((-vector).argmax())
        else:
            seed = int(vector.argmax())
        labels, _ = ndimage.label(side)  # 4-connected
        return labels == labels.flat[seed] if side.flat[seed] else np.zeros_like(side)


def scipy_second_eigenvector(affinity: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns x and lambda of the second smallest solution of (D - A) x = lambda D x, by SciPy's dense solver, with its sign.

    Args:
        affinity: A, float64 (n, n), symmetric.

    Source: Shi and Malik, TPAMI 2000, equation 11; CutLER, section 3.1.
    """
    degrees = np.diag(affinity.sum(axis=1))
    values, vectors = eigh(degrees - affinity, degrees, subset_by_index=[1, 2])
    return vectors[:, 0], float(values[0])


def prepare_features(features: Tensor, center: bool) -> Tensor:
    """Returns patch features as float (B, C, n), less each image's mean if asked for.

    Args:
        features: float (B, C, rows, columns).
        center: whether to subtract the mean over the patches.
    """
    features = features.flatten(2)
    return features - features.mean(dim=2, keepdim=True) if center else features


def _patch_masks(masks: list[np.ndarray], cut_values: list[float], grid_size: tuple[int, int]) -> PatchMasks:
    """Returns the masks; the score is 1 - cut value (ours: the paper scores nothing)."""
    values = np.asarray(cut_values, np.float64)
    return PatchMasks(np.stack(masks) if masks else np.zeros((0, *grid_size), bool), values, np.clip(1 - values, 0, 1))
