"""Curves as inline SVG, drawn by matplotlib: no script, text that is text, sharp at every size."""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]
LineStyle = str | tuple[float, tuple[float, ...]]

# Okabe and Ito's colors, which color-blind readers can tell apart, each with a dash pattern of its own for those who cannot.
# Source: M. Okabe, K. Ito, "Color Universal Design", 2008.
_STYLES: tuple[tuple[str, LineStyle], ...] = (
    ("#0072B2", "solid"),
    ("#D55E00", (0, (7, 3))),
    ("#009E73", (0, (2, 3))),
    ("#CC79A7", (0, (9, 3, 2, 3))),
    ("#E69F00", (0, (4, 2))),
    ("#56B4E9", (0, (1, 2))),
)
# Inches; a row of the key makes a plot higher.
_WIDTH, _HEIGHT, _KEY_ROW = 5.2, 2.8, 0.18
# Text and axes are drawn in this color, which stands for the page's own.
_INK = "#010203"
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "lines.scale_dashes": False,
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}


@dataclass(frozen=True)
class Curves:
    """One plot.

    Attributes:
        title: stands above it.
        series: name -> points (x, y), by ascending x; values that are not finite are left out.
        x_label, y_label: what the axes show, with the unit.
        smooth: points in the running median that is drawn over the faint measured line; 1: the measured line alone.
    """

    title: str
    series: Mapping[str, Points]
    x_label: str = "iteration"
    y_label: str = ""
    smooth: int = 1


# Panels of a training's report, in this order: title, and what its keys in metrics.json look like; the first that fits takes a key.
_PANELS = (
    ("Total loss", lambda key: key == "total_loss"),
    ("Classification losses", lambda key: "loss_cls" in key and "rpn" not in key),
    ("Box losses", lambda key: "loss_box_reg" in key or key == "loss_rpn_loc"),
    ("Mask and semantic losses", lambda key: key in ("loss_mask", "loss_sem_seg")),
    ("Proposal loss", lambda key: key == "loss_rpn_cls"),
    ("Other losses", lambda key: key.startswith("loss")),
    ("Learning rate", lambda key: key == "lr"),
)


def training_curves(metrics_json: str | Path) -> list[Curves]:
    """Returns the curves of a Detectron2 training: total loss, losses by kind, learning rate.

    Args:
        metrics_json: the ``metrics.json`` in the training's output directory, one JSON object a line. After a resumed training the
            later lines count; a last line cut short by a kill is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no line with an iteration and a loss in it.
    """
    by_iteration: dict[int, dict] = {}
    for line in Path(metrics_json).read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(values, dict) and "iteration" in values:
            by_iteration.setdefault(values["iteration"], {}).update(values)
    series: dict[str, list[tuple[float, float]]] = {}
    for iteration, values in sorted(by_iteration.items()):
        for key, value in values.items():
            if isinstance(value, (int, float)):
                series.setdefault(key, []).append((iteration, value))
    panels = []
    for title, belongs in _PANELS:
        chosen = {key: series.pop(key) for key in list(series) if belongs(key)}
        if chosen:
            longest = max(map(len, chosen.values()))
            smooth = 1 if title == "Learning rate" else max(1, longest // 20)
            panels.append(Curves(title, chosen, smooth=smooth))
    if not panels:
        raise ValueError(
            f"{metrics_json} holds no loss; expected the metrics.json that Detectron2's JSONWriter leaves in OUTPUT_DIR"
        )
    return panels


def curves_svg(curves: Curves) -> str:
    """Returns a plot as an ``<svg>`` element whose text and axes have the page's color; the same curves give the same bytes.

    Without a finite point it is a paragraph that says so.
    """
    import matplotlib

    series = {name: finite for name, points in curves.series.items() if (finite := _finite(points))}
    if not series:
        return f'<p class="empty">{escape(curves.title)}: no points yet</p>'
    file = io.StringIO()
    # The salt makes ids the same in every run, and different for the plots of a page.
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": curves.title}):
        figure = _figure_of(curves, series)
        figure.savefig(
            file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Nothing refers to the ids of groups, which all plots have in common.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(curves.title)}"', 1)


def _figure_of(curves: Curves, series: Mapping[str, Points]) -> "Figure":
    """Returns a matplotlib figure of some series, all of them finite, with a key below where there are several."""
    from matplotlib.figure import Figure

    rows = 0 if len(series) == 1 else math.ceil(len(series) / 2)
    figure = Figure(figsize=(_WIDTH, _HEIGHT + rows * _KEY_ROW), layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(series.items()):
        color, dashes = _STYLES[index % len(_STYLES)]
        if curves.smooth > 1:
            axes.plot(*zip(*points), color=color, linewidth=0.8, alpha=0.3)
        drawn = _running_median(points, curves.smooth)
        axes.plot(
            *zip(*drawn),
            color=color,
            linestyle=dashes,
            linewidth=1.6,
            marker="o" if len(drawn) == 1 else None,
            label=f"{name}  {points[-1][1]:.3g}",
        )
    _style_axes(axes, curves)
    if rows:
        figure.legend(loc="outside lower left", ncols=2, frameon=False, handlelength=3, fontsize=8)
    return figure


def _style_axes(axes: "Axes", curves: Curves) -> None:
    axes.margins(x=0.01)
    low, high = axes.get_ylim()
    values = [y for points in curves.series.values() for _, y in _finite(points)]
    if min(values) >= 0 and max(values) > 0:
        low = 0.0
    axes.set_ylim(low, high)
    axes.set_xlabel(curves.x_label)
    axes.set_ylabel(curves.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_INK, alpha=0.15)
    axes.locator_params(nbins=6)


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _running_median(points: Points, window: int) -> list[tuple[float, float]]:
    half = window // 2
    return [(x, median(y for _, y in points[max(0, i - half) : i + half + 1])) for i, (x, _) in enumerate(points)]
