from dataclasses import replace

import numpy as np
import pytest
from u2seg.structures.label_space import LabelSpace
from u2seg.visualization import ClassStyle, cluster_color, contiguous_segments, draw_panoptic
from u2seg.visualization.panoptic_drawing import LegendEntry, _legend_entries, _Segment, draw_for_page

STYLE = ClassStyle.of_names(["1", "2", "3"], ["things", "4", "5"])


def numbered(num_things):
    return ClassStyle.of_names([str(i) for i in range(1, num_things + 1)], ["things"])


def scene():
    """A 40 x 60 gray image: a thing on the left, stuff on the right, void in the middle."""
    image = np.full((40, 60, 3), 100, np.uint8)
    panoptic = np.zeros((40, 60), np.int32)
    panoptic[:, :20] = 7
    panoptic[:, 40:] = 9
    segments = [
        {"id": 7, "isthing": True, "category_id": 2, "score": 0.9},
        {"id": 9, "isthing": False, "category_id": 1},
    ]
    return image, panoptic, segments


def plain(image, panoptic, segments, style=STYLE):
    return draw_panoptic(image, panoptic, segments, style, names_on_segments=False, legend=False, min_side=0)


def test_tints_are_mixtures_and_void_stays():
    image, panoptic, segments = scene()
    drawn = plain(image, panoptic, segments)
    # Inside the thing: half image, half color. Stuff: 55 % and 45 %.
    assert drawn[20, 10].tolist() == np.rint(0.5 * 100 + 0.5 * np.array(cluster_color("thing", 2))).tolist()
    # Stuff cluster 0 has contiguous id 1, since 0 is "things".
    expected = np.rint(0.55 * 100 + 0.45 * np.array(cluster_color("stuff", 0)))
    assert np.abs(drawn[20, 50] - expected).max() <= 1
    assert (drawn[:, 20:40] == 100).all()


def test_other_colors_on_request():
    image, panoptic, segments = scene()
    style = replace(
        STYLE,
        thing_colors=[(0, 0, 0), (0, 0, 0), (255, 0, 0)],
        stuff_colors=[(0, 0, 0), (0, 0, 255), (0, 0, 0)],
    )
    drawn = plain(image, panoptic, segments, style)
    assert drawn[20, 10].tolist() == [178, 50, 50]  # half of 100 and half of 255, to even: 177.5
    assert drawn[20, 50].tolist() == [55, 55, 170]  # 0.55 * 100 and 0.45 * 255 = 114.75


def test_only_things_have_outlines():
    image, panoptic, segments = scene()
    drawn = plain(image, panoptic, segments)
    assert (drawn[0, 10] != drawn[20, 10]).any()
    assert (drawn[:, 40:] == drawn[20, 50]).all()


def test_touching_things_of_one_cluster_are_parted():
    image, panoptic, segments = scene()
    panoptic[20:, :20] = 8
    segments.append({"id": 8, "isthing": True, "category_id": 2})
    drawn = plain(image, panoptic, segments)
    assert (drawn[19, 10] != drawn[10, 10]).any()
    assert (drawn[20, 10] != drawn[30, 10]).any()


def test_names_and_legend_leave_the_image_size():
    image, panoptic, segments = scene()
    drawn = draw_panoptic(image, panoptic, segments, STYLE, min_side=160)
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > 160 and drawn.shape[1:] == (240, 3)  # four times 40 x 60, and the legend below
    no_legend = draw_panoptic(image, panoptic, segments, STYLE, min_side=160, legend=False)
    assert no_legend.shape == (160, 240, 3)
    assert (drawn[:160] == no_legend).all()
    no_names = draw_panoptic(image, panoptic, segments, STYLE, min_side=160, legend=False, names_on_segments=False)
    assert (no_names[:, :80] != no_legend[:, :80]).any(), "the thing's name should stand on it"


def test_for_a_page_the_legend_is_text_and_the_image_keeps_its_shape():
    image, panoptic, segments = scene()
    style = replace(STYLE, thing_colors=[(1, 2, 3)] * 3)
    drawing = draw_for_page(image, panoptic, iter(segments), style)
    without = draw_panoptic(image, panoptic, segments, style, legend=False)
    assert (drawing.image_rgb == without).all() and drawing.image_rgb.shape == (320, 480, 3)
    assert drawing.legend[0][:2] == ((1, 2, 3), True) and drawing.legend[0].text == "3 (33%)"
    many = np.arange(1, 31).reshape(5, 6)
    things = [{"id": i, "isthing": True, "category_id": i - 1} for i in range(1, 31)]
    legend = draw_for_page(np.zeros((5, 6, 3), np.uint8), many, things, numbered(30)).legend
    assert len(legend) == 24 and legend[-1] == LegendEntry(None, False, "and 7 more")


def test_does_not_change_its_arguments():
    image, panoptic, segments = scene()
    before = image.copy(), panoptic.copy()
    draw_panoptic(image, panoptic, segments, STYLE)
    assert (image == before[0]).all() and (panoptic == before[1]).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (2, 3)])
def test_tiny_images(shape):
    image = np.zeros((*shape, 3), np.uint8)
    segments = [{"id": 1, "isthing": True, "category_id": 0}]
    drawn = draw_panoptic(image, np.ones(shape, np.uint8), segments, STYLE, min_side=20)
    assert drawn.shape[1] >= shape[1]


def test_empty_map_is_the_image_itself():
    image, panoptic, _ = scene()
    assert (plain(image, np.zeros_like(panoptic), []) == image).all()


def test_segments_without_pixels_and_unknown_ids_are_not_drawn():
    image, panoptic, segments = scene()
    extra = [*segments, {"id": 99, "isthing": True, "category_id": 0}]
    assert (plain(image, panoptic, extra) == plain(image, panoptic, segments)).all()
    assert (plain(image, panoptic, segments[:1])[:, 40:] == 100).all()


def test_legend_counts_segments_of_one_name():
    def segment(id, is_thing, name, area):
        return _Segment(id, is_thing, id, name, None, (1, 2, 3), area)

    segments = [
        segment(1, False, "sky", 30),
        segment(2, True, "cat", 5),
        segment(3, True, "cat", 15),
        segment(4, True, "dog", 1),
    ]
    texts = [text for *_, text in _legend_entries(segments, 1000)]
    assert texts == ["cat x2 (2%)", "dog (<1%)", "sky (3%)", "unlabeled (95%)"]


def test_many_segments_fill_a_legend_that_stays_bounded():
    panoptic = np.arange(1, 801).reshape(20, 40).repeat(10, axis=0).repeat(10, axis=1)
    image = np.zeros((200, 400, 3), np.uint8)
    segments = [{"id": i, "isthing": True, "category_id": i - 1} for i in range(1, 801)]
    drawn = draw_panoptic(image, panoptic, segments, numbered(800), min_side=0)
    assert drawn.shape[0] < 2 * 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_rgb": np.zeros((3, 40, 60), np.uint8)}, r"uint8 of shape \(H, W, 3\), got uint8 \(3, 40, 60\)"),
        ({"image_rgb": np.zeros((40, 60, 3), np.float32)}, "got float32"),
        ({"panoptic_map": np.zeros((60, 40), int)}, r"shape \(40, 60\) to match the image, got \(60, 40\)"),
        (
            {"segments_info": [{"id": 7, "isthing": True, "category_id": 3}]},
            r"segment 7 has thing category_id 3, .* 0\.\.2",
        ),
        (
            {"segments_info": [{"id": 9, "isthing": False, "category_id": 53}]},
            r"stuff category_id 53, .* 0\.\.2",
        ),
    ],
)
def test_bad_arguments(change, message):
    image, panoptic, segments = scene()
    arguments = {"image_rgb": image, "panoptic_map": panoptic, "segments_info": segments, **change}
    with pytest.raises(ValueError, match=message):
        draw_panoptic(**arguments, style=STYLE)


def test_contiguous_segments():
    space = LabelSpace.of_clusters(3, 2)  # things 1..3, stuff 4..5
    converted = contiguous_segments([{"id": 7, "category_id": 3, "area": 5}, {"id": 9, "category_id": 4}], space)
    assert converted == [
        {"id": 7, "category_id": 2, "area": 5, "isthing": True},
        {"id": 9, "category_id": 1, "isthing": False},
    ]
    with pytest.raises(ValueError, match="segment 1 has category_id 6"):
        contiguous_segments([{"id": 1, "category_id": 6}], space)
