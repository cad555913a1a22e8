#!/usr/bin/env python
"""Improves a model by its own confident predictions: the same as ``u2seg self-train``, whose ``--help`` explains it."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["self-train", *sys.argv[1:]]))
