"""Checks the installation: versions, devices, faiss, timm, published weights, datasets; says what to do about what is missing.

u2seg doctor
"""

import argparse

from u2seg.cli.installation import check_installation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line, which has no arguments of its own."""


def run(args: argparse.Namespace) -> int:
    """Prints what was found; returns 1 where something is missing that every run needs."""
    checks = check_installation()
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "ok" if check.found else ("MISSING" if check.required else "-")
        print(f"{mark:8s}{check.name:{width}s}  {check.detail}")
        if not check.found and check.remedy:
            print(f"{'':8s}{'':{width}s}  -> {check.remedy}")
    return 1 if any(check.required and not check.found for check in checks) else 0
