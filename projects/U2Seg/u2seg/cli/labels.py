"""Turns unlabeled photos into panoptic pseudo-labels: masks, clusters, semantic clusters, panoptic labels.

    u2seg labels photos --config-file quick_schedules/coco_mini_handmade.yaml --output labels

Killed and started again it goes on where it was, and the result is that of an uninterrupted run.
"""

import argparse

from u2seg.cli.arguments import add_config_arguments
from u2seg.config import setup_cfg
from u2seg.pseudo_labels import STAGES, make_pseudo_labels
from u2seg.pseudo_labels.pipeline import make_worker_masks, retry_failures
from u2seg.pseudo_labels.sharding import Worker
from u2seg.utils.command_line import comma_separated
from u2seg.utils.files import read_json
from u2seg.utils.manifest import FAILURES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("images", help="directory tree of JPEG, PNG or WebP photos")
    add_config_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="directory for the labels")
    parser.add_argument(
        "--stages",
        type=comma_separated(STAGES),
        default=list(STAGES),
        metavar="A,B,...",
        help=f"run only these stages (default {','.join(STAGES)})",
    )
    parser.add_argument(
        "--max-failures",
        type=float,
        metavar="SHARE",
        help="share of unreadable photos, 0 to 1, that is tolerated (default MASKS.MAX_FAILURES, 0.01)",
    )
    parser.add_argument(
        "--retry-failures",
        action="store_true",
        help="read images of failures.json that were repaired, and make what depends on them again",
    )
    workers = parser.add_mutually_exclusive_group()
    workers.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes of this machine that share the mask stage, one GPU each where there are several (default 1)",
    )
    workers.add_argument(
        "--worker",
        metavar="I/N",
        help="make only the mask shards of worker I, 0 to N-1, of N that share --output, for a job array; when all have ended, run "
        "the command without it for the rest",
    )


def run(args: argparse.Namespace) -> int:
    """Makes the labels and says where they are."""
    cfg = setup_cfg(args.config_file, args.opts)
    cfg.freeze()
    if args.worker and args.retry_failures:
        raise ValueError("--worker makes mask shards only; use --retry-failures in a run without it")
    if args.worker:
        output = make_worker_masks(cfg, args.images, args.output, Worker.parse(args.worker))
        print(f"the mask shards of worker {args.worker} are in {output / STAGES[0]}")
        return 0
    if args.retry_failures:
        print(f"{retry_failures(cfg, args.images, args.output)} of the unreadable images can be read now")
    output = make_pseudo_labels(
        cfg,
        args.images,
        args.output,
        stages=args.stages,
        max_failures=args.max_failures,
        num_workers=args.workers,
    )
    failures = read_json(output / FAILURES) if (output / FAILURES).is_file() else []
    print(f"labels in {output}; {len(failures)} images could not be read ({output / FAILURES})")
    return 0
