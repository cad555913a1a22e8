"""RegionHierarchy: masks from the pixels of an image, without weights: superpixels, hierarchies of merges, ranked regions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode, configurable
from torch import Tensor

from u2seg.pseudo_labels.masks.hierarchy.candidates import distinct, fill_member_holes, pool_candidates
from u2seg.pseudo_labels.masks.hierarchy.contours import contour_strength, lab_image
from u2seg.pseudo_labels.masks.hierarchy.merging import MergeWeights, merge_regions
from u2seg.pseudo_labels.masks.hierarchy.objectness import is_background, objectness, outline_cues, overlaps, stability
from u2seg.pseudo_labels.masks.hierarchy.region_graph import RegionGraph, build_region_graph
from u2seg.pseudo_labels.masks.hierarchy.superpixels import superpixels
from u2seg.pseudo_labels.masks.interfaces import MASK_GENERATOR_REGISTRY, MaskGenerator, PatchMasks
from u2seg.utils.manifest import reads

_SHORTLIST = 800  # candidates that are compared with each other: their IoU with each other is what takes time


@dataclass(frozen=True)
class RegionHierarchySettings:
    """What the generator is built with: ``MASKS.HIERARCHY`` and two keys of ``MASKS``.

    Attributes:
        sigmas: smoothing, in pixels, of each scale of the contours.
        window: odd side, in pixels, of the square in which a superpixel's start is lowest: sets their number.
        merges: what each hierarchy merges by, at least one.
        min_area, max_area: shares, 0..1, of the image between which a mask's area lies.
        max_iou: overlap, 0..1, from which the worse of two masks is a duplicate.
        max_shared: share, 0..1, of a mask that better masks may hold; 1: masks may lie in each other.
        max_image_border: share, 0..1, of a large region's outline that may be the image's border; with more it is background, which
            takes its place in the image but is no mask; 1: no region is.
        min_score: objectness, 0..1, below which a region is no mask.
        max_masks: masks an image at most.
    """

    sigmas: tuple[float, ...]
    window: int
    merges: tuple[MergeWeights, ...]
    min_area: float
    max_area: float
    max_iou: float
    max_shared: float
    max_image_border: float
    min_score: float
    max_masks: int

    def __post_init__(self) -> None:
        """Refuses what gives no regions."""
        if not self.sigmas or not self.merges:
            raise ValueError(
                "MASKS.HIERARCHY.SIGMAS and MASKS.HIERARCHY.CONTOUR_WEIGHTS must have a value each, got "
                f"{len(self.sigmas)} and {len(self.merges)}"
            )


@MASK_GENERATOR_REGISTRY.register()
@reads("MASKS.HIERARCHY", "MASKS.MIN_AREA", "MASKS.MAX_AREA")
class RegionHierarchy(MaskGenerator):
    """Ranked regions of several hierarchies of one image's superpixels; they may be nested.

    Source: the idea of many hierarchies is that of selective search (Uijlings et al., IJCV 2013), the ranking of regions by cues that
    of Alexe et al., Measuring the objectness of image windows, PAMI 2012; cues and constants are ours, and nothing is learned.
    """

    @configurable
    def __init__(self, settings: RegionHierarchySettings):
        """Takes its settings."""
        self.settings = settings

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        keys = cfg.MASKS.HIERARCHY
        columns = (
            keys.CONTOUR_WEIGHTS,
            keys.LAB_WEIGHTS,
            keys.HSV_WEIGHTS,
            keys.TEXTURE_WEIGHTS,
            keys.FEATURE_WEIGHTS,
            keys.SIZE_WEIGHTS,
            keys.GAP_WEIGHTS,
            keys.SIZE_EXPONENTS,
        )
        if len({len(column) for column in columns}) != 1:
            raise ValueError(
                "the keys *_WEIGHTS and SIZE_EXPONENTS of MASKS.HIERARCHY must have as many values each, one for each hierarchy; got "
                f"{[len(column) for column in columns]}"
            )
        settings = RegionHierarchySettings(
            sigmas=tuple(keys.SIGMAS),
            window=keys.WINDOW,
            merges=tuple(MergeWeights(*row) for row in zip(*columns)),
            min_area=cfg.MASKS.MIN_AREA,
            max_area=cfg.MASKS.MAX_AREA,
            max_iou=keys.MAX_IOU,
            max_shared=keys.MAX_SHARED,
            max_image_border=keys.MAX_IMAGE_BORDER,
            min_score=keys.MIN_SCORE,
            max_masks=keys.MAX_MASKS,
        )
        return {"settings": settings}

    def __call__(self, features: Tensor, images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks of each image at its own size, at most ``max_masks``, best first; see the base class.

        Raises:
            ValueError: not as many images as feature maps.
        """
        if len(images_rgb) != len(features):
            raise ValueError(
                f"RegionHierarchy needs the pixels of each image, got {len(images_rgb)} images for {len(features)} feature maps"
            )
        arrays = features.float().cpu().numpy()
        return [self._one_image(image, its_features) for image, its_features in zip(images_rgb, arrays)]

    def _one_image(self, image_rgb: np.ndarray, features: np.ndarray) -> PatchMasks:
        graph = self._build_graph(image_rgb, features)
        members = self._candidates(graph)
        ious = overlaps(members, graph.areas)
        cues = outline_cues(graph, members)
        ranks = objectness(cues) * stability(ious)
        scores = ranks / (ranks + 1)
        background = is_background(cues, self.settings.max_image_border)
        kept = self._select(graph, members, scores, ious, background)
        return PatchMasks(members[kept][:, graph.labels], np.full(len(kept), np.nan), scores[kept])

    def _build_graph(self, image_rgb: np.ndarray, features: np.ndarray) -> RegionGraph:
        if not any(merge.features for merge in self.settings.merges):
            features = features[:0]
        lab = lab_image(image_rgb)
        strength = contour_strength(lab, self.settings.sigmas)
        labels = superpixels(strength, self.settings.window, sigma=1.0)
        return build_region_graph(image_rgb, lab, strength, labels, features)

    def _candidates(self, graph: RegionGraph) -> np.ndarray:
        """Returns the regions of all hierarchies that look most like objects, bool (N, S), each once and without holes."""
        settings = self.settings
        trees = [merge_regions(graph, weights) for weights in settings.merges]
        members = pool_candidates(graph, trees, settings.min_area, settings.max_area)
        best = np.argsort(-objectness(outline_cues(graph, members)), kind="stable")[:_SHORTLIST]
        return distinct(fill_member_holes(graph, members[best]))

    def _select(
        self, graph: RegionGraph, members: np.ndarray, scores: np.ndarray, ious: np.ndarray, background: np.ndarray
    ) -> np.ndarray:
        """Returns the indices of the masks among the candidates, best first: no duplicate, and none that better ones hold.

        Background is no mask, but takes its place like one, so that it is not found again in pieces.
        """
        settings = self.settings
        areas = members @ graph.areas
        is_free = scores >= settings.min_score
        taken = np.zeros(graph.num_regions, bool)
        kept: list[int] = []
        for index in np.argsort(-scores, kind="stable").tolist():
            shared = (members[index] & taken) @ graph.areas
            if len(kept) < settings.max_masks and is_free[index] and shared <= settings.max_shared * areas[index]:
                if not background[index]:
                    kept.append(index)
                taken |= members[index]
                is_free &= ious[index] < settings.max_iou
        return np.asarray(kept, np.int64)
