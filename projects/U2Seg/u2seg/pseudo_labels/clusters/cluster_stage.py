"""The stage that gives every mask a cluster: k-means on one vector a mask, saved centroids, assignments of all."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from u2seg.data.formats.mask_shards import count_records, mask_shards, read_shard
from u2seg.data.formats.parquet_files import read_rows
from u2seg.features import feature_settings, resolve_device
from u2seg.pseudo_labels.clusters.mask_embeddings import MASK_EMBEDDING_REGISTRY, remove_cached_vectors
from u2seg.pseudo_labels.image_source import Images, open_source
from u2seg.pseudo_labels.lost_images import report_lost_images
from u2seg.pseudo_labels.masks.interfaces import generator_keys
from u2seg.pseudo_labels.worker import Worker
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import atomic_path, read_json, short_file_digest, write_json
from u2seg.utils.kmeans import CENTROIDS, assign, kmeans, l2_normalize
from u2seg.utils.manifest import (
    MANIFEST,
    TooManyFailuresError,
    check_stage,
    close_stage,
    is_complete,
    open_stage,
    require_shards,
    settings_digest,
    settings_key,
    shard_path,
    shard_slices,
    unless_done,
)
from u2seg.utils.progress import Progress
from u2seg.utils.registry import get_registered

# From the images of a shard to the vectors that are clustered, float32 (masks, C); counts the images.
Vectors = Callable[[list[ImageMasks], Progress], np.ndarray]

logger = logging.getLogger(__name__)

HISTOGRAM = "histogram.json"
# Instead of a cluster, where the image of a mask could not be read any more.
LOST = -1
_SAMPLE = ".sample"  # begins the names of the vectors on which centroids are found, until they are


def open_clusters(cfg: CfgNode, masks: Path, output: Path, *, clean: bool = True) -> dict:
    """Opens the stage's directory and returns its settings.

    Args:
        cfg: reads ``CLUSTERS``.
        masks: directory of the mask stage.
        output: of this stage.
        clean: see ``u2seg.utils.manifest.open_stage``.
    """
    settings = {
        "num_clusters": cfg.CLUSTERS.NUM_CLUSTERS,
        "embedding": cfg.CLUSTERS.EMBEDDING,
        "normalize": cfg.CLUSTERS.NORMALIZE,
        "num_iterations": cfg.CLUSTERS.NUM_ITERATIONS,
        "num_restarts": cfg.CLUSTERS.NUM_RESTARTS,
        "seeding_candidates": cfg.CLUSTERS.SEEDING_CANDIDATES,
        "max_training_samples": cfg.CLUSTERS.MAX_TRAINING_SAMPLES,
        "seed": cfg.CLUSTERS.SEED,
        "centroids": cfg.CLUSTERS.CENTROIDS and short_file_digest(cfg.CLUSTERS.CENTROIDS),
        "features": feature_settings(cfg),
        "masks": settings_digest(masks),
    }
    open_stage(output, "clusters", settings, clean=clean)
    return settings


def sample_vectors(cfg: CfgNode, images: Images, masks: Path, output: Path, worker: Worker) -> None:
    """Makes one worker's share of the sample on which the centroids are found: at most ``MAX_TRAINING_SAMPLES`` vectors in all.

    Args:
        cfg: reads ``CLUSTERS``.
        images: the images, for embeddings that look at them again.
        masks: directory of the mask stage.
        output: of this stage.
        worker: whose shards are sampled.
    """
    settings = open_clusters(cfg, masks, output, clean=False)
    if cfg.CLUSTERS.CENTROIDS or (output / CENTROIDS).is_file():
        return
    shards = mask_shards(masks)
    own = worker.share(len(shards))
    prefix = _sample_prefix(settings)
    missing = [index for index in own if not shard_path(output, index, ".npy", prefix).is_file()]
    vectors_of = _vectors(cfg, images, output)
    share = min(1.0, cfg.CLUSTERS.MAX_TRAINING_SAMPLES / max(read_json(masks / MANIFEST)["counts"]["masks"], 1))
    with Progress(_count_images(shards, missing), "embedding masks", transient=True) as bar:
        for index in missing:
            vectors = vectors_of(read_shard(shards[index]), bar)
            vectors = vectors[~np.isnan(vectors).any(axis=1)]
            if share < 1:
                # A generator for each shard: the sample depends neither on the order nor on the number of workers.
                rng = np.random.default_rng([cfg.CLUSTERS.SEED, 1, index])
                vectors = vectors[rng.random(len(vectors)) < share]
            check_stage(output, "clusters", settings)
            with atomic_path(shard_path(output, index, ".npy", prefix)) as temporary:
                np.save(temporary, vectors)


def fit_centroids(cfg: CfgNode, masks: Path, output: Path) -> None:
    """Finds the centroids on the sample of all workers, or takes those of ``CLUSTERS.CENTROIDS``, unless they are there already.

    Raises:
        IncompleteStageError: a shard was not sampled; the message names it.
        ValueError: fewer masks than clusters; the message says how many there are.
    """
    settings = open_clusters(cfg, masks, output)
    centroids_path = output / CENTROIDS
    if not centroids_path.is_file():
        with unless_done(centroids_path.is_file):
            centroids = _centroids(cfg, len(mask_shards(masks)), output, _sample_prefix(settings))
            with atomic_path(centroids_path) as temporary:
                np.save(temporary, centroids)
    _remove_sample(output)


def _sample_prefix(settings: dict) -> str:
    return f"{_SAMPLE}-{settings_key(settings)}"


def _centroids(cfg: CfgNode, num_shards: int, output: Path, prefix: str) -> np.ndarray:
    if cfg.CLUSTERS.CENTROIDS:
        return load_centroids(cfg.CLUSTERS.CENTROIDS, cfg.CLUSTERS.NUM_CLUSTERS, "CLUSTERS")
    require_shards(output, num_shards, ".npy", prefix)
    sample = [np.load(shard_path(output, index, ".npy", prefix)) for index in range(num_shards)]
    filled = [part for part in sample if len(part)]
    return _find_centroids(cfg, np.concatenate(filled) if filled else np.zeros((0, 1), np.float32))


def _remove_sample(output: Path) -> None:
    for path in output.glob(f"{_SAMPLE}-*.npy"):
        path.unlink(missing_ok=True)


def assign_clusters(cfg: CfgNode, images: Images, masks: Path, output: Path, worker: Worker) -> None:
    """Assigns the masks of one worker's shards to the centroids that :func:`fit_centroids` left.

    The masks of an image that was damaged or removed since they were made get the cluster -1.

    Args:
        cfg: reads ``CLUSTERS``.
        images: as for :func:`sample_vectors`.
        masks: directory of the mask stage.
        output: of this stage.
        worker: whose shards are assigned.
    """
    settings = open_clusters(cfg, masks, output, clean=False)
    shards = mask_shards(masks)
    own = worker.share(len(shards))
    missing = [index for index in own if not (output / shards[index].name).is_file()]
    if not missing:
        return
    centroids, device = np.load(output / CENTROIDS), resolve_device(cfg.FEATURES.DEVICE)
    vectors_of = _vectors(cfg, images, output)
    total = _count_images(shards, own)
    with Progress(total, "clusters", initial=total - _count_images(shards, missing)) as bar:
        for index in missing:
            records = read_shard(shards[index])
            vectors = vectors_of(records, bar)
            known = ~np.isnan(vectors).any(axis=1)
            labels, distances = np.full(len(vectors), LOST, np.int64), np.zeros(len(vectors), np.float32)
            labels[known], distances[known] = assign(vectors[known], centroids, device)
            check_stage(output, "clusters", settings)
            _write_assignments(output / shards[index].name, records, labels, distances)


def finish_clusters(cfg: CfgNode, images: Images, masks: Path, output: Path) -> None:
    """Closes the stage: counts the masks of every cluster, and records the images that were lost since their masks were made.

    Args:
        cfg: reads ``CLUSTERS`` and ``MASKS.MAX_FAILURES``.
        images: as for :func:`sample_vectors`; the lost ones are read again for the reason.
        masks: directory of the mask stage.
        output: of this stage.

    Raises:
        IncompleteStageError: a shard was not assigned; the message names it.
        TooManyFailuresError: too many images were lost; put them back and go on.
    """
    open_clusters(cfg, masks, output)
    if not is_complete(output):
        _close(cfg, images, masks, output)
    _remove_sample(output)  # what another run on the same directory left behind
    remove_cached_vectors(output)


def _close(cfg: CfgNode, images: Images, masks: Path, output: Path) -> None:
    shards = mask_shards(masks)
    require_shards(output, len(shards))
    counts = np.zeros(cfg.CLUSTERS.NUM_CLUSTERS, np.int64)
    lost: list[str] = []
    for shard in shards:
        assigned = _read_assignments(output / shard.name)
        for clusters in assigned:
            counts += np.bincount(clusters[clusters != LOST], minlength=len(counts))
        if any((clusters == LOST).any() for clusters in assigned):
            pairs = zip(read_shard(shard), assigned, strict=True)
            lost += [record.file_name for record, clusters in pairs if (clusters == LOST).any()]
    total = read_json(masks / MANIFEST)["counts"]["images"]
    try:
        report_lost_images(open_source(images), lost, output, total, cfg.MASKS.MAX_FAILURES)
    except TooManyFailuresError:
        for path in (*(output / shard.name for shard in shards), output / CENTROIDS):
            path.unlink(missing_ok=True)
        raise
    write_json(output / HISTOGRAM, {"masks_per_cluster": counts.tolist(), "empty_clusters": int((counts == 0).sum())})
    summary = {"masks": int(counts.sum()), "non_empty_clusters": int((counts > 0).sum())}
    close_stage(output, {**summary, **({"lost_images": lost} if lost else {})})


def _vectors(cfg: CfgNode, images: Images, output: Path) -> Vectors:
    embed = get_registered(MASK_EMBEDDING_REGISTRY, cfg.CLUSTERS.EMBEDDING, "CLUSTERS.EMBEDDING")(
        cfg, open_source(images), output
    )

    def vectors_of(records: list[ImageMasks], bar: Progress) -> np.ndarray:
        parts = []
        for piece in shard_slices(len(records), cfg.FEATURES.BATCH_SIZE):
            parts.append(embed(records[piece]))
            bar.update(len(records[piece]))
        # An image without a mask may have vectors of another width.
        filled = [part for part in parts if len(part)] or parts
        vectors = np.concatenate(filled)
        return l2_normalize(vectors) if cfg.CLUSTERS.NORMALIZE else vectors

    return vectors_of


def load_centroids(path: str | Path, count: int, section: str) -> np.ndarray:
    """Returns the centroids, float32 (count, C), that an earlier run saved.

    Args:
        path: an ``.npy`` file.
        count: how many there must be.
        section: of the configuration, for the message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another number of them.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{section}.CENTROIDS: {path} is not there; expected the {CENTROIDS} of an earlier run")
    centroids = np.load(path)
    if centroids.ndim != 2 or len(centroids) != count:
        raise ValueError(
            f"{section}.CENTROIDS: {path} has shape {centroids.shape}, but {section}.NUM_CLUSTERS asks for {count} rows"
        )
    return centroids.astype(np.float32)


def _count_images(shards: list[Path], chosen: Iterable[int]) -> int:
    return sum(count_records(shards[index]) for index in chosen)


def _find_centroids(cfg: CfgNode, sample: np.ndarray) -> np.ndarray:
    settings = cfg.CLUSTERS
    if not len(sample):
        logger.warning(
            "No mask was found in any image: the clusters of things stay empty, and the labels hold stuff alone"
        )
        return np.zeros((settings.NUM_CLUSTERS, 1), np.float32)
    if len(sample) < settings.NUM_CLUSTERS:
        keys = ", ".join(generator_keys(cfg))
        remedy = f", or change what {cfg.MASKS.GENERATOR} reads, so that it finds more: {keys}" if keys else ""
        raise ValueError(
            f"{len(sample)} masks were found, fewer than the {settings.NUM_CLUSTERS} clusters asked for "
            f"(CLUSTERS.NUM_CLUSTERS). Give more images, ask for fewer clusters{remedy}."
        )
    result = kmeans(
        sample,
        settings.NUM_CLUSTERS,
        num_iterations=settings.NUM_ITERATIONS,
        num_restarts=settings.NUM_RESTARTS,
        seed=settings.SEED,
        num_candidates=settings.SEEDING_CANDIDATES,
        device=resolve_device(cfg.FEATURES.DEVICE),
    )
    return result.centroids


def read_assigned(mask_shard: Path, clusters: Path) -> list[tuple[ImageMasks, np.ndarray]]:
    """Returns each image's masks of one shard with their clusters, int64 (N,), ``LOST`` where the image was lost.

    Args:
        mask_shard: file of the mask stage.
        clusters: directory of this stage.
    """
    return list(zip(read_shard(mask_shard), _read_assignments(Path(clusters) / mask_shard.name), strict=True))


def _read_assignments(path: Path) -> list[np.ndarray]:
    return [np.asarray(row["clusters"], np.int64) for row in read_rows(path, ["clusters"])]


def _write_assignments(path: Path, records: list[ImageMasks], labels: np.ndarray, distances: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ends = np.cumsum([len(record.rle_counts) for record in records])[:-1]
    table = pa.table(
        {
            "image_id": pa.array([record.image_id for record in records], pa.int64()),
            "clusters": pa.array([part.tolist() for part in np.split(labels, ends)], pa.list_(pa.int32())),
            "distances": pa.array([part.tolist() for part in np.split(distances, ends)], pa.list_(pa.float32())),
        }
    )
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
