import itertools

import numpy as np
import pytest
from u2seg.visualization import cluster_color
from u2seg.visualization.colors import relative_luminance, text_color

FIXED_THINGS = [(242, 90, 74), (113, 55, 182), (20, 186, 212)]
FIXED_STUFF = [(104, 171, 182), (101, 113, 66), (216, 160, 148)]


def test_colors_are_fixed():
    # Images made by different versions must be comparable: changing these values is a change that users see.
    assert [cluster_color("thing", i) for i in range(3)] == FIXED_THINGS
    assert [cluster_color("stuff", i) for i in range(3)] == FIXED_STUFF


@pytest.mark.parametrize(("kind", "count", "unique"), [("thing", 800, 795), ("stuff", 27, 27)])
def test_colors_differ(kind, count, unique):
    colors = [cluster_color(kind, i) for i in range(count)]
    assert all(0 <= value <= 255 for color in colors for value in color)
    assert len(set(colors)) >= unique


@pytest.mark.parametrize("start", [0, 100, 793])
def test_neighboring_ids_differ_even_without_red_and_green(start):
    # Vienot et al. 1999: a deuteranope sees r and g of linear RGB as one mixture, b as it is.
    def as_deuteranope(color):
        r, g, b = (np.array(color) / 255) ** 2.2
        return np.array([0.29275 * r + 0.70725 * g] * 2 + [-0.02234 * r + 0.02234 * g + b]).clip(0) ** (1 / 2.2) * 255

    colors = [as_deuteranope(cluster_color("thing", start + i)) for i in range(6)]
    distances = [np.abs(a - b).max() for a, b in itertools.combinations(colors, 2)]
    assert min(distances) > 12


def test_things_are_more_vivid_than_stuff():
    def spread(kind):
        return np.mean([max(c) - min(c) for c in (cluster_color(kind, i) for i in range(50))])

    assert spread("thing") > 1.8 * spread("stuff")


def test_text_is_readable_on_every_color():
    for index in range(800):
        background = cluster_color("thing", index)
        bright, dark = sorted(relative_luminance(c) for c in (background, text_color(background)))[::-1]
        assert (bright + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.1, level AA


def test_luminance_of_known_colors():
    assert relative_luminance((0, 0, 0)) == 0
    assert relative_luminance((255, 255, 255)) == pytest.approx(1)
    assert relative_luminance((0, 255, 0)) == pytest.approx(0.7152)


@pytest.mark.parametrize(
    ("kind", "index", "message"), [("things", 0, "'thing' or 'stuff'"), ("thing", -1, "0 or larger")]
)
def test_bad_arguments(kind, index, message):
    with pytest.raises(ValueError, match=message):
        cluster_color(kind, index)
