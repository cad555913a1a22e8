"""File operations that fail or kill: each operation below a directory does so once, the first time that it is asked for."""

import errno
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".u2seg-partial-*"
OPERATIONS = ("mkdir", "chmod", "replace", "unlink", "rmdir")


class KilledError(BaseException):
    """Stands for the end of the process: nothing is caught or cleaned up after it."""


class Faults:
    """Lets every file operation below a directory fail once."""

    def __init__(self, monkeypatch, root: Path, *, kill: bool, code: int = errno.ENOSPC, only: tuple = ()):
        """Patches the operations.

        Args:
            monkeypatch: pytest's.
            root: operations elsewhere are left alone.
            kill: whether the process ends, so that all further operations do nothing; else it is an error of the system.
            code: of that error.
            only: names of the operations that fail; empty: all.
        """
        self.root, self.kill, self.code = root, kill, code
        self.seen: set[tuple] = set()
        self.dead = False
        for name in OPERATIONS:
            if not only or name in only:
                monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))
        if not only or "mkstemp" in only:
            monkeypatch.setattr(tempfile, "mkstemp", self._failing("mkstemp", tempfile.mkstemp))

    def _failing(self, name: str, function: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            target = self._target(name, args, kwargs)
            if target is not None:
                if self.dead:
                    raise KilledError
                if (name, target) not in self.seen:
                    self.seen.add((name, target))
                    self._end(target)
            return function(*args, **kwargs)

        return wrapped

    def _end(self, target: str) -> None:
        if self.kill:
            self.dead = True
            raise KilledError
        raise OSError(self.code, os.strerror(self.code), target)

    def _target(self, name: str, args: tuple, kwargs: dict) -> str | None:
        """Returns what an operation is about, the same in every attempt; None where it is not below the root."""
        path = kwargs.get("dir") if name == "mkstemp" else args[1] if name == "replace" else args[0]
        if kwargs.get("dir_fd") is not None or not str(path).startswith(str(self.root)):
            return None
        final = _final_path() if Path(path).name.startswith(PARTIAL[:-1]) or name == "mkstemp" else path
        return str(final)

    def runs(self, work: Callable, expected: type[BaseException], check: Callable) -> int:
        """Returns how many operations failed until ``work()`` came to its end; ``check(error)`` looks at each attempt's error."""
        for attempt in range(2000):
            self.dead = False
            try:
                work()
                return attempt
            except expected as error:
                check(error)
        raise AssertionError("it does not get on")


def _final_path() -> str:
    """Returns the file that is being written, from the frame of the function that writes it: temporary names are random."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "atomic_path":
            return str(frame.f_locals["path"])
        frame = frame.f_back
    return "?"


def contents(directory: Path) -> dict[str, bytes]:
    """Returns what all files below a directory hold."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
