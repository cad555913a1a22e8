"""Reading configuration files: YAML with ``_BASE_``, plain values alone, so that a file from a stranger cannot run code."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from u2seg.config.shipped import find_base
from u2seg.utils import hub_files as _hub_files  # noqa: F401 - registers hf://

BASE_KEY = "_BASE_"
_MAX_VALUES = 100_000


class ConfigFileError(ValueError):
    """A configuration file that is not plain YAML; the message names the file and the line."""


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also knows the tuples that Detectron2's older files are written with."""

    def construct_tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))

    yaml_constructors = {**yaml.SafeLoader.yaml_constructors, "tag:yaml.org,2002:python/tuple": construct_tuple}


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Returns the values of a YAML file, laid over those of the files that its ``_BASE_`` names.

    ``_BASE_`` is one name or a list of them, relative to the file or a shipped one; of several, a later one wins.

    Args:
        path: the file, or anything that Detectron2's ``PathManager`` opens.

    Raises:
        ConfigFileError: the file, or one of its bases, has a tag that would run code or make an object, is not YAML, holds no
            mapping, or is its own base.
        FileNotFoundError: a base does not exist.
    """
    return _merged(_files(str(path), ()))


def own_values(path: str | Path, other: str | Path) -> dict[str, Any]:
    """Returns the values that a file and its bases set, without those files that another configuration is made of as well.

    Args:
        path: as for :func:`read_config_file`.
        other: the other configuration.

    Raises:
        ConfigFileError, FileNotFoundError: as for :func:`read_config_file`.
    """
    shared = {os.path.realpath(place) for place, _ in _files(str(other), ())}
    return _merged(file for file in _files(str(path), ()) if os.path.realpath(file[0]) not in shared)


def _merged(files: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path, values in files:
        _merge(merged, values, path)
    return merged


def _files(path: str, above: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (path, values) of a file's bases, and then of the file itself."""
    if path in above:
        raise ConfigFileError(f"{path} is its own {BASE_KEY}: {' -> '.join([*above, path])}")
    values = _load(path)
    bases = values.pop(BASE_KEY, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigFileError(f"{path}: {BASE_KEY} must be a file name or a list of them, got {base!r}")
        yield from _files(find_base(base, path), (*above, path))
    yield path, values


def _load(path: str) -> dict[str, Any]:
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"no configuration file {path}")
    try:
        with PathManager.open(path, "r") as file:
            # A SafeLoader: it makes numbers, strings, lists, tuples and mappings, and refuses every other tag.
            values = yaml.load(file, Loader=_PlainLoader)
    except yaml.constructor.ConstructorError as error:
        raise ConfigFileError(
            f"{_place(path, error)}: {error.problem}; a configuration file holds plain values alone (numbers, strings, lists, mappings), "
            "since other tags can run code"
        ) from error
    except yaml.MarkedYAMLError as error:
        raise ConfigFileError(f"{_place(path, error)}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigFileError(f"{path} is not a YAML text file: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigFileError(f"{path} must hold KEY: value lines, got a {type(values).__name__}")
    _require_bounded(values, path)
    return values


def _require_bounded(values: dict, path: str) -> None:
    """Refuses a few lines of YAML whose aliases (``*name``) stand for more values than memory holds, or for themselves."""
    waiting, count = [values], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > _MAX_VALUES:
            raise ConfigFileError(
                f"{path} stands for more than {_MAX_VALUES} values; expected a configuration of some hundreds"
            )
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value


def _place(path: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return path if mark is None else f"{path}, line {mark.line + 1}"


def _merge(into: dict[str, Any], values: Mapping[str, Any], path: str) -> None:
    """Lays ``values`` over ``into``, in place, mappings key by key."""
    for key, value in values.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ConfigFileError(f"{path}: {key} is a section here and a value in its {BASE_KEY}")
            _merge(into[key], value, path)
        else:
            into[key] = value
