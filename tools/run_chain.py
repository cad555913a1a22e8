#!/usr/bin/env python
"""Runs the whole chain on a folder of photos: pseudo-labels, a trained model, scores and a page of pictures.

    python tools/run_chain.py --config-file FILE --images DIR --output DIR [--num-gpus N] [KEY VALUE ...]

Killed and started again it goes on where it was. OUTPUT/report/index.html shows what came out.
"""

import argparse
import logging

from u2seg.chain import run_chain
from u2seg.chain_report import write_chain_report


def main() -> None:
    """Parses the command line, runs the chain, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="YAML file, on disk or among the shipped configs")
    parser.add_argument("--images", required=True, help="folder tree of JPEG, PNG or WebP training photos")
    parser.add_argument("--output", required=True, help="folder for everything that is made")
    parser.add_argument("--num-gpus", type=int, default=0)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="configuration: KEY VALUE ...")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_chain(args.config_file, args.images, args.output, opts=args.opts, num_gpus=args.num_gpus)
    summary = f"Configuration {args.config_file}. No label was read before scoring."
    print(
        write_chain_report(
            args.config_file, args.images, args.output, title=f"U2Seg on {args.images}", summary=summary, opts=args.opts
        )
    )


if __name__ == "__main__":
    main()
