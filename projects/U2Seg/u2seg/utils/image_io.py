"""Finding and reading the user's photos: the only code that opens them, so that every stage and loader sees the same pixels."""

import hashlib
import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from u2seg.utils.external_sort import ExternalSort, repeated_items
from u2seg.utils.files import did_you_mean

T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Pillow reports broken files by any of these; the set is what its decoders raise on damaged input.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
    AssertionError,
    struct.error,
    zlib.error,
)
_EXIF_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the tag, and its values that exchange height and width
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Resized to a longest side of 240 pixels (quick_schedules), an image beyond 480 to 1 has less than half a pixel of its short side
# left, which is rounded to 0.
MAX_ASPECT_RATIO = 400
# Bytes in a file's name that the files derived from it may have: 255 are the limit of file systems, and suffixes are added.
_MAX_NAME_BYTES = 230


# How the path of an image in a tar says where it lies: TAR#FIRST BYTE+SIZE/NAME.
_TAR_PLACE = re.compile(r"(.+\.tar)#(\d+)\+(\d+)/(.+)")


class ImageReadError(ValueError):
    """A file that should be an image and cannot be read as one; ``str(error)`` is the reason, without the path."""


class ImageSource:
    """Images by name. Subclasses list names in a fixed order, and read an image of a given name at any time.

    Attributes:
        description: what the user gave, for messages.
        root: directory that holds the images as files of their own; None if they lie in archives.
    """

    description: str
    root: Path | None

    def names(self) -> Iterator[str]:
        """Yields the images' names, POSIX paths, always in the same order; never all of them in memory.

        Raises:
            FileNotFoundError: the source is not there.
            ValueError: the list or the archive is damaged or names a file outside its directory.
        """
        raise NotImplementedError

    def digest(self, name: str) -> str:
        """Returns a digest of the size and of samples of the content; see :func:`content_digest`."""
        raise NotImplementedError

    def read(self, name: str) -> np.ndarray:
        """Returns an image; see :func:`read_image_rgb`.

        Raises:
            ImageReadError: it cannot be read; the message says why.
        """
        raise NotImplementedError


def list_images(root: str | Path) -> list[str]:
    """Returns the JPEG, PNG and WebP files below ``root``, as sorted POSIX paths relative to it; see :func:`iter_images`.

    Raises:
        FileNotFoundError: ``root`` is not a directory, or holds no such file.
        OSError: a directory below it cannot be listed; its images must not be lost in silence.
    """
    names = list(iter_images(root))
    if not names:
        raise FileNotFoundError(f"no image below {root}; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return names


def iter_images(root: str | Path) -> Iterator[str]:
    """Yields the JPEG, PNG and WebP files below ``root``, as sorted POSIX paths relative to it; never all of them in memory.

    Hidden files are left out, and what is no file: pipes, sockets, devices. A link that leads nowhere is listed, since its image is
    missing. Links to directories are followed, and each directory is listed once: under the first of its paths.

    Raises:
        FileNotFoundError: ``root`` is not a directory.
        OSError: a directory below it cannot be listed; its images must not be lost in silence.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"{root} is not a directory; expected one that holds images ({', '.join(IMAGE_SUFFIXES)}){did_you_mean(root)}"
        )
    return _walk(str(root), "", set())


def is_image_name(file_name: str) -> bool:
    """Returns whether a file of that name (without directories) is taken for an image: by its suffix, and not hidden."""
    return not file_name.startswith(".") and Path(file_name).suffix.lower() in IMAGE_SUFFIXES


def _walk(root: str, below: str, visited: set[tuple[int, int]]) -> Iterator[str]:
    """Yields the images below a directory in the order of their whole paths.

    Entries are sorted with a slash behind directories, which is the order of whole paths: ``a-b/x`` comes before ``a/x``.
    """
    directory = os.path.join(root, below.removesuffix("/")) if below else root
    with ExternalSort() as entries:
        try:
            status = os.stat(directory)
            if (status.st_dev, status.st_ino) in visited:
                return
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as scanned:
                for entry in scanned:
                    _add_entry(entries, entry)
        except OSError as error:
            raise OSError(
                f"the directory {shortened_path(directory)} cannot be listed: {error.strerror}; make it readable or move it away, "
                "or the images in it would be lost"
            ) from error
        for key in entries:
            if key.endswith("/"):
                yield from _walk(root, below + key, visited)
            else:
                yield below + key


def _add_entry(entries: ExternalSort, entry: os.DirEntry) -> None:
    if entry.name.startswith("."):
        return
    if _is_directory(entry):
        entries.add(f"{entry.name}/")
    elif is_image_name(entry.name) and _is_file_or_lost_link(entry):
        entries.add(entry.name)


def _is_directory(entry: os.DirEntry) -> bool:
    # The entry itself needs no look at the disk, but ends in an error where a link leads to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file_or_lost_link(entry: os.DirEntry) -> bool:
    if not entry.is_symlink():
        return entry.is_file()
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)


def shortened_path(path: str) -> str:
    """Returns a path for a message: a very long one without its middle."""
    return path if len(path) <= 300 else f"{path[:140]} ... {path[-140:]}"


def content_digest(path: str | Path) -> str:
    """Returns a digest of a file's size and of samples of its bytes, by which another image under the same name is noticed.

    See :func:`stream_digest`. A file that cannot be read has the digest "unreadable".
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "unreadable"
        with open(path, "rb") as file:
            return stream_digest(file, 0, os.fstat(file.fileno()).st_size)
    except OSError:
        return "unreadable"


def stream_digest(file: BinaryIO, start: int, size: int) -> str:
    """Returns a digest of an image's size and of samples of its bytes.

    Five blocks of 4 KiB, evenly spaced, from the first byte to the last: images are compressed, so that a change anywhere moves all
    bytes behind it.

    Args:
        file: open for reading, seekable.
        start: where in it the image begins, in bytes.
        size: of the image, in bytes.
    """
    block = 4096
    digest = hashlib.sha256(str(size).encode())
    for part in range(5):
        offset = max(size - block, 0) * part // 4
        file.seek(start + offset)
        digest.update(file.read(min(block, size - offset)))
    return digest.hexdigest()[:16]


def image_ids(names: list[str]) -> list[int]:
    """Returns a positive, unique id for each image, in order.

    COCO's own ids where every file is named by a number (``000000000139.jpg`` -> 139) and no number comes twice, so that labels
    can be held against COCO's ground truth; else 1, 2, 3, ...

    Example:
        >>> image_ids(["000000000139.jpg", "000000000285.jpg"])
        [139, 285]
        >>> image_ids(["a/cat.jpg", "a/dog.jpg"])
        [1, 2]
    """
    numbers = [number_of(name) for name in names]
    ids = [number for number in numbers if number is not None]
    return ids if len(set(ids)) == len(names) else list(range(1, len(names) + 1))


def number_of(name: str) -> int | None:
    """Returns the positive number below 2^63 by which an image is named; None where its name is no such number.

    >>> number_of("train2017/000000000139.jpg"), number_of("cat.jpg")
    (139, None)
    """
    stem = Path(name).stem
    if not (stem.isascii() and stem.isdigit()):
        return None
    return int(stem) if 0 < int(stem) < 2**63 else None


class PngNames:
    """Names PNGs after images one by one, knowing only which names would clash; :func:`png_names` says how."""

    def __init__(self, twins: set[str], names: Callable[[], Iterable[str]]):
        """Takes what clashes.

        Args:
            twins: lower-case stems (:meth:`stem` of :func:`cut_name`) that several images have.
            names: function that yields all images' names again.
        """
        self._twins = twins
        # a.jpg.png beside the twins a.jpg and a.webp: full names never clash but by case.
        self._only_full = bool(twins) and bool(repeated_items(self._short(cut_name(name)).lower() for name in names()))
        full = (cut_name(name).lower() for name in names()) if self._only_full else ()
        self._clashing = set(repeated_items(full))

    @staticmethod
    def stem(name: str) -> str:
        """Returns a path without its suffix."""
        return str(PurePosixPath(name).with_suffix(""))

    def png(self, name: str, number: int) -> str:
        """Returns the name of an image's PNG.

        Args:
            name: of the image.
            number: of the image, from 1; used where case alone tells two names apart.
        """
        cut = cut_name(name)
        chosen = cut if self._only_full else self._short(cut)
        return f"{chosen}.{number}.png" if chosen.lower() in self._clashing else f"{chosen}.png"

    def _short(self, name: str) -> str:
        stem = self.stem(name)
        # Lower case: some file systems do not tell A.png from a.png.
        return name if stem.lower() in self._twins else stem


def png_names(names: list[str]) -> list[str]:
    """Returns a PNG name for each image, in the same directories; images that differ only in their suffix keep it in the name.

    A name too long for a suffix to be added is cut, and ends in a digest of the whole.

    Example:
        >>> png_names(["a/cat.jpg", "a/dog.jpg", "a/dog.webp"])
        ['a/cat.png', 'a/dog.jpg.png', 'a/dog.webp.png']
    """
    twins = set(repeated_items(PngNames.stem(cut_name(name)).lower() for name in names))
    namer = PngNames(twins, lambda: names)
    return [namer.png(name, number) for number, name in enumerate(names, start=1)]


def cut_name(name: str) -> str:
    """Returns a path whose last part is at most ``_MAX_NAME_BYTES`` long, its suffix kept."""
    path = PurePosixPath(name)
    if len(os.fsencode(path.name)) <= _MAX_NAME_BYTES:
        return name
    suffix = path.suffix[:16]
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    kept = os.fsencode(path.stem)[: _MAX_NAME_BYTES - 32].decode(errors="ignore")
    return str(path.with_name(f"{kept}-{digest}{suffix}"))


def read_listed_image(images: "str | Path | ImageSource", name: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns the image that ``list_images`` or a source called ``name``; as :func:`read_image_rgb`, but the error names it.

    Args:
        images: the image directory, or the source.
        name: relative to it.
        size: the (height, width) that it had when masks were made; None: any.

    Raises:
        ImageReadError: it cannot be read any more, or has another size.
    """
    try:
        image_rgb = images.read(name) if isinstance(images, ImageSource) else read_image_rgb(Path(images) / name)
    except ImageReadError as error:
        raise ImageReadError(
            f"{name} was readable when masks were made and is not now: {error}. Put it back or start with a new output directory."
        ) from error
    if size is not None and image_rgb.shape[:2] != tuple(size):
        raise ImageReadError(
            f"{name} was {size[0]} x {size[1]} pixels (height x width) when masks were made and is now {image_rgb.shape[0]} x "
            f"{image_rgb.shape[1]}: another image took its place. Put it back or start with a new output directory."
        )
    return image_rgb


def check_image_rgb(image_rgb: np.ndarray, what: str = "image_rgb") -> np.ndarray:
    """Returns ``image_rgb`` if it is uint8 (H, W, 3).

    Raises:
        ValueError: it is not; the message says what came.
    """
    if image_rgb.dtype != np.uint8 or image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.size == 0:
        raise ValueError(f"{what} must be uint8 of shape (H, W, 3), got {image_rgb.dtype} {image_rgb.shape}")
    return image_rgb


def read_image_rgb(path: str | Path) -> np.ndarray:
    """Returns an image as uint8 (height, width, 3) in RGB, turned upright by its EXIF orientation.

    Grayscale, palette, CMYK, 16-bit and transparent images are converted: 16 bits are scaled to 8, transparency is laid on white. An
    image whose EXIF data are damaged is not turned.

    Raises:
        ImageReadError: the file is missing, empty, truncated, not an image, longer than ``MAX_ASPECT_RATIO`` allows, or too large to
            be safe; the message says which.
    """
    return _decoded(path, lambda image: _to_rgb(_upright(image)))


def read_named_rgb(path: str | Path) -> np.ndarray:
    """Returns an image as :func:`read_image_rgb` does; the error names the file.

    Raises:
        ImageReadError: see :func:`read_image_rgb`.
    """
    try:
        return read_image_rgb(path)
    except ImageReadError as error:
        raise ImageReadError(f"{path}: {error}") from error


def read_stored_rgb(path: str | Path) -> np.ndarray:
    """Returns an image as uint8 (height, width, 3) in RGB as it is stored, whatever its EXIF orientation.

    Raises:
        ImageReadError: see :func:`read_image_rgb`.
    """
    return _decoded(path, lambda image: np.asarray(image.convert("RGB")))


def decode_image_rgb(data: bytes) -> np.ndarray:
    """Returns the image that a file's bytes hold; as :func:`read_image_rgb`.

    Raises:
        ImageReadError: see :func:`read_image_rgb`.
    """
    return _opened_bytes(data, lambda image: _loaded(image, lambda image: _to_rgb(_upright(image))))


def _opened_bytes(data: bytes, read: Callable[[Image.Image], T]) -> T:
    """Returns what ``read`` makes of the image in a file's bytes; as :func:`_opened`."""
    if not data:
        raise ImageReadError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return read(image)
    except ImageReadError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"refused as too large: {error}") from error
    except _DECODER_ERRORS as error:
        text = re.sub(r"<_io\.BytesIO[^>]*>", "in memory", (str(error).splitlines() or [type(error).__name__])[0])
        raise ImageReadError(f"not readable as an image: {text}") from error


def read_stored_array(path: str | Path) -> np.ndarray:
    """Returns the values of an image file as they are stored, of a map of ids for example; shape and dtype are the file's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read as an image; the message names it.
    """
    tar, start, size = _split_place(path)
    if not Path(tar).is_file():
        raise FileNotFoundError(f"{tar}: no such file")
    try:
        if size is None:
            return _opened(path, np.asarray)
        with open(tar, "rb") as file:
            file.seek(start)
            return _opened_bytes(file.read(size), np.asarray)
    except ImageReadError as error:
        raise ValueError(f"{path} is {error}" if str(error).startswith("not ") else f"{path}: {error}") from error


def tar_place(tar: str | Path, start: int, size: int, name: str) -> str:
    """Returns the path by which :func:`read_stored_array` reads an image that lies in a tar, without a search.

    >>> tar_place("labels/shard-000003.tar", 1536, 2048, "cat.png")
    'labels/shard-000003.tar#1536+2048/cat.png'

    Args:
        tar: an uncompressed tar.
        start: the image's first byte in it.
        size: bytes of the image.
        name: of the image; it is for people, and for labels that are derived from these.
    """
    return f"{tar}#{start}+{size}/{name}"


def stored_name(path: str | Path, directory: Path) -> str:
    """Returns the name of an image relative to its directory, or the one that its :func:`tar_place` gives it."""
    place = _TAR_PLACE.fullmatch(str(path))
    return place.group(4) if place else Path(path).relative_to(directory).as_posix()


def _split_place(path: str | Path) -> tuple[str | Path, int, int | None]:
    """Returns the file, the first byte and the number of bytes of an image; (path, 0, None) where it is a file of its own."""
    place = _TAR_PLACE.fullmatch(str(path))
    return (place.group(1), int(place.group(2)), int(place.group(3))) if place else (path, 0, None)


def image_size(path: str | Path) -> tuple[int, int]:
    """Returns the (height, width) that :func:`read_image_rgb` would give, from the file's header alone.

    Raises:
        ImageReadError: the file is missing, no image, cut off within its header, or too large to be safe.
    """
    return _opened(path, _size_of)


def _decoded(path: str | Path, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    return _opened(path, lambda image: _loaded(image, convert))


def _loaded(image: Image.Image, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    _size_of(image)  # refuses a shape before its pixels are read
    image.load()
    return convert(image)


def _opened(path: str | Path, read: Callable[[Image.Image], T]) -> T:
    """Returns what ``read`` makes of an opened image; whatever Pillow raises on damaged files becomes an ImageReadError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageReadError("not a regular file")  # opening a pipe would wait for ever
        with Image.open(path) as image:
            return read(image)
    except ImageReadError:
        raise
    except FileNotFoundError as error:
        raise ImageReadError("no such file") from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"refused as too large: {error}") from error
    except _DECODER_ERRORS as error:
        raise ImageReadError(_reason(Path(path), error)) from error


def _reason(path: Path, error: Exception) -> str:
    try:
        if path.stat().st_size == 0:
            return "the file is empty (0 bytes)"
    except OSError as problem:
        return f"not readable: {problem.strerror}"
    text = str(error).replace(str(path), path.name)
    return f"not readable as an image: {(text.splitlines() or [type(error).__name__])[0]}"


def _size_of(image: Image.Image) -> tuple[int, int]:
    short, long = sorted(image.size)
    if long > MAX_ASPECT_RATIO * short:
        raise ImageReadError(f"its sides are {image.height} x {image.width}, more than {MAX_ASPECT_RATIO} to 1")
    return (image.width, image.height) if _orientation(image) in _SIDEWAYS else (image.height, image.width)


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1..8; 1, upright, where there is none or the EXIF data are damaged."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.uint32) + 128) // 257
        return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        scale = 257.0 if values.max(initial=0) > 255 else 1.0  # Pillow opens some 16-bit PNGs as 32-bit "I"
        gray = np.clip(np.rint(values / scale), 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, image)
    return np.asarray(image.convert("RGB"))
