"""Saving images and laying several side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from u2seg.utils.files import atomic_path
from u2seg.utils.image_io import check_image_rgb


def save_image(path: str | Path, image_rgb: np.ndarray) -> Path:
    """Writes an image, whole or not at all, in the format of its suffix (.jpg, .png, .webp), and returns its path.

    Args:
        path: file to write; its directory is made.
        image_rgb: uint8 (H, W, 3).
    """
    path = Path(path)
    options: dict[str, Any] = {"quality": 92, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    with atomic_path(path) as temporary:
        Image.fromarray(check_image_rgb(image_rgb)).save(temporary, **options)
    return path


def image_grid(
    rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str] = (), *, cell_width: int = 320, gap: int = 8
) -> np.ndarray:
    """Returns images laid out as a table on white, uint8 (H, W, 3).

    Args:
        rows: images, uint8 (H, W, 3) of any size; rows may differ in length.
        captions: one for each column, printed above it; none: no line of captions.
        cell_width: width in pixels to which each image is scaled, aspect ratio kept.
        gap: pixels between images and around the table.

    Raises:
        ValueError: no image at all.
    """
    scaled = [[_to_width(check_image_rgb(image), cell_width) for image in row] for row in rows if len(row)]
    if not scaled:
        raise ValueError("image_grid needs at least one image, got none")
    columns = max(len(row) for row in scaled)
    heights = [max(image.height for image in row) for row in scaled]
    head = 24 if captions else 0
    canvas = Image.new(
        "RGB", (gap + columns * (cell_width + gap), gap + head + sum(heights) + gap * len(heights)), (255, 255, 255)
    )
    draw = ImageDraw.Draw(canvas)
    for column, caption in enumerate(captions[:columns]):
        draw.text((gap + column * (cell_width + gap), gap), caption, (20, 20, 20), font=load_font(15))
    top = gap + head
    for row, height in zip(scaled, heights):
        for column, image in enumerate(row):
            canvas.paste(image, (gap + column * (cell_width + gap), top))
        top += height + gap
    return np.array(canvas)


def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns the font that Pillow brings with it, ``size`` pixels high: no font file of the system is needed."""
    return ImageFont.load_default(size)


def _to_width(image_rgb: np.ndarray, width: int) -> Image.Image:
    height = max(1, round(image_rgb.shape[0] * width / image_rgb.shape[1]))
    return Image.fromarray(image_rgb).resize((width, height), Image.Resampling.LANCZOS)
