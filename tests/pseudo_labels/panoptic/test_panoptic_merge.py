"""The merge rule on hand-written 8x8 maps, and its properties against an obvious implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from u2seg.pseudo_labels.panoptic.panoptic_merge import box_areas, mask_areas, merge_panoptic


def box(top, left, bottom, right, shape=(8, 8)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_small_instances_win_over_large_ones_whatever_their_order():
    big, small = box(0, 0, 6, 6), box(2, 2, 4, 4)
    for masks, clusters in (([big, small], [5, 9]), ([small, big], [9, 5])):
        panoptic, segments = merge_panoptic(np.stack(masks), np.array(clusters), np.full((8, 8), 255))
        inner = panoptic[2, 2]
        by_id = {segment.segment_id: segment for segment in segments}
        assert by_id[inner].cluster == 9 and by_id[inner].area == 4
        assert by_id[panoptic[0, 0]].cluster == 5 and by_id[panoptic[0, 0]].area == 32
        assert (panoptic == 0).sum() == 64 - 36


def thin_and_square():
    """A diagonal line of 6 pixels in a box of 36, and a square of 16 that crosses it."""
    return np.stack([np.pad(np.eye(6, dtype=bool), ((0, 2), (0, 2))), box(1, 1, 5, 5)])


def test_sizes_on_a_hand_made_case():
    masks = np.concatenate([thin_and_square(), np.zeros((1, 8, 8), bool)])
    assert box_areas(masks).tolist() == [36, 16, 0]
    assert mask_areas(masks).tolist() == [6, 16, 0]
    assert box_areas(masks[:0]).tolist() == mask_areas(masks[:0]).tolist() == []


def test_what_size_is_decides_who_wins():
    semantic = np.full((8, 8), 255)
    # By box the line is the larger one and lies behind: only its ends are seen. By mask it lies in front.
    _, segments = merge_panoptic(thin_and_square(), np.array([0, 1]), semantic, size_of=box_areas)
    assert [segment.area for segment in segments] == [2, 16]
    _, segments = merge_panoptic(thin_and_square(), np.array([0, 1]), semantic, size_of=mask_areas)
    assert [segment.area for segment in segments] == [6, 12]


def test_of_equal_sizes_the_last_one_lies_in_front():
    masks = np.stack([box(0, 0, 2, 4), box(1, 0, 3, 4)])
    for size_of in (box_areas, mask_areas):
        _, segments = merge_panoptic(masks, np.array([0, 1]), np.full((8, 8), 255), size_of=size_of)
        assert [segment.area for segment in segments] == [4, 8]


def test_a_covered_instance_vanishes_and_is_not_listed():
    # Two small boxes tile the large one completely.
    masks = np.stack([box(0, 0, 2, 4), box(0, 0, 2, 2), box(0, 2, 2, 4)])
    panoptic, segments = merge_panoptic(masks, np.array([0, 1, 2]), np.full((8, 8), 255))
    assert [segment.cluster for segment in segments] == [1, 2]
    assert [segment.source for segment in segments] == [1, 2]
    assert set(np.unique(panoptic)) == {0, 1, 2}


def test_pixels_of_a_dropped_sliver_return_to_what_lies_below():
    # The small mask hides all but 1 pixel of the middle one; the middle one is dropped, the large one below takes that pixel.
    large, middle, small = box(0, 0, 8, 8), box(0, 0, 2, 2), np.zeros((8, 8), bool)
    small[0, 0] = small[0, 1] = small[1, 0] = True
    panoptic, segments = merge_panoptic(
        np.stack([large, middle, small]),
        np.array([0, 1, 2]),
        np.full((8, 8), 255),
        size_of=mask_areas,
        min_instance_pixels=2,
    )
    assert [(segment.cluster, segment.area) for segment in segments] == [(0, 61), (2, 3)]
    assert panoptic[1, 1] == segments[0].segment_id


def test_stuff_more_than_seventy_percent_covered_is_void():
    # Cluster 3: rows 0-1, 16 pixels. Covered 12 of 16 = 75 %: its 4 free pixels are void. Cluster 4 has the rest.
    semantic = np.full((8, 8), 4)
    semantic[:2] = 3
    panoptic, segments = merge_panoptic(box(0, 0, 2, 6)[None], np.array([0]), semantic)
    assert [(s.cluster, s.is_thing, s.area) for s in segments] == [(0, True, 12), (4, False, 48)]
    assert (panoptic[:2, 6:] == 0).all()
    # At exactly 70 % (7 of 10) it is kept.
    semantic = np.full((10, 1), 3)
    _, segments = merge_panoptic(box(0, 0, 7, 1, (10, 1))[None], np.array([0]), semantic, max_covered=0.7)
    assert [(s.cluster, s.area) for s in segments] == [(0, 7), (3, 3)]


def test_unknown_pixels_stay_void_and_an_image_without_instances_keeps_its_stuff():
    semantic = np.full((4, 6), 255)
    semantic[:, :2] = 0
    panoptic, segments = merge_panoptic(np.zeros((0, 4, 6), bool), np.zeros(0, int), semantic)
    assert [(s.cluster, s.is_thing, s.area, s.source) for s in segments] == [(0, False, 8, -1)]
    assert (panoptic[:, 2:] == 0).all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"bool of shape \(N, 4, 6\).*got uint8 \(1, 6, 4\)"):
        merge_panoptic(np.zeros((1, 6, 4), np.uint8), np.array([0]), np.zeros((4, 6), int))
    with pytest.raises(ValueError, match="2 masks need as many clusters, got 1"):
        merge_panoptic(np.zeros((2, 4, 6), bool), np.array([0]), np.zeros((4, 6), int))


def slow_box_area(mask):
    cells = [(row, column) for row, column in np.ndindex(*mask.shape) if mask[row, column]]
    if not cells:
        return 0
    rows, columns = [cell[0] for cell in cells], [cell[1] for cell in cells]
    return (max(rows) - min(rows) + 1) * (max(columns) - min(columns) + 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.sampled_from([box_areas, mask_areas]))
def test_every_pixel_follows_the_rule(seed, count, size_of):
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 6, 9)) < rng.uniform(0.05, 0.8, (count, 1, 1))
    masks = masks.astype(bool)
    semantic = rng.integers(0, 3, (6, 9))
    if count and rng.random() < 0.5:
        masks[rng.integers(count), :, 3:] = False  # a narrower box
    panoptic, segments = merge_panoptic(masks, np.arange(count), semantic, size_of=size_of)
    areas = [slow_box_area(mask) if size_of is box_areas else mask.sum() for mask in masks]
    by_id = {segment.segment_id: segment for segment in segments}
    for row, column in np.ndindex(6, 9):
        over = [i for i in range(count) if masks[i, row, column]]
        segment = by_id.get(panoptic[row, column])
        if over:  # the smallest wins; of equals the one that came last
            assert segment.source == min(over, key=lambda i: (areas[i], -i))
        else:
            region = semantic == semantic[row, column]
            covered = (region & masks.any(0)).sum() / region.sum()
            assert (segment is None) == (covered > 0.7)
            assert segment is None or segment.cluster == semantic[row, column]
    for segment in segments:
        assert segment.area == (panoptic == segment.segment_id).sum() > 0
