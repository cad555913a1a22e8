#!/usr/bin/env python
"""Turns unlabeled photos into panoptic pseudo-labels: the same as ``u2seg labels``, whose ``--help`` explains it."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["labels", *sys.argv[1:]]))
