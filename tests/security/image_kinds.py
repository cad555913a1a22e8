"""Writes image files of every kind that a directory of strangers' photos may hold: formats, modes, EXIF data, damages, names, no images."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# EITHER: versions of Pillow differ.
READ, REFUSED, EITHER, SKIPPED = "read", "refused", "either", "skipped"


def _pixels(height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def _encoded(kind: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(_pixels())).save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def _png(
    width: int, height: int, depth: int, color: int, rows: bytes, more: bytes = b"", crc: int | None = None
) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0), crc)
    return b"\x89PNG\r\n\x1a\n" + header + more + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _exif(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _modes() -> dict[str, tuple[bytes, str]]:
    image = Image.fromarray(_pixels())
    found = {}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        converted = (
            Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32) * 85)
            if mode == "I;16"
            else image.convert(mode)
        )
        found[f"png-{mode.replace(';', '')}.png"] = _encoded("PNG", converted), READ
    transparent = image.convert("P")
    found["png-P-transparency.png"] = _encoded("PNG", transparent, transparency=3), READ
    found["png-RGB-transparency.png"] = _encoded("PNG", image, transparency=(1, 2, 3)), READ
    for mode in ("L", "RGB", "CMYK", "YCbCr"):
        found[f"jpeg-{mode}.jpg"] = _encoded("JPEG", image.convert(mode)), READ
    for mode in ("L", "RGB", "RGBA"):
        found[f"webp-{mode}.webp"] = _encoded("WebP", image.convert(mode), lossless=True), READ
    found["webp-lossy.webp"] = _encoded("WebP", image, quality=5), READ
    found["webp-animated.webp"] = _encoded("WebP", image, save_all=True, append_images=[image]), READ
    for bits, color, channels in ((16, 2, 3), (16, 6, 4), (16, 0, 1), (16, 4, 2), (4, 0, 1), (2, 0, 1)):
        row = b"\0" + bytes(range(200))[: 8 * channels * bits // 8]
        found[f"png-{bits}-bit-color-{color}.png"] = _png(8, 4, bits, color, row * 4), READ
    return found


def _options() -> dict[str, tuple[bytes, str]]:
    image = Image.fromarray(_pixels())
    found = {
        "progressive.jpg": (_encoded("JPEG", progressive=True), READ),
        "optimized.jpg": (_encoded("JPEG", optimize=True), READ),
        "quality-1.jpg": (_encoded("JPEG", quality=1), READ),
        "quality-100.jpg": (_encoded("JPEG", quality=100), READ),
        "no-density.jpg": (_encoded("JPEG", dpi=(0, 0)), READ),
        "comment.jpg": (_encoded("JPEG", comment=b"\xff\x00 comment"), READ),
        "broken-profile.jpg": (_encoded("JPEG", icc_profile=b"no profile"), READ),
        "broken-profile.png": (_encoded("PNG", icc_profile=b"no profile"), READ),
        "two-images.jpg": (_encoded("MPO", save_all=True, append_images=[image]), READ),
        "frames.png": (_encoded("PNG", save_all=True, append_images=[image]), READ),
    }
    for subsampling in (0, 1, 2):
        found[f"subsampling-{subsampling}.jpg"] = _encoded("JPEG", subsampling=subsampling), READ
    for orientation in (*range(10), 65535):
        found[f"orientation-{orientation}.jpg"] = _encoded("JPEG", exif=_exif(orientation)), READ
    for kind, suffix in (("PNG", "png"), ("WebP", "webp")):
        found[f"orientation.{suffix}"] = _encoded(kind, exif=_exif(6)), READ
    whole = _exif(6).tobytes()
    for number, exif in enumerate(
        (whole[:9], whole[:14], whole[:-3], b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0nonsense" * 9)
    ):
        found[f"broken-exif-{number}.jpg"] = _encoded("JPEG", exif=exif), READ
    return found


def _sizes() -> dict[str, tuple[bytes, str]]:
    found = {}
    for height, width, result in (
        (1, 1, READ), (1, 2, READ), (3, 1, READ), (1, 400, READ), (400, 1, READ), (1, 401, REFUSED), (401, 1, REFUSED),
        (2, 799, READ), (2, 801, REFUSED), (7, 2000, READ), (1500, 1500, READ),
    ):  # fmt: skip
        found[f"size-{height}-{width}.png"] = _encoded("PNG", Image.new("RGB", (width, height), (9, 99, 199))), result
    found["size-0.png"] = _png(0, 4, 8, 2, b""), REFUSED
    found["size-bomb.png"] = _png(60000, 60000, 8, 2, b"\0" * 64), REFUSED
    found["size-largest.png"] = _png(2**31 - 1, 2**31 - 1, 8, 0, b"\0"), REFUSED
    return found


def _damaged() -> dict[str, tuple[bytes, str]]:
    jpeg, png, webp = _encoded("JPEG"), _encoded("PNG"), _encoded("WebP")
    found = {"garbage-behind.jpg": (jpeg + b"garbage" * 99, READ), "garbage-behind.png": (png + b"garbage" * 99, READ)}
    for name, data, suffix in (("jpeg", jpeg, "jpg"), ("png", png, "png"), ("webp", webp, "webp")):
        for share in (0.02, 0.3, 0.7):
            found[f"cut-{name}-{share}.{suffix}"] = data[: int(len(data) * share)], REFUSED
        found[f"garbage-before-{name}.{suffix}"] = b"garbage" + data, REFUSED
        found[f"zeros-{name}.{suffix}"] = data[:40] + b"\0" * (len(data) - 40), EITHER
    rows = (b"\0" + bytes(24)) * 8
    found["bad-header-crc.png"] = _png(8, 8, 8, 2, rows, crc=1), REFUSED
    found["bad-depth.png"] = _png(8, 8, 9, 2, rows), REFUSED
    found["bad-color.png"] = _png(8, 8, 8, 5, rows), REFUSED
    found["bad-text-crc.png"] = _png(8, 8, 8, 2, rows, _chunk(b"tEXt", b"a\0b", 1)), EITHER
    found["text-bomb.png"] = (
        _png(8, 8, 8, 2, rows, _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (70 << 20)))),
        REFUSED,
    )
    found["no-palette.png"] = _png(8, 8, 8, 3, (b"\0" + bytes(8)) * 8), READ
    found["too-few-rows.png"] = _png(8, 8, 8, 2, rows[:50]), EITHER
    return found


def _no_images() -> dict[str, tuple[bytes, str]]:
    image = Image.fromarray(_pixels())
    found = {
        "empty.jpg": b"",
        "empty.png": b"",
        "byte.webp": b"\xff",
        "zeros.jpg": b"\0" * 9999,
        "text.jpg": b"no image",
        "page.png": b"<html><body>404</body></html>",
        "archive.jpg": b"PK\3\4" + b"\0" * 99,
        "document.jpg": b"%PDF-1.7\n" + b"\0" * 99,
        "video.webp": b"\0\0\0\x18ftypmp42" + b"\0" * 99,
        "heic.jpg": b"\0\0\0\x18ftypheic" + b"\0" * 99,
        "script.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "pickle.jpg": b"\x80\x04\x95\x1f\0\0\0cos\nsystem\n",
    }
    others = {"png.jpg": ("PNG", READ), "jpeg.png": ("JPEG", READ), "webp.jpg": ("WebP", READ)}
    others |= {f"{kind}.jpg": (kind, READ) for kind in ("GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000")}
    return {
        **{name: (data, REFUSED) for name, data in found.items()},
        **{f"really-{name}": (_encoded(kind, image), result) for name, (kind, result) in others.items()},
    }


def _names() -> dict[str, tuple[bytes, str]]:
    data = _encoded("PNG")
    names = [
        "UPPER.JPG",
        "Mixed.JpEg",
        "UPPER.PNG",
        "UPPER.WEBP",
        "a b.jpg",
        "ä ö 東京.png",
        "emoji-\U0001f40e.jpg",
        "-dash.jpg",
    ]
    names += [
        "quote'\".jpg",
        "per%20cent.png",
        "back\\slash.png",
        "new\nline.png",
        "dots..jpg.png",
        "semi;colon&.png",
        "tab\t.png",
    ]
    names += [
        "a" * 251 + ".png",
        "ü" * 125 + ".png",
        "twin.jpg",
        "twin.png",
        "deep/er/and/deeper/a.png",
        "con.png",
        "~.png",
    ]
    found = {name: (data, READ) for name in names}
    for name in (".hidden.png", ".hidden/a.png", "other.txt", "other.gif", "noextension", "backup.jpg~", "Thumbs.db"):
        found[name] = data, SKIPPED
    return found


def write_image_kinds(root: Path) -> dict[str, str]:
    """Writes the files below ``root``; returns for each what is to become of it: it is read, refused with a reason, or no image."""
    expected = {}
    for kinds in (_modes(), _options(), _sizes(), _damaged(), _no_images(), _names()):
        for name, (data, result) in kinds.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            expected[name] = result
    (root / "link.png").symlink_to(root / "png-RGB.png")
    (root / "broken-link.png").symlink_to(root / "absent.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "directory.png").mkdir()
    (root / "link-to-here").symlink_to(root)
    os.link(root / "png-RGB.png", root / "hard-link.png")
    os.mkfifo(root / "pipe.png")
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(root)  # a socket's path may have about 100 characters
        try:
            one.bind("socket.png")
        finally:
            os.chdir(here)
    expected |= {"link.png": READ, "hard-link.png": READ, "broken-link.png": REFUSED, "loop.png": REFUSED}
    return expected | dict.fromkeys(("directory.png", "link-to-here", "pipe.png", "socket.png"), SKIPPED)
