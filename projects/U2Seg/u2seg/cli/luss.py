"""PASS's stages, its backbone for other models, the bank for distance matching.

    u2seg luss run --configs LUSS/pass_R18_s50 --output output/pass
    u2seg luss export output/pass/pretrain/model_final.pth backbone.pth
    u2seg luss bank --config-file LUSS/pass_R18_s50_distance.yaml --output bank.npz MODEL.WEIGHTS FILE

``run`` goes from images to a fine-tuned model: pretrain, attention, clusters, labels, finetune. Killed and started again it goes on
where it was. ``export`` writes a pretrained backbone as MODEL.WEIGHTS of a detector, U2Seg's for example.
"""

import argparse
from pathlib import Path

from u2seg.cli.arguments import add_config_arguments, add_num_gpus, add_overrides
from u2seg.config import setup_cfg
from u2seg.luss import STAGES, Run, build_bank, export_backbone, run_pass
from u2seg.modeling import complete_config
from u2seg.utils.command_line import comma_separated


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    commands = parser.add_subparsers(dest="task", required=True, metavar="run|bank|export")
    recipe = commands.add_parser("run", help="from images to a fine-tuned model")
    recipe.add_argument("--configs", required=True, metavar="PREFIX", help="beginning of the configurations' names")
    recipe.add_argument(
        "--stages",
        type=comma_separated(STAGES),
        default=list(STAGES),
        metavar="A,B,...",
        help=f"run only these stages (default {','.join(STAGES)})",
    )
    add_num_gpus(recipe)
    add_overrides(recipe)
    bank = commands.add_parser("bank", help="labeled embeddings for distance matching")
    add_config_arguments(bank)
    for command in (recipe, bank):
        command.add_argument("--output", required=True, type=Path, metavar="PATH", help="where the result goes")
    export = commands.add_parser("export", help="a pretrained backbone for other models")
    export.add_argument("checkpoint", help="of PASS's pretraining")
    export.add_argument("output", type=Path, help=".pth file to write")


def run(args: argparse.Namespace) -> int:
    """Runs the task and says where its result is."""
    if args.task == "export":
        export_backbone(args.checkpoint, args.output)
    elif args.task == "run":
        run_pass(Run(args.configs, args.output, tuple(args.opts), args.num_gpus), tuple(args.stages))
    else:
        build_bank(complete_config(setup_cfg(args.config_file, args.opts)), args.output)
    print(f"written: {args.output}")
    return 0
