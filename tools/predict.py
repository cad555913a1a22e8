#!/usr/bin/env python
"""Runs a trained model on images: the same as ``u2seg predict``, whose ``--help`` explains it."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
