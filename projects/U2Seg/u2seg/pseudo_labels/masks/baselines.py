"""Mask generators that know nothing of objects: what a method must beat before its numbers mean anything."""

from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode, configurable
from scipy import ndimage
from torch import Tensor

from u2seg.pseudo_labels.masks.interfaces import MASK_GENERATOR_REGISTRY, MaskGenerator, PatchMasks
from u2seg.pseudo_labels.masks.maskcut import count_corners
from u2seg.utils.kmeans import assign, kmeans
from u2seg.utils.manifest import reads


@MASK_GENERATOR_REGISTRY.register()
@reads()
class WholeImage(MaskGenerator):
    """One mask, the whole image."""

    def __init__(self, cfg: CfgNode):
        """Takes the configuration, as every generator does, and needs nothing of it."""

    def __call__(self, features: Tensor, images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns one mask for each image; see the base class."""
        batch, _, rows, columns = features.shape
        return [PatchMasks(np.ones((1, rows, columns), bool), np.full(1, np.nan), np.ones(1)) for _ in range(batch)]


@MASK_GENERATOR_REGISTRY.register()
@reads("MASKS.KMEANS_REGIONS", "MASKS.MIN_AREA", "MASKS.MAX_AREA", "MASKS.MAX_CORNERS", "CLUSTERS.SEED")
class KMeansRegions(MaskGenerator):
    """k-means on an image's features; every connected region of one cluster that has an object's size is a mask."""

    @configurable
    def __init__(self, *, num_clusters: int, min_area: float, max_area: float, max_corners: int, seed: int):
        """Takes its settings; see ``MASKS`` in the configuration."""
        self.num_clusters = num_clusters
        self.min_area = min_area
        self.max_area = max_area
        self.max_corners = max_corners
        self.seed = seed

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {
            "num_clusters": cfg.MASKS.KMEANS_REGIONS.NUM_CLUSTERS,
            "min_area": cfg.MASKS.MIN_AREA,
            "max_area": cfg.MASKS.MAX_AREA,
            "max_corners": cfg.MASKS.MAX_CORNERS,
            "seed": cfg.CLUSTERS.SEED,
        }

    def __call__(self, features: Tensor, images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks of each image, the largest first; see the base class."""
        return [self._one_image(image.cpu().numpy()) for image in features]

    def _one_image(self, features: np.ndarray) -> PatchMasks:
        vectors = features.reshape(len(features), -1).T
        count = min(self.num_clusters, len(vectors))
        found = kmeans(vectors, count, num_iterations=20, num_restarts=1, seed=self.seed)
        clusters = assign(vectors, found.centroids)[0].reshape(features.shape[1:])
        masks = []
        for cluster in range(count):
            labels, num_regions = ndimage.label(clusters == cluster)  # 4-connected
            masks += [labels == label for label in range(1, num_regions + 1)]
        masks = [mask for mask in masks if self._may_be_object(mask)]
        masks.sort(key=lambda mask: -int(mask.sum()))
        empty = np.zeros((0, *clusters.shape), bool)
        return PatchMasks(np.stack(masks) if masks else empty, np.full(len(masks), np.nan), np.ones(len(masks)))

    def _may_be_object(self, mask: np.ndarray) -> bool:
        return bool(self.min_area < mask.mean() <= self.max_area and count_corners(mask) < self.max_corners)
