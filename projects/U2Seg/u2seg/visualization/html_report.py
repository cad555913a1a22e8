"""One HTML page that shows a run: tables, curves, rows of images. No script, no network: it opens from a disk or an archive."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from u2seg.utils.files import atomic_path
from u2seg.utils.image_io import read_image_rgb
from u2seg.visualization.curves import Curves, curves_svg
from u2seg.visualization.image_grid import save_image

IMAGE_DIRECTORY = "images"


@dataclass(frozen=True)
class Table:
    """A table on the page.

    Attributes:
        title: stands above it.
        rows: cells by row; numbers are shown with one decimal and set right; None is an empty cell.
        header: names of the columns.
        text: a table that is text already (``format_table``); shown as it is, in a fixed-width font, in place of ``rows``.
        note: a sentence below it: what the numbers were measured on, under which protocol.
    """

    title: str
    rows: Sequence[Sequence[object]] = ()
    header: Sequence[str] = ()
    text: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row of images on the page, side by side.

    Attributes:
        title: stands above it, for example the image's file name.
        images: caption -> image: uint8 (H, W, 3) in RGB, or the path of an image file.
        columns: the row's width in images, where it is to be wider than what it holds.
    """

    title: str
    images: Mapping[str, np.ndarray | str | Path]
    columns: int = 1


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: str = "",
    facts: Mapping[str, object] | None = None,
    tables: Iterable[Table] = (),
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
        curves: plots, in this order; :func:`training_curves` makes them from a training's ``metrics.json``.
        rows: rows of images; an iterator is consumed one row at a time, so that a long report needs little memory.

    Raises:
        ImageReadError: an image's file cannot be read.
    """
    path = Path(path)
    body = [f"<h1>{escape(title)}</h1>", *_paragraphs(summary), _facts_html(facts or {})]
    tables_html = [_table_html(table) for table in tables]
    curves_html = [f"<figure><h3>{escape(c.title)}</h3>{curves_svg(c)}</figure>" for c in curves]
    rows_html = [_row_html(path.parent, index, row) for index, row in enumerate(rows)]
    body += tables_html
    if curves_html:
        body.append(f'<h2>Training</h2>\n<div class="plots">{"".join(curves_html)}</div>')
    if rows_html:
        body += [
            "<h2>Images</h2>",
            '<p class="hint">A class has the same color in every image, and its name or number is written on it. '
            "Things are outlined, stuff is tinted only. Click an image for its full size.</p>",
            *rows_html,
        ]
    page = _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(part for part in body if part))
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _paragraphs(text: str) -> list[str]:
    return [f'<p class="summary">{escape(part.strip())}</p>' for part in text.split("\n\n") if part.strip()]


def _facts_html(facts: Mapping[str, object]) -> str:
    if not facts:
        return ""
    items = "".join(f"<dt>{escape(str(key))}</dt><dd>{escape(_cell(value)[0])}</dd>" for key, value in facts.items())
    return f'<dl class="facts">{items}</dl>'


def _table_html(table: Table) -> str:
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    head = f"<h2>{escape(table.title)}</h2>"
    if table.text:
        return f'{head}<div class="scroll"><pre>{escape(table.text)}</pre></div>{note}'
    header = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in table.header)
    lines = []
    for row in table.rows:
        cells = []
        for value in row:
            text, is_number = _cell(value)
            cells.append(f'<td class="number">{text}</td>' if is_number else f"<td>{escape(text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    thead = f"<thead><tr>{header}</tr></thead>" if header else ""
    return f'{head}<div class="scroll"><table>{thead}<tbody>{"".join(lines)}</tbody></table></div>{note}'


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


def _row_html(directory: Path, index: int, row: Row) -> str:
    figures = []
    for column, (caption, image) in enumerate(row.images.items()):
        image_rgb = image if isinstance(image, np.ndarray) else read_image_rgb(image)
        name = f"{IMAGE_DIRECTORY}/{index:04d}-{column}.jpg"
        save_image(directory / name, image_rgb)
        height, width = image_rgb.shape[:2]
        alt = escape(f"{row.title}: {caption}", quote=True)
        figures.append(
            f'<figure><figcaption>{escape(caption)}</figcaption><a href="{name}">'
            f'<img src="{name}" width="{width}" height="{height}" loading="lazy" alt="{alt}"></a></figure>'
        )
    style = f"--columns:{max(len(figures), row.columns)}"
    return f'<section><h3>{escape(row.title)}</h3><div class="row" style="{style}">{"".join(figures)}</div></section>'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #5b6570; --line: #d5dae0; --stripe: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --paper: #16181b; --soft: #a0a8b1; --line: #383d43; --stripe: #1f2226; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1500px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4em; }
h2 { font-size: 1.3rem; margin: 2em 0 .5em; padding-bottom: .2em; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .4em; }
.summary { max-width: 75ch; }
.note, .hint, figcaption, .key, .empty { color: var(--soft); font-size: .88rem; }
.note, .hint { max-width: 95ch; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .1em 1.2em; font-size: .92rem; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .94rem; }
th, td { padding: .32em .9em; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid var(--line); font-weight: 600; }
tbody tr:nth-child(even) { background: var(--stripe); }
th:not(:first-child), td:not(:first-child), .number { text-align: right; }
.number { font-variant-numeric: tabular-nums; }
pre { font-size: .85rem; line-height: 1.35; padding: .8em 1em; background: var(--stripe); width: max-content; min-width: 60%; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); gap: 20px 28px; }
figure { margin: 0; min-width: 0; }
.plots > figure > svg { width: 100%; height: auto; }
.key { display: flex; flex-wrap: wrap; gap: .1em 1.3em; } .key span { white-space: nowrap; }
section { margin: 1.6em 0; }
.row { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); gap: 12px; align-items: start; }
.row img { width: 100%; height: auto; display: block; border-radius: 4px; }
@media (max-width: 760px) { .row { grid-template-columns: repeat(min(2, var(--columns)), minmax(0, 1fr)); } }
@media print { body { font-size: 11px; } section { break-inside: avoid; } }
"""
