"""Files that are written whole or not at all, JSON, digests."""

import contextlib
import hashlib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from u2seg.utils.write_errors import TEMPORARY, clear_write_errors, vanished

_LONGEST_WRITE = 24 * 3600  # seconds; a file of another machine that is older was left by a kill
# Those of this process, by path.
_being_written: set[str] = set()
# Directories that this process fills; see fill_directory.
_filled: set[Path] = set()


class UnsafeNameError(ValueError):
    """A name in a file that leads out of the directory to which it is relative."""


def confined_name(name: str, source: str | Path) -> str:
    """Returns a name that a file gives, having checked that it stays below the directory to which it is relative.

    Links below that directory are the user's own and are followed.

    Args:
        name: a relative POSIX path.
        source: the file that gives it, for the message.

    Raises:
        UnsafeNameError: the name is empty, absolute, or has a ``..`` or a null character in it.
    """
    parts = Path(name).parts if isinstance(name, str) else ()
    if not parts or Path(name).anchor or ".." in parts or "\0" in name:
        raise UnsafeNameError(
            f"{source} names the file {name!r}; expected a name relative to its directory, without .. in it: "
            "nothing outside the directory is read or written"
        )
    return name


def confined_path(root: str | Path, name: str, source: str | Path) -> Path:
    """Returns ``root / name`` for a name that a file gives, having checked that it lies below ``root``; see :func:`confined_name`."""
    return Path(root) / confined_name(name, source)


_SHORT = 16  # digits of the digests in manifests


def fill_directory(directory: str | Path) -> Path:
    """Makes a directory that is going to be filled, and returns it.

    If somebody deletes it in between, the next file below it is an error: without what was there before, it would be of no use, and
    in the way of the next run.

    Raises:
        u2seg.utils.write_errors.WriteError: it cannot be made.
    """
    directory = Path(directory)
    with clear_write_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    _filled.add(Path(os.path.abspath(directory)))
    return directory


def forget_directory(directory: str | Path) -> None:
    """Takes back :func:`fill_directory`, for a directory that this program itself deletes."""
    _filled.discard(Path(os.path.abspath(directory)))


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that becomes ``path`` if the block ends without an error, and is removed if not.

    Raises:
        u2seg.utils.write_errors.WriteError: the disk is full, the directory is read-only or was deleted; nothing half-written stays.
    """
    path = Path(path)
    for parent in Path(os.path.abspath(path)).parents:
        if parent in _filled and not parent.is_dir():
            raise vanished(parent)
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # By the machine's name and the process's number the next run knows whether it is still being written.
        prefix = f"{TEMPORARY}{_machine()}-{os.getpid()}-"
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix[:32], dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        _being_written.add(name)
        try:
            yield temporary
            temporary.chmod(0o644)  # mkstemp's 0600 would keep a shared directory's other users out
            os.replace(temporary, path)
        finally:
            _being_written.discard(name)
            # What cannot be removed now is removed by the next run: the first error is the one to tell.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_partial_files(directory: str | Path) -> None:
    """Deletes the half-written files that killed runs left below a directory, and none that a living process still writes."""
    _remove_partial(Path(directory).rglob(f"{TEMPORARY}*"))


def remove_partial_files_beside(path: str | Path) -> None:
    """Deletes the half-written files that killed runs left in the directory of a file that is going to be written."""
    _remove_partial(Path(path).parent.glob(f"{TEMPORARY}*"))


def _remove_partial(paths: Iterable[Path]) -> None:
    for path in paths:
        if not _is_being_written(path):
            path.unlink(missing_ok=True)


def _is_being_written(path: Path) -> bool:
    machine, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
    number = rest.partition("-")[0]
    try:
        recent = time.time() - path.stat().st_mtime < _LONGEST_WRITE
    except FileNotFoundError:
        return False
    if machine != _machine() or not number.isdigit():
        return recent and number.isdigit()
    # A number is given out again, after a restart of a container to the same program for example.
    return str(path) in _being_written if int(number) == os.getpid() else recent and _is_alive(int(number))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:32]


def write_json(path: str | Path, value: Any) -> None:
    """Writes ``value`` as JSON, whole or not at all; equal values give equal bytes, and a file that holds them is left alone."""
    content = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
    if Path(path).is_file() and Path(path).read_bytes() == content:
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def stream_json(path: str | Path, value: dict[str, Any]) -> None:
    """Writes a dict as :func:`write_json` does, to the same bytes, but takes its lists as streams that need not fit into memory.

    Args:
        path: of the file.
        value: its iterators (but not its lists, dicts and strings) are written item by item, as lists; keys in sorted order.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "{\n"
        for key in sorted(value):
            file.write(f"{separator} {json.dumps(key)}: ")
            if isinstance(value[key], Iterator):
                _write_items(file, value[key])
            else:
                file.write(_indented(value[key], 1))
            separator = ",\n"
        file.write("\n}\n")


def _write_items(file: IO[str], items: Iterator[Any]) -> None:
    separator = "[\n"
    for item in items:
        file.write(f"{separator}  {_indented(item, 2)}")
        separator = ",\n"
    file.write("[]" if separator == "[\n" else "\n ]")


def _indented(value: Any, depth: int) -> str:
    return json.dumps(value, indent=1, sort_keys=True).replace("\n", "\n" + " " * depth)


def read_json(path: str | Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
        FileNotFoundError: with the path.
        ValueError: the file is not JSON; the message names it.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def did_you_mean(path: str | Path) -> str:
    """Returns ``"; did you mean A or B?"`` with what is called nearly so in the same directory as a path; "" for none.

    Args:
        path: of a file or directory that does not exist. Where its directory does not exist either, that one's neighbors are looked at.
    """
    path = Path(path)
    missing = next((p for p in (*reversed(path.parents), path) if not p.exists()), None)
    if missing is None or not os.access(missing.parent, os.R_OK):
        return ""
    names = {name.casefold(): name for name in sorted(os.listdir(missing.parent))}
    close = get_close_matches(missing.name.casefold(), names, n=2, cutoff=0.6)
    rest = path.relative_to(missing)
    meant = [found for name in close if (found := missing.parent / names[name] / rest).exists()]
    return f"; did you mean {' or '.join(map(str, meant))}?" if meant else ""


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Returns the digest of a file's bytes, all its hexadecimal digits; the file is read in blocks.

    Args:
        path: the file.
        algorithm: a name that :mod:`hashlib` knows.

    Raises:
        FileNotFoundError: no such file.
    """
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def short_file_digest(path: str | Path) -> str:
    """Returns 16 digits of a file's SHA-256, for a manifest that should notice another file under the same name.

    "missing" where there is no such file.
    """
    return file_digest(path)[:_SHORT] if Path(path).is_file() else "missing"


def list_digest(names: Iterable[str]) -> str:
    """Returns a digest of names in their order, for a manifest that should notice added or removed images; they are not held."""
    digest = hashlib.sha256()
    for number, name in enumerate(names):
        digest.update((name if not number else f"\n{name}").encode(errors="backslashreplace"))
    return digest.hexdigest()[:_SHORT]
