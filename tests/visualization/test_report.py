import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from u2seg.utils.image_io import ImageReadError
from u2seg.visualization import Curves, Row, Table, image_grid, save_image, training_curves, write_report
from u2seg.visualization.curves import _ticks, curves_svg

VOID_TAGS = {"meta", "img", "path", "circle", "link", "br"}


class Page(HTMLParser):
    """Collects what a page refers to and checks that its elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.text, self._open = [], [], "", []
        self.feed(text)
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID_TAGS or (tag == "path" and not self.get_starttag_text().endswith("/>")):
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def image(value=0):
    return np.full((20, 30, 3), value, np.uint8)


def test_report_is_whole_and_refers_to_nothing_outside(tmp_path):
    save_image(tmp_path / "photo.png", image(200))
    path = write_report(
        tmp_path / "report" / "index.html",
        title="A <run>",
        summary="First.\n\nSecond & last.",
        facts={"seed": 0, "seconds": 12.34},
        tables=[
            Table(
                "Scores", [["hungarian", 35.26, 3, None, float("nan")]], ["protocol", "PQ", "n", "x", "y"], note="val"
            ),
            Table("As text", text="| a |\n| < |"),
        ],
        curves=[Curves("Loss", {"a": [(0, 1.0), (10, 0.5)], "b": [(0, 2.0), (10, float("nan"))]}, smooth=3)],
        rows=iter([Row('one "quoted"', {"image": tmp_path / "photo.png", "label": image(9)})]),
    )
    page = Page(path.read_text())
    assert sorted(set(page.references)) == ["images/0000-0.jpg", "images/0000-1.jpg"]
    for name, value in zip(sorted(set(page.references)), (200, 9)):
        assert np.abs(np.asarray(Image.open(path.parent / name)).astype(int) - value).max() <= 2
    assert "script" not in page.tags and "http" not in path.read_text()
    for text in ("A <run>", "First.", "Second & last.", "35.3", "n/a", "| < |", "12.3", 'one "quoted"'):
        assert text in page.text


def test_empty_report(tmp_path):
    page = Page(write_report(tmp_path / "index.html", title="Nothing").read_text())
    assert "Nothing" in page.text and "img" not in page.tags


def test_unreadable_image_names_the_reason(tmp_path):
    with pytest.raises(ImageReadError, match="no such file"):
        write_report(tmp_path / "index.html", title="x", rows=[Row("r", {"p": tmp_path / "missing.jpg"})])
    assert not (tmp_path / "index.html").exists()


def write_metrics(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_training_curves(tmp_path):
    lines = [
        {
            "iteration": 19,
            "total_loss": 3.0,
            "loss_mask": 0.7,
            "lr": 0.01,
            "loss_cls_stage0": 1.0,
            "data_time": 0.1,
            "loss_pixel": 2.0,
        },
        {"iteration": 39, "total_loss": 9.0, "lr": 0.01},
        {"iteration": 39, "total_loss": 2.0, "lr": 0.01},  # a resumed training's line counts
        {"iteration": 39, "bbox/AP": 1.0},
        '{"iteration": 59, "total_l',  # killed while writing
    ]
    panels = {c.title: c for c in training_curves(write_metrics(tmp_path / "metrics.json", lines))}
    expected = ["Total loss", "Classification losses", "Mask and semantic losses", "Other losses", "Learning rate"]
    assert list(panels) == expected
    assert list(panels["Other losses"].series) == ["loss_pixel"]
    assert panels["Total loss"].series == {"total_loss": [(19, 3.0), (39, 2.0)]}


def test_training_curves_without_losses(tmp_path):
    with pytest.raises(ValueError, match="holds no loss"):
        training_curves(write_metrics(tmp_path / "metrics.json", [{"iteration": 1, "bbox/AP": 2.0}]))
    with pytest.raises(FileNotFoundError):
        training_curves(tmp_path / "missing.json")


def test_svg_places_points_inside_the_axes():
    svg = curves_svg(Curves("x", {"a": [(0, 0.0), (100, 10.0)]}))
    # 460 x 250, margins left 52, right 12, top 12, bottom 38: (0, 0) is the lower left corner, (100, 10) the upper right one.
    assert 'd="M52.0 212.0L448.0 12.0"' in svg


@pytest.mark.parametrize("points", [[], [(1, float("nan"))]])
def test_svg_without_points_says_so(points):
    assert "no points yet" in curves_svg(Curves("x", {"a": points}))


@pytest.mark.parametrize("points", [[(5, 1.0)], [(5, 0.0)], [(5, -1.0), (6, -1.0)], [(0, 1e-9), (1, 1e12)]])
def test_svg_of_degenerate_ranges(points):
    assert "nan" not in curves_svg(Curves("x", {"a": points})).replace("nan-", "")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0, 1.9, [0, 0.5, 1.0, 1.5]), (3, 3, [3])],
)
def test_ticks(low, high, expected):
    assert _ticks(low, high) == pytest.approx(expected)


def test_image_grid():
    wide, tall = np.full((10, 40, 3), 50, np.uint8), np.full((40, 10, 3), 90, np.uint8)
    grid = image_grid([[wide, tall], [wide]], cell_width=20, gap=2)
    # Row 1 is 80 high (the tall one scaled to width 20), row 2 is 5 high; gaps of 2 everywhere.
    assert grid.shape == (2 + 80 + 2 + 5 + 2, 2 + 20 + 2 + 20 + 2, 3)
    assert grid[3, 3].tolist() == [50] * 3 and grid[50, 30].tolist() == [90] * 3 and grid[50, 10].tolist() == [255] * 3
    with_captions = image_grid([[wide]], ["a"], cell_width=20, gap=2)
    assert (with_captions[:24] < 100).any()
    with pytest.raises(ValueError, match="at least one image"):
        image_grid([[]])
