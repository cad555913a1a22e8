"""mIoU against a plain confusion matrix; boundary IoU against masks and erosions."""

import numpy as np
import pytest
from scipy import ndimage
from u2seg.evaluation.matching.label_map import LabelMap, SemanticMap
from u2seg.evaluation.matching.protocols import build_protocol
from u2seg.evaluation.metrics.semantic_scores import semantic_scores
from u2seg.evaluation.scoring import ScoreSettings, _matched
from u2seg.evaluation.tables.image_tables import boundary_rows, head_blocks, image_tables, near_border
from u2seg.evaluation.tables.segment_tables import TableSpace, concatenate_tables
from u2seg.structures.label_space import LabelSpace

C = 5
SPACE = TableSpace("toy", 1, C, LabelSpace((), tuple(range(1, C + 1)), (), tuple("abcde")), ("semantic", "boundary"))


def blocky(rng, size, high, low=0):
    small = rng.integers(low, high, (-(-size[0] // 5), -(-size[1] // 5)))
    return np.kron(small, np.ones((5, 5), int))[: size[0], : size[1]]


@pytest.fixture(scope="module")
def case():
    """Six images: ground truth labels (-1 void; label 4 never occurs), head labels 0..5, and a map of head labels to classes."""
    rng = np.random.default_rng(0)
    lookup = np.array([-1, 2, 0, 1, 3, -1])
    maps = []
    for _ in range(6):
        size = tuple(rng.integers(20, 40, 2))
        maps.append((blocky(rng, size, 4, -1), blocky(rng, size, C + 1)))
    parts = [
        image_tables(
            SPACE,
            i + 1,
            gt.shape,
            **head_blocks(gt + 1, {label + 1: label for label in range(C)}, head),
            head_boundary=boundary_rows(gt, head, 0.04),
        )
        for i, (gt, head) in enumerate(maps)
    ]
    return maps, lookup, concatenate_tables(parts)


def scored(tables, lookup):
    semantic = SemanticMap("head", lookup, np.arange(C), SPACE.categories.stuff_names)
    nothing = np.full(SPACE.num_clusters, -1)
    return _matched(tables, LabelMap(nothing, nothing, semantic), build_protocol("stego"), ScoreSettings(())).scores()[
        "sem_seg"
    ]


def test_equals_a_plain_confusion_matrix(case):
    maps, lookup, tables = case
    gt = np.concatenate([t.ravel() for t, _ in maps])
    predicted = np.concatenate([lookup[h].ravel() for _, h in maps])
    ious, accuracies, frequency = [], [], []
    for label in range(C):
        hit = ((gt == label) & (predicted == label)).sum()
        if (gt == label).any():
            ious.append(hit / ((gt == label) | ((predicted == label) & (gt >= 0))).sum())
            accuracies.append(hit / (gt == label).sum())
            frequency.append((gt == label).sum() / (gt >= 0).sum())
    scores = scored(tables, lookup)
    assert scores["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert scores["mACC"] == pytest.approx(100 * np.mean(accuracies))
    assert scores["fwIoU"] == pytest.approx(100 * np.dot(ious, frequency))
    assert scores["pACC"] == pytest.approx(100 * ((gt == predicted) & (gt >= 0)).sum() / (gt >= 0).sum())


def test_boundary_iou_equals_masks_minus_their_erosion_where_no_clusters_merge(case):
    maps, lookup, tables = case
    both, in_gt, in_predicted = np.zeros(C), np.zeros(C), np.zeros(C)
    for gt, head in maps:
        distance = max(1, round(0.04 * np.hypot(*gt.shape)))
        square = np.ones((2 * distance + 1,) * 2, bool)
        for label in range(C):
            g, p = gt == label, lookup[head] == label
            g = g & ~ndimage.binary_erosion(g, square)  # outside of the image counts as background
            p = p & ~ndimage.binary_erosion(p, square) & (gt >= 0)
            both[label] += (g & p).sum()
            in_gt[label] += g.sum()
            in_predicted[label] += p.sum()
    occurs = in_gt > 0
    expected = (both / (in_gt + in_predicted - both + 1e-12))[occurs].mean()
    assert scored(tables, lookup)["boundary_IoU"] == pytest.approx(100 * expected)


def test_near_border_of_one_label_is_the_image_edge():
    near = near_border(np.zeros((7, 9), int), 2)
    assert near.sum() == 7 * 9 - 3 * 5


def test_a_matrix_without_the_row_for_none_is_refused():
    with pytest.raises(
        ValueError, match=r"shape \(categories \+ 1, categories\), the last row for 'none', got \(3, 3\)"
    ):
        semantic_scores(np.zeros((3, 3)))
