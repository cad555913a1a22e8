"""PASS's pixel pseudo-labels: the nearest image-level cluster of every pixel and its attention, kept coarse on disk."""

from pathlib import Path

import torch
from tqdm import tqdm

from u2seg.data.luss_store import INDEX, write_label_shard
from u2seg.luss.pictures import PictureList, file_digest, iter_batches, load_model
from u2seg.stages import (
    Failure,
    close_stage,
    is_complete,
    open_stage,
    report_failures,
    shard_path,
    shard_slices,
    write_json,
)


def write_pseudo_labels(cfg, output: str | Path) -> Path:
    """Makes the pseudo-labels of ``DATASETS.TRAIN``'s pictures.

    Args:
        cfg: completed; ``MODEL.WEIGHTS`` is the pixel attention stage's checkpoint, ``LUSS.CENTROIDS`` what clustering wrote.
        output: folder to make or to go on with.

    Returns:
        ``output``, a `LabelStore`; ``DATASETS.BY_PATH`` reads it as format ``luss_pseudo_labels``.

    Raises:
        StageMismatchError: ``output`` was made with other settings or from other pictures.

    Source: LUSS, pixel-label generation. The threshold is not applied here but when the labels are read.
    """
    pictures = PictureList(cfg)
    settings = {
        "PICTURES": pictures.settings(),
        "WEIGHTS": file_digest(cfg.MODEL.WEIGHTS),
        "CENTROIDS": file_digest(cfg.LUSS.CENTROIDS),
        "LUSS": {key: cfg.LUSS[key] for key in ("RESIZE", "SHARD_SIZE")},
    }
    output = open_stage(output, "luss_labels", settings)
    if is_complete(output):
        return output
    model = load_model(cfg, "PASSPixelClusterer")
    failures: list[Failure] = []
    with tqdm(total=len(pictures), desc="pseudo-labels", unit="image") as progress:
        for index, part in enumerate(shard_slices(len(pictures), cfg.LUSS.SHARD_SIZE)):
            numbers = list(range(len(pictures)))[part]
            path = shard_path(output, index, ".npz")
            if not path.is_file():
                entries = {}
                for some, pixels in iter_batches(cfg, pictures, numbers, None, failures):
                    with torch.no_grad():
                        clusters, attention = model.coarse_labels(pixels.to(model.device))
                    entries.update(
                        (n, (c, a)) for n, c, a in zip(some, clusters.cpu().numpy(), attention.cpu().numpy())
                    )
                write_label_shard(path, dict(sorted(entries.items())))
            progress.update(len(numbers))
    index = {
        "file_names": pictures.file_names,
        "num_clusters": len(model.centroids),
        "shard_size": cfg.LUSS.SHARD_SIZE,
    }
    write_json(output / INDEX, index)
    close_stage(output, {"pictures": len(pictures) - len(failures), "failures": len(failures)})
    report_failures(output, failures, len(pictures), cfg.MASKS.MAX_FAILURES)
    return output
