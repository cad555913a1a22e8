#!/usr/bin/env python
"""Shows labels or predictions on their images: the same as ``u2seg show``, whose ``--help`` explains it."""

import sys

from u2seg.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["show", *sys.argv[1:]]))
