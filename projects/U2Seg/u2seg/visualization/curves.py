"""Curves as inline SVG: no plotting library, no script, sharp at every size."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median

Points = Sequence[tuple[float, float]]

# Okabe and Ito's colors, which color-blind readers can tell apart, each with a dash pattern of its own for those who cannot.
# Source: M. Okabe, K. Ito, "Color Universal Design", 2008.
_STYLES = (
    ("#0072B2", ""),
    ("#D55E00", "7 3"),
    ("#009E73", "2 3"),
    ("#CC79A7", "9 3 2 3"),
    ("#E69F00", "4 2"),
    ("#56B4E9", "1 2"),
)
_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 38


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
    """Returns a plot as an ``<svg>`` element whose colors follow the page's (``currentColor``)."""
    series = {name: _finite(points) for name, points in curves.series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return f'<p class="empty">{escape(curves.title)}: no points yet</p>'
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(0.0, *ys), max(ys))
    x_range, y_range = (min(xs), max(xs)), (y_ticks[0], max(y_ticks[-1], max(ys)))
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(curves.title)}" font-size="11">',
        *_axes(curves, x_ticks, y_ticks, x_range, y_range),
    ]
    for index, (name, points) in enumerate(series.items()):
        parts += _line(name, points, curves.smooth, _STYLES[index % len(_STYLES)], x_range, y_range)
    return "\n".join([*parts, "</svg>", _key(series)])


def _axes(curves, x_ticks, y_ticks, x_range, y_range) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in y_ticks:
        y = _place(tick, y_range, bottom, _TOP)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="currentColor" stroke-opacity=".15"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="currentColor">{_number(tick)}</text>'
        )
    for tick in x_ticks:
        if x_range[0] <= tick <= x_range[1]:
            x = _place(tick, x_range, _LEFT, right)
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle" fill="currentColor">{_number(tick)}</text>'
            )
    parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="currentColor" stroke-opacity=".6"/>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle" fill="currentColor">{escape(curves.x_label)}</text>'
    )
    if curves.y_label:
        turn = f"translate(13 {(_TOP + bottom) / 2}) rotate(-90)"
        parts.append(
            f'<text transform="{turn}" text-anchor="middle" fill="currentColor">{escape(curves.y_label)}</text>'
        )
    return parts


def _line(name, points, smooth: int, style, x_range, y_range) -> list[str]:
    color, dash = style
    parts = []
    if smooth > 1:
        parts.append(f'<path d="{_path(points, x_range, y_range)}" fill="none" stroke="{color}" stroke-opacity=".25"/>')
    drawn = _running_median(points, smooth)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    parts.append(
        f'<path d="{_path(drawn, x_range, y_range)}" fill="none" stroke="{color}" stroke-width="2"{dashes}>'
        f"<title>{escape(name)}: last {drawn[-1][1]:.4g}</title></path>"
    )
    if len(drawn) == 1:
        (x, y) = _pixel(drawn[0], x_range, y_range)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
    return parts


def _key(series: Mapping[str, Points]) -> str:
    if len(series) == 1:
        return ""
    items = []
    for index, (name, points) in enumerate(series.items()):
        color, dash = _STYLES[index % len(_STYLES)]
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        sample = f'<svg width="26" height="8"><path d="M0 4H26" stroke="{color}" stroke-width="2.5"{dashes}/></svg>'
        items.append(f"<span>{sample} {escape(name)} <small>{points[-1][1]:.3g}</small></span>")
    return f'<div class="key">{"".join(items)}</div>'


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _running_median(points: Points, window: int) -> list[tuple[float, float]]:
    half = window // 2
    return [(x, median(y for _, y in points[max(0, i - half) : i + half + 1])) for i, (x, _) in enumerate(points)]


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about ``count`` round numbers from at or below ``low`` to at or below ``high``."""
    if high <= low:
        return [low]
    step = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(step))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= step * 0.999)
    first = math.floor(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.6g}"


def _place(value: float, value_range: tuple[float, float], start: float, end: float) -> float:
    low, high = value_range
    return start if high == low else start + (end - start) * (value - low) / (high - low)


def _pixel(point, x_range, y_range) -> tuple[float, float]:
    return (
        _place(point[0], x_range, _LEFT, _WIDTH - _RIGHT),
        _place(point[1], y_range, _HEIGHT - _BOTTOM, _TOP),
    )


def _path(points: Points, x_range, y_range) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (_pixel(point, x_range, y_range) for point in points))
