"""Converts published weights to this project's names.

    u2seg convert dino-resnet dino_resnet50_pretrain.pth datasets/dino/dino_resnet50_pretrain_d2.pkl
    u2seg convert pass pass50_pretrained.pth.tar pass_R18_s50.pth

``dino-resnet`` takes the DINO authors' ResNet-50 (an address is downloaded to Detectron2's cache) or any torchvision ResNet, and
writes what Detectron2 loads as MODEL.WEIGHTS. ``pass`` takes a file of https://github.com/LUSSeg/PASS and writes MODEL.WEIGHTS for
configs/LUSS, or FEATURES.RESNET.WEIGHTS; centroids (.npy) need no conversion.
"""

import argparse

from u2seg.checkpoint import convert_torchvision_resnet
from u2seg.luss import convert_pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="kind", required=True, metavar="dino-resnet|pass")
    for kind, summary, output in (
        ("dino-resnet", "a torchvision ResNet for Detectron2", ".pkl file to write"),
        ("pass", "a published PASS checkpoint", ".pth file to write"),
    ):
        command = commands.add_parser(kind, help=summary)
        command.add_argument("source", help="published weights")
        command.add_argument("output", help=output)


def run(args: argparse.Namespace) -> int:
    """Converts and says how many tensors were written."""
    if args.kind == "dino-resnet":
        print(f"{convert_torchvision_resnet(args.source, args.output)} tensors in {args.output}")
        return 0
    converted = convert_pass(args.source, args.output)
    print(f"{len(converted.weights)} tensors in {args.output}")
    if converted.left_out:
        print(f"left out, without a counterpart: {', '.join(converted.left_out)}")
    return 0
