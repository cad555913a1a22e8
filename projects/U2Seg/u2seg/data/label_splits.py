"""Splits of a data set for training with few labels."""

from pathlib import Path

import numpy as np

from u2seg.stages import read_json, write_json

PERCENTAGES = (1, 2, 5, 10, 20, 30, 40, 50)  # U2Seg, section 4.6


def make_label_splits(
    annotations: str | Path, output: str | Path, percentages: tuple[float, ...] = PERCENTAGES, seed: int = 42
) -> list[Path]:
    """Returns the split files written: ``output/{p}perc.json``, for ``SUBSET`` of a data set in ``DATASETS.BY_PATH``.

    A smaller split is part of every larger one, so that a curve over them differs by added labels alone.

    Args:
        annotations: COCO JSON (panoptic or instances) whose ``images`` are split.
        output: folder to write to.
        percentages: of the pictures, above 0, at most 100.
        seed: of the choice. 42 is the published splits' seed; their pictures are others, since their code is.

    Raises:
        ValueError: a percentage out of range, or no picture.
    """
    if not all(0 < percent <= 100 for percent in percentages):
        raise ValueError(f"percentages must be above 0 and at most 100, got {percentages}")
    ids = sorted(image["id"] for image in read_json(annotations)["images"])
    if not ids:
        raise ValueError(f"{annotations} lists no picture")
    order = np.random.default_rng(seed).permutation(ids).tolist()
    paths = []
    for percent in percentages:
        count = max(1, round(len(ids) * percent / 100))
        path = Path(output) / f"{percent:g}perc.json"
        chosen = {"image_ids": sorted(order[:count]), "percent": percent, "seed": seed, "total": len(ids)}
        write_json(path, {**chosen, "annotations": Path(annotations).name})
        paths.append(path)
    return paths


def read_label_split(path: str | Path) -> set[int]:
    """Returns the picture ids that a split file names: ours, or any COCO JSON, as the published splits are.

    Raises:
        ValueError: the file is neither.
    """
    content = read_json(path)
    if "image_ids" in content:
        return set(content["image_ids"])
    if "images" in content:
        return {image["id"] for image in content["images"]}
    raise ValueError(
        f"{path} is no split: expected image_ids (datasets/make_label_splits.py writes it) or COCO's images; "
        f"it holds {', '.join(sorted(content)) or 'nothing'}"
    )
