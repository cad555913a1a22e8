#!/usr/bin/env python
"""Converts the authors' DINO ResNet-50 to the file that Detectron2 loads as MODEL.WEIGHTS.

    python tools/convert_dino_resnet.py dino_resnet50_pretrain.pth datasets/dino/dino_resnet50_pretrain_d2.pkl

The first file is https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth; an address is downloaded
to Detectron2's cache. Any torchvision ResNet's state dict is converted in the same way.
"""

import argparse
import sys

from u2seg.checkpoints import CheckpointError, convert_torchvision_resnet


def main() -> int:
    """Parses the command line and converts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="weights in torchvision's names: a file or an address")
    parser.add_argument("output", help=".pkl file to write")
    args = parser.parse_args()
    try:
        count = convert_torchvision_resnet(args.source, args.output)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} tensors in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
