"""Chooses the images of few-label training: 1, 2, 5, 10, 20, 30, 40 and 50 % of a dataset.

    u2seg prepare label_splits --annotations ANNOTATIONS.json --output DIR [--percentages 1,2,5] [--seed 42]

Each DIR/{P}perc.json is for SUBSET of a dataset in DATASETS.BY_PATH; so is any COCO JSON, the published splits among them.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from u2seg.utils.command_line import comma_separated
from u2seg.utils.files import read_json, write_json

PERCENTAGES = (1, 2, 5, 10, 20, 30, 40, 50)  # U2Seg, section 4.6


def make_label_splits(
    annotations: str | Path, output: str | Path, percentages: tuple[float, ...] = PERCENTAGES, seed: int = 42
) -> list[Path]:
    """Returns the split files written: ``output/{p}perc.json``, for ``SUBSET`` of a dataset in ``DATASETS.BY_PATH``.

    A smaller split is part of every larger one, so that a curve over them differs by added labels alone.

    Args:
        annotations: COCO JSON (panoptic or instances) whose ``images`` are split.
        output: directory to write to.
        percentages: of the images, above 0, at most 100.
        seed: of the choice. 42 is the published splits' seed; their images are others, since their code is.

    Raises:
        ValueError: a percentage out of range, or a file without images.
    """
    if not all(0 < percent <= 100 for percent in percentages):
        raise ValueError(f"percentages must be above 0 and at most 100, got {percentages}")
    ids = sorted(read_label_split(annotations))
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
    """Returns the image ids that a split file names: ours, or any COCO JSON, as the published splits are.

    Raises:
        ValueError: the file is neither.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} lists no images: expected an object with image_ids or images, got a {type(content).__name__}"
        )
    name = next((name for name in ("image_ids", "images") if name in content), None)
    if name:
        return set(_split_ids(path, name, content[name]))
    raise ValueError(
        f"{path} lists no images: expected image_ids (`u2seg prepare label_splits` writes it) or COCO's images; "
        f"it holds {', '.join(sorted(content)) or 'nothing'}"
    )


def _split_ids(path: str | Path, name: str, rows: Any) -> list[int]:
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} lists no image: {name} must be a list with at least one image, got {str(rows)[:60]}")
    ids = []
    for index, row in enumerate(rows):
        value = row if name == "image_ids" else row.get("id") if isinstance(row, dict) else None
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{path}: {name}[{index}] has no integer id: {str(row)[:60]}")
        ids.append(value)
    return ids


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--annotations", required=True, metavar="JSON", help="COCO JSON, panoptic or instances")
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write to")
    parser.add_argument(
        "--percentages",
        type=comma_separated(),
        default=PERCENTAGES,
        metavar="P,Q,...",
        help=f"percentages of the images (default {','.join(map(str, PERCENTAGES))})",
    )
    parser.add_argument("--seed", type=int, default=42, help="of the choice (default 42)")


def run(annotations: str, output: str, percentages: list[str], seed: int) -> list[Path]:
    """Returns the split files that :func:`make_label_splits` writes."""
    return make_label_splits(annotations, output, tuple(float(p) for p in percentages), seed)
