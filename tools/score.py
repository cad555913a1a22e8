#!/usr/bin/env python
"""Scores saved tables or panoptic files: the same as ``u2seg score``, whose ``--help`` explains it."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
