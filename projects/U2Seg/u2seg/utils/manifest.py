"""What every long stage shares: a manifest that guards its directory, shards written whole or not at all, recorded failures.

A stage is a function from paths and settings to a directory. Its directory holds ``manifest.json`` with the settings that made it; a
second call with equal settings goes on where the first stopped, and one with other settings is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from detectron2.config import CfgNode

from u2seg.utils.files import fill_directory, forget_directory, read_json, remove_partial_files, write_json
from u2seg.utils.write_errors import vanished
from u2seg.version import __version__

MANIFEST = "manifest.json"
FAILURES = "failures.json"

_Part = TypeVar("_Part")


class StageMismatchError(ValueError):
    """A directory that was made with other settings than those asked for now."""


class TooManyFailuresError(RuntimeError):
    """More images could not be read than the caller allows."""


class IncompleteStageError(FileNotFoundError):
    """A stage that should be closed and lacks shards."""


@dataclass(frozen=True)
class Failure:
    """An image that a stage could not use: its path relative to the image directory, and why."""

    file_name: str
    reason: str


def reads(*keys: str) -> Callable[[_Part], _Part]:
    """Declares the configuration keys that a registered class or function reads, for the manifests of the stages that use it.

        @MASK_REFINEMENT_REGISTRY.register()
        @reads("MASKS.GUIDED_FILTER")
        def guided_filter(cfg): ...

    Args:
        keys: full names; the name of a node stands for all keys below it. Keys that say how the work is done, not what comes out,
            are left out: devices, batch sizes, numbers of threads.
    """

    def declare(part: _Part) -> _Part:
        part.config_keys = keys  # type: ignore[attr-defined]
        return part

    return declare


def keys_read_by(part: object) -> tuple[str, ...] | None:
    """Returns what :func:`reads` declares of a class or function itself; None where nothing is declared, as for a subclass."""
    return vars(part).get("config_keys")


def settings_of(cfg: CfgNode, keys: Iterable[str]) -> dict:
    """Returns the values of configuration keys and nodes, nested as in the configuration, with lists for tuples.

    Args:
        cfg: the configuration.
        keys: full names, such as ``MASKS.TAU`` or ``MASKS.CRF``.

    Raises:
        KeyError: the configuration has no such key.
    """
    values: dict = {}
    for key in keys:
        *sections, last = key.split(".")
        source, target = cfg, values
        for section in sections:
            source, target = source[section], target.setdefault(section, {})
        target[last] = json.loads(json.dumps(source[last]))
    return values


def open_stage(directory: str | Path, stage: str, settings: dict, *, clean: bool = True) -> Path:
    """Creates a stage's directory, or checks that the one which is there was made with the same settings.

    A setting that only the directory has does not count: an earlier version recorded keys of parts that were not in use.

    Args:
        directory: the stage's directory.
        stage: its name, for messages.
        settings: JSON-able values on which the result depends.
        clean: whether to look for half-written files of killed runs; False for one of many workers, since the search lists the
            whole directory.

    Returns:
        The directory.

    Raises:
        StageMismatchError: the directory holds another stage's or other settings' results; the message says what differs.
        u2seg.utils.write_errors.WriteError: it cannot be made or written.
    """
    directory = fill_directory(directory)
    wanted = _manifest(stage, settings)
    path = directory / MANIFEST
    if path.is_file():
        differences = list(_differences(wanted, read_json(path)))
        if differences and not _has_results(
            directory
        ):  # a run that failed before its first result does not fix the settings
            write_json(path, wanted)
        elif differences:
            raise StageMismatchError(
                f"{directory} was made with other settings:\n  "
                + "\n  ".join(differences)
                + "\nChoose another output directory, delete this one, or ask for the settings that made it."
            )
        if clean:
            remove_partial_files(directory)
        return directory
    refuse_foreign(directory)
    write_json(path, wanted)
    return directory


def refuse_foreign(directory: str | Path) -> None:
    """Refuses a directory that holds something and was not made by a stage.

    Raises:
        StageMismatchError: it is not empty and has no manifest.
    """
    directory = Path(directory)
    # The manifest last: another worker may write it, and its first shard, in between.
    if directory.is_dir() and _has_results(directory) and not (directory / MANIFEST).is_file():
        raise StageMismatchError(f"{directory} is not empty and has no {MANIFEST}; choose another output directory")


def check_stage(directory: str | Path, stage: str, settings: dict) -> None:
    """Refuses to write into a stage's directory that another run, with other settings, has taken in the meantime.

    Raises:
        StageMismatchError: the manifest is not what :func:`open_stage` left for these settings.
    """
    if any(_differences(_manifest(stage, settings), read_json(Path(directory) / MANIFEST))):
        raise StageMismatchError(
            f"another run with other settings took {directory} while this one worked; choose another output directory for one of them"
        )


def missing_shards(directory: str | Path, count: int, suffix: str = ".parquet", prefix: str = "shard") -> Iterator[int]:
    """Yields the numbers of the shards, of ``count``, that are not there; see :func:`shard_path`."""
    return (index for index in range(count) if not shard_path(directory, index, suffix, prefix).is_file())


def require_shards(directory: str | Path, count: int, suffix: str = ".parquet", prefix: str = "shard") -> None:
    """Refuses to go on where a stage lacks shards.

    Args:
        directory: the stage's directory.
        count: shards that it should have.
        suffix: of their names.
        prefix: of their names.

    Raises:
        IncompleteStageError: the message names the first ten that are missing.
    """
    missing = list(missing_shards(directory, count, suffix, prefix))
    if missing:
        named = ", ".join(shard_path(directory, index, suffix, prefix).name for index in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise IncompleteStageError(
            f"{directory} lacks {len(missing)} of {count} shards: {named}{more}. Run the command again without --finalize, or the "
            "workers that did not end; only what is missing is made."
        )


@contextmanager
def unless_done(is_done: Callable[[], bool]) -> Iterator[None]:
    """Passes over a missing file if, meanwhile, another run on the same directory finished what it was for.

    Args:
        is_done: whether that is so.
    """
    try:
        yield
    except FileNotFoundError:
        if not is_done():
            raise


def reopen_stage(directory: str | Path, stage: str, settings: dict) -> None:
    """Marks a stage as unfinished, and as made with other settings; the caller deletes the results that these do not give."""
    write_json(Path(directory) / MANIFEST, _manifest(stage, settings))


def discard_stage(directory: str | Path) -> None:
    """Deletes a stage's directory, if there is one; one that is left half deleted by a kill is known as unfinished, and still its own."""
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        return
    write_json(path, {key: value for key, value in read_json(path).items() if key != "counts"})
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry != path:
            entry.unlink()
    path.unlink()
    directory.rmdir()
    forget_directory(directory)


def _manifest(stage: str, settings: dict) -> dict:
    # Through JSON, so that tuples and lists compare equal to what the file gives back.
    return json.loads(json.dumps({"stage": stage, "version": __version__, "settings": settings}))


def _has_results(directory: Path) -> bool:
    return any(not entry.name.startswith(".") and entry.name != MANIFEST for entry in directory.iterdir())


def close_stage(directory: str | Path, counts: dict) -> None:
    """Marks a stage as complete by adding ``counts`` to its manifest.

    Raises:
        u2seg.utils.write_errors.WriteError: the manifest has vanished, or cannot be written.
    """
    path = Path(directory) / MANIFEST
    if not path.is_file():
        raise vanished(Path(directory))
    write_json(path, {**read_json(path), "counts": counts})


def is_complete(directory: str | Path) -> bool:
    """Returns whether a stage's directory holds a finished result."""
    path = Path(directory) / MANIFEST
    return path.is_file() and "counts" in read_json(path)


def stage_settings(directory: str | Path) -> dict:
    """Returns the settings that made a stage's directory."""
    return read_json(Path(directory) / MANIFEST)["settings"]


def settings_key(settings: dict) -> str:
    """Returns eight digits for the names of a stage's hidden files: other settings must not take them for their own."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def settings_digest(directory: str | Path) -> str:
    """Returns a digest of what made a finished stage's directory and of what came out, for the stages that build on it."""
    manifest = read_json(Path(directory) / MANIFEST)
    made_by = {key: manifest.get(key) for key in ("stage", "version", "settings", "counts")}
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]


def shard_path(directory: str | Path, index: int, suffix: str = ".parquet", prefix: str = "shard") -> Path:
    """Returns the path of a stage's shard number ``index``."""
    return Path(directory) / f"{prefix}-{index:06d}{suffix}"


def shard_slices(count: int, shard_size: int) -> list[slice]:
    """Returns the slices that cut ``count`` items into shards; an item's shard depends on nothing but its position.

    Example:
        >>> shard_slices(5, shard_size=2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    if shard_size < 1:
        raise ValueError(f"shard size must be at least 1, got {shard_size}")
    return [slice(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]


def report_failures(
    directory: str | Path, failures: list[Failure], total: int, max_share: float, remedy: str = ""
) -> None:
    """Writes ``failures.json`` and refuses to go on when too many images failed.

    Args:
        directory: the stage's directory.
        failures: the images that could not be read.
        total: images in all.
        max_share: ``MASKS.MAX_FAILURES``.
        remedy: what the user can do instead of raising that key, as the end of a sentence, such as ``", or put them back"``.

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
            f"{len(rows)} of {total} images could not be read, more than the {max_share:.1%} allowed "
            f"(MASKS.MAX_FAILURES):\n  {listing}{more}\nThe list is in {path}. Run again with a larger MASKS.MAX_FAILURES to go on "
            f"without them{remedy}."
        )


def _differences(wanted: Any, found: Any, prefix: str = "") -> Iterator[str]:
    """Yields a line for each wanted value that was not found."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted(wanted):
            yield from _differences(wanted.get(key), found.get(key), f"{prefix}.{key}" if prefix else key)
    elif wanted != found:
        yield f"{prefix}: asked for {wanted!r}, the directory has {found!r}"
