#!/usr/bin/env python
"""The same as ``u2seg prepare scenes``; ``--help`` says what it makes and from what."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "scenes", *sys.argv[1:]]))
