"""Goes from a directory of photos to pseudo-labels, a trained model, scores where there is a test set, and a page of images.

    u2seg run photos --config-file my.yaml --output output/my

Killed and started again it goes on where it was. DIR/report/index.html shows what came out.
"""

import argparse

from u2seg.cli.arguments import add_config_arguments
from u2seg.engine.end_to_end import run_end_to_end
from u2seg.engine.end_to_end_report import write_run_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument("images", help="directory tree of JPEG, PNG or WebP training photos")
    add_config_arguments(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="directory for everything that is made")
    parser.add_argument("--num-gpus", type=int, default=0, help="GPUs of this machine; 0 trains on the CPU (default 0)")


def run(args: argparse.Namespace) -> int:
    """Runs everything and says where the page is."""
    run_end_to_end(args.config_file, args.images, args.output, opts=args.opts, num_gpus=args.num_gpus)
    page = write_run_report(
        args.config_file,
        args.images,
        args.output,
        title=f"U2Seg on {args.images}",
        summary=f"Configuration {args.config_file}. No label was read before scoring.",
        opts=args.opts,
    )
    print(f"page in {page}")
    return 0
