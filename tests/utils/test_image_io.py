"""Every kind of image that a directory of photos may hold is read, or refused with its reason."""

import io

import numpy as np
import pytest
from PIL import Image
from u2seg.utils.files import did_you_mean
from u2seg.utils.image_io import ImageReadError, image_ids, image_size, list_images, png_names, read_image_rgb


def save(path, pixels, mode=None, **options):
    Image.fromarray(pixels, mode).save(path, **options) if mode else Image.fromarray(pixels).save(path, **options)
    return path


def test_rgb_is_read_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(read_image_rgb(save(tmp_path / "a.png", pixels)), pixels)


def test_grayscale_gets_three_equal_channels(tmp_path):
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = read_image_rgb(save(tmp_path / "a.png", gray))
    assert image.shape == (3, 4, 3)
    np.testing.assert_array_equal(image, np.repeat(gray[..., None], 3, 2))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = np.array([[0, 257, 32896, 65535]], np.uint16)  # 257 = 1/255 of full scale
    np.testing.assert_array_equal(read_image_rgb(save(tmp_path / "a.png", deep))[0, :, 0], [0, 1, 128, 255])


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    np.testing.assert_array_equal(read_image_rgb(save(tmp_path / "a.png", rgba))[0], [[10, 20, 30], [255, 255, 255]])


@pytest.mark.parametrize("mode", ["P", "1", "CMYK", "LA", "YCbCr"])
def test_other_modes_become_uint8_rgb(tmp_path, mode):
    source = Image.fromarray(np.full((4, 6, 3), 255, np.uint8)).convert(mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    source.save(path)
    image = read_image_rgb(path)
    assert image.shape == (4, 6, 3) and image.dtype == np.uint8
    assert image.min() >= 250  # white stays white


def test_exif_orientation_turns_the_image_upright(tmp_path):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned 90 degrees clockwise
    image = read_image_rgb(save(tmp_path / "a.png", pixels, exif=exif))
    assert image.shape == (8, 4, 3)
    assert image[:4].min() == 255 and image[4:].max() == 0  # left became top


def test_a_tiny_image_is_an_image(tmp_path):
    assert read_image_rgb(save(tmp_path / "a.png", np.zeros((1, 1, 3), np.uint8))).shape == (1, 1, 3)


def test_broken_files_say_why(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    cases = {
        "empty.jpg": (b"", "empty"),
        "text.png": (b"not an image at all", "not readable as an image"),
        "cut.jpg": (buffer.getvalue()[: len(buffer.getvalue()) // 2], "truncated"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageReadError, match=reason):
            read_image_rgb(tmp_path / name)
    with pytest.raises(ImageReadError, match="no such file"):
        read_image_rgb(tmp_path / "missing.jpg")


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ImageReadError, match="too large"):
        read_image_rgb(save(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8)))


def test_listing_is_sorted_deep_and_knows_what_is_an_image(tmp_path):
    for name in ["b/2.JPG", "a/1.png", "c.webp", "notes.txt", ".hidden.jpg", "d/.cache/x.png", "e.jpeg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_images(tmp_path) == ["a/1.png", "b/2.JPG", "c.webp", "e.jpeg"]


def test_links_are_followed_once_and_dead_ones_are_listed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert list_images(tmp_path / "photos") == ["dead.jpg", "linked/a.png"]
    with pytest.raises(ImageReadError, match="no such file"):
        read_image_rgb(tmp_path / "photos" / "dead.jpg")


def test_a_directory_without_images_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image below"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a directory"):
        list_images(tmp_path / "missing")


def test_ids_are_cocos_where_names_are_numbers():
    assert image_ids(["000000000139.jpg", "x/000000000009.png"]) == [139, 9]
    assert image_ids(["1.jpg", "x/001.jpg"]) == [1, 2]  # the same number twice
    assert image_ids(["12.jpg", "cat.jpg"]) == [1, 2]
    assert image_ids(["0.jpg", "5.jpg"]) == [1, 2]  # 0 is no id


def test_png_names_are_unique_however_images_are_named():
    names = ["a.jpg", "a.webp", "a.jpg.png", "b.PNG", "B.png"]
    assert len({name.lower() for name in png_names(names)}) == len(names)
    assert png_names(["x/a.jpg", "y/a.jpg"]) == ["x/a.png", "y/a.png"]


def test_png_names_are_unique_even_for_twins():
    names = png_names(["x/a.jpg", "x/a.png", "x/b.webp", "X/B.jpg", "c.d.jpg"])
    assert names == ["x/a.jpg.png", "x/a.png.png", "x/b.webp.png", "X/B.jpg.png", "c.d.png"]
    assert len({name.lower() for name in names}) == len(names)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_the_header_is_that_of_the_image_read(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", np.zeros((6, 9, 3), np.uint8), exif=exif)
    assert image_size(path) == read_image_rgb(path).shape[:2]


def test_the_size_of_no_image_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    for name, reason in (("a.jpg", "not readable as an image"), ("b.jpg", "no such file")):
        with pytest.raises(ImageReadError, match=reason):
            image_size(tmp_path / name)


def test_the_size_of_a_truncated_image_is_known_or_refused(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(whole, "JPEG")
    refused = 0
    for length in range(0, len(whole.getvalue()), 7):
        path = tmp_path / "cut.jpg"
        path.write_bytes(whole.getvalue()[:length])
        try:
            assert image_size(path) == (30, 40)
        except ImageReadError as error:
            refused += 1
            expected = "not readable as an image" if length else "the file is empty"
            assert expected in str(error) and str(tmp_path) not in str(error)
    assert refused > 10


def test_a_missing_directory_is_told_with_what_is_called_nearly_so(tmp_path):
    for name in ("photos", "Videos"):
        (tmp_path / name / "day").mkdir(parents=True)
    for wrong, meant in (
        ("phtos", "photos"),
        ("videos", "Videos"),
        ("phots/day", "photos/day"),
        ("photos/dya", "photos/day"),
    ):
        assert did_you_mean(tmp_path / wrong) == f"; did you mean {tmp_path / meant}?"
    # Nothing like it, or like it but without the rest of the path; and what is there needs no hint.
    for path in ("elsewhere", "phots/night", "photos"):
        assert did_you_mean(tmp_path / path) == ""
    with pytest.raises(FileNotFoundError, match="did you mean .*/photos"):
        list_images(tmp_path / "phtos")
