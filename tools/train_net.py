#!/usr/bin/env python
"""Trains or evaluates a model: the same as ``u2seg train``, whose ``--help`` explains it."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
