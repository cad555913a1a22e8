"""The stage that gives every mask a cluster: k-means on one vector a mask, saved centroids, assignments of all."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode

from u2seg.data.formats.mask_shards import read_shard
from u2seg.data.formats.parquet_files import read_rows
from u2seg.features import feature_settings
from u2seg.pseudo_labels.lost_images import report_lost_images
from u2seg.structures.mask_records import ImageMasks
from u2seg.utils.files import atomic_path, read_json, short_file_digest, write_json
from u2seg.utils.kmeans import CENTROIDS, assign, kmeans, l2_normalize
from u2seg.utils.manifest import MANIFEST, close_stage, is_complete, open_stage, settings_digest, shard_slices
from u2seg.utils.progress import Progress
from u2seg.utils.registry import get_registered

# From the images of a shard to the vectors that are clustered, float32 (masks, C); counts the images.
Vectors = Callable[[list[ImageMasks], Progress], np.ndarray]

logger = logging.getLogger(__name__)

HISTOGRAM = "histogram.json"
# Instead of a cluster, where the image of a mask could not be read any more.
LOST = -1


def make_clusters(cfg: CfgNode, images: Path, masks: Path, output: Path, *, max_failures: float | None = None) -> Path:
    """Returns ``output``, filled with centroids, the cluster of every mask, and the histogram of cluster sizes.

    An image that was damaged or removed since its masks were made is recorded with the reason; its masks get the cluster -1.

    Args:
        cfg: reads ``CLUSTERS``.
        images: the image directory, for embeddings that look at the images again.
        masks: directory of the mask stage.
        output: directory to fill.
        max_failures: share, 0..1, of images that may be lost; ``MASKS.MAX_FAILURES`` if None.

    Raises:
        ValueError: fewer masks than clusters; the message says how many there are.
        TooManyFailuresError: too many images were lost; put them back and go on.
    """
    from u2seg.pseudo_labels.clusters.mask_embeddings import MASK_EMBEDDING_REGISTRY

    settings = {
        "num_clusters": cfg.CLUSTERS.NUM_CLUSTERS,
        "embedding": cfg.CLUSTERS.EMBEDDING,
        "normalize": cfg.CLUSTERS.NORMALIZE,
        "num_iterations": cfg.CLUSTERS.NUM_ITERATIONS,
        "num_restarts": cfg.CLUSTERS.NUM_RESTARTS,
        "max_training_samples": cfg.CLUSTERS.MAX_TRAINING_SAMPLES,
        "seed": cfg.CLUSTERS.SEED,
        "centroids": cfg.CLUSTERS.CENTROIDS and short_file_digest(cfg.CLUSTERS.CENTROIDS),
        "features": feature_settings(cfg),
        "masks": settings_digest(masks),
    }
    open_stage(output, "clusters", settings)
    if is_complete(output):
        return output
    embed = get_registered(MASK_EMBEDDING_REGISTRY, cfg.CLUSTERS.EMBEDDING, "CLUSTERS.EMBEDDING")(cfg, images, output)

    def vectors_of(records: list[ImageMasks], bar: Progress) -> np.ndarray:
        parts = []
        for piece in shard_slices(len(records), cfg.FEATURES.BATCH_SIZE):
            parts.append(embed(records[piece]))
            bar.update(len(records[piece]))
        # An image without a mask may have vectors of another width.
        filled = [part for part in parts if len(part)] or parts
        vectors = np.concatenate(filled)
        return l2_normalize(vectors) if cfg.CLUSTERS.NORMALIZE else vectors

    shards = sorted(Path(masks).glob("shard-*.parquet"))
    if not (output / CENTROIDS).is_file():
        if cfg.CLUSTERS.CENTROIDS:
            centroids = load_centroids(cfg.CLUSTERS.CENTROIDS, cfg.CLUSTERS.NUM_CLUSTERS, "CLUSTERS")
        else:
            centroids = _find_centroids(cfg.CLUSTERS, masks, vectors_of)
        with atomic_path(output / CENTROIDS) as temporary:
            np.save(temporary, centroids)
    centroids = np.load(output / CENTROIDS)
    counts = np.zeros(cfg.CLUSTERS.NUM_CLUSTERS, np.int64)
    missing = [shard for shard in shards if not (output / shard.name).is_file()]
    done = sum(len(_read_assignments(output / shard.name)) for shard in shards if shard not in missing)
    with Progress(_num_images(masks), "clusters", initial=done) as bar:
        for shard in missing:
            records = read_shard(shard)
            vectors = vectors_of(records, bar)
            known = ~np.isnan(vectors).any(axis=1)
            labels, distances = np.full(len(vectors), LOST, np.int64), np.zeros(len(vectors), np.float32)
            labels[known], distances[known] = assign(vectors[known], centroids)
            _write_assignments(output / shard.name, records, labels, distances)
    lost: list[str] = []
    for shard in shards:
        assigned = _read_assignments(output / shard.name)
        for clusters in assigned:
            counts += np.bincount(clusters[clusters != LOST], minlength=len(counts))
        if any((clusters == LOST).any() for clusters in assigned):
            pairs = zip(read_shard(shard), assigned, strict=True)
            lost += [record.file_name for record, clusters in pairs if (clusters == LOST).any()]
    report_lost_images(
        images, lost, output, _num_images(masks), cfg.MASKS.MAX_FAILURES if max_failures is None else max_failures
    )
    write_json(output / HISTOGRAM, {"masks_per_cluster": counts.tolist(), "empty_clusters": int((counts == 0).sum())})
    summary = {"masks": int(counts.sum()), "non_empty_clusters": int((counts > 0).sum())}
    close_stage(output, {**summary, **({"lost_images": lost} if lost else {})})
    return output


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


def _num_images(masks: Path) -> int:
    return read_json(Path(masks) / MANIFEST)["counts"]["images"]


def _find_centroids(settings: CfgNode, masks: Path, vectors_of: Vectors) -> np.ndarray:
    sample = _training_sample(masks, vectors_of, settings.MAX_TRAINING_SAMPLES, settings.SEED)
    if not len(sample):
        logger.warning(
            "No mask was found in any image: the clusters of things stay empty, and the labels hold stuff alone"
        )
        return np.zeros((settings.NUM_CLUSTERS, 1), np.float32)
    if len(sample) < settings.NUM_CLUSTERS:
        raise ValueError(
            f"{len(sample)} masks were found, fewer than the {settings.NUM_CLUSTERS} clusters asked for "
            "(CLUSTERS.NUM_CLUSTERS). Give more images, ask for fewer clusters, or loosen MASKS.TAU and MASKS.MIN_AREA."
        )
    result = kmeans(
        sample,
        settings.NUM_CLUSTERS,
        num_iterations=settings.NUM_ITERATIONS,
        num_restarts=settings.NUM_RESTARTS,
        seed=settings.SEED,
    )
    return result.centroids


def iter_assigned(masks: Path, clusters: Path) -> Iterator[list[tuple[ImageMasks, np.ndarray]]]:
    """Yields, shard by shard, each image's masks with their clusters, int64 (N,), ``LOST`` where the image was lost."""
    for shard in sorted(Path(masks).glob("shard-*.parquet")):
        yield list(zip(read_shard(shard), _read_assignments(Path(clusters) / shard.name), strict=True))


def _read_assignments(path: Path) -> list[np.ndarray]:
    return [np.asarray(row["clusters"], np.int64) for row in read_rows(path, ["clusters"])]


def _training_sample(masks: Path, vectors_of: Vectors, limit: int, seed: int) -> np.ndarray:
    """Returns at most ``limit`` vectors, float32, drawn evenly; the shards are read one after another."""
    shards = sorted(Path(masks).glob("shard-*.parquet"))
    total = sum(sum(len(r.rle_counts) for r in read_shard(shard)) for shard in shards)
    share = min(1.0, limit / max(total, 1))
    rng = np.random.default_rng([seed, 1])
    chosen = []
    with Progress(_num_images(masks), "embedding masks", transient=True) as bar:
        for shard in shards:
            records = read_shard(shard)
            vectors = vectors_of(records, bar)
            chosen.append(vectors if share == 1 else vectors[rng.random(len(vectors)) < share])
    chosen = [vectors[~np.isnan(vectors).any(axis=1)] for vectors in chosen]
    chosen = [vectors for vectors in chosen if len(vectors)]
    return np.concatenate(chosen) if chosen else np.zeros((0, 1), np.float32)


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
