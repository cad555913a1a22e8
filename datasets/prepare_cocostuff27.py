#!/usr/bin/env python
"""The same as ``u2seg prepare cocostuff27``; ``--help`` says what it makes and from what."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "cocostuff27", *sys.argv[1:]]))
