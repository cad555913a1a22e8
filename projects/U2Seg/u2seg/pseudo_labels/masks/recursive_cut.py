"""RecursiveCut: the image is cut in two, and each part again, until the parts hold together; those that look like objects stay."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from scipy import ndimage
from torch import Tensor

from u2seg.pseudo_labels.masks.interfaces import MASK_GENERATOR_REGISTRY, MaskGenerator, PatchMasks
from u2seg.pseudo_labels.masks.maskcut import count_corners
from u2seg.pseudo_labels.masks.ncut import BinaryAffinity, exact_second_eigenvector, second_eigenvectors
from u2seg.utils.manifest import reads

MAX_SHARED = 0.2  # share of a candidate that better candidates may have taken already [ours]
EXACT_BELOW = 1600  # patches up to which a region's graph is solved by components at once, which is faster there


@dataclass(frozen=True)
class RecursiveCutSettings:
    """What RecursiveCut is built with: ``MASKS`` and ``MASKS.RECURSIVE`` of the configuration.

    Attributes:
        radius: distance of features, in their unit, below which two patches are joined.
        eps: weight of the links between patches that are not joined.
        max_cut: normalized-cut value, 0..1, from which a region is one piece.
        max_external_links: share, 0..1, of a region's links that may leave it.
        max_borders: borders of the image, 0..4, that an object may touch.
        max_corners: an object holds fewer of the image's corners than this.
        min_area, max_area: shares, 0..1, of the image between which an object's area lies.
        max_cuts: cuts per image at most.
    """

    radius: float
    eps: float
    max_cut: float
    max_external_links: float
    max_borders: int
    max_corners: int
    min_area: float
    max_area: float
    max_cuts: int


@MASK_GENERATOR_REGISTRY.register()
@reads("MASKS.RECURSIVE", "MASKS.MIN_AREA", "MASKS.MAX_AREA", "MASKS.MAX_CORNERS", "MASKS.EPS")
class RecursiveCut(MaskGenerator):
    """Recursive two-way normalized cuts, for features that tell surfaces apart but know nothing of objects.

    MaskCut takes the first side of the first cut for an object. With hand-made features the first cuts separate sky from ground,
    objects sticking to either, and removing that side loses them. Here every connected part of both sides is cut again. A
    part is a candidate if its size, the corners and the borders that it touches allow for an object; candidates are taken in the
    order of the share of their links that leave them, which is low for what stands out as a whole.

    Source: Shi and Malik, PAMI 2000, section 3 (recursive two-way cut); patch graph as in MaskCut but joined by feature distance;
    the choice of candidates is ours.
    """

    @configurable
    def __init__(self, settings: RecursiveCutSettings):
        """Takes its settings."""
        self.settings = settings

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        recursive = cfg.MASKS.RECURSIVE
        settings = RecursiveCutSettings(
            radius=recursive.RADIUS,
            eps=cfg.MASKS.EPS,
            max_cut=recursive.MAX_CUT,
            max_external_links=recursive.MAX_EXTERNAL_LINKS,
            max_borders=recursive.MAX_BORDERS,
            max_corners=cfg.MASKS.MAX_CORNERS,
            min_area=cfg.MASKS.MIN_AREA,
            max_area=cfg.MASKS.MAX_AREA,
            max_cuts=recursive.MAX_CUTS_PER_IMAGE,
        )
        return {"settings": settings}

    def __call__(self, features: Tensor, images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks of each image, those with the smallest share of external links first; see the base class."""
        affinity = BinaryAffinity.of_distances(features.flatten(2), self.settings.radius)
        return [self._one_image(affinity, index, features.shape[2:]) for index in range(len(features))]

    def _one_image(self, affinity: BinaryAffinity, index: int, size: tuple[int, int]) -> PatchMasks:
        regions = self._partition(affinity, index, size)
        candidates = [
            (external_share, region)
            for region, external_share in zip(regions, self._external_shares(affinity, index, regions))
        ]
        taken = np.zeros(size, bool)
        masks, external_shares = [], []
        for external_share, region in sorted(candidates, key=lambda candidate: candidate[0]):
            if external_share > self.settings.max_external_links:
                break
            if (region & taken).sum() <= MAX_SHARED * region.sum():
                masks.append(region & ~taken)
                external_shares.append(external_share)
                taken |= region
        shares = np.asarray(external_shares, np.float64)
        return PatchMasks(np.stack(masks) if masks else np.zeros((0, *size), bool), shares, 1 - shares)

    def _partition(self, affinity: BinaryAffinity, index: int, size: tuple[int, int]) -> list[np.ndarray]:
        """Returns every region met on the way down that may be an object, bool (rows, columns) each."""
        min_patches = self.settings.min_area * size[0] * size[1]
        waiting, objects, num_cuts = [np.ones(size, bool)], [], 0
        while waiting:
            region = waiting.pop()
            if self._may_be_object(region):
                objects.append(region)
            if region.sum() < max(2, 2 * min_patches) or num_cuts >= self.settings.max_cuts:
                continue
            num_cuts += 1
            for side in self._halves(affinity, index, region):
                labels, count = ndimage.label(side)  # 4-connected
                parts = [labels == label for label in range(1, count + 1)]
                waiting += [part for part in parts if part.sum() > min_patches]
        return objects

    def _halves(self, affinity: BinaryAffinity, index: int, region: np.ndarray) -> list[np.ndarray]:
        """Returns the two sides of the best cut of a region, or nothing where it holds together."""
        nodes = torch.from_numpy(np.flatnonzero(region)).to(affinity.device)
        none_removed = torch.zeros((1, len(nodes)), dtype=torch.bool, device=affinity.device)
        graph = affinity.subgraph(index, nodes)
        if len(nodes) <= EXACT_BELOW:
            cut_value, vector = exact_second_eigenvector(graph, none_removed, self.settings.eps)
        else:
            cut = second_eigenvectors(graph, none_removed, self.settings.eps)
            cut_value, vector = float(cut.cut_values[0]), cut.vectors[0]
        if cut_value >= self.settings.max_cut:
            return []
        vector = vector.cpu().numpy()
        side = np.zeros_like(region)
        side[region] = vector > vector.mean()
        return [side, region & ~side]

    def _may_be_object(self, region: np.ndarray) -> bool:
        borders = sum(bool(line.any()) for line in (region[0], region[-1], region[:, 0], region[:, -1]))
        return bool(
            self.settings.min_area < region.mean() <= self.settings.max_area
            and count_corners(region) < self.settings.max_corners
            and borders <= self.settings.max_borders
        )

    def _external_shares(self, affinity: BinaryAffinity, index: int, regions: list[np.ndarray]) -> list[float]:
        """Returns for each region the share, 0..1, of its patches' links that end outside it."""
        if not regions:
            return []
        nodes = torch.arange(affinity.num_patches, device=affinity.device)
        members = torch.from_numpy(np.stack([region.ravel() for region in regions])).to(affinity.device, torch.float64)
        columns = torch.cat([members, torch.ones_like(members[:1])]).T[None]
        products = affinity.subgraph(index, nodes).product(columns)[0]
        inner = (members.T * products[:, :-1]).sum(0)
        volume = (members.T * products[:, -1:]).sum(0)
        return (1 - inner / volume.clamp_min(1)).tolist()
