"""PASS's pixel pseudo-labels: the nearest image-level cluster of every pixel and its attention, kept coarse on disk."""

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode

from u2seg.luss.data.label_store import INDEX, LabelStore, count_labels, write_label_shard
from u2seg.luss.image_list import LussImageList, iter_batches, load_model, unreadable
from u2seg.utils.files import short_file_digest, write_json
from u2seg.utils.hub_files import local_file
from u2seg.utils.manifest import close_stage, is_complete, open_stage, report_failures, shard_path, shard_slices
from u2seg.utils.progress import Progress


def write_pseudo_labels(cfg: CfgNode, output: str | Path) -> Path:
    """Makes the pseudo-labels of ``DATASETS.TRAIN``'s images.

    Args:
        cfg: completed; ``MODEL.WEIGHTS`` is the pixel attention stage's checkpoint, ``LUSS.CENTROIDS`` what clustering wrote.
        output: directory to make or to go on with.

    Returns:
        ``output``, a `LabelStore`; ``DATASETS.BY_PATH`` reads it as format ``luss_pseudo_labels``.

    Raises:
        StageMismatchError: ``output`` was made with other settings or from other images.

    Source: LUSS, pixel-label generation. The threshold is not applied here but when the labels are read.
    """
    images = LussImageList(cfg)
    settings = {
        "IMAGES": images.settings(),
        "WEIGHTS": short_file_digest(local_file(cfg.MODEL.WEIGHTS)),
        "CENTROIDS": short_file_digest(cfg.LUSS.CENTROIDS),
        "LUSS": {key: cfg.LUSS[key] for key in ("RESIZE", "SHARD_SIZE")},
    }
    output = open_stage(output, "luss_labels", settings)
    if is_complete(output):
        return output
    slices = shard_slices(len(images), cfg.LUSS.SHARD_SIZE)
    missing = [
        index
        for index, piece in enumerate(slices)
        if count_labels(shard_path(output, index, ".npz")) < piece.stop - piece.start
    ]
    model = load_model(cfg, "PASSPixelClusterer")
    done = len(images) - sum(slices[index].stop - slices[index].start for index in missing)
    with Progress(len(images), "pseudo-labels", initial=done) as progress:
        for index in missing:
            numbers = list(range(slices[index].start, slices[index].stop))
            write_label_shard(shard_path(output, index, ".npz"), _label(cfg, model, images, numbers))
            progress.update(len(numbers))
    content = {
        "file_names": images.file_names,
        "num_clusters": len(model.centroids),
        "shard_size": cfg.LUSS.SHARD_SIZE,
    }
    write_json(output / INDEX, content)
    failures = unreadable(images, set(LabelStore(output).numbers()))
    report_failures(output, failures, len(images), cfg.MASKS.MAX_FAILURES)
    close_stage(output, {"images": len(images) - len(failures), "failures": len(failures)})
    return output


def _label(
    cfg: CfgNode, model: torch.nn.Module, images: LussImageList, numbers: list[int]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Returns image number -> coarse cluster map and attention, by ascending number."""
    entries = {}
    for some, pixels in iter_batches(cfg, images, numbers, None):
        with torch.no_grad():
            clusters, attention = model.coarse_labels(pixels.to(model.device))
        for number, one, its_attention in zip(some, clusters.cpu().numpy(), attention.cpu().numpy()):
            entries[number] = (one, its_attention)
    return dict(sorted(entries.items()))
