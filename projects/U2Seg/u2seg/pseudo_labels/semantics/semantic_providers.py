"""Providers of semantic clusters, behind one registry. None of them sees a label: a probe trained on labels is no provider."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from u2seg.data.formats.mask_shards import mask_shards, read_shard
from u2seg.features import build_feature_extractor, resolve_device, stack_on
from u2seg.pseudo_labels.clusters.cluster_stage import load_centroids
from u2seg.pseudo_labels.image_plan import shard_png_names
from u2seg.pseudo_labels.patch_sample import PatchSample, remove_patch_samples
from u2seg.structures.label_space import IGNORE_LABEL
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import atomic_path, read_json
from u2seg.utils.image_io import ImageReadError, ImageSource, read_listed_image, read_stored_array
from u2seg.utils.kmeans import CENTROIDS, kmeans
from u2seg.utils.manifest import MANIFEST, reads, unless_done
from u2seg.utils.registry import NamedRegistry

SEMANTIC_PROVIDER_REGISTRY = NamedRegistry("SEMANTIC_PROVIDER")
SEMANTIC_PROVIDER_REGISTRY.__doc__ = """
Providers of semantic maps. Called as NAME(cfg, images, masks, output), where images is a ``u2seg.utils.image_io.ImageSource``;
``fit()`` prepares, and may be called again after a kill; ``label(records)`` returns {file name: uint8 (H, W) of 0-based cluster ids,
255 unknown} for the images among records that can still be read. A provider that learns from a sample may have
``sample(shard, records)``: workers call it for their shards before one of them calls ``fit()``. ``needs_sample()`` says whether that
is to be done. ``u2seg.utils.manifest.reads`` declares the sections below ``SEMANTICS`` that a provider reads; without it, all count.
"""


@SEMANTIC_PROVIDER_REGISTRY.register()
@reads()
class PatchKMeans:
    """k-means on patch features; a patch gets the cluster whose centroid is nearest, pixels a vote of the patches around.

    Attributes:
        samples_patches: the mask stage may sample the patches (``PatchSample``) from its own forward pass.
    """

    samples_patches = True

    def __init__(self, cfg: CfgNode, images: ImageSource, masks: Path, output: Path):
        """Takes the settings under ``SEMANTICS``, the images, the mask stage's directory, and where to keep centroids."""
        self._settings = cfg.SEMANTICS
        self._batch_size = cfg.FEATURES.BATCH_SIZE
        self._device = resolve_device(cfg.FEATURES.DEVICE)
        self._images, self._masks = images, masks
        self._extractor = build_feature_extractor(cfg)
        self._centroids_path = output / CENTROIDS
        self._centroids: Tensor | None = None  # on the device, from the first label() on
        self._patches = PatchSample(cfg, masks, read_json(masks / MANIFEST)["counts"]["images"], output)

    def needs_sample(self) -> bool:
        """Returns whether patches are to be sampled: not where there are centroids."""
        return not self._settings.CENTROIDS and not self._centroids_path.is_file()

    def sample(self, shard: int, records: list[ImageMasks]) -> None:
        """Samples the patches of a shard, unless the mask stage did: a second forward pass over the images that are needed."""
        if not self._patches.path(shard).is_file():
            wanted = [record for record in records if self._patches.takes(record)]
            drawn = [
                self._patches.draw(record, features.float().cpu().numpy())
                for record, features in self._features(wanted)
            ]
            self._patches.write(shard, drawn)

    def fit(self) -> None:
        """Finds the centroids on a sample of patches, unless they are there already; samples the shards that are not sampled."""
        if not self._centroids_path.is_file():
            with unless_done(self._centroids_path.is_file):
                settings = self._settings
                if settings.CENTROIDS:
                    centroids = load_centroids(settings.CENTROIDS, settings.NUM_CLUSTERS, "SEMANTICS")
                else:
                    centroids = self._find_centroids()
                with atomic_path(self._centroids_path) as temporary:
                    np.save(temporary, centroids)
        remove_patch_samples(self._centroids_path.parent)

    def _find_centroids(self) -> np.ndarray:
        settings, shards = self._settings, mask_shards(self._masks)
        for index, path in enumerate(shards):
            if not self._patches.path(index).is_file():
                self.sample(index, read_shard(path))
        vectors = self._patches.read(len(shards))
        if len(vectors) > settings.MAX_TRAINING_SAMPLES:
            chosen = np.random.default_rng([settings.SEED, 2]).choice(
                len(vectors), settings.MAX_TRAINING_SAMPLES, replace=False
            )
            vectors = vectors[np.sort(chosen)]
        result = kmeans(
            vectors,
            settings.NUM_CLUSTERS,
            num_iterations=settings.NUM_ITERATIONS,
            num_restarts=settings.NUM_RESTARTS,
            seed=settings.SEED,
            num_candidates=settings.SEEDING_CANDIDATES,
            device=self._device,
        )
        return result.centroids

    def label(self, records: list[ImageMasks]) -> dict[str, np.ndarray]:
        """Returns the map of each readable image; see the registry."""
        if self._centroids is None:
            self._centroids = torch.from_numpy(np.load(self._centroids_path)).to(self._device)
        return {
            record.file_name: nearest_centroid_map(features, self._centroids, (record.height, record.width))
            for record, features in self._features(records)
        }

    @torch.no_grad()
    def _features(self, records: list[ImageMasks]) -> Iterator[tuple[ImageMasks, Tensor]]:
        """Yields (record, float32 (C, rows, columns) features) for the readable images."""
        readable = [record for record in records if record.error is None]
        for start in range(0, len(readable), self._batch_size):
            batch = list(still_readable(self._images, readable[start : start + self._batch_size]))
            if batch:
                inputs = stack_on([self._extractor.preprocess(image) for _, image in batch], self._device)
                yield from zip((record for record, _ in batch), self._extractor(inputs))


@SEMANTIC_PROVIDER_REGISTRY.register()
@reads()
class DirectoryOfMaps:
    """Maps that somebody else made: 8-bit PNGs under ``SEMANTICS.DIRECTORY``, named like the images; 0-based ids, 255 unknown."""

    def __init__(self, cfg: CfgNode, images: ImageSource, masks: Path, output: Path):
        """Takes ``SEMANTICS.DIRECTORY`` and ``SEMANTICS.NUM_CLUSTERS``; the other arguments are every provider's."""
        if not cfg.SEMANTICS.DIRECTORY:
            raise ValueError("SEMANTICS.PROVIDER DirectoryOfMaps needs SEMANTICS.DIRECTORY, a directory of id PNGs")
        self._directory = Path(cfg.SEMANTICS.DIRECTORY)
        self._num_clusters = cfg.SEMANTICS.NUM_CLUSTERS
        self._masks, self._num_shards = masks, len(mask_shards(masks))
        self._shard = 0
        self._png_of: dict[str, str] = {}  # of the shard that was labeled last

    def fit(self) -> None:
        """Does nothing: the maps are there."""

    def label(self, records: list[ImageMasks]) -> dict[str, np.ndarray]:
        """Returns the map of each readable image; see the registry."""
        return {record.file_name: self._read(record) for record in records if record.error is None}

    def _png_name(self, file_name: str) -> str:
        """Returns the name of an image's PNG; shards are mostly labeled in order, so the search begins at the last one."""
        for step in range(self._num_shards + 1):
            if file_name in self._png_of:
                break
            self._shard = (self._shard + min(step, 1)) % self._num_shards
            self._png_of = shard_png_names(self._masks, self._shard)
        return self._png_of[file_name]

    def _read(self, record: ImageMasks) -> np.ndarray:
        path = self._directory / self._png_name(record.file_name)
        if not path.is_file():
            raise FileNotFoundError(f"no semantic map for {record.file_name}: expected {path}")
        semantic = read_stored_array(path)
        if semantic.shape != (record.height, record.width) or semantic.dtype != np.uint8:
            raise ValueError(
                f"{path} must be an 8-bit map of shape ({record.height}, {record.width}) to match {record.file_name}, "
                f"got {semantic.dtype} {semantic.shape}"
            )
        wrong = np.setdiff1d(semantic, [*range(self._num_clusters), IGNORE_LABEL])
        if len(wrong):
            raise ValueError(
                f"{path} holds ids {wrong.tolist()}; expected 0..{self._num_clusters - 1} (SEMANTICS.NUM_CLUSTERS) "
                f"and {IGNORE_LABEL} for unknown"
            )
        return semantic


def still_readable(images: ImageSource, records: Iterable[ImageMasks]) -> Iterator[tuple[ImageMasks, np.ndarray]]:
    """Yields the records whose images can still be read, each with its image, uint8 (H, W, 3) RGB.

    The others are left out in silence: the stage reads them again for the reason.

    Args:
        images: the images.
        records: of images that the mask stage could read.
    """
    for record in records:
        try:
            image_rgb = read_listed_image(images, record.file_name, (record.height, record.width))
        except ImageReadError:
            continue
        yield record, image_rgb


def nearest_centroid_map(features: Tensor, centroids: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Returns the cluster of every pixel, uint8 (H, W): that of the nearest centroid, smoothed between patches.

    Each patch votes for its nearest centroid, and the votes are interpolated bilinearly. Interpolating features or distances
    instead would put between two clusters a third one whose centroid happens to lie between theirs.

    Args:
        features: float32 (C, rows, columns).
        centroids: float32 (S, C), S at most 254.
        size: (height, width) of the map.
    """
    vectors = features.flatten(1).T.float()
    # |f - c|^2 without |f|^2, which is equal for all centroids of a patch.
    nearest = (centroids.square().sum(1) - 2 * vectors @ centroids.T).argmin(1)
    # A cluster without a vote wins nowhere, since the votes at a pixel add up to 1.
    present, position = nearest.unique(return_inverse=True)
    votes = F.one_hot(position, len(present)).T.float().reshape(len(present), *features.shape[1:])
    return present.to(torch.uint8).cpu().numpy()[_largest_vote(votes, size)]


def _largest_vote(votes: Tensor, size: tuple[int, int], max_values: int = 1 << 23) -> np.ndarray:
    """Returns which map is the largest at each pixel when all are interpolated bilinearly, uint8 (H, W); of equal ones the first.

    It is computed for a band of columns at a time, so that the memory does not grow with the image, and is equal, bit for bit, to the
    argmax of ``F.interpolate(votes, size, mode="bilinear")``: that interpolates along rows first, which is exact to repeat for 0 and 1,
    and then along columns, which is left to it.

    Args:
        votes: float32 (S, rows, columns), 0 or 1.
        size: (height, width) to which they are interpolated.
        max_values: interpolated votes that are held at once; a single column may have more.
    """
    (count, rows, columns), (height, width) = votes.shape, size
    result = np.empty(size, np.uint8)
    probes = torch.eye(columns, device=votes.device)[None, :, None]
    weights = F.interpolate(probes, size=(1, width), mode="bilinear", align_corners=False)[0, :, 0].double()
    flat = votes.double().reshape(count * rows, columns)
    step = max(1, max_values // (count * height))
    for left in range(0, width, step):
        band = (flat @ weights[:, left : left + step]).float().reshape(1, count, rows, -1)
        tall = F.interpolate(band, size=(height, band.shape[-1]), mode="bilinear", align_corners=False)[0]
        result[:, left : left + step] = tall.argmax(0).to(torch.uint8).cpu().numpy()
    return result
