#!/usr/bin/env python
"""Prints class-agnostic AP and AR of masks: the same as ``u2seg evaluate-masks``, whose ``--help`` explains it."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate-masks", *sys.argv[1:]]))
