"""Types of command-line arguments."""

import argparse
from collections.abc import Callable, Sequence


def positive_integer(text: str) -> int:
    """Returns the number that a word of the command line is, which must be 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def comma_separated(choices: Sequence[str] | None = None) -> Callable[[str], list[str]]:
    """Returns an argument type that splits at commas, and refuses what is not among ``choices``."""

    def split(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",") if word.strip()]
        unknown = [word for word in words if choices is not None and word not in choices]
        if unknown or not words:
            raise argparse.ArgumentTypeError(
                f"expected a comma-separated list of {', '.join(choices or ['names'])}; got {text!r}"
            )
        return words

    return split
