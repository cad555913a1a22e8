"""Fixed colors: a cluster has the same color in every image, on every machine, for any number of clusters."""

import math
from functools import lru_cache

# Steps of the two-dimensional low-discrepancy sequence built on the plastic number p (p^3 = p + 1): any run of consecutive
# ids is spread evenly over hue and lightness together, so that neighbors differ for readers who see no hue as well.
# Source: M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018, R2.
_PLASTIC = 1.32471795724474602596
_HUE_STEP = 1 / _PLASTIC
_LIGHTNESS_STEP = 1 / _PLASTIC**2

# (lowest, highest) OKLab lightness and the chroma: things are vivid, stuff is muted.
_RANGES = {"thing": ((0.45, 0.88), 0.19), "stuff": ((0.50, 0.90), 0.07)}

Color = tuple[int, int, int]


@lru_cache(maxsize=4096)
def cluster_color(kind: str, cluster_id: int) -> Color:
    """Returns the fixed color of a cluster (or category) as sRGB (r, g, b), each 0..255.

    Args:
        kind: ``"thing"`` (vivid colors) or ``"stuff"`` (muted ones).
        cluster_id: 0-based id; any number of them.

    Raises:
        ValueError: another kind, or a negative id.
    """
    if kind not in _RANGES:
        raise ValueError(f"kind must be 'thing' or 'stuff', got {kind!r}")
    if cluster_id < 0:
        raise ValueError(f"cluster_id must be 0 or larger, got {cluster_id}")
    (darkest, lightest), chroma = _RANGES[kind]
    offset = 0.08 if kind == "thing" else 0.58
    hue = 2 * math.pi * ((offset + cluster_id * _HUE_STEP) % 1)
    lightness = darkest + (lightest - darkest) * ((0.5 + cluster_id * _LIGHTNESS_STEP) % 1)
    return _most_vivid_srgb(lightness, chroma, hue)


def text_color(background: Color) -> Color:
    """Returns black or white, whichever is easier to read on ``background`` (WCAG 2 contrast).

    Example:
        >>> text_color((255, 255, 0)), text_color((0, 0, 160))
        ((0, 0, 0), (255, 255, 255))
    """
    luminance = relative_luminance(background)
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 0.05 * 1.05 else (255, 255, 255)


def relative_luminance(color: Color) -> float:
    """Returns the relative luminance of an sRGB color, 0 black to 1 white.

    Source: WCAG 2.1, "relative luminance".
    """
    linear = [value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _most_vivid_srgb(lightness: float, chroma: float, hue: float) -> Color:
    """Returns the sRGB color of an OKLCH one, with the chroma lowered as far as sRGB needs."""
    while True:
        linear = _oklch_to_linear_srgb(lightness, chroma, hue)
        if chroma < 0.005 or all(-1e-3 <= value <= 1 + 1e-3 for value in linear):
            red, green, blue = (_encode_srgb(value) for value in linear)
            return red, green, blue
        chroma *= 0.97


def _oklch_to_linear_srgb(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    # Source: B. Ottosson, "A perceptual color space for image processing", 2020.
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )


def _encode_srgb(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    encoded = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * encoded)
