"""Copy-paste against a slow, obvious implementation, and its invariants."""

import random

import numpy as np
import pytest
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from u2seg.config import add_u2seg_config
from u2seg.data.copy_paste import (
    CutLERCopyPaste,
    LayeredCopyPaste,
    build_copy_paste,
    in_layers,
    paste,
    place_fitted,
    place_stretched,
)
from u2seg.data.training_sample import Sample, boxes_of_masks


def make(masks, classes, color, sem_value=3):
    masks = np.asarray(masks, bool)
    height, width = masks.shape[1:]
    image = np.full((height, width, 3), color, np.uint8)
    sem_seg = np.full((height, width), sem_value, np.uint8)
    sem_seg[masks.any(axis=0)] = 0
    return Sample(image, masks, boxes_of_masks(masks), np.asarray(classes, np.int64), sem_seg)


def random_sample(rng, size=(13, 17), count=3, classes=3):
    """Rectangles, of which later ones carve earlier ones."""
    height, width = size
    owner = np.full(size, -1)
    for index in range(count):
        y, x = rng.integers(0, height - 2), rng.integers(0, width - 2)
        owner[y : y + rng.integers(2, 8), x : x + rng.integers(2, 9)] = index
    masks = np.stack([owner == index for index in range(count)])
    sample = make(masks, rng.integers(0, classes, count), 0)
    return Sample(rng.integers(0, 256, (*size, 3)).astype(np.uint8), *[getattr(sample, f) for f in (
        "masks", "boxes_xyxy", "classes", "sem_seg",
    )])  # fmt: skip


def overlapping_sample(rng, size):
    """As ``random_sample``, but the second rectangle reaches into the first."""
    sample = random_sample(rng, size)
    masks = sample.masks.copy()
    masks[1] |= np.roll(masks[0], 1, axis=0)
    return Sample(sample.image, masks, boxes_of_masks(masks), sample.classes, sample.sem_seg)


def covered_share(mask, other):
    area = sum(bool(v) for v in other.ravel())
    return sum(bool(a and b) for a, b in zip(mask.ravel(), other.ravel())) / area if area else 0.0


def slow_layered_paste(target, image, masks, classes, max_ioy):
    """Pixel by pixel: who is on top where; then everything is read off that map."""
    worst = [max(covered_share(mask, other) for other in target.masks) for mask in masks]
    accepted = [n for n, mask in enumerate(masks) if mask.any() and worst[n] < max_ioy]
    out_image, out_sem = target.image.copy(), target.sem_seg.copy()
    top = np.full(target.size, -1)
    for y, x in np.ndindex(*target.size):
        for n in accepted:
            if masks[n, y, x]:
                top[y, x] = n
                out_image[y, x] = image[y, x]
                out_sem[y, x] = 0
    instances = [(mask & (top < 0), label) for mask, label in zip(target.masks, target.classes)]
    instances += [(top == n, classes[n]) for n in accepted]
    return out_image, out_sem, [(mask, label) for mask, label in instances if mask.any()], accepted


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 0.9, 2.0]))
@settings(max_examples=60, deadline=None)
def test_pasting_in_layers_equals_the_slow_one(seed, max_ioy):
    rng = np.random.default_rng(seed)
    target, source = random_sample(rng), overlapping_sample(rng, size=(11, 9))
    layered, chosen = LayeredCopyPaste(max_ioy=max_ioy), np.arange(3)
    got = layered.lay(target, source, chosen, np.random.default_rng(seed))
    same = np.random.default_rng(seed)
    image, masks = place_fitted(source, chosen, target.size, same.uniform(0.3, 1.0), same)
    out_image, out_sem, instances, accepted = slow_layered_paste(target, image, masks, source.classes, max_ioy)
    if not accepted:
        assert got is target
        return
    assert (got.image == out_image).all() and (got.sem_seg == out_sem).all()
    assert len(got.masks) == len(instances) == len(got.classes) == len(got.boxes_xyxy)
    for mask, label, (expected, expected_label) in zip(got.masks, got.classes, instances):
        assert (mask == expected).all() and label == expected_label
    assert np.allclose(got.boxes_xyxy, boxes_of_masks(got.masks))


def slow_bilinear(values, size):
    """Samples at the centers of the new pixels, between the four nearest old ones; the border repeats."""
    (rows, columns), (height, width) = values.shape, size
    result = np.zeros(size)
    for y, x in np.ndindex(*size):
        row = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
        column = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
        top, left = int(row), int(column)
        for r, c in ((top, left), (top + 1, left), (top, left + 1), (top + 1, left + 1)):
            weight = max(0, 1 - abs(row - r)) * max(0, 1 - abs(column - c))
            if weight > 0:
                result[y, x] += weight * values[r, c]
    return result


def slow_cutler_paste(target, source, chosen, box, max_ioy):
    """CutLER's rules from its description; ``box`` is (top, left, height, width) of the stretched source."""
    top, left, height, width = box
    canvas = np.zeros((*target.size, 3))
    for channel in range(3):
        small = slow_bilinear(source.image[..., channel].astype(float), (height, width))
        canvas[top : top + height, left : left + width, channel] = small
    pasted = []
    for index in chosen:
        mask = np.zeros(target.size, bool)
        mask[top : top + height, left : left + width] = (
            slow_bilinear(source.masks[index].astype(float), (height, width)) > 0
        )
        if mask.any() and all(covered_share(mask, other) < max_ioy for other in target.masks):
            pasted.append((mask, source.classes[index]))
    if not pasted:
        return None
    cover = np.zeros(target.size, bool)
    for mask, _ in pasted:
        cover |= mask
    old = [(mask & ~cover, label) for mask, label in zip(target.masks, target.classes)]
    return canvas, cover, [(mask, label) for mask, label in old if mask.any()] + pasted


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.5, 2.0]))
@settings(max_examples=40, deadline=None)
def test_cutlers_paste_equals_the_slow_one(seed, max_ioy):
    rng = np.random.default_rng(seed)
    target, source = random_sample(rng), overlapping_sample(rng, size=(9, 12))
    chosen = np.flatnonzero(source.masks.any(axis=(1, 2)))[:2]
    got = CutLERCopyPaste(max_ioy=max_ioy).lay(target, source, chosen, np.random.default_rng(seed))
    same = np.random.default_rng(seed)
    scale = same.uniform(0.3, 1.0)
    height, width = int(scale * target.size[0]), int(scale * target.size[1])
    top, left = same.integers(0, target.size[0] - height + 1), same.integers(0, target.size[1] - width + 1)
    expected = slow_cutler_paste(target, source, chosen, (top, left, height, width), max_ioy)
    if expected is None:
        assert got is target
        return
    canvas, cover, instances = expected
    assert len(got.masks) == len(instances)
    for mask, label, (slow_mask, slow_label) in zip(got.masks, got.classes, instances):
        assert (mask == slow_mask).all() and label == slow_label
    assert (got.boxes_xyxy == boxes_of_masks(got.masks)).all()
    assert (got.image[~cover] == target.image[~cover]).all()
    # Rounded down; a value that is whole in exact arithmetic may come out one lower in single precision.
    assert (np.abs(got.image[cover] - (canvas[cover] - 0.5)) <= 0.5 + 1e-3).all()
    assert (got.sem_seg[cover] == 0).all() and (got.sem_seg[~cover] == target.sem_seg[~cover]).all()


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        (CutLERCopyPaste, {1: {1}, 2: {1}, 3: {1, 2}, 4: {1, 2, 3}}),
        (LayeredCopyPaste, {1: {1}, 2: {1, 2}, 3: {1, 2, 3}}),
    ],
)
def test_how_many_of_n_instances_are_tried(kind, counts):
    rng = np.random.default_rng(0)
    for available, expected in counts.items():
        source = make([np.eye(5, dtype=bool)] * available, range(available), 0)
        drawn = [len(kind().choose(source, source, rng)) for _ in range(300)]
        assert set(drawn) == expected
        # Uniform: each number is drawn 300 / k times, k >= 1; five standard deviations are below 41.
        assert all(abs(drawn.count(number) - 300 / len(expected)) < 41 for number in expected)


def test_cutlers_paste_takes_the_target_s_shape_and_keeps_overlaps():
    # A square object in a square source, laid over a target of 240 x 160 (width x height): it becomes 1.5 times as wide as high.
    square = np.zeros((2, 60, 60), bool)
    square[0, 20:40, 20:40] = square[1, 10:30, 10:30] = True
    source = make(square, [1, 2], 200)
    target = make(np.zeros((0, 160, 240), bool), [], 0)
    copy_paste = CutLERCopyPaste(scale_range=(1.0, 1.0))
    got = copy_paste.lay(target, source, np.array([0, 1]), np.random.default_rng(0))
    for box in got.boxes_xyxy:
        assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(1.5, abs=0.05)
    assert (got.masks[0] & got.masks[1]).any()
    kept = LayeredCopyPaste(scale_range=(1.0, 1.0)).lay(target, source, np.array([0]), np.random.default_rng(0))
    assert (kept.boxes_xyxy[0, 2:] - kept.boxes_xyxy[0, :2]).tolist() == [53, 53]  # 20 of 60, at 160 / 60


def test_layers_are_disjoint_and_the_last_one_is_whole():
    masks = np.zeros((3, 2, 4), bool)
    masks[0], masks[1, :, 1:], masks[2, 0, 2:] = True, True, True
    layers = in_layers(masks)
    assert [layer.astype(int).tolist() for layer in layers] == [
        [[1, 0, 0, 0], [1, 0, 0, 0]],
        [[0, 1, 0, 0], [0, 1, 1, 1]],
        [[0, 0, 1, 1], [0, 0, 0, 0]],
    ]
    assert masks[0].all()  # the masks given stay


def test_on_a_hand_made_case():
    # The target holds a 2x2 square at the left; a 3x3 square is pasted over its right half, 2 of its 4 pixels (IoY 0.5).
    target_mask = np.zeros((1, 4, 6), bool)
    target_mask[0, 1:3, 1:3] = True
    target = make(target_mask, [7], 10)
    pasted = np.zeros((1, 4, 6), bool)
    pasted[0, 0:3, 2:5] = True
    image = np.full((4, 6, 3), 200, np.uint8)
    assert paste(target, image, pasted, np.array([4]), 0.5) is target  # refused from 0.5 on
    got = paste(target, image, pasted, np.array([4]), 0.51)
    assert got.classes.tolist() == [7, 4]
    assert got.boxes_xyxy.tolist() == [[1, 1, 2, 3], [2, 0, 5, 3]]
    assert got.masks[0].sum() == 2 and got.masks[1].sum() == 9
    assert (got.image[pasted[0]] == 200).all() and (got.image[~pasted[0]] == 10).all()
    assert (got.sem_seg == 0).sum() == 11  # 2 left of the target's, 9 pasted
    assert target.masks.sum() == 4 and (target.image == 10).all()  # the target itself is as it was


def test_what_is_hidden_completely_is_dropped():
    small = np.zeros((1, 4, 4), bool)
    small[0, 1, 1] = True
    target = make(small, [1], 0)
    got = paste(target, target.image, np.ones((1, 4, 4), bool), np.array([2]), max_ioy=2.0)
    assert got.classes.tolist() == [2]


def test_fitting_keeps_the_aspect_ratio_and_stays_inside():
    source = make(np.ones((1, 10, 40), bool), [0], 9)
    for seed in range(20):
        image, masks = place_fitted(source, np.array([0]), (30, 50), 0.5, np.random.default_rng(seed))
        # The largest scale that fits 30x50 is min(3, 1.25); half of it is 0.625: 6 x 25 pixels.
        assert masks.sum() == 6 * 25
        assert boxes_of_masks(masks)[0, 2:].tolist() == (boxes_of_masks(masks)[0, :2] + [25, 6]).tolist()
        assert (image[masks[0]] == 9).all() and (image[~masks[0]] == 0).all()


def test_a_source_larger_than_the_target_is_cut():
    source = make(np.ones((1, 8, 8), bool), [0], 9)
    _, masks = place_fitted(source, np.array([0]), (5, 7), 2.0, np.random.default_rng(0))
    assert masks.shape == (1, 5, 7) and masks.all()


def test_stretching_fills_the_share_of_each_side():
    source = make(np.ones((1, 10, 40), bool), [0], 9)
    for seed in range(20):
        image, masks = place_stretched(source, np.array([0]), (31, 50), 0.5, np.random.default_rng(seed))
        assert masks.sum() == 15 * 25  # sides rounded down
        assert (image[masks[0]] == 9).all() and (image[~masks[0]] == 0).all()
    _, masks = place_stretched(source, np.array([0]), (31, 50), 1.0, np.random.default_rng(0))
    assert masks.all()


def test_only_shared_clusters_are_pasted_where_asked_for():
    rng = np.random.default_rng(0)
    target = make(np.eye(4, dtype=bool)[None], [5], 0)
    stripes = np.zeros((3, 4, 4), bool)
    for index in range(3):
        stripes[index, :, index] = True
    source = make(stripes, [5, 6, 5], 0)
    chosen = {tuple(LayeredCopyPaste(same_cluster=True).choose(target, source, rng).tolist()) for _ in range(60)}
    assert chosen == {(0,), (2,), (0, 2)}
    # Two are shared, of which CutLER's rule leaves one out.
    chosen = {tuple(CutLERCopyPaste(same_cluster=True).choose(target, source, rng).tolist()) for _ in range(60)}
    assert chosen == {(0,), (2,)}
    one = LayeredCopyPaste(max_instances=1)
    assert {tuple(one.choose(target, source, rng).tolist()) for _ in range(60)} == {(0,), (1,), (2,)}
    other = make(np.eye(4, dtype=bool)[None], [9], 0)
    assert len(LayeredCopyPaste(same_cluster=True).choose(other, source, rng)) == 0


def test_the_source_is_not_decoded_in_vain():
    def never():
        raise AssertionError("decoded")

    target = make(np.eye(4, dtype=bool)[None], [5], 0)
    assert CutLERCopyPaste(probability=0.0)(target, never) is target
    empty = make(np.zeros((0, 4, 4), bool), [], 0)
    assert CutLERCopyPaste(same_cluster=True)(empty, never) is empty


def test_probability_and_seed():
    target = random_sample(np.random.default_rng(1), size=(30, 40))
    source = random_sample(np.random.default_rng(2), size=(20, 20))
    copy_paste = LayeredCopyPaste(probability=0.5, max_ioy=2.0)
    random.seed(3)
    first = [copy_paste(target, lambda: source) for _ in range(200)]
    random.seed(3)
    second = [copy_paste(target, lambda: source) for _ in range(200)]
    assert all((a.image == b.image).all() for a, b in zip(first, second))
    assert 70 < sum(one is not target for one in first) < 130  # 100 expected, 4.2 standard deviations of 7.07


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"SCALE_RANGE must be 0 < low <= high, got \(1\.0, 0\.5\)"):
        LayeredCopyPaste(scale_range=(1.0, 0.5))
    with pytest.raises(ValueError, match=r"PROBABILITY must be in 0\.\.1, got 1\.5"):
        LayeredCopyPaste(probability=1.5)
    with pytest.raises(
        ValueError, match=r"must not exceed 1\.0 for CutLERCopyPaste.*got \(0\.5, 1\.5\); LayeredCopyPaste"
    ):
        CutLERCopyPaste(scale_range=(0.5, 1.5))


def test_the_configuration_chooses_the_class_and_its_settings():
    cfg = get_cfg()
    add_u2seg_config(cfg)
    assert build_copy_paste(cfg) == CutLERCopyPaste()
    cfg.INPUT.COPY_PASTE.NAME, cfg.INPUT.COPY_PASTE.SCALE_RANGE = "LayeredCopyPaste", [0.5, 1.5]
    assert build_copy_paste(cfg) == LayeredCopyPaste(scale_range=(0.5, 1.5))
    cfg.INPUT.COPY_PASTE.NAME = "CopyPaste"
    with pytest.raises(
        ValueError, match=r"INPUT.COPY_PASTE.NAME 'CopyPaste'; registered: CutLERCopyPaste, LayeredCopyPaste"
    ):
        build_copy_paste(cfg)
