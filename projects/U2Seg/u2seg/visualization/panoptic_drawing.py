"""A panoptic map drawn over its image: things tinted and outlined, stuff tinted, names on them, a legend below."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from u2seg.structures.label_space import LabelSpace
from u2seg.structures.mask_boxes import mask_box
from u2seg.utils.image_io import check_image_rgb
from u2seg.visualization.class_style import ClassStyle
from u2seg.visualization.colors import Color, text_color
from u2seg.visualization.image_grid import load_font

_THING_TINT = 0.50  # share of the color laid over the image
_STUFF_TINT = 0.45
_MAX_LEGEND_LINES = 8
_MAX_PAGE_LEGEND = 24  # entries


class LegendEntry(NamedTuple):
    """One line of a legend.

    Attributes:
        color: sRGB color of the class; None where the line is about no class (void, "and 3 more").
        is_thing: whether the class is one of things.
        text: name, number of segments, share of the image.
    """

    color: Color | None
    is_thing: bool
    text: str


@dataclass(frozen=True)
class PanopticDrawing:
    """An image with its segments drawn over it, and its legend apart: for pages, which set the legend themselves.

    Attributes:
        image_rgb: uint8 (H', W', 3); as high and wide as the image, or a whole multiple of it.
        legend: its classes, things first, by falling area.
    """

    image_rgb: np.ndarray
    legend: list[LegendEntry]


@dataclass(frozen=True)
class _Segment:
    """One region to draw: its id in the map, what it is, and how it looks."""

    id: int
    is_thing: bool
    category: int
    name: str
    score: float | None
    color: Color
    area: int


def draw_panoptic(
    image_rgb: np.ndarray,
    panoptic_map: np.ndarray,
    segments_info: Iterable[dict],
    style: ClassStyle,
    *,
    names_on_segments: bool = True,
    legend: bool = True,
    min_side: int = 320,
) -> np.ndarray:
    """Returns the image with its segments drawn over it, uint8 (H', W', 3).

    Things are tinted and outlined, stuff is only tinted, pixels of no segment stay as they are. Names stand on the segments and
    in the legend, so that nothing hangs on telling colors apart. H' and W' are H and W, times a whole factor where the image is
    small (``min_side``), plus the legend's height.

    Args:
        image_rgb: uint8 (H, W, 3).
        panoptic_map: integers (H, W), the segment id of each pixel; 0, and ids that ``segments_info`` lacks, are void.
        segments_info: dicts with ``id``, ``isthing``, ``category_id`` (contiguous id: things 0..K-1, stuff 1..S) and, optionally,
            ``score`` (0..1): what Detectron2's panoptic heads return, and what :func:`contiguous_segments` makes of COCO's.
        style: names and colors of the classes.
        names_on_segments: write the names (and scores) on the segments where they fit.
        legend: add the list of names, counts and area shares below the image.
        min_side: pixels; an image whose shorter side is below is enlarged by the least whole factor that reaches it.

    Raises:
        ValueError: shapes do not fit, or a category id has no name; the message says which.
    """
    check_image_rgb(image_rgb)
    panoptic_map = np.asarray(panoptic_map)
    if panoptic_map.shape != image_rgb.shape[:2]:
        raise ValueError(
            f"panoptic_map must have shape {image_rgb.shape[:2]} to match the image, got {panoptic_map.shape}"
        )
    segments = _segments(panoptic_map, segments_info, style)
    num_pixels = panoptic_map.size
    image_rgb, panoptic_map = _enlarge(image_rgb, panoptic_map, min_side)
    drawn = _outline_things(_tint(image_rgb, panoptic_map, segments), panoptic_map, segments)
    if names_on_segments:
        drawn = _write_names(drawn, panoptic_map, segments)
    return _add_legend(drawn, segments, num_pixels) if legend else drawn


def draw_for_page(
    image_rgb: np.ndarray, panoptic_map: np.ndarray, segments_info: Iterable[dict], style: ClassStyle
) -> PanopticDrawing:
    """Returns what :func:`draw_panoptic` draws, with the legend apart; arguments and errors are the same."""
    segments_info = list(segments_info)
    drawn = draw_panoptic(image_rgb, panoptic_map, segments_info, style, legend=False)
    segments = _segments(np.asarray(panoptic_map), segments_info, style)
    return PanopticDrawing(drawn, _at_most(_legend_entries(segments, np.asarray(panoptic_map).size), _MAX_PAGE_LEGEND))


def contiguous_segments(segments_info: Iterable[dict], label_space: LabelSpace) -> list[dict]:
    """Returns COCO panoptic ``segments_info`` (dataset ids) with ``isthing`` and contiguous ``category_id``, as Detectron2 has them.

    Raises:
        ValueError: a category id that ``label_space`` does not hold.
    """
    converted = []
    for segment in segments_info:
        category = segment["category_id"]
        is_thing = category in label_space.thing_contiguous_ids
        ids = label_space.thing_contiguous_ids if is_thing else label_space.stuff_contiguous_ids
        if category not in ids:
            raise ValueError(f"segment {segment['id']} has category_id {category}, which the label space does not hold")
        converted.append({**segment, "isthing": is_thing, "category_id": ids[category]})
    return converted


def _segments(panoptic_map: np.ndarray, segments_info: Iterable[Mapping], style: ClassStyle) -> list[_Segment]:
    """Returns the segments that own pixels, in the order given."""
    ids, counts = np.unique(panoptic_map, return_counts=True)
    areas = dict(zip(ids.tolist(), counts.tolist()))
    segments = []
    for info in segments_info:
        is_thing, category = bool(info["isthing"]), int(info["category_id"])
        names = style.thing_names if is_thing else style.stuff_names
        colors = style.thing_colors if is_thing else style.stuff_colors
        if not 0 <= category < len(names):
            kind = "thing" if is_thing else "stuff"
            raise ValueError(
                f"segment {info['id']} has {kind} category_id {category}, expected a contiguous id in 0..{len(names) - 1}"
            )
        if info["id"] == 0 or info["id"] not in areas:
            continue
        score, area = info.get("score"), areas[info["id"]]
        segments.append(_Segment(info["id"], is_thing, category, str(names[category]), score, colors[category], area))
    return segments


def _enlarge(image_rgb: np.ndarray, panoptic_map: np.ndarray, min_side: int) -> tuple[np.ndarray, np.ndarray]:
    factor = -(-min_side // min(image_rgb.shape[:2]))
    if factor <= 1:
        return image_rgb, panoptic_map
    height, width = image_rgb.shape[:2]
    image = Image.fromarray(image_rgb).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    return np.array(image), panoptic_map.repeat(factor, axis=0).repeat(factor, axis=1)


def _tint(image_rgb: np.ndarray, panoptic_map: np.ndarray, segments: list[_Segment]) -> np.ndarray:
    ids, position = np.unique(panoptic_map, return_inverse=True)
    colors = np.zeros((len(ids), 3), np.float32)
    weights = np.zeros((len(ids), 1), np.float32)
    index = {segment_id: i for i, segment_id in enumerate(ids.tolist())}
    for segment in segments:
        colors[index[segment.id]] = segment.color
        weights[index[segment.id]] = _THING_TINT if segment.is_thing else _STUFF_TINT
    position = position.reshape(panoptic_map.shape)
    mixed = image_rgb * (1 - weights[position]) + colors[position] * weights[position]
    return np.rint(mixed).astype(np.uint8)


def _outline_things(image_rgb: np.ndarray, panoptic_map: np.ndarray, segments: list[_Segment]) -> np.ndarray:
    """Draws each thing's border inside it: its own color, lightened or darkened, with a thin dark or light line within."""
    drawn = image_rgb.copy()
    thickness = _line_width(image_rgb)
    for segment in segments:
        if not segment.is_thing:
            continue
        rows, columns = _bounding_slices(panoptic_map == segment.id)
        mask = np.pad((panoptic_map[rows, columns] == segment.id).astype(np.uint8), 1)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)[1:-1, 1:-1]
        contrast = text_color(segment.color)
        drawn[rows, columns][(depth > 0) & (depth <= thickness)] = contrast
        drawn[rows, columns][(depth > thickness) & (depth <= 2.5 * thickness)] = segment.color
    return drawn


def _write_names(image_rgb: np.ndarray, panoptic_map: np.ndarray, segments: list[_Segment]) -> np.ndarray:
    """Writes each segment's name at its innermost point, where it fits; things and large segments choose first."""
    image = Image.fromarray(image_rgb)
    draw = ImageDraw.Draw(image)
    font = load_font(_font_size(image_rgb))
    height, width = panoptic_map.shape
    taken: list[tuple[float, float, float, float]] = []
    for segment in sorted(segments, key=lambda s: (not s.is_thing, -s.area)):
        text = segment.name if segment.score is None else f"{segment.name} {segment.score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        text_width, text_height = right - left, bottom - top
        (x, y), radius = _innermost_point(panoptic_map == segment.id)
        x = min(max(x - text_width / 2, 4), width - text_width - 4)
        y = min(max(y - text_height / 2, 3), height - text_height - 3)
        box = (x - 3, y - 2, x + text_width + 3, y + text_height + 2)
        # A name that is much larger than its segment would hide it, or seem to name its neighbors.
        fits = radius >= 0.5 * text_height + 2 and text_width <= 5 * radius and text_width + 8 <= width
        if not fits or any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        ink = text_color(segment.color)
        draw.rounded_rectangle(box, radius=3, fill=segment.color, outline=ink if segment.is_thing else None)
        draw.text((x - left, y - top), text, ink, font=font)
    return np.array(image)


def _overlap(box_xyxy: Sequence[float], other_xyxy: Sequence[float]) -> bool:
    return (
        box_xyxy[0] < other_xyxy[2]
        and other_xyxy[0] < box_xyxy[2]
        and box_xyxy[1] < other_xyxy[3]
        and other_xyxy[1] < box_xyxy[3]
    )


def _innermost_point(mask: np.ndarray) -> tuple[tuple[int, int], float]:
    """Returns the (x, y) of the pixel farthest from the mask's border, and that distance in pixels."""
    rows, columns = _bounding_slices(mask)
    depth = cv2.distanceTransform(np.pad(mask[rows, columns].astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return (int(x) + columns.start, int(y) + rows.start), float(depth[y, x])


def _bounding_slices(mask: np.ndarray) -> tuple[slice, slice]:
    left, top, right, bottom = mask_box(mask)
    return slice(top, bottom), slice(left, right)


def _add_legend(image_rgb: np.ndarray, segments: list[_Segment], num_pixels: int) -> np.ndarray:
    entries = _legend_entries(segments, num_pixels)
    height, width = image_rgb.shape[:2]
    size = _font_size(image_rgb)
    font, line, pad = load_font(size), round(1.6 * size), size // 2
    widest = max((font.getlength(text) for *_, text in entries), default=0)
    columns = max(1, int((width - 2 * pad) // (widest + 3 * size)))
    entries = _at_most(entries, columns * _MAX_LEGEND_LINES)
    lines = -(-len(entries) // columns)
    canvas = Image.new("RGB", (width, height + lines * line + 2 * pad), (255, 255, 255))
    canvas.paste(Image.fromarray(image_rgb), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (color, is_thing, text) in enumerate(entries):
        x = pad + (index % columns) * (width - 2 * pad) // columns
        y = height + pad + (index // columns) * line
        if color is not None:
            outline = (0, 0, 0) if is_thing else (170, 170, 170)
            draw.rectangle((x, y, x + size, y + size), fill=color, outline=outline, width=2 if is_thing else 1)
        draw.text((x + round(1.5 * size), y - size * 0.1), text, (25, 25, 25), font=font)
    return np.array(canvas)


def _at_most(entries: list[LegendEntry], capacity: int) -> list[LegendEntry]:
    """Returns the first entries; the last one says how many are missing."""
    if len(entries) <= capacity:
        return entries
    return [*entries[: capacity - 1], LegendEntry(None, False, f"and {len(entries) - capacity + 1} more")]


def _legend_entries(segments: list[_Segment], num_pixels: int) -> list[LegendEntry]:
    """Returns an entry for each class, things first, by falling area; then one for what is unlabeled."""
    # By name and color, not by id: a label map can give several clusters one category.
    groups: dict[tuple[bool, str, Color], list[_Segment]] = {}
    for segment in segments:
        groups.setdefault((segment.is_thing, segment.name, segment.color), []).append(segment)
    ordered = sorted(groups.items(), key=lambda item: (not item[0][0], -sum(s.area for s in item[1]), item[0]))
    entries: list[LegendEntry] = []
    for (is_thing, name, color), members in ordered:
        times = f" x{len(members)}" if len(members) > 1 and is_thing else ""
        share = sum(s.area for s in members) / num_pixels
        entries.append(LegendEntry(color, is_thing, f"{name}{times} ({_percent(share)})"))
    void = num_pixels - sum(segment.area for segment in segments)
    if void > 0:
        entries.append(LegendEntry(None, False, f"unlabeled ({_percent(void / num_pixels)})"))
    return entries


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _font_size(image_rgb: np.ndarray) -> int:
    return int(np.clip(min(image_rgb.shape[:2]) / 24, 12, 40))


def _line_width(image_rgb: np.ndarray) -> float:
    return max(1.0, min(image_rgb.shape[:2]) / 400)
