"""What every long stage shares: a manifest that guards its folder, shards written whole or not at all, recorded failures.

A stage is a function from paths and settings to a folder. Its folder holds ``manifest.json`` with the settings that made it; a
second call with equal settings goes on where the first stopped, and one with other settings is refused.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from u2seg.version import __version__

_TEMPORARY = ".u2seg-partial-"  # begins the names of files that are being written
MANIFEST = "manifest.json"
FAILURES = "failures.json"


class StageMismatchError(ValueError):
    """A folder that was made with other settings than those asked for now."""


class TooManyFailuresError(RuntimeError):
    """More pictures could not be read than the caller allows."""


@dataclass(frozen=True)
class Failure:
    """A picture that a stage could not use: its path relative to the picture folder, and why."""

    file_name: str
    reason: str


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
        temporary.chmod(0o644)  # mkstemp's 0600 would keep a shared folder's other users out
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial_files(directory: str | Path) -> None:
    """Deletes the half-written files that a killed run left below a folder."""
    for path in Path(directory).rglob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value) -> None:
    """Writes ``value`` as JSON, whole or not at all; equal values give equal bytes, and a file that holds them is left alone."""
    content = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
    if Path(path).is_file() and Path(path).read_bytes() == content:
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_json(path: str | Path):
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


def open_stage(directory: str | Path, stage: str, settings: dict) -> Path:
    """Creates a stage's folder, or checks that the one which is there was made with the same settings.

    Args:
        directory: the stage's folder.
        stage: its name, for messages.
        settings: JSON-able values on which the result depends.

    Returns:
        The folder.

    Raises:
        StageMismatchError: the folder holds another stage's or other settings' results; the message says what differs.
    """
    directory = Path(directory)
    # Through JSON, so that tuples and lists compare equal to what the file gives back.
    wanted = json.loads(json.dumps({"stage": stage, "version": __version__, "settings": settings}))
    path = directory / MANIFEST
    if path.is_file():
        found = read_json(path)
        differences = list(_differences(wanted, {key: found.get(key) for key in wanted}))
        if differences and not _has_results(directory):  # a run that failed before its first result binds nobody
            write_json(path, wanted)
        elif differences:
            raise StageMismatchError(
                f"{directory} was made with other settings:\n  "
                + "\n  ".join(differences)
                + "\nChoose another output folder, delete this one, or ask for the settings that made it."
            )
        remove_partial_files(directory)
        return directory
    if directory.is_dir() and _has_results(directory):
        raise StageMismatchError(f"{directory} is not empty and has no {MANIFEST}; choose another output folder")
    write_json(path, wanted)
    return directory


def _has_results(directory: Path) -> bool:
    return any(not entry.name.startswith(".") and entry.name != MANIFEST for entry in directory.iterdir())


def close_stage(directory: str | Path, counts: dict) -> None:
    """Marks a stage as complete by adding ``counts`` to its manifest."""
    path = Path(directory) / MANIFEST
    write_json(path, {**read_json(path), "counts": counts})


def is_complete(directory: str | Path) -> bool:
    """Returns whether a stage's folder holds a finished result."""
    path = Path(directory) / MANIFEST
    return path.is_file() and "counts" in read_json(path)


def settings_digest(directory: str | Path) -> str:
    """Returns a digest of what made a finished stage's folder and of what came out, for the stages that build on it."""
    manifest = read_json(Path(directory) / MANIFEST)
    made_by = {key: manifest.get(key) for key in ("stage", "version", "settings", "counts")}
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: str | Path) -> str:
    """Returns a digest of a file's bytes, for a manifest that should notice another file under the same name."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if Path(path).is_file() else "missing"


def list_digest(names: list[str]) -> str:
    """Returns a digest of a list of names, for a manifest that should notice added or removed pictures."""
    return hashlib.sha256("\n".join(names).encode(errors="backslashreplace")).hexdigest()[:16]


def shard_path(directory: str | Path, index: int, suffix: str = ".parquet") -> Path:
    """Returns the path of a stage's shard number ``index``."""
    return Path(directory) / f"shard-{index:06d}{suffix}"


def shard_slices(count: int, shard_size: int) -> list[slice]:
    """Returns the slices that cut ``count`` items into shards; an item's shard depends on nothing but its position."""
    if shard_size < 1:
        raise ValueError(f"shard size must be at least 1, got {shard_size}")
    return [slice(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]


def report_failures(directory: str | Path, failures: list[Failure], total: int, max_share: float) -> None:
    """Writes ``failures.json`` and refuses to go on when too many pictures failed.

    Raises:
        TooManyFailuresError: their share is above ``max_share`` (0..1); the message lists the first ones.
    """
    rows = sorted(({"file_name": f.file_name, "reason": f.reason} for f in failures), key=lambda row: row["file_name"])
    path = Path(directory) / FAILURES
    write_json(path, rows)
    if total and len(failures) / total > max_share:
        listing = "\n  ".join(f"{row['file_name']}: {row['reason']}" for row in rows[:20])
        more = f"\n  ... and {len(rows) - 20} more" if len(rows) > 20 else ""
        raise TooManyFailuresError(
            f"{len(rows)} of {total} pictures could not be read, more than the {max_share:.1%} allowed "
            f"(--max-failures):\n  {listing}{more}\nThe list is in {path}. What was made is kept: "
            "run again with a larger --max-failures to go on without them, or repair or remove them and use a new output folder."
        )


def _differences(wanted, found, prefix: str = "") -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted({*wanted, *found}):
            yield from _differences(wanted.get(key), found.get(key), f"{prefix}.{key}" if prefix else key)
    elif wanted != found:
        yield f"{prefix}: asked for {wanted!r}, the folder has {found!r}"
