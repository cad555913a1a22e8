"""Writes a trained model as one file for other runtimes, and checks it against the model.

    u2seg export --config-file my.yaml --format onnx --output model.onnx --images photos MODEL.WEIGHTS output/my/model/model_final.pth

ONNX needs the extra `export` (pip install 'u2seg[export]'); TorchScript needs nothing. The file holds backbone and heads. Beside it,
a JSON file says how images are made ready and how the outputs are merged. --images are photos of the kind that the model is for; rendered
scenes stand in for them. The exit status is 1 where the file and the model disagree.
"""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tabulate import tabulate

from u2seg.cli.arguments import add_config_arguments
from u2seg.config import setup_cfg
from u2seg.data.benchmarks.scenes import render_scene
from u2seg.export.exported_model import Agreement, ExportedModel, compare
from u2seg.export.tracing import FORMATS, export_model
from u2seg.predictor import Predictor, find_images
from u2seg.utils.image_io import read_image_rgb

_NUM_SCENES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    add_config_arguments(parser)
    parser.add_argument("--format", choices=[*FORMATS], default="onnx", help="what to write (default onnx)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (default model.onnx or model.ts)")
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="images, or directories of them, to trace and check on"
    )
    parser.add_argument("--num-images", type=int, default=10, metavar="N", help="images that are compared (default 10)")


def run(args: argparse.Namespace) -> int:
    """Exports, compares and prints; returns 1 where the two disagree."""
    cfg = setup_cfg(args.config_file, args.opts)
    cfg.MODEL.DEVICE = "cpu"
    output = args.output or Path(f"model{FORMATS[args.format]}")
    output = output if output.suffix == FORMATS[args.format] else Path(f"{output}{FORMATS[args.format]}")
    predictor = Predictor(cfg)
    images = list(islice(_images(args.images), args.num_images))
    path = export_model(predictor, output, images)
    print(f"{path.stat().st_size / 2**20:.1f} MiB in {path}; {path.with_suffix('.json')} says how it is used")
    agreement = compare(predictor, ExportedModel(path), images)
    print(_table(agreement, args.format))
    return 0 if agreement.is_close else 1


def _images(paths: list[str] | None) -> Iterator[np.ndarray]:
    if paths:
        yield from map(read_image_rgb, find_images(paths).values())
        return
    for number in range(_NUM_SCENES):
        image_rgb = render_scene(np.random.default_rng(number))[0]
        # Of several sizes, since that is what a trace may get wrong.
        yield np.ascontiguousarray(image_rgb[: 128 - 4 * number, : 160 - 7 * number])


def _table(found: Agreement, kind: str) -> str:
    rows = [
        ("images, sizes", f"{found.images}, {found.sizes}", ""),
        ("detections without a counterpart", f"{found.unmatched} of {found.detections}", "0"),
        ("largest box difference, pixels", f"{found.box:.1e}", "1e-3"),
        ("largest score difference", f"{found.score:.1e}", "1e-3"),
        ("smallest mask IoU", f"{found.mask_iou:.4f}", "0.99"),
        ("equal panoptic pixels, worst image", f"{found.panoptic:.2%}", "99.50%"),
        ("model, ms an image (CPU)", f"{found.eager_ms:.0f}", ""),
        (f"{kind}, ms an image (CPU)", f"{found.exported_ms:.0f}", ""),
    ]
    verdict = "the file agrees with the model" if found.is_close else "THE FILE DIFFERS from the model"
    return f"{tabulate(rows, headers=('', 'found', 'allowed'), disable_numparse=True)}\n{verdict}"
