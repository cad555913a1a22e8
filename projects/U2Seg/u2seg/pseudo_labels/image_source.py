"""Where images come from: a directory tree, one file, a text or Parquet list, or tar shards, local or by URL. Listings are streams."""

import errno
import os
import re
import shutil
import tarfile
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from u2seg.utils.files import confined_name
from u2seg.utils.image_io import (
    ImageReadError,
    ImageSource,
    content_digest,
    decode_image_rgb,
    is_image_name,
    iter_images,
    read_image_rgb,
    stream_digest,
)

# What a caller may give; see open_source.
Images = str | Path | ImageSource

LIST_SUFFIXES = (".txt", ".parquet")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
# Columns of a Parquet list that hold the names, the first that is there.
_NAME_COLUMNS = ("file_name", "path", "name")


class FileSource(ImageSource):
    """Images that are files below one directory."""

    def __init__(self, root: str | Path):
        """Takes the directory."""
        self.root = Path(root)
        self.description = str(root)

    def digest(self, name: str) -> str:
        """Returns the digest of a file; see the base class."""
        return content_digest(Path(self.root or "") / name)

    def read(self, name: str) -> np.ndarray:
        """Returns an image; see the base class."""
        return read_image_rgb(Path(self.root or "") / name)


class DirectorySource(FileSource):
    """All JPEG, PNG and WebP files below a directory, in the order of their names, as ``list_images`` gives them."""

    def names(self) -> Iterator[str]:
        """Yields the names; see the base class. A directory of very many files is sorted on disk."""
        return iter_images(self.root or "")


class ListSource(FileSource):
    """Images that a text file (one name a line) or a Parquet file (a column ``file_name``, ``path`` or ``name``) lists.

    Names are relative to the list's directory, or to ``root`` where that is given. The order is the list's.
    """

    def __init__(self, path: str | Path, root: str | Path | None = None):
        """Takes the list and the directory to which its names are relative; None: the list's own."""
        super().__init__(Path(path).parent if root is None else root)
        self._path = Path(path)
        self.description = str(path)

    def names(self) -> Iterator[str]:
        """Yields the names; see the base class."""
        if not self._path.is_file():
            raise FileNotFoundError(
                f"the list {self._path} is not there; expected a text or Parquet file of image names"
            )
        lines = _parquet_names(self._path) if self._path.suffix == ".parquet" else _text_lines(self._path)
        for name in lines:
            yield confined_name(name.removeprefix("./"), self._path)


class SingleImageSource(FileSource):
    """One image file; its root is the directory that holds it."""

    def __init__(self, path: Path):
        """Takes the file."""
        super().__init__(path.parent)
        self._name = path.name
        self.description = str(path)

    def names(self) -> Iterator[str]:
        """Yields the file's name; see the base class."""
        yield self._name


class TarSource(ImageSource):
    """Images in tar shards of WebDataset's convention: ``shards/train-{0000..0127}.tar``, ``shards/*.tar`` or one file.

    An image is called by its tar and its member: ``train-0003.tar/000123.jpg``. Other members (captions, JSON) are passed over. A
    URL is read through fsspec; its tar is copied to a temporary file for as long as it is in use, one at a time in each process.
    """

    def __init__(self, pattern: str):
        """Takes a path or a URL, with a ``{000..127}`` or a ``*`` in its last part where there are several."""
        self.description, self.root = pattern, None
        self._parent, _, self._last = pattern.rpartition("/")
        self._open_tar: _OpenTar | None = None

    def names(self) -> Iterator[str]:
        """Yields the names; see the base class. The order is that of the tars' names, and in a tar that of its members."""
        for tar in self._tars():
            for member in self._opened(tar).members:
                yield f"{tar}/{member}"

    def digest(self, name: str) -> str:
        """Returns the digest of a member; see the base class."""
        opened, (start, size) = self._find(name)
        with open(opened.path, "rb") as file:
            return stream_digest(file, start, size)

    def read(self, name: str) -> np.ndarray:
        """Returns an image; see the base class."""
        try:
            opened, (start, size) = self._find(name)
            with open(opened.path, "rb") as file:
                file.seek(start)
                data = file.read(size)
        except (FileNotFoundError, PermissionError, ValueError) as error:
            # Other errors, such as a full disk or a network that fails, go by: the images of the tar are not damaged, and end the run.
            if _is_url(self.description) and isinstance(error, OSError):
                raise
            raise ImageReadError(f"its tar shard is not readable: {error}") from error
        return decode_image_rgb(data)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the open tar behind: its temporary copy belongs to one process."""
        return {**self.__dict__, "_open_tar": None}

    def _tars(self) -> list[str]:
        expanded = _expand_range(self._last)
        if "*" not in self._last:
            return expanded
        if _is_url(self.description):
            found = [PurePosixPath(path).name for path in _file_system(self.description).glob(self.description)]
        else:
            found = [path.name for path in Path(self._parent or ".").glob(self._last)]
        if not found:
            raise FileNotFoundError(f"no tar shard matches {self.description}")
        return sorted(found)

    def _find(self, name: str) -> tuple["_OpenTar", tuple[int, int]]:
        tar, _, member = name.partition("/")
        opened = self._opened(tar)
        if member not in opened.members:
            raise FileNotFoundError(f"{tar} of {self.description} holds no member {member!r}")
        return opened, opened.members[member]

    def _opened(self, tar: str) -> "_OpenTar":
        held = self._open_tar
        # A forked process must not use a copy that its parent may delete.
        if held is None or held.name != tar or held.process != os.getpid():
            place = f"{self._parent}/{tar}" if self._parent else tar
            self._open_tar = held = _OpenTar(tar, place)
        return held


class _OpenTar:
    """A tar shard at a local path, with the places of its images.

    Attributes:
        name: of the tar.
        path: local; a temporary copy for a URL, deleted with this object.
        members: image's name -> (first byte, size in bytes).
        process: which opened it.
    """

    def __init__(self, name: str, place: str):
        self.name, self.process = name, os.getpid()
        self.path = _temporary_copy(self, place) if _is_url(place) else Path(place)
        if not self.path.is_file():
            raise FileNotFoundError(f"the tar shard {place} is not there")
        self.members: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    if member.isreg() and is_image_name(PurePosixPath(member.name).name):
                        clean = confined_name(member.name.removeprefix("./"), place)
                        if clean in self.members:
                            raise ValueError(
                                f"{place} holds two members named {clean!r}; an image's name must be unique"
                            )
                        self.members[clean] = (member.offset_data, member.size)
                    archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers
        except tarfile.TarError as error:
            raise ValueError(f"{place} is not a readable tar shard (uncompressed): {error}") from error


@lru_cache(maxsize=8)
def _source_at(place: str) -> ImageSource:
    if place.endswith(".tar"):
        return TarSource(place)
    if _is_url(place):
        raise ValueError(f"{place}: only tar shards (.tar) are read by URL")
    if place.endswith(LIST_SUFFIXES) and not Path(place).is_dir():
        return ListSource(place)
    path = Path(place)
    return SingleImageSource(path) if is_image_name(path.name) and path.is_file() else DirectorySource(place)


def open_source(images: Images) -> ImageSource:
    """Returns the source that a path or URL names: a directory, an image, a list (``.txt``, ``.parquet``) or shards (``.tar``).

    Args:
        images: what the user gave; a source is returned as it is.

    Raises:
        ValueError: a URL of something else than tar shards.
    """
    return images if isinstance(images, ImageSource) else _source_at(str(images))


def _text_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in file:
            if stripped := line.strip():
                yield stripped


def _parquet_names(path: Path) -> Iterator[str]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        column = next((name for name in _NAME_COLUMNS if name in file.schema_arrow.names), None)
        if column is None:
            raise ValueError(
                f"{path} has the columns {', '.join(file.schema_arrow.names)}; expected the images' names in one called "
                f"{', '.join(_NAME_COLUMNS)}"
            )
        for batch in file.iter_batches(columns=[column]):
            for name in batch.column(0).to_pylist():
                if not isinstance(name, str):
                    raise ValueError(f"{path}: the column {column} holds {name!r}; expected an image's name")
                yield name


def _expand_range(pattern: str) -> list[str]:
    """Returns the names that a pattern such as ``train-{00..12}.tar`` stands for; one without a range stands for itself."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    numbers: Iterable[int] = range(int(first), int(last) + 1)
    return [f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}" for number in numbers]


def _is_url(place: str) -> bool:
    return bool(urlsplit(place).scheme) and "://" in place


def _file_system(url: str) -> Any:
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tar shards by URL need fsspec: pip install fsspec", name="fsspec") from error
    return fsspec.core.url_to_fs(url)[0]


def _temporary_copy(owner: object, url: str) -> Path:
    """Returns a local copy of what a URL names, which is deleted with its owner.

    Raises:
        FileNotFoundError: there is nothing, or the server cannot be reached: HTTP does not tell the two apart.
        ConnectionError: the copy was cut short.
    """
    file_system = _file_system(url)
    if not file_system.exists(url):
        raise FileNotFoundError(
            f"the tar shard {url} is not there, or its server does not answer; if it is there, run the same command again"
        )
    directory = tempfile.mkdtemp(prefix="u2seg-tar-")
    weakref.finalize(owner, shutil.rmtree, directory, ignore_errors=True)
    path = Path(directory) / "shard.tar"
    try:
        file_system.get_file(url, str(path))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConnectionError(f"{url} could not be copied: {error}; run the same command again to go on") from error
    return path
