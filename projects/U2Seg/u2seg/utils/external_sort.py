"""Sorting more strings than fit into memory: sorted runs go to a temporary file and are merged when they are read."""

import heapq
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO

# Bytes that the merge reads ahead in each run.
_BLOCK = 1 << 14


class ExternalSort:
    """Takes strings in any order and gives them back in order, at most ``limit`` of them in memory.

    The temporary file has no name: the operating system removes it when the process ends, however it ends.

    >>> with ExternalSort(limit=2) as order:
    ...     for word in ("pear", "fig", "apple"):
    ...         order.add(word)
    ...     list(order)
    ['apple', 'fig', 'pear']
    """

    def __init__(self, limit: int = 200_000, directory: str | Path | None = None):
        """Takes how many strings are held and where the temporary file goes.

        Args:
            limit: strings in memory, at least 1.
            directory: None: the system's directory for temporary files.
        """
        self._limit = limit
        self._directory = directory
        self._held: list[str] = []
        self._ends = [0]  # of the runs in the file, in bytes
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "ExternalSort":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, item: str) -> None:
        """Takes one string."""
        self._held.append(item)
        if len(self._held) >= self._limit:
            self._write_run()

    def _write_run(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
        for item in sorted(self._held):
            self._file.write(json.dumps(item).encode() + b"\n")  # ASCII: line ends and lone surrogates are escaped
        self._file.flush()
        self._ends.append(self._file.tell())
        self._held = []

    def __iter__(self) -> Iterator[str]:
        """Yields all strings in order; equal ones come as often as they were added."""
        runs: list[Iterable[str]] = [self._run(start, end) for start, end in pairwise(self._ends)]
        return heapq.merge(*runs, sorted(self._held))

    def repeated(self) -> Iterator[str]:
        """Yields each string that was added more than once, in order."""
        last = None
        for before, item in pairwise(self):
            if item == before != last:
                yield item
                last = item

    def _run(self, start: int, end: int) -> Iterator[str]:
        assert self._file is not None
        rest, file = b"", self._file.fileno()
        while start < end:
            block = os.pread(file, min(_BLOCK, end - start), start)
            start += len(block)
            *lines, rest = (rest + block).split(b"\n")
            yield from map(json.loads, lines)


def repeated_items(items: Iterable[str], limit: int = 200_000, directory: str | Path | None = None) -> list[str]:
    """Returns the strings that come more than once, in order; at most ``limit`` of the others are held in memory.

    Args:
        items: the strings.
        limit: see :class:`ExternalSort`.
        directory: see :class:`ExternalSort`.

    Example:
        >>> repeated_items(["b", "a", "b", "c", "a", "b"])
        ['a', 'b']
    """
    with ExternalSort(limit, directory) as order:
        for item in items:
            order.add(item)
        return list(order.repeated())
