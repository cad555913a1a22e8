"""PASS's image-level clusters: one attention-pooled vector an image, k-means, saved centroids."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

from u2seg.evaluation.matching.assignment import hungarian, pair_counts
from u2seg.luss.image_list import LussImageList, iter_batches, load_model, unreadable
from u2seg.utils.files import atomic_path, short_file_digest
from u2seg.utils.hub_files import local_file
from u2seg.utils.kmeans import CENTROIDS, assign, kmeans, l2_normalize
from u2seg.utils.manifest import close_stage, is_complete, open_stage, report_failures, shard_path, shard_slices
from u2seg.utils.progress import Progress

ASSIGNMENTS = "assignments.npz"


def cluster_images(cfg: CfgNode, output: str | Path) -> Path:
    """Makes image-level clusters of ``DATASETS.TRAIN``'s images.

    Args:
        cfg: completed; ``MODEL.WEIGHTS`` is the pixel attention stage's checkpoint, ``LUSS`` says how.
        output: directory to make or to go on with.

    Returns:
        ``output``, which holds ``centroids.npy`` (float32 (K, C)) and ``assignments.npz`` (``numbers``, ``clusters``).

    Raises:
        StageMismatchError: ``output`` was made with other settings or from other images.
        ValueError: fewer readable images than clusters.

    Source: LUSS, "image-level clustering": features weighed by attention and averaged, L2-normalized, Euclidean k-means.
    """
    images = LussImageList(cfg)
    output = open_stage(output, "luss_clusters", _settings(cfg, images))
    if is_complete(output):
        return output
    _embed(cfg, images, output)
    numbers, vectors = read_embeddings(output)
    failures = unreadable(images, set(numbers.tolist()))
    report_failures(output, failures, len(images), cfg.MASKS.MAX_FAILURES)
    sample = vectors
    if len(vectors) > cfg.LUSS.MAX_TRAINING_SAMPLES:
        chosen = np.random.default_rng(cfg.LUSS.SEED).choice(len(vectors), cfg.LUSS.MAX_TRAINING_SAMPLES, replace=False)
        sample = vectors[np.sort(chosen)]
    result = kmeans(
        sample,
        cfg.LUSS.NUM_CLUSTERS,
        num_iterations=cfg.LUSS.KMEANS_ITERATIONS,
        num_restarts=cfg.LUSS.KMEANS_RESTARTS,
        seed=cfg.LUSS.SEED,
    )
    clusters, _ = assign(vectors, result.centroids)
    _save(output / CENTROIDS, lambda path: np.save(path, result.centroids))
    _save(output / ASSIGNMENTS, lambda path: np.savez(path, numbers=numbers, clusters=clusters))
    counts = {"images": len(numbers), "failures": len(failures), "smallest": int(np.bincount(clusters).min())}
    close_stage(output, {**counts, **_diagnostics(images, numbers, clusters)})
    return output


def read_embeddings(output: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of the images, int64 (N,), and their vectors of length 1, float32 (N, C), of a clustering directory."""
    shards = [np.load(path) for path in sorted(Path(output).glob("shard-*.npz"))]
    return (
        np.concatenate([shard["numbers"] for shard in shards]),
        np.concatenate([shard["vectors"] for shard in shards if len(shard["numbers"])]),
    )


def cluster_quality(clusters: np.ndarray, classes: np.ndarray) -> dict[str, float]:
    """Returns how well clusters agree with classes: ``nmi`` and Hungarian ``accuracy``, both 0..1. For diagnosis only.

    Args:
        clusters: int (N,), 0-based.
        classes: int (N,), 0-based.

    Source: NMI with the arithmetic mean (Strehl & Ghosh, 2002); accuracy as in LUSS's released code.
    """
    table = pair_counts(clusters, classes, np.ones(len(clusters)), (int(clusters.max()) + 1, int(classes.max()) + 1))
    matched = hungarian(table)
    right = table[np.arange(len(matched)), matched][matched >= 0].sum()
    joint = table / table.sum()
    by_cluster, by_class = joint.sum(axis=1), joint.sum(axis=0)
    expected = np.outer(by_cluster, by_class)
    seen = joint > 0
    information = float((joint[seen] * np.log(joint[seen] / expected[seen])).sum())
    entropies = [-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (by_cluster, by_class)]
    return {"nmi": information / max(float(np.mean(entropies)), 1e-12), "accuracy": float(right / len(clusters))}


def _settings(cfg: CfgNode, images: LussImageList) -> dict:
    keys = (
        "NUM_CLUSTERS",
        "KMEANS_ITERATIONS",
        "KMEANS_RESTARTS",
        "MAX_TRAINING_SAMPLES",
        "SEED",
        "RESIZE",
        "CENTER_CROP",
    )
    return {
        "IMAGES": images.settings(),
        "WEIGHTS": short_file_digest(local_file(cfg.MODEL.WEIGHTS)) if cfg.MODEL.WEIGHTS else "",
        "LUSS": {key: cfg.LUSS[key] for key in (*keys, "SHARD_SIZE")},
    }


def _embed(cfg: CfgNode, images: LussImageList, output: Path) -> None:
    slices = shard_slices(len(images), cfg.LUSS.SHARD_SIZE)
    missing = [index for index, piece in enumerate(slices) if not _is_whole(shard_path(output, index, ".npz"), piece)]
    if not missing:
        return
    model = load_model(cfg, "PASSPixelAttention")
    done = len(images) - sum(slices[index].stop - slices[index].start for index in missing)
    with Progress(len(images), "embeddings", initial=done) as progress:
        for index in missing:
            numbers = list(range(slices[index].start, slices[index].stop))
            _embed_shard(cfg, model, images, numbers, shard_path(output, index, ".npz"))
            progress.update(len(numbers))


def _is_whole(path: Path, piece: slice) -> bool:
    """Returns whether a shard is there and holds all its images; one that could not be read may have been put back."""
    if not path.is_file():
        return False
    with np.load(path) as shard:
        return len(shard["numbers"]) == piece.stop - piece.start


def _embed_shard(cfg: CfgNode, model: torch.nn.Module, images: LussImageList, numbers: list[int], path: Path) -> None:
    kept, vectors = [], []
    for some, pixels in iter_batches(cfg, images, numbers, cfg.LUSS.CENTER_CROP):
        with torch.no_grad():
            features, attention = model.attended_features(pixels.to(model.device))
        kept += some
        vectors.append((features * attention).mean(dim=(2, 3)).cpu().numpy())
    order = np.argsort(kept)
    rows = l2_normalize(np.concatenate(vectors))[order] if kept else np.zeros((0, 0), np.float32)
    _save(path, lambda temporary: np.savez(temporary, numbers=np.array(kept, np.int64)[order], vectors=rows))


def _diagnostics(images: LussImageList, numbers: np.ndarray, clusters: np.ndarray) -> dict:
    classes = [images.records[number].get("image_class") for number in numbers]
    if any(label is None for label in classes):
        return {}
    return cluster_quality(clusters, np.array(classes))


def _save(path: Path, write: Callable[[Path], object]) -> None:
    with atomic_path(path) as temporary:
        write(temporary)
