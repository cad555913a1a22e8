"""Greedy merging written again, slowly: every cost from the pixels, all pairs at every step."""

import numpy as np


def merge_slowly(labels, strength, histograms, features, weights, contour_unit):
    """Returns [(first, second, cost), ...], the merges of a map of superpixels; ids as in ``MergeTree``.

    ``histograms``: dict of float (S, bins) with sums over pixels; ``features``: float (S, C), sums over pixels.
    """
    count = labels.max() + 1
    regions = {region: [region] for region in range(count)}
    found = []
    for node in range(count, 2 * count - 1):
        costs = []
        for first in regions:
            for second in regions:
                if first < second:
                    one, two = np.isin(labels, regions[first]), np.isin(labels, regions[second])
                    parts = [regions[first], regions[second]]
                    cost = cost_of(one, two, parts, strength, histograms, features, weights, contour_unit)
                    if cost is not None:
                        costs.append((cost, first, second))
        if not costs:
            break
        cost, first, second = min(costs)
        regions[node] = regions.pop(first) + regions.pop(second)
        found.append((first, second, cost))
    return found


def cost_of(one, two, parts, strength, histograms, features, weights, contour_unit):
    height, width = one.shape
    along = []
    for y in range(height):
        for x in range(width):
            for v, u in ((y, x + 1), (y + 1, x)):
                if v < height and u < width and ((one[y, x] and two[v, u]) or (two[y, x] and one[v, u])):
                    along.append(max(strength[y, x], strength[v, u]))
    if not along:
        return None
    areas = one.sum(), two.sum()
    cost = weights.contour * np.mean(along) / contour_unit
    for name in ("lab", "hsv", "texture"):
        p, q = (histograms[name][part].sum(axis=0) / area for part, area in zip(parts, areas))
        used = p + q > 0
        cost += getattr(weights, name) * 0.5 * ((p - q)[used] ** 2 / (p + q)[used]).sum()
    mean = features.sum(axis=0) / one.size
    a, b = (features[part].sum(axis=0) / area - mean for part, area in zip(parts, areas))
    cost += weights.features * (1 - a @ b / np.sqrt((a @ a) * (b @ b)))
    cost += weights.size * sum(areas) / one.size
    rows, columns = np.nonzero(one | two)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    cost += weights.gap * (box - sum(areas)) / one.size
    return cost * (min(areas) / one.size) ** weights.size_exponent
