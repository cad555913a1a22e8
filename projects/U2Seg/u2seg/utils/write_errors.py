"""Errors of writing: a full disk, a directory that is read-only or was deleted. One line says which file and what to do."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Begins the names of files that are being written.
TEMPORARY = ".u2seg-partial-"

_OTHER_OUTPUT = "make it writable or choose another output directory"
# What to do about an error of the operating system, by its number; others say enough by themselves.
REMEDIES = {
    errno.ENOSPC: "free some space on that disk",
    errno.EDQUOT: "free some space or ask for a larger quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EACCES: _OTHER_OUTPUT,
    errno.EPERM: _OTHER_OUTPUT,
    errno.EROFS: _OTHER_OUTPUT,
    errno.EIO: "check the disk",
    errno.ENOTDIR: "a file has the name of a directory that is needed here: move it away",
    errno.EISDIR: "a directory has the name of a file that is needed here: move it away",
}


class WriteError(OSError):
    """A file or directory that cannot be written; the message names it and says what to do."""


def vanished(directory: Path) -> WriteError:
    """Returns the error of a directory that was deleted or moved away, wholly or in part, while it was being filled."""
    return WriteError(
        f"{directory} was deleted or moved, wholly or in part, while it was being filled; put it back to go on where it was, or "
        "run the same command again to make it anew"
    )


@contextmanager
def clear_write_errors(path: str | Path) -> Iterator[None]:
    """Turns what goes wrong with writing ``path``, or below it, within the block into a :class:`WriteError`.

    Libraries wrap such errors in errors of their own, or leave out the file's name. Errors that concern other files stay as they are.

    Args:
        path: the file that the block writes, or the directory that it fills.
    """
    path = Path(path)
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        cause = _cause(error, path)
        if cause is None:
            raise
        if cause == errno.ENOENT:
            raise vanished(path) from error
        raise WriteError(
            f"{path} cannot be written: {os.strerror(cause)}; {REMEDIES[cause]}, then run the same command again"
        ) from error


def _cause(error: BaseException, path: Path) -> int | None:
    """Returns the number of the operating system's error behind an error, None if there is none that concerns ``path``."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, OSError) and found.errno in (errno.ENOENT, *REMEDIES) and _concerns(found, path):
            return found.errno
        # NumPy says how much it could write, and not why that was not all.
        if isinstance(found, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(found)):
            return errno.ENOSPC
        found = found.__cause__ or found.__context__
    return None


def _concerns(error: OSError, path: Path) -> bool:
    # Of a missing file without a name nothing says that it should have been written.
    if error.filename is None or isinstance(error.filename, int):
        return error.errno != errno.ENOENT
    named, path = Path(os.path.abspath(os.fsdecode(error.filename))), Path(os.path.abspath(path))
    is_temporary = named.parent == path.parent and named.name.startswith(TEMPORARY)
    return is_temporary or named == path or path in named.parents or named in path.parents
