"""Files of the Hugging Face Hub, by name wherever Detectron2's ``PathManager`` reads a file: ``hf://org/name@revision/file``.

timm's ``hf-hub:org/name@revision`` stands for the weights of a model repository. Importing this module registers both.
"""

from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager

from u2seg.utils.files import confined_name

HUB_PREFIX, TIMM_PREFIX = "hf://", "hf-hub:"
# What a model repository calls its weights, in the order in which timm looks for them.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class HubFileError(FileNotFoundError):
    """A file of the Hub that is neither in the cache nor can be fetched; the message says why and what to do."""


class HubFileMissingError(HubFileError):
    """The Hub answered that there is no such repository, revision or file."""


class HubPathHandler(PathHandler):
    """Reads files of the Hugging Face Hub through its cache; nothing is written to the Hub through it."""

    def _get_supported_prefixes(self) -> list[str]:
        return [HUB_PREFIX, TIMM_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        return str(hub_file(path, force=force))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise ValueError(f"{path} can be read only, got mode {mode!r}; `u2seg push` writes to the Hub")
        return open(hub_file(path), mode, buffering)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        self._check_kwargs(kwargs)
        try:
            hub_file(path)
        except HubFileMissingError:
            return False
        return True

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._isfile(path, **kwargs)

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        self._check_kwargs(kwargs)
        return False


def hub_file(path: str, *, force: bool = False) -> Path:
    """Returns where a file of the Hub lies in the local cache, having fetched it if need be.

    Without a network, or with ``HF_HUB_OFFLINE=1``, the cache alone is used. Private repositories need the token that
    ``hf auth login`` stores, or ``HF_TOKEN``.

    Args:
        path: ``hf://org/name[@revision]/file``, or ``hf-hub:org/name[@revision]`` for the repository's weights.
        force: fetch it anew.

    Raises:
        ValueError: the path has another form, or names a file outside the repository.
        HubFileMissingError: the Hub has no such repository, revision or file.
        HubFileError: it is not in the cache and cannot be fetched.
    """
    repository, revision, names = _parsed(path)
    try:
        return _fetch(path, repository, revision, names[0], force)
    except HubFileMissingError:
        if len(names) == 1:
            raise
    return _fetch(path, repository, revision, names[1], force)


def local_file(path: str | Path) -> Path:
    """Returns where a file lies on this machine: the path itself, or the place in the cache of one that is fetched.

    Args:
        path: of a file that need not be there, a name that :func:`hub_file` takes, or any other that Detectron2's ``PathManager``
            knows, such as ``detectron2://...`` and ``https://...``.

    Raises:
        ValueError: a name of the Hub of another form.
        OSError: the file is not in the cache and cannot be fetched; of the Hub, a :class:`HubFileError`.
    """
    return Path(PathManager.get_local_path(str(path)))


def _parsed(path: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Returns repository, revision and the names that the file may have, the first choice first."""
    from huggingface_hub.utils import parse_hf_uri

    is_whole = path.startswith(TIMM_PREFIX)
    try:
        found = parse_hf_uri(f"{HUB_PREFIX}{path.removeprefix(TIMM_PREFIX)}" if is_whole else path)
    except ValueError as error:
        raise ValueError(f"{path}: expected {_form(is_whole)}; {error}") from error
    if found.type != "model" or bool(found.path_in_repo) == is_whole:
        raise ValueError(f"{path}: expected {_form(is_whole)}, a model repository")
    # It becomes part of a path in the cache.
    if found.revision and ".." in found.revision.split("/"):
        raise ValueError(f"{path}: the revision {found.revision!r} has .. in it; expected a branch, a tag or a commit")
    names = WEIGHT_FILES if is_whole else (confined_name(found.path_in_repo, path),)
    return found.id, found.revision, names


def _form(is_whole: bool) -> str:
    return (
        "hf-hub:org/name or hf-hub:org/name@revision"
        if is_whole
        else "hf://org/name/file or hf://org/name@revision/file"
    )


def _fetch(path: str, repository: str, revision: str | None, name: str, force: bool) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevisionError

    try:
        return Path(hf_hub_download(repository, name, revision=revision, force_download=force))
    except LocalEntryNotFoundError as error:
        raise HubFileError(
            f"{path} is not in the cache ({constants.HF_HUB_CACHE}), and the Hub cannot be reached. Fetch it where there is a "
            f"network, with `hf download {repository} {name}{f' --revision {revision}' if revision else ''}`, and copy the cache or "
            "name the file itself"
        ) from error
    except (EntryNotFoundError, RepositoryNotFoundError, NoRevisionError) as error:
        raise HubFileMissingError(
            f"the Hub has no {path}, or none that you may see: {_first_line(error)}. Check the name; a private repository needs "
            "`hf auth login`"
        ) from error
    except OSError as error:
        raise HubFileError(f"{path} could not be fetched: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


PathManager.register_handler(HubPathHandler())
