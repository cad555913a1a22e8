"""The graph of an image's superpixels: who touches whom, over which border, and what each looks like."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from u2seg.pseudo_labels.masks.hierarchy.contours import sobel

_LAB_BINS = 16  # of each channel
_HSV_BINS = 12
_ORIENTATIONS = 6
_MAGNITUDES = 8
_MAX_CHROMA = 50.0  # CIELAB units of a and b at the end of their histograms; what lies beyond counts there
_MAX_SATURATION = 0.7
_MAX_GRADIENT = 15.0  # CIELAB units a pixel at the end of the histogram of magnitudes
_FULL_GRADIENT = 10.0  # from here on an orientation counts in full
_TEXTURE_SIGMAS = (1.0, 2.0)  # pixels


@dataclass(frozen=True)
class RegionGraph:
    """Superpixels and the borders between them; all quantities but the boxes add up when regions are joined.

    Attributes:
        labels: int64 (height, width), region of each pixel, 0..S-1.
        areas: float64 (S,), in pixels.
        boxes: float64 (S, 4), top, left, bottom, right; the last two are exclusive.
        on_border: float64 (S, 4), pixels at the image's top, bottom, left and right border.
        pairs: int64 (E, 2), neighbors, the lower id first, in ascending order.
        lengths: float64 (E,), length of the border between them, in links between 4-neighbors.
        strengths: float64 (E,), contour strength summed along that border.
        histograms: by name ("lab", "hsv", "texture"): float64 (S, bins), each row sums to about the region's area.
        features: float64 (S, C), patch features summed over the region's pixels.
    """

    labels: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    on_border: np.ndarray
    pairs: np.ndarray
    lengths: np.ndarray
    strengths: np.ndarray
    histograms: dict[str, np.ndarray]
    features: np.ndarray

    @property
    def num_regions(self) -> int:
        """How many superpixels there are, S."""
        return len(self.areas)


def build_region_graph(
    image_rgb: np.ndarray, lab: np.ndarray, strength: np.ndarray, labels: np.ndarray, features: np.ndarray
) -> RegionGraph:
    """Returns the graph of an image's superpixels.

    Args:
        image_rgb: uint8 (height, width, 3).
        lab: float32 (height, width, 3), the same in CIELAB.
        strength: float32 (height, width), contour strength.
        labels: int64 (height, width), superpixels, 0..S-1.
        features: float (C, rows, columns), patch features; C may be 0. The height and the width are multiples of (rows, columns).
    """
    count = int(labels.max()) + 1
    pairs, lengths, strengths = _borders(labels, strength, count)
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in ndimage.find_objects(labels + 1)]
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    return RegionGraph(
        labels=labels,
        areas=np.bincount(labels.ravel(), minlength=count).astype(np.float64),
        boxes=np.asarray(boxes, np.float64),
        on_border=np.stack([np.bincount(side, minlength=count) for side in sides], axis=1).astype(np.float64),
        pairs=pairs,
        lengths=lengths,
        strengths=strengths,
        histograms={
            "lab": _lab_histograms(lab, labels, count),
            "hsv": _hsv_histograms(image_rgb, labels, count),
            "texture": _texture_histograms(lab[..., 0], labels, count),
        },
        features=_feature_sums(features, labels, count),
    )


def _borders(labels: np.ndarray, strength: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    first = np.concatenate([labels[:, :-1].ravel(), labels[:-1].ravel()])
    second = np.concatenate([labels[:, 1:].ravel(), labels[1:].ravel()])
    across = np.maximum(strength[:, :-1], strength[:, 1:]).ravel()
    down = np.maximum(strength[:-1], strength[1:]).ravel()
    differs = first != second
    first, second, values = first[differs], second[differs], np.concatenate([across, down])[differs]
    keys, inverse = np.unique(np.minimum(first, second) * count + np.maximum(first, second), return_inverse=True)
    pairs = np.stack([keys // count, keys % count], axis=1)
    lengths = np.bincount(inverse, minlength=len(keys)).astype(np.float64)
    return pairs, lengths, np.bincount(inverse, values, minlength=len(keys))


def _lab_histograms(lab: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    lightness = soft_histograms(lab[..., 0], labels, count, (0.0, 100.0), _LAB_BINS)
    chroma = [
        soft_histograms(lab[..., channel], labels, count, (-_MAX_CHROMA, _MAX_CHROMA), _LAB_BINS) for channel in (1, 2)
    ]
    return np.concatenate([lightness, *chroma], axis=1) / 3


def _hsv_histograms(image_rgb: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Histograms of the hue's two coordinates, scaled by the saturation, and of the value."""
    hsv = cv2.cvtColor(image_rgb.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hue, saturation = np.deg2rad(hsv[..., 0]), hsv[..., 1]
    span = (-_MAX_SATURATION, _MAX_SATURATION)
    parts = [
        soft_histograms(saturation * np.cos(hue), labels, count, span, _HSV_BINS),
        soft_histograms(saturation * np.sin(hue), labels, count, span, _HSV_BINS),
        soft_histograms(hsv[..., 2], labels, count, (0.0, 1.0), _HSV_BINS),
    ]
    return np.concatenate(parts, axis=1) / 3


def _texture_histograms(lightness: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Histograms of the gradient's magnitude and of its orientation, at two scales."""
    parts = []
    for sigma in _TEXTURE_SIGMAS:
        dx, dy = sobel(cv2.GaussianBlur(lightness, (0, 0), sigma))
        magnitude = np.hypot(dx, dy)
        span = (0.0, float(np.log1p(_MAX_GRADIENT)))
        parts.append(soft_histograms(np.log1p(magnitude), labels, count, span, _MAGNITUDES))
        angles = np.arctan2(dy, dx) % np.pi * (_ORIENTATIONS / np.pi)
        weights = np.minimum(magnitude / _FULL_GRADIENT, 1)
        parts.append(_cyclic_histograms(angles, weights, labels, count))
    return np.concatenate(parts, axis=1) / len(parts)


def soft_histograms(
    values: np.ndarray, labels: np.ndarray, count: int, span: tuple[float, float], bins: int
) -> np.ndarray:
    """Returns a histogram for each region, float64 (count, bins); each pixel is shared between the two nearest bins.

    Args:
        values: float (height, width).
        labels: int (height, width), regions, 0..count-1.
        count: number of regions.
        span: values at the first and the last bin; what lies outside counts there.
        bins: at least 2.
    """
    low, high = span
    position = np.clip((values.ravel() - low) / (high - low), 0, 1) * (bins - 1)
    lower = np.minimum(position.astype(np.int64), bins - 2)
    share = position - lower
    key = labels.ravel() * bins + lower
    size = count * bins
    total = np.bincount(key, 1 - share, minlength=size) + np.bincount(key + 1, share, minlength=size)
    return total.reshape(count, bins)


def _cyclic_histograms(angles: np.ndarray, weights: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    lower = np.floor(angles).astype(np.int64)
    share = (angles - lower).ravel()
    weights, start = weights.ravel(), labels.ravel() * _ORIENTATIONS
    first, second = (start + (lower + step).ravel() % _ORIENTATIONS for step in (0, 1))
    size = count * _ORIENTATIONS
    total = np.bincount(first, (1 - share) * weights, minlength=size)
    return (total + np.bincount(second, share * weights, minlength=size)).reshape(count, _ORIENTATIONS)


def _feature_sums(features: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    channels, rows, columns = features.shape
    if not channels:
        return np.zeros((count, 0))
    height, width = labels.shape
    patch = np.arange(height)[:, None] * rows // height * columns + np.arange(width) * columns // width
    keys, pixels = np.unique(labels * (rows * columns) + patch, return_counts=True)
    flat = features.reshape(channels, -1).T.astype(np.float64)
    sums = np.zeros((count, channels))
    np.add.at(sums, keys // (rows * columns), flat[keys % (rows * columns)] * pixels[:, None])
    return sums
