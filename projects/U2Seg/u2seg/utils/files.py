"""Files that are written whole or not at all, JSON, digests."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TEMPORARY = ".u2seg-partial-"  # begins the names of files that are being written


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that becomes ``path`` if the block ends without an error, and is removed if not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 would keep a shared directory's other users out
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial_files(directory: str | Path) -> None:
    """Deletes the half-written files that a killed run left below a directory."""
    for path in Path(directory).rglob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes ``value`` as JSON, whole or not at all; equal values give equal bytes, and a file that holds them is left alone."""
    content = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
    if Path(path).is_file() and Path(path).read_bytes() == content:
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


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


def file_digest(path: str | Path) -> str:
    """Returns a digest of a file's bytes, for a manifest that should notice another file under the same name."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if Path(path).is_file() else "missing"


def list_digest(names: list[str]) -> str:
    """Returns a digest of a list of names, for a manifest that should notice added or removed images."""
    return hashlib.sha256("\n".join(names).encode(errors="backslashreplace")).hexdigest()[:16]
