"""Checks the installation: versions, devices, faiss, timm, published weights, datasets; says what to do about what is missing.

u2seg doctor
u2seg doctor --datasets     lists the benchmark datasets that are not there as well
"""

import argparse

from u2seg.cli.installation import check_installation, verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line."""
    parser.add_argument(
        "--datasets", action="store_true", help="list the benchmark datasets that are not there as well"
    )


def run(args: argparse.Namespace) -> int:
    """Prints what was found and a verdict; returns 1 where something is missing that every run needs."""
    checks = check_installation(args.datasets)
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "ok" if check.found else ("MISSING" if check.required else "-")
        print(f"{mark:8s}{check.name:{width}s}  {check.detail}")
        if not check.found and check.remedy:
            print(f"{'':8s}{'':{width}s}  -> {check.remedy}")
    print(f"\n{verdict(checks)}")
    return 1 if any(check.required and not check.found for check in checks) else 0
