"""The page of a run: which images are called the best and the worst, and what its table says of seeds."""

import numpy as np
import pytest
from u2seg.engine.end_to_end import RunDirectories
from u2seg.engine.end_to_end_report import _best_and_worst, _Shown, comparison_table, segment_agreement
from u2seg.utils.files import write_json
from u2seg.visualization.html_report import Row

# A wall (1), a floor (2) of as many pixels, and a thing (3) of two pixels; the corner is void.
REFERENCE = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 3, 3], [2, 2, 2, 2, 2], [2, 2, 2, 2, 2]])


def test_the_same_map_agrees_and_an_empty_one_does_not():
    assert segment_agreement((REFERENCE, {3}), (REFERENCE + 10, {13})) == 1
    assert segment_agreement((REFERENCE, {3}), (np.zeros_like(REFERENCE), set())) == 0
    assert segment_agreement((np.zeros_like(REFERENCE), set()), (REFERENCE, {3})) == 1


def test_a_missed_thing_counts_as_much_as_all_stuff():
    predicted = np.where(REFERENCE == 3, 1, REFERENCE)
    # The wall has 7 pixels, of 9 that are predicted; the floor is exact; the thing is not found.
    assert segment_agreement((REFERENCE, {3}), (predicted, set())) == pytest.approx((0 + (7 / 9 + 1) / 2) / 2)


def test_a_thing_that_is_predicted_as_stuff_is_not_found():
    assert segment_agreement((REFERENCE, {3}), (REFERENCE, set())) == 0.5


def shown(name: str, agreement: float, has_things: bool) -> _Shown:
    return _Shown(Row(name, {"image": np.zeros((2, 2, 3), np.uint8)}), agreement, has_things)


def test_the_best_and_the_worst_are_images_with_things():
    rows = _best_and_worst([shown("a", 0.9, False), shown("b", 0.4, True), shown("c", 0.2, True)], "ground truth")
    assert rows[0].title == "Most like its ground truth: b (agreement 0.40; 1 means identical)"
    assert rows[1].title == "Least like its ground truth: c (agreement 0.20; 1 means identical)"
    without = _best_and_worst([shown("a", 0.9, False), shown("b", 0.4, True)], "ground truth")
    assert ": a (" in without[0].title and ": b (" in without[1].title
    assert _best_and_worst([shown("a", 0.9, True)], "ground truth") == []
    # Where the model finds nothing in any image, no image is better than another.
    assert _best_and_worst([shown("a", 0.0, True), shown("b", 0.0, True)], "ground truth") == []


def test_other_seeds_are_summarized(tmp_path):
    def write(path, quality):
        write_json(path, {"panoptic_seg": {"hungarian": {"PQ": quality}}})

    write(tmp_path / "metrics.json", 30.0)
    assert "not known here" in comparison_table(RunDirectories(tmp_path), "val", None).note
    for seed, quality in ((1, 36.0), (2, 33.0)):
        write(tmp_path / "seeds" / str(seed) / "metrics.json", quality)
    table = comparison_table(RunDirectories(tmp_path), "val", None)
    rows = {row[0]: row[1] for row in table.rows}
    assert [rows[f"model trained on pseudo-labels, {name} of 3 seeds"] for name in ("mean", "smallest", "largest")] == [
        33.0,
        30.0,
        36.0,
    ]
    assert table.rows[-1][2] is None and "not known" not in table.note
