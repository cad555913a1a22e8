"""Converts published weights to this project's names, trained models to what is handed to others, and masks to COCO's format.

    u2seg convert dino-resnet dino_resnet50_pretrain.pth datasets/dino/dino_resnet50_pretrain_d2.pkl
    u2seg convert pass pass50_pretrained.pth.tar pass_R18_s50.pth
    u2seg convert safetensors output/photos/backbone output/photos/model --output output/release
    u2seg convert masks labels masks.json

``dino-resnet`` takes the DINO authors' ResNet-50 (an address is downloaded to Detectron2's cache) or any torchvision ResNet, and
writes what Detectron2 loads as MODEL.WEIGHTS. ``pass`` takes a file of https://github.com/LUSSeg/PASS and writes MODEL.WEIGHTS for
configs/LUSS, or FEATURES.RESNET.WEIGHTS; centroids (.npy) need no conversion. ``safetensors`` takes the directories of trainings
(OUTPUT_DIR) and writes for each a directory of its name: model.safetensors in half precision, config.yaml and README.md, the model
card. Of pretraining, the backbone alone is written. ``masks`` takes a label directory after its mask stage and writes a COCO instances
JSON of one category, with a score for each mask.
"""

import argparse
from pathlib import Path

from u2seg.checkpoint import convert_torchvision_resnet
from u2seg.data.formats.class_agnostic import write_class_agnostic
from u2seg.engine.release import write_release
from u2seg.luss import convert_pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="kind", required=True, metavar="dino-resnet|pass|safetensors|masks")
    for kind, summary, source, output in (
        ("dino-resnet", "a torchvision ResNet for Detectron2", "published weights", ".pkl file to write"),
        ("pass", "a published PASS checkpoint", "published weights", ".pth file to write"),
        ("masks", "masks as a COCO instances JSON", "label directory or mask directory", ".json file to write"),
    ):
        command = commands.add_parser(kind, help=summary)
        command.add_argument("source", help=source)
        command.add_argument("output", help=output)
    trained = commands.add_parser("safetensors", help="trained models with their settings and a model card")
    trained.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of a training")
    trained.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory for the results")
    trained.add_argument(
        "--license", default="other", metavar="ID", help="license of the weights, as the Hugging Face Hub spells it"
    )


def run(args: argparse.Namespace) -> int:
    """Converts and says what was written."""
    if args.kind == "safetensors":
        _write_releases(args)
    elif args.kind == "masks":
        num_images, num_masks = write_class_agnostic(args.source, args.output)
        print(f"{num_masks} masks of {num_images} images in {args.output}")
    elif args.kind == "dino-resnet":
        print(f"{convert_torchvision_resnet(args.source, args.output)} tensors in {args.output}")
    else:
        converted = convert_pass(args.source, args.output)
        print(f"{len(converted.weights)} tensors in {args.output}")
        if converted.left_out:
            print(f"left out, without a counterpart: {', '.join(converted.left_out)}")
    return 0


def _write_releases(args: argparse.Namespace) -> None:
    names = [run.resolve().name for run in args.runs]
    if len(set(names)) != len(names):
        raise ValueError(f"trainings must have different names, since each gets a directory; got {', '.join(names)}")
    for run, name in zip(args.runs, names):
        written = write_release(run, args.output / name, license_id=args.license)
        print(f"{written.directory}: {written.num_bytes / 1e6:.1f} MB, SHA-256 {written.sha256}")
