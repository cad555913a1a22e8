#!/usr/bin/env python
"""Runs PASS: the same as ``u2seg luss``, whose ``--help`` explains it."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["luss", *sys.argv[1:]]))
