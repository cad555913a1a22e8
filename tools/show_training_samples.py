#!/usr/bin/env python
"""Draws training samples as the trainer gets them: augmented, pasted, with instances, boxes and semantic targets.

python tools/show_training_samples.py --config-file FILE --output samples.png [--count 8] [KEY VALUE ...]
"""

import argparse

from u2seg.config import setup_cfg
from u2seg.engine import complete_config
from u2seg.engine.sample_page import show_training_samples


def main() -> None:
    """Parses the command line and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="YAML file, on disk or among the shipped configs")
    parser.add_argument("--output", required=True, help=".png or .jpg to write")
    parser.add_argument("--count", type=int, default=8, help="samples")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="configuration: KEY VALUE ...")
    args = parser.parse_args()
    cfg = complete_config(setup_cfg(args.config_file, args.opts))
    print(show_training_samples(cfg, args.output, args.count))


if __name__ == "__main__":
    main()
