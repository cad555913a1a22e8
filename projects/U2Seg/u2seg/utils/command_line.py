"""Types of command-line arguments."""

import argparse
from collections.abc import Callable, Sequence


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
