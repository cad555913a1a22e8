"""Semantic clusters of regions: an image is divided along its contours, and each region gets one cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode

from u2seg.features import stack_on
from u2seg.pseudo_labels.masks.automatic import prepare_image
from u2seg.pseudo_labels.masks.hierarchy.contours import contour_strength, lab_image
from u2seg.pseudo_labels.masks.hierarchy.merging import MergeWeights, merge_regions
from u2seg.pseudo_labels.masks.hierarchy.region_graph import RegionGraph, build_region_graph
from u2seg.pseudo_labels.masks.hierarchy.superpixels import superpixels
from u2seg.pseudo_labels.semantics.semantic_providers import (
    SEMANTIC_PROVIDER_REGISTRY,
    PatchKMeans,
    still_readable,
)
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.image_io import ImageSource
from u2seg.utils.kmeans import assign
from u2seg.utils.manifest import reads

# The superpixels and, of the hierarchies of RegionHierarchy, the one whose large regions follow stuff best [ours].
_SIGMAS, _WINDOW = (1.0, 2.0), 9
_MERGE_WEIGHTS = MergeWeights(
    contour=0.3, lab=0.5, hsv=0.0, texture=1.0, features=0.0, size=0.0, gap=0.0, size_exponent=0.3
)


@dataclass(frozen=True)
class RegionWeights:
    """How much each part of a region's descriptor counts; see :func:`describe_regions`.

    Attributes:
        color, texture, height, feature: factors of the parts, at least 0.
    """

    color: float
    texture: float
    height: float
    feature: float


@dataclass(frozen=True)
class ImageRegions:
    """An image divided into regions.

    Attributes:
        labels: int64 (height, width), region of each pixel, 0..R-1, at the size at which features are computed.
        vectors: float32 (R, D), descriptor of each region.
    """

    labels: np.ndarray
    vectors: np.ndarray

    def on_patches(self, rows: int, columns: int) -> np.ndarray:
        """Returns each patch's descriptor, float32 (D, rows, columns): that of the region at its center."""
        height, width = self.labels.shape
        y = (2 * np.arange(rows) + 1) * height // (2 * rows)
        x = (2 * np.arange(columns) + 1) * width // (2 * columns)
        return self.vectors[self.labels[y[:, None], x]].transpose(2, 0, 1)


@SEMANTIC_PROVIDER_REGISTRY.register()
@reads("SEMANTICS.REGIONS")
class RegionKMeans(PatchKMeans):
    """k-means on regions: a region gets the cluster whose centroid is nearest to its descriptor, so that maps follow contours.

    A patch in the sample has the descriptor of the region around it, so that a region counts with its area.
    """

    samples_patches = False

    def __init__(self, cfg: CfgNode, images: ImageSource, masks: Path, output: Path):
        """Takes the settings under ``SEMANTICS``, the images, the mask stage's directory, and where to keep centroids."""
        super().__init__(cfg, images, masks, output)
        keys = cfg.SEMANTICS.REGIONS
        self._max_regions = keys.MAX_REGIONS
        self._weights = RegionWeights(keys.COLOR_WEIGHT, keys.TEXTURE_WEIGHT, keys.HEIGHT_WEIGHT, keys.FEATURE_WEIGHT)

    def sample(self, shard: int, records: list[ImageMasks]) -> None:
        """Samples the patches of a shard: a second forward pass over the images that are needed."""
        if not self._patches.path(shard).is_file():
            wanted = [record for record in records if self._patches.takes(record)]
            grid = self._extractor.grid_size
            drawn = [self._patches.draw(record, regions.on_patches(*grid)) for record, regions in self._regions(wanted)]
            self._patches.write(shard, drawn)

    def label(self, records: list[ImageMasks]) -> dict[str, np.ndarray]:
        """Returns the map of each readable image; see the registry."""
        centroids = np.load(self._centroids_path)
        maps = {}
        for record, regions in self._regions(records):
            clusters, _ = assign(regions.vectors, centroids)
            small = clusters.astype(np.uint8)[regions.labels]  # at the size at which features are computed
            size = (record.width, record.height)
            maps[record.file_name] = cv2.resize(small, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return maps

    @torch.no_grad()
    def _regions(self, records: list[ImageMasks]) -> Iterator[tuple[ImageMasks, ImageRegions]]:
        readable = [record for record in records if record.error is None]
        for start in range(0, len(readable), self._batch_size):
            batch = [
                (record, prepare_image(self._extractor, image))
                for record, image in still_readable(self._images, readable[start : start + self._batch_size])
            ]
            if batch:
                features = self._extractor(stack_on([image.pixels for _, image in batch], self._device))
                for (record, image), its_features in zip(batch, features.float().cpu().numpy()):
                    yield record, divide_image(image.resized_rgb, its_features, self._max_regions, self._weights)


def divide_image(image_rgb: np.ndarray, features: np.ndarray, max_regions: int, weights: RegionWeights) -> ImageRegions:
    """Returns an image divided into regions of one look.

    Args:
        image_rgb: uint8 (height, width, 3).
        features: float32 (C, rows, columns), patch features; height and width are multiples of rows and columns.
        max_regions: how many regions are left when the most alike neighbors have been merged.
        weights: of the descriptors' parts.
    """
    lab = lab_image(image_rgb)
    strength = contour_strength(lab, _SIGMAS)
    graph = build_region_graph(image_rgb, lab, strength, superpixels(strength, _WINDOW, sigma=1.0), features)
    groups = merge_regions(graph, _MERGE_WEIGHTS).partition(graph.num_regions, max_regions)
    return ImageRegions(groups[graph.labels], describe_regions(graph, groups, weights))


def describe_regions(graph: RegionGraph, groups: np.ndarray, weights: RegionWeights) -> np.ndarray:
    """Returns a descriptor of each group of superpixels, float32 (R, D): four parts, each times its weight.

    Color and texture are the square roots of histograms that add up to 1 (their Euclidean distance is Hellinger's), the height is that of
    the center of mass, 0 at the top and 1 at the bottom, and the feature is the mean patch feature scaled to norm 1.

    Args:
        graph: superpixels, S of them.
        groups: int (S,), 0..R-1.
        weights: of the parts.
    """
    count = int(groups.max()) + 1
    areas = np.bincount(groups, graph.areas, count)[:, None]

    def mean(sums: np.ndarray) -> np.ndarray:
        total = np.zeros((count, sums.shape[1]))
        np.add.at(total, groups, sums)
        return total / areas

    height, width = graph.labels.shape
    rows = np.repeat((np.arange(height) + 0.5) / height, width)
    heights = np.bincount(graph.labels.ravel(), rows, graph.num_regions)[:, None]
    features = mean(graph.features)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    parts = [
        weights.color * np.sqrt(mean(graph.histograms["lab"])),
        weights.texture * np.sqrt(mean(graph.histograms["texture"])),
        weights.height * mean(heights),
        weights.feature * features,
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)
