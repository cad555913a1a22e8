#!/usr/bin/env python
"""Turns a folder of photos into panoptic pseudo-labels, without any label.

    python tools/make_pseudo_labels.py --config-file FILE --images DIR --output DIR [--stages ...] [KEY VALUE ...]

Killed and started again it goes on where it was, and the result is that of an uninterrupted run.
"""

import argparse
import logging
import sys

from u2seg.config import setup_cfg
from u2seg.pipeline import STAGES, make_pseudo_labels
from u2seg.stages import FAILURES, TooManyFailuresError, read_json


def main() -> int:
    """Parses the command line and runs the recipe; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="YAML file, on disk or among the shipped configs")
    parser.add_argument("--images", required=True, help="folder tree of JPEG, PNG or WebP photos")
    parser.add_argument("--output", required=True, help="folder for the labels")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), help=f"run only these of {', '.join(STAGES)}")
    parser.add_argument(
        "--max-failures", type=float, help="share of unreadable photos that is tolerated (default 0.01)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="configuration: KEY VALUE ...")
    args = parser.parse_args()
    # argparse gives --stages everything that follows it: what is no lower-case word is the beginning of KEY VALUE ...
    count = next((i for i, word in enumerate(args.stages) if not word.islower()), len(args.stages))
    args.stages, args.opts = args.stages[:count], args.stages[count:] + args.opts
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        cfg = setup_cfg(args.config_file, args.opts)
        cfg.freeze()
        output = make_pseudo_labels(cfg, args.images, args.output, stages=args.stages, max_failures=args.max_failures)
    except KeyError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)  # str() of a KeyError is its message in quotes
        return 1
    except (OSError, ValueError, TooManyFailuresError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failures = read_json(output / FAILURES) if (output / FAILURES).is_file() else []
    print(f"labels in {output}; {len(failures)} pictures could not be read ({output / FAILURES})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
