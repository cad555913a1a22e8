"""Damaged and odd images: each is read or refused with a reason, none ends a stage, none disappears."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_kinds import EITHER, READ, REFUSED, SKIPPED, write_image_kinds
from PIL import Image, ImageFile
from u2seg.utils.image_io import (
    ImageReadError,
    content_digest,
    image_size,
    list_images,
    png_names,
    read_image_rgb,
    read_listed_image,
    read_stored_rgb,
)


def noise(height=24, width=32):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def encoded(kind, orientation=None):
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        exif[0x010E] = "a description"
        exif[0x829A] = 0.01  # exposure time, a rational
    noise().save(buffer, kind, exif=exif)
    return buffer.getvalue()


def mutated(data, rng):
    """Returns the bytes with one to eight of them changed, cut off, taken out, or doubled."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(min(len(data), 400) if rng.random() < 0.7 else len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[place : place + rng.randint(1, 6)]
        elif kind == 3:
            data[place:place] = data[place : place + rng.randint(1, 6)]
        else:
            data = data[: max(place, 20)]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize("orientation", [None, 6])
def test_mutated_images_are_read_or_refused(tmp_path, kind, orientation):
    rng = random.Random(f"{kind} {orientation}")
    data, path = encoded(kind, orientation), tmp_path / "a.jpg"
    readable = 0
    for _ in range(150):
        path.write_bytes(mutated(data, rng))
        readable += is_read_or_refused(read_image_rgb, path)
        is_read_or_refused(read_stored_rgb, path)
        is_read_or_refused(image_size, path)
    assert readable < 145  # the mutations do damage


def is_read_or_refused(read, path):
    """Returns whether the image was read; any other error than an ImageReadError of one line ends the test."""
    try:
        result = read(path)
    except ImageReadError as error:
        assert str(error) and "\n" not in str(error)
        return False
    if read is image_size:
        assert min(result) > 0
    else:
        assert result.dtype == np.uint8 and result.ndim == 3 and result.shape[2] == 3
    return True


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires a buffer of 2 bytes"),
        AttributeError("no attribute"),
        NotImplementedError("mode"),
        RuntimeError("decoder"),
        MemoryError(),
        zlib.error("Error -3"),
        ZeroDivisionError(),
        RecursionError("deep"),
        KeyError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_decoder_raises_is_a_reason(tmp_path, monkeypatch, error):
    noise().save(tmp_path / "a.png")

    def fail(self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageReadError, match="not readable as an image: .+"):
        read_image_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path, orientation):
    from PIL import ImageOps

    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG", orientation))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_image_rgb(path), expected)
    assert image_size(path) == expected.shape[:2]


def test_an_image_with_damaged_exif_is_read_and_not_turned(tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")

    def fail(self):
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert read_image_rgb(tmp_path / "a.png").shape == (24, 32, 3)
    for value in ("6", (6,), b"\6", 9, 0, None, 6.0):
        monkeypatch.setattr(Image.Image, "getexif", lambda self, value=value: {0x0112: value})
        assert image_size(tmp_path / "a.png") == (24, 32)


def test_long_images_are_refused_before_they_are_resized_to_nothing(tmp_path):
    for size, readable in (((400, 1), True), ((401, 1), False), ((1, 401), False)):
        Image.new("RGB", size).save(tmp_path / "a.png")
        if readable:
            assert read_image_rgb(tmp_path / "a.png").shape[:2] == size[::-1]
        else:
            for read in (read_image_rgb, image_size):
                with pytest.raises(ImageReadError, match=r"its sides are \d+ x \d+, more than 400 to 1"):
                    read(tmp_path / "a.png")


def test_pipes_are_skipped_and_links_that_lead_nowhere_are_not(tmp_path):
    noise().save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "absent.png")
    assert list_images(tmp_path) == ["a.png", "link.png"]
    with pytest.raises(ImageReadError, match="not a regular file"):
        read_image_rgb(tmp_path / "pipe.png")
    with pytest.raises(ImageReadError, match="no such file"):
        read_image_rgb(tmp_path / "link.png")
    assert content_digest(tmp_path / "link.png") == content_digest(tmp_path / "pipe.png") == "unreadable"


def test_a_directory_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    noise().save(tmp_path / "a.png")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(OSError, match=r"/b cannot be listed: Permission denied; make it readable or move it away"):
        list_images(tmp_path)


def test_a_path_beyond_4096_characters_is_an_error_and_not_silence(tmp_path):
    start = os.getcwd()
    noise().save(tmp_path / "a.png")
    os.chdir(tmp_path)
    try:
        for _ in range(20):
            os.mkdir("d" * 240)
            os.chdir("d" * 240)
        noise().save("deep.png")
    finally:
        os.chdir(start)
    with pytest.raises(OSError, match=r"d \.\.\. d+ cannot be listed: File name too long"):
        list_images(tmp_path)


def test_names_of_255_bytes_have_labels_of_their_own(tmp_path):
    names = [
        "a" * 251 + ".jpg",
        "a" * 250 + "b.jpg",
        "a" * 251 + ".png",
        "ä" * 125 + ".webp",
        "d/" + "c" * 250 + ".jpeg",
    ]
    pngs = png_names(names)
    assert len(set(pngs)) == len(names) and pngs[4].startswith("d/")
    for name in pngs:
        path = tmp_path / Path(name).with_suffix(".json").name
        path.write_text("")  # as what predicts does
        noise().save(tmp_path / Path(name).name)
    assert png_names(["a.jpg", "b/a.jpg"]) == ["a.png", "b/a.png"]  # short ones stay


def test_another_image_of_the_same_size_is_noticed(tmp_path):
    path, digests = tmp_path / "a.bin", set()
    data = bytearray(np.random.default_rng(0).bytes(50_000))
    for place in (None, 0, 12_000, 25_000, 49_999):
        if place is not None:
            data[place] ^= 1
        path.write_bytes(data)
        digests.add(content_digest(path))
    assert len(digests) == 5
    path.write_bytes(b"")
    assert content_digest(path) not in digests | {"unreadable"}


def test_an_image_of_another_size_than_its_masks_is_refused(tmp_path):
    noise().save(tmp_path / "a.png")
    assert read_listed_image(tmp_path, "a.png", (24, 32)).shape == (24, 32, 3)
    with pytest.raises(
        ImageReadError, match=r"a\.png was 25 x 32 pixels .* is now 24 x 32: another image took its place"
    ):
        read_listed_image(tmp_path, "a.png", (25, 32))


def test_another_image_under_the_same_name_binds_the_mask_stage(tmp_path):
    from u2seg.config import setup_cfg
    from u2seg.pseudo_labels.masks import make_masks
    from u2seg.utils.manifest import StageMismatchError

    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.png"
    Image.new("RGB", (40, 40), (9, 9, 9)).save(path, compress_level=0)
    cfg = setup_cfg("quick_schedules/scenes.yaml", ["MASKS.NUM_WORKERS", 0])
    make_masks(cfg, tmp_path / "images", tmp_path / "masks")
    make_masks(cfg, tmp_path / "images", tmp_path / "masks")
    size = path.stat().st_size
    Image.new("RGB", (40, 40), (9, 9, 8)).save(path, compress_level=0)
    assert path.stat().st_size == size
    with pytest.raises(StageMismatchError, match=r"IMAGES\.digest"):
        make_masks(cfg, tmp_path / "images", tmp_path / "masks")


def test_damaged_images_are_recorded_and_the_rest_is_labeled(tmp_path):
    from u2seg.config import setup_cfg
    from u2seg.data.formats.mask_shards import iter_records
    from u2seg.pseudo_labels.masks import make_masks

    root = tmp_path / "images"
    root.mkdir()
    noise(40, 40).save(root / "whole.png")
    Image.new("RGB", (900, 2)).save(root / "long.png")
    (root / "empty.jpg").touch()
    (root / "text.webp").write_text("no image")
    (root / "cut.jpg").write_bytes(encoded("JPEG")[:300])
    (root / "link.png").symlink_to(root / "absent.png")
    os.mkfifo(root / "pipe.png")
    cfg = setup_cfg("quick_schedules/scenes.yaml", ["MASKS.NUM_WORKERS", 0, "MASKS.MAX_FAILURES", 1.0])
    make_masks(cfg, root, tmp_path / "masks")
    reasons = {record.file_name: record.error for record in iter_records(tmp_path / "masks")}
    assert reasons.pop("whole.png") is None and "pipe.png" not in reasons
    assert all(reasons.values()) and set(reasons) == {"long.png", "empty.jpg", "text.webp", "cut.jpg", "link.png"}
    assert reasons["long.png"] == "its sides are 2 x 900, more than 400 to 1"


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_file_is_read_or_refused_with_a_reason(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    expected = write_image_kinds(root)
    listed = set(list_images(root))
    assert listed == {name for name, result in expected.items() if result != SKIPPED}
    found = {name: READ if is_read_or_refused(read_image_rgb, root / name) else REFUSED for name in listed}
    assert found == {name: found[name] if expected[name] == EITHER else expected[name] for name in listed}
    assert len(expected) > 130
