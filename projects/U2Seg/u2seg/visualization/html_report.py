"""One HTML page that shows a run: tables, curves, rows of images. It needs no network, and opens from a disk or an archive."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from u2seg.utils.files import atomic_path
from u2seg.utils.image_io import read_named_rgb
from u2seg.visualization.curves import Curves, curves_svg
from u2seg.visualization.image_grid import save_image
from u2seg.visualization.panoptic_drawing import LegendEntry, PanopticDrawing

IMAGE_DIRECTORY = "images"
TEMPLATE = "report.html.j2"


class _ImageFile(NamedTuple):
    caption: str
    name: str
    width: int
    height: int
    legend: list[LegendEntry]


@dataclass(frozen=True)
class Table:
    """A table on the page.

    Attributes:
        title: stands above it.
        rows: cells by row; numbers are shown with one decimal and set right; None is an empty cell.
        header: names of the columns.
        text: a table that is text already (``format_table``); shown as it is, in a fixed-width font, in place of ``rows``.
        note: a sentence below it: what the numbers were measured on, under which protocol.
        bars: index of a column of ``rows``, numbers of 0..100, that is drawn as bars too; None: no column.
    """

    title: str
    rows: Sequence[Sequence[object]] = ()
    header: Sequence[str] = ()
    text: str = ""
    note: str = ""
    bars: int | None = None


@dataclass(frozen=True)
class Heatmap:
    """A table of shares, darker where they are larger.

    Attributes:
        title: stands above it.
        columns: names of the columns.
        rows: name of a row, and its shares in percent, 0..100, one for each column; those below 0.5 are left empty.
        note: a sentence below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float]]]
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row of images on the page, side by side.

    Attributes:
        title: stands above it, for example the image's file name.
        images: caption -> image: uint8 (H, W, 3) in RGB, the path of an image file, or a drawing, whose legend stands below it.
        columns: the row's width in images, where it is to be wider than what it holds.
        group: heading above the first of the rows that have it in common and follow each other.
    """

    title: str
    images: Mapping[str, np.ndarray | str | Path | PanopticDrawing]
    columns: int = 1
    group: str = "Images"


_SavedRow = tuple[Row, list[_ImageFile]]


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: str = "",
    facts: Mapping[str, object] | None = None,
    tables: Iterable[Table] = (),
    heatmaps: Iterable[Heatmap] = (),
    curves: Iterable[Curves] = (),
    rows: Iterable[Row] = (),
) -> Path:
    """Writes the page and, in ``images/`` beside it, its image files; returns the page's path.

    The page refers to nothing but those files, by relative paths: the directory can be moved, zipped or served.

    Args:
        path: the HTML file to write.
        title: the page's heading.
        summary: a paragraph below it, plain text; blank lines part paragraphs.
        facts: name -> value, listed in one line each: configuration, seed, times, versions.
        tables: in this order.
        heatmaps: below them, in this order.
        curves: plots, in this order; :func:`training_curves` makes them from a training's ``metrics.json``.
        rows: rows of images; an iterator is consumed one row at a time, so that a long report needs little memory.

    Raises:
        ImageReadError: an image's file cannot be read.
    """
    import jinja2

    path = Path(path)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("u2seg.visualization"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(TEMPLATE).render(
        title=title,
        paragraphs=[part.strip() for part in summary.split("\n\n") if part.strip()],
        facts=facts or {},
        tables=list(tables),
        heatmaps=list(heatmaps),
        curves=[(one.title, curves_svg(one)) for one in curves],
        groups=_grouped((row, _save_images(path.parent, index, row)) for index, row in enumerate(rows)),
        cell=_cell,
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _grouped(rows: Iterable[_SavedRow]) -> list[tuple[str, list[_SavedRow]]]:
    """Returns the rows under their headings, in their order."""
    groups: list[tuple[str, list[_SavedRow]]] = []
    for row, files in rows:
        if not groups or groups[-1][0] != row.group:
            groups.append((row.group, []))
        groups[-1][1].append((row, files))
    return groups


def _save_images(directory: Path, index: int, row: Row) -> list[_ImageFile]:
    """Writes a row's images; returns their names, relative to the page, and sizes in pixels."""
    files = []
    for column, (caption, image) in enumerate(row.images.items()):
        legend = image.legend if isinstance(image, PanopticDrawing) else []
        pixels = image.image_rgb if isinstance(image, PanopticDrawing) else image
        image_rgb = pixels if isinstance(pixels, np.ndarray) else read_named_rgb(pixels)
        name = f"{IMAGE_DIRECTORY}/{index:04d}-{column}.jpg"
        save_image(directory / name, image_rgb)
        files.append(_ImageFile(caption, name, width=image_rgb.shape[1], height=image_rgb.shape[0], legend=legend))
    return files


def _cell(value: object) -> tuple[str, bool]:
    """Returns a value as text, and whether it is a number."""
    if value is None:
        return "", False
    if isinstance(value, (bool, np.bool_)):
        return ("yes" if value else "no"), False
    if isinstance(value, (int, np.integer)):
        return str(value), True
    if isinstance(value, (float, np.floating)):
        return ("n/a" if np.isnan(value) else f"{value:.1f}"), True
    return str(value), False
