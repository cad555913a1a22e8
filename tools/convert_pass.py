#!/usr/bin/env python
"""Gives a published PASS checkpoint this project's names.

    python tools/convert_pass.py pass50_pretrained.pth.tar pass_R18_s50.pth

The result is MODEL.WEIGHTS for configs/LUSS, or FEATURES.RESNET.WEIGHTS. The files are at the releases of
https://github.com/LUSSeg/PASS; centroids (.npy) need no conversion.
"""

import argparse
import sys

from u2seg.checkpoints import CheckpointError
from u2seg.luss.convert import convert_pass


def main() -> int:
    """Parses the command line and converts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("output")
    args = parser.parse_args()
    try:
        converted = convert_pass(args.source, args.output)
    except (FileNotFoundError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(converted.weights)} tensors written to {args.output}")
    if converted.left_out:
        print(f"left out, without a counterpart: {', '.join(converted.left_out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
