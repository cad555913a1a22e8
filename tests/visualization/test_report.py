import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image
from u2seg.utils.image_io import ImageReadError
from u2seg.visualization import Curves, Heatmap, Row, Table, image_grid, save_image, training_curves, write_report
from u2seg.visualization.curves import curves_svg

VOID_TAGS = {"meta", "img", "path", "circle", "link", "br"}
SVG = "{http://www.w3.org/2000/svg}"


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
    assert page.tags.count("script") == 1  # the page's own, which compares images
    # The names of SVG's namespaces look like addresses, but nobody opens them.
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", path.read_text())
    assert page.tags.count("svg") == 1 and page.tags.count("td") == 5 and page.tags.count("th") == 5
    for text in ("A <run>", "First.", "Second & last.", "35.3", "n/a", "| < |", "12.3", 'one "quoted"'):
        assert text in page.text


def test_empty_report(tmp_path):
    page = Page(write_report(tmp_path / "index.html", title="Nothing").read_text())
    assert "Nothing" in page.text
    assert not {"img", "table", "dl", "h2", "svg", "section"} & set(page.tags)


def test_everything_given_is_escaped(tmp_path):
    evil = '<script>"x"</script>'
    path = write_report(
        tmp_path / "index.html",
        title=evil,
        summary=evil,
        facts={evil: evil},
        tables=[Table(evil, [[evil]], [evil], note=evil), Table(evil, text=evil)],
        curves=[Curves(evil, {evil: [(0, 1.0)], "b": [(0, 1.0)]}, x_label=evil, y_label=evil)],
        rows=[Row(evil, {evil: image()})],
    )
    page = Page(path.read_text())
    assert page.tags.count("script") == 1  # the page's own
    # Title (twice), summary, fact (2), table (4), table as text (2), curves' heading, key and axes (4), row and caption (2).
    assert page.text.count(evil) == 2 + 1 + 2 + 4 + 2 + 4 + 2


def test_rows_of_one_kind_stand_under_one_heading(tmp_path):
    rows = [Row(name, {"i": image()}, group=group) for name, group in (("a", "First"), ("b", "First"), ("c", "Other"))]
    text = write_report(tmp_path / "index.html", title="x", rows=rows).read_text()
    assert re.findall(r"<h[23]>(.*?)</h[23]>", text) == ["First", "a", "b", "Other", "c"]


def test_bars_and_shares_are_as_long_as_their_numbers(tmp_path):
    table = Table(
        "By category", [["a", 61.94, 3.0], ["b", None, 4.0], ["c", float("nan"), 5.0]], ["", "PQ", "n"], bars=1
    )
    heatmap = Heatmap("Confusion", ["x", "<y>"], [("first", [99.6, 0.4]), ("second", [0.5, 99.5])], note="n & m")
    text = write_report(tmp_path / "index.html", title="t", tables=[table], heatmaps=[heatmap]).read_text()
    page = Page(text)
    cells = re.findall(r'<td class="number bar"><span style="--share:([\d.]+)"></span>([^<]*)</td>', text)
    assert cells == [("61.9", "61.9"), ("0", "n/a")]
    assert re.findall(r'<td class="number" style="--share:(\d+)">(\d*)</td>', text) == [
        ("100", "100"),
        ("0", ""),
        ("0", "0"),  # halves go to the even number
        ("100", "100"),
    ]
    assert page.tags.count("script") == 0 and "<y>" in page.text and "n & m" in page.text
    assert re.findall(r'<th scope="row">(.*?)</th>', text) == ["first", "second"]


def test_cells_show_numbers_as_numbers(tmp_path):
    cells = [["name", 1, 2.345, np.float32(0.25), None, True, np.bool_(False), float("nan")]]
    text = write_report(tmp_path / "index.html", title="x", tables=[Table("t", cells)]).read_text()
    found = re.findall(r"<td( class=\"number\")?>([^<]*)</td>", text)
    assert [value for _, value in found] == ["name", "1", "2.3", "0.2", "", "yes", "no", "n/a"]
    assert [bool(is_number) for is_number, _ in found] == [False, True, True, True, False, False, False, True]


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


def svg_of(*args, **kwargs):
    return ElementTree.fromstring(curves_svg(Curves(*args, **kwargs)))


def drawn_lines(svg, color):
    """The plotted lines of a color, each a list of (x, y) in the SVG's units, and their dash patterns."""
    lines = []
    for path in svg.iter(f"{SVG}path"):
        style = path.get("style", "")
        # The key's samples are lines of two points as well, outside of the axes' clip path.
        if f"stroke: {color}" in style and path.get("clip-path"):
            numbers = [float(word) for word in re.findall(r"-?[\d.]+", path.get("d"))]
            dashes = re.search(r"stroke-dasharray: ([\d., ]+)", style)
            lines.append((list(zip(numbers[::2], numbers[1::2])), dashes.group(1) if dashes else ""))
    return lines


def words_of(svg):
    return ["".join(element.itertext()).strip() for element in svg.iter(f"{SVG}text")]


def test_svg_places_points_in_proportion():
    [(points, dashes)] = drawn_lines(svg_of("x", {"a": [(0, 0.0), (50, 2.5), (100, 10.0)]}), "#0072b2")
    (left, bottom), (middle, quarter), (right, top) = points
    assert left < right and top < bottom and dashes == ""  # y points down
    assert middle == pytest.approx((left + right) / 2, abs=0.01)
    assert bottom - quarter == pytest.approx((bottom - top) / 4, abs=0.01)


def test_losses_are_drawn_from_zero():
    # 10 and 20 lie in the ratio of their heights only if the axis begins at 0, whose tick is named.
    svg = svg_of("x", {"a": [(0, 10.0), (1, 20.0)]})
    assert "0" in words_of(svg) and "20" in words_of(svg)
    below = words_of(svg_of("x", {"a": [(0, -10.0), (1, -20.0)]}))
    assert any("10" in word for word in below) and "0" not in below


def test_svg_has_a_line_of_its_own_look_for_each_series_and_names_it():
    svg = svg_of("Losses & more", {"a<b": [(0, 1.0), (1, 0.5)], "c": [(0, 2.0), (1, 0.125)]}, y_label="nats")
    assert svg.get("role") == "img" and svg.get("aria-label") == "Losses & more"
    [(_, first)], [(_, second)] = drawn_lines(svg, "#0072b2"), drawn_lines(svg, "#d55e00")
    assert first == "" and second == "7,3"
    assert {"a<b  0.5", "c  0.125", "iteration", "nats"} <= set(words_of(svg))


def test_a_running_median_is_drawn_over_the_measured_line():
    points = [(0, 1.0), (1, 9.0), (2, 1.0), (3, 1.0)]
    [(measured, _), (smooth, _)] = drawn_lines(svg_of("x", {"a": points}, smooth=3), "#0072b2")
    assert len({y for _, y in measured}) == 2
    assert smooth[1][1] == pytest.approx(smooth[2][1])  # the one high point is gone
    assert len(drawn_lines(svg_of("x", {"a": points}), "#0072b2")) == 1


def test_svg_takes_the_pages_color_is_the_same_every_time_and_leaves_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    first, second = (curves_svg(Curves("x", {"a": [(0, 1.0), (1, 2.0)]})) for _ in range(2))
    assert first == second
    assert "currentColor" in first and "#010203" not in first and "#000000" not in first
    assert dict(matplotlib.rcParams) == before


def test_plots_of_one_page_share_no_id():
    pages = [svg_of(title, {"a": [(0, 1.0), (1, 2.0)]}) for title in ("first", "second")]
    first, second = ({e.get("id") for e in page.iter() if e.get("id")} for page in pages)
    assert first and not first & second


@pytest.mark.parametrize("points", [[], [(1, float("nan"))]])
def test_svg_without_points_says_so(points):
    assert curves_svg(Curves("a & b", {"a": points})) == '<p class="empty">a &amp; b: no points yet</p>'


@pytest.mark.parametrize("points", [[(5, 1.0)], [(5, 0.0)], [(5, -1.0), (6, -1.0)], [(0, 1e-9), (1, 1e12)]])
def test_svg_of_degenerate_ranges(points):
    svg = svg_of("x", {"a": points})
    [(drawn, _)] = drawn_lines(svg, "#0072b2") if len(points) > 1 else [(points, "")]
    assert len(drawn) == len(points) and "nan" not in ElementTree.tostring(svg, "unicode")
    if len(points) == 1:  # a dot, which a line of one point would not show
        assert any("#0072b2" in use.get("style", "") for use in svg.iter(f"{SVG}use"))


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
