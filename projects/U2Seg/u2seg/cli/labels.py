"""Turns unlabeled photos into panoptic pseudo-labels: masks, clusters, semantic clusters, panoptic labels.

    u2seg labels photos --config-file quick_schedules/coco_mini_handmade.yaml --output labels

Killed and started again it goes on where it was, and the result is that of an uninterrupted run.
"""

import argparse
from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode

from u2seg.cli.arguments import add_config_arguments
from u2seg.config import setup_cfg
from u2seg.pseudo_labels import STAGES, make_pseudo_labels
from u2seg.pseudo_labels.launchers import Launcher, LocalLauncher, SlurmLauncher, TorchrunLauncher, is_leading_rank
from u2seg.pseudo_labels.phases import LabelRun
from u2seg.pseudo_labels.pipeline import finalize, make_worker_share, retry_failures
from u2seg.pseudo_labels.worker import Worker
from u2seg.utils.command_line import comma_separated
from u2seg.utils.files import read_json
from u2seg.utils.manifest import FAILURES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument(
        "images",
        help="directory tree of JPEG, PNG or WebP photos, or one of them; a list of them (.txt, .parquet); or tar shards, local or by URL "
        "('shards/{000..127}.tar')",
    )
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
        help="share of unreadable photos, 0 to 1, that is tolerated; sets MASKS.MAX_FAILURES",
    )
    parser.add_argument(
        "--retry-failures",
        action="store_true",
        help="read images of failures.json that were repaired, and make what depends on them again",
    )
    workers = parser.add_argument_group("many processes and machines (docs/scaling.md)")
    workers.add_argument(
        "--launcher",
        choices=("local", "torchrun", "slurm"),
        help="who runs the workers: processes of this machine, torchrun's, or jobs of a SLURM cluster",
    )
    workers.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes of this machine that share the work (default 1; with --launcher local: one for each GPU, else "
        "the number of cores divided by MASKS.NUM_WORKERS)",
    )
    workers.add_argument(
        "--worker",
        metavar="I/N",
        help="make only the share of worker I, 0 to N-1, of N that share --output, in the round that is next, and end",
    )
    workers.add_argument(
        "--finalize",
        action="store_true",
        help="close the round that workers have made, and make nothing; fails and names what is missing if a worker has not ended",
    )
    workers.add_argument("--partition", metavar="NAME", help="SLURM partition (default: the cluster's)")
    workers.add_argument("--jobs", type=int, metavar="N", help="SLURM jobs that share the work (default 4)")
    workers.add_argument("--time", type=int, metavar="MINUTES", help="time limit of a SLURM job (default 1440, a day)")


def run(args: argparse.Namespace) -> int:
    """Makes the labels and says where they are."""
    _check_combination(args)
    limit = [] if args.max_failures is None else ["MASKS.MAX_FAILURES", str(args.max_failures)]
    cfg = setup_cfg(args.config_file, [*args.opts, *limit])
    cfg.freeze()
    if args.worker:
        return _run_worker(cfg, args)
    if args.finalize:
        upcoming = finalize(cfg, args.images, args.output, stages=args.stages)
        print(f"closed; next: {', '.join(upcoming)}" if upcoming else f"the labels in {args.output} are complete")
        return 0
    if args.retry_failures:
        print(f"{retry_failures(cfg, args.images, args.output)} of the unreadable images can be read now")
    output = make_pseudo_labels(
        cfg,
        args.images,
        args.output,
        stages=args.stages,
        num_workers=1 if args.workers is None else args.workers,
        launcher=_launcher(args),
    )
    if args.launcher == "torchrun" and not is_leading_rank():
        return 0
    failures = read_json(output / FAILURES) if (output / FAILURES).is_file() else []
    print(f"labels in {output}; {len(failures)} images could not be read ({output / FAILURES})")
    return 0


def _check_combination(args: argparse.Namespace) -> None:
    for name in ("workers", "jobs", "time"):
        count = getattr(args, name)
        if count is not None and count < 1:
            raise ValueError(f"--{name} must be at least 1, got {count}")
    chosen = [name for name in ("launcher", "worker", "finalize") if getattr(args, name)]
    if len(chosen) > 1:
        raise ValueError(f"--{chosen[0]} and --{chosen[1]} do not go together: choose who runs the workers")
    if args.retry_failures and chosen:
        raise ValueError(f"--{chosen[0]} does not look for repaired images; use --retry-failures in a run without it")
    for name in ("partition", "jobs", "time"):
        if getattr(args, name) is not None and args.launcher != "slurm":
            raise ValueError(f"--{name} is for SLURM jobs; add --launcher slurm, or leave it out")
    if args.workers is not None and (args.worker or args.finalize or args.launcher in ("torchrun", "slurm")):
        raise ValueError(f"--workers counts processes of this machine; leave it out with --{chosen[0]}")


def _run_worker(cfg: CfgNode, args: argparse.Namespace) -> int:
    made = make_worker_share(cfg, args.images, args.output, Worker.parse(args.worker), stages=args.stages)
    if made:
        print(f"worker {args.worker} made its share of: {', '.join(made)}; when all have ended, run with --finalize")
    else:
        print(f"the labels in {args.output} are complete")
    return 0


def _launcher(args: argparse.Namespace) -> Callable[[CfgNode, LabelRun], Launcher] | None:
    if args.launcher == "local":
        return partial(LocalLauncher, count=args.workers or 0)
    if args.launcher == "torchrun":
        return TorchrunLauncher
    if args.launcher == "slurm":
        given = {"jobs": args.jobs, "partition": args.partition, "minutes": args.time}
        return partial(SlurmLauncher, **{name: value for name, value in given.items() if value is not None})
    return None
