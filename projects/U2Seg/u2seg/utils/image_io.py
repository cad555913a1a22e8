"""Finding and reading the user's photos: the only code that opens them, so that every stage and loader sees the same pixels."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# Pillow reports broken files by any of these; the set is what its decoders raise on damaged input.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, IndexError, EOFError, TypeError, KeyError, OverflowError)
_EXIF_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the tag, and its values that exchange height and width


class ImageReadError(ValueError):
    """A file that should be an image and cannot be read as one; ``str(error)`` is the reason, without the path."""


def list_images(root: str | Path) -> list[str]:
    """Returns the JPEG, PNG and WebP files below ``root``, as sorted POSIX paths relative to it; hidden ones are left out.

    Raises:
        FileNotFoundError: ``root`` is not a directory, or holds no such file.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a directory; expected one that holds images ({', '.join(IMAGE_SUFFIXES)})"
        )
    names = sorted(
        (Path(directory) / file).relative_to(root).as_posix()
        for directory, files in _visible_directories(root)
        for file in files
        if not file.startswith(".") and Path(file).suffix.lower() in IMAGE_SUFFIXES
    )
    if not names:
        raise FileNotFoundError(f"no image below {root}; expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return names


def _visible_directories(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields (directory, its files) for every directory that is not hidden; links are followed, each directory is visited once."""
    visited = set()
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:
            subdirectories.clear()
            continue
        visited.add(real)
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        yield directory, files


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
    stems = [Path(name).stem for name in names]
    if all(stem.isascii() and stem.isdigit() and int(stem) > 0 for stem in stems):
        ids = [int(stem) for stem in stems]
        if len(set(ids)) == len(ids) and max(ids, default=0) < 2**63:
            return ids
    return list(range(1, len(names) + 1))


def png_names(names: list[str]) -> list[str]:
    """Returns a PNG name for each image, in the same directories; images that differ only in their suffix keep it in the name.

    Example:
        >>> png_names(["a/cat.jpg", "a/dog.jpg", "a/dog.webp"])
        ['a/cat.png', 'a/dog.jpg.png', 'a/dog.webp.png']
    """
    short = [str(PurePosixPath(name).with_suffix("")) for name in names]
    counts = Counter(stem.lower() for stem in short)  # lower case: some file systems do not tell A.png from a.png
    chosen = [stem if counts[stem.lower()] == 1 else name for stem, name in zip(short, names)]
    counts = Counter(name.lower() for name in chosen)
    if (
        max(counts.values(), default=1) > 1
    ):  # a.jpg.png beside the twins a.jpg and a.webp: full names never clash but by case
        chosen = names
        counts = Counter(name.lower() for name in chosen)
    return [
        f"{name}.png" if counts[name.lower()] == 1 else f"{name}.{number}.png"
        for number, name in enumerate(chosen, start=1)
    ]


def read_listed_image(root: str | Path, name: str) -> np.ndarray:
    """Returns the image that ``list_images`` called ``name``; as :func:`read_image_rgb`, but the error names it."""
    try:
        return read_image_rgb(Path(root) / name)
    except ImageReadError as error:
        raise ImageReadError(
            f"{name} was readable when masks were made and is not now: {error}. Put it back or start with a new output directory."
        ) from error


def read_image_rgb(path: str | Path) -> np.ndarray:
    """Returns an image as uint8 (height, width, 3) in RGB, turned upright by its EXIF orientation.

    Grayscale, palette, CMYK, 16-bit and transparent images are converted: 16 bits are scaled to 8, transparency is laid on white.

    Raises:
        ImageReadError: the file is missing, empty, truncated, not an image, or too large to be safe; the message says which.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ImageReadError("no such file") from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"refused as too large: {error}") from error
    except _DECODER_ERRORS as error:
        if path.is_file() and path.stat().st_size == 0:
            raise ImageReadError("the file is empty (0 bytes)") from error
        raise ImageReadError(f"not readable as an image: {str(error).replace(str(path), path.name)}") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Returns the (height, width) that :func:`read_image_rgb` would give, from the file's header alone.

    Raises:
        ImageReadError: the file is missing, no image, cut off within its header, or too large to be safe.
    """
    try:
        with Image.open(path) as image:
            sideways = image.getexif().get(_EXIF_ORIENTATION, 1) in _SIDEWAYS
            return (image.width, image.height) if sideways else (image.height, image.width)
    except FileNotFoundError as error:
        raise ImageReadError("no such file") from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"refused as too large: {error}") from error
    except _DECODER_ERRORS as error:
        raise ImageReadError(f"not readable as an image: {str(error).replace(str(path), Path(path).name)}") from error


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
