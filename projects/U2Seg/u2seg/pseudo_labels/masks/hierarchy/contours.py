"""Contour strength: how much the color changes at each pixel."""

from collections.abc import Sequence

import cv2
import numpy as np


def lab_image(image_rgb: np.ndarray) -> np.ndarray:
    """Returns an image in CIELAB, float32 (height, width, 3): L in 0..100, a and b about -128..127.

    Args:
        image_rgb: uint8 (height, width, 3).
    """
    return cv2.cvtColor(image_rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def contour_strength(lab: np.ndarray, sigmas: Sequence[float]) -> np.ndarray:
    """Returns the contour strength of each pixel, float32 (height, width): CIELAB units a pixel, at least 0.

    It is the largest directional derivative of the color, averaged over scales.

    Args:
        lab: float32 (height, width, 3).
        sigmas: standard deviations of the Gaussian smoothing, one for each scale, in pixels.

    Source: Di Zenzo, A note on the gradient of a multi-image, CVGIP 1986.
    """
    total = np.zeros(lab.shape[:2], np.float32)
    for sigma in sigmas:
        smooth = cv2.GaussianBlur(lab, (0, 0), sigma)
        dx, dy = sobel(smooth)
        xx, yy, xy = (dx * dx).sum(axis=2), (dy * dy).sum(axis=2), (dx * dy).sum(axis=2)
        # The larger eigenvalue of the tensor.
        total += np.sqrt((xx + yy + np.sqrt((xx - yy) ** 2 + 4 * xy * xy)) / 2)
    return total / len(sigmas)


def sobel(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the derivatives of an image to the right and downwards, a pixel, float32 of the image's shape."""
    return cv2.Sobel(image, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(image, cv2.CV_32F, 0, 1, scale=1 / 8)
