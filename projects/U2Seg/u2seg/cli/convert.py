"""Converts published weights to this project's names.

    u2seg convert dino-resnet dino_resnet50_pretrain.pth datasets/dino/dino_resnet50_pretrain_d2.pkl
    u2seg convert pass pass50_pretrained.pth.tar pass_R18_s50.pth
    u2seg convert stego cocostuff27_vit_base_5.ckpt stego.pth
    u2seg convert cause segment_tr.pth cause.pth --clusters cluster_tr.pth --codebook modular.npy

``dino-resnet`` takes the DINO authors' ResNet-50 (an address is downloaded to Detectron2's cache) or any torchvision ResNet, and
writes what Detectron2 loads as MODEL.WEIGHTS. ``pass`` takes a file of https://github.com/LUSSeg/PASS and writes MODEL.WEIGHTS for
configs/LUSS, or FEATURES.RESNET.WEIGHTS; centroids (.npy) need no conversion. ``stego`` and ``cause`` write SEMANTICS.LEARNED.WEIGHTS from
the authors' files, and print the settings that fit them.
"""

import argparse

from u2seg.checkpoint import convert_torchvision_resnet
from u2seg.luss import convert_pass
from u2seg.pseudo_labels.semantics.learned.published_heads import convert_cause, convert_stego


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="kind", required=True, metavar="dino-resnet|pass|stego|cause")
    for kind, summary, output in (
        ("dino-resnet", "a torchvision ResNet for Detectron2", ".pkl file to write"),
        ("pass", "a published PASS checkpoint", ".pth file to write"),
        ("stego", "a published STEGO checkpoint", ".pth file to write"),
        ("cause", "published files of CAUSE; its head has seen labels", ".pth file to write"),
    ):
        command = commands.add_parser(kind, help=summary)
        command.add_argument("source", help="published weights")
        command.add_argument("output", help=output)
        if kind == "cause":
            command.add_argument("--clusters", required=True, metavar="PTH", help="cluster_tr.pth or cluster_mlp.pth")
            command.add_argument("--codebook", default="", metavar="NPY", help="modular.npy (default: in --clusters)")


def run(args: argparse.Namespace) -> int:
    """Converts and says how many tensors were written."""
    if args.kind == "dino-resnet":
        print(f"{convert_torchvision_resnet(args.source, args.output)} tensors in {args.output}")
        return 0
    if args.kind in ("stego", "cause"):
        return _convert_head(args)
    converted = convert_pass(args.source, args.output)
    print(f"{len(converted.weights)} tensors in {args.output}")
    if converted.left_out:
        print(f"left out, without a counterpart: {', '.join(converted.left_out)}")
    return 0


def _convert_head(args: argparse.Namespace) -> int:
    """Converts a head of STEGO or CAUSE and prints the settings that fit it."""
    if args.kind == "stego":
        head = convert_stego(args.source, args.output)
    else:
        head = convert_cause(args.source, args.clusters, args.output, args.codebook)
    print(f"{len(head.weights)} tensors in {args.output}; {len(head.left_out)} left out")
    print(f"settings: {' '.join(head.settings)} SEMANTICS.LEARNED.WEIGHTS {args.output}")
    return 0
