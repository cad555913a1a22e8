"""Converts published weights to this project's names, and masks to COCO's.

    u2seg convert dino-resnet dino_resnet50_pretrain.pth datasets/dino/dino_resnet50_pretrain_d2.pkl
    u2seg convert pass pass50_pretrained.pth.tar pass_R18_s50.pth
    u2seg convert masks labels masks.json

``dino-resnet`` takes the DINO authors' ResNet-50 (an address is downloaded to Detectron2's cache) or any torchvision ResNet, and
writes what Detectron2 loads as MODEL.WEIGHTS. ``pass`` takes a file of https://github.com/LUSSeg/PASS and writes MODEL.WEIGHTS for
configs/LUSS, or FEATURES.RESNET.WEIGHTS; centroids (.npy) need no conversion. ``masks`` takes a label directory after its mask stage
and writes a COCO instances JSON of one category, with a score for each mask.
"""

import argparse

from u2seg.checkpoint import convert_torchvision_resnet
from u2seg.data.formats.class_agnostic import write_class_agnostic
from u2seg.luss import convert_pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="kind", required=True, metavar="dino-resnet|pass|masks")
    for kind, summary, source, output in (
        ("dino-resnet", "a torchvision ResNet for Detectron2", "published weights", ".pkl file to write"),
        ("pass", "a published PASS checkpoint", "published weights", ".pth file to write"),
        ("masks", "masks as a COCO instances JSON", "label directory or mask directory", ".json file to write"),
    ):
        command = commands.add_parser(kind, help=summary)
        command.add_argument("source", help=source)
        command.add_argument("output", help=output)


def run(args: argparse.Namespace) -> int:
    """Converts and says how much was written."""
    if args.kind == "masks":
        num_images, num_masks = write_class_agnostic(args.source, args.output)
        print(f"{num_masks} masks of {num_images} images in {args.output}")
        return 0
    if args.kind == "dino-resnet":
        print(f"{convert_torchvision_resnet(args.source, args.output)} tensors in {args.output}")
        return 0
    converted = convert_pass(args.source, args.output)
    print(f"{len(converted.weights)} tensors in {args.output}")
    if converted.left_out:
        print(f"left out, without a counterpart: {', '.join(converted.left_out)}")
    return 0
