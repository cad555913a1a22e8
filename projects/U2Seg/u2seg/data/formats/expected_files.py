"""The error about files of a dataset that are missing: a tree of those expected, marked with what was found."""

from collections.abc import Iterable
from pathlib import Path


class DatasetFilesError(FileNotFoundError):
    """Files of a dataset are not where its description says; the message shows the tree expected and what was found."""


def require_tree(root: str | Path, expected: dict[str, str], remedy: str) -> None:
    """Checks that files and directories are there.

    Args:
        root: directory that holds them.
        expected: path below ``root`` (a directory's ends in "/") -> what it is.
        remedy: what to do about missing ones.

    Raises:
        DatasetFilesError: some are missing; the message shows the whole tree, marked with what was found.
    """
    root = Path(root)
    rows = [
        ((root / path).is_dir() if path.endswith("/") else (root / path).is_file(), path, what)
        for path, what in expected.items()
    ]
    if not all(found for found, *_ in rows):
        held = f"holds {some_entries(root)}" if root.is_dir() else "is not there"
        raise DatasetFilesError(f"Expected below {root}:\n{marked_tree(rows)}\n{root} {held}. {remedy}")


def marked_tree(rows: Iterable[tuple[bool, str, str]]) -> str:
    """Returns a line for each file or directory: whether it was found, its path, what it is."""
    return "\n".join(f"  [{'x' if found else ' '}] {path}   {what}" for found, path, what in rows)


def some_entries(directory: Path) -> str:
    """Returns the names of the first eight entries of a directory, for a message."""
    return ", ".join(sorted(entry.name for entry in directory.iterdir())[:8]) or "nothing"
