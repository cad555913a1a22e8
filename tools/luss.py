#!/usr/bin/env python
"""Runs PASS's stages, hands its backbone to other models, makes the bank for distance matching.

    python tools/luss.py run --configs LUSS/pass_R18_s50 --output DIR [--stages ...] [--num-gpus N] [KEY VALUE ...]
    python tools/luss.py export CHECKPOINT BACKBONE.pth
    python tools/luss.py bank --config-file LUSS/pass_R18_s50_distance.yaml --output BANK.npz MODEL.WEIGHTS FILE

``run`` goes from pictures to a fine-tuned model: stages pretrain, attention, clusters, labels, finetune. Killed and started again it
goes on where it was. ``export`` writes a pretrained backbone as MODEL.WEIGHTS of a detector, U2Seg's for example.
"""

import argparse
import logging
import sys
from pathlib import Path

from u2seg.config import setup_cfg
from u2seg.engine import complete_config
from u2seg.luss.convert import export_backbone
from u2seg.luss.distance_matching import build_bank
from u2seg.luss.recipe import STAGES, Run, run_pass
from u2seg.stages import StageMismatchError, TooManyFailuresError


def main() -> int:
    """Parses the command line and runs; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recipe = commands.add_parser("run", help="from pictures to a fine-tuned model")
    recipe.add_argument("--configs", required=True, help="beginning of the configurations' names")
    recipe.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="run only these")
    recipe.add_argument("--num-gpus", type=int, default=0)
    bank = commands.add_parser("bank", help="labelled embeddings for distance matching")
    bank.add_argument("--config-file", required=True)
    for command in (recipe, bank):
        command.add_argument("--output", required=True, type=Path)
        command.add_argument("opts", nargs=argparse.REMAINDER, help="configuration: KEY VALUE ...")
    export = commands.add_parser("export", help="a pretrained backbone for other models")
    export.add_argument("checkpoint")
    export.add_argument("output", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.command == "export":
            export_backbone(args.checkpoint, args.output)
            result = args.output
        elif args.command == "run":
            result = run_pass(Run(args.configs, args.output, tuple(args.opts), args.num_gpus), tuple(args.stages))
        else:
            result = build_bank(complete_config(setup_cfg(args.config_file, args.opts)), args.output)
    except (FileNotFoundError, KeyError, ValueError, StageMismatchError, TooManyFailuresError) as error:
        print(f"error: {error.args[0] if error.args else error}", file=sys.stderr)
        return 1
    print(f"written: {result}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
