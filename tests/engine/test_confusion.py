"""The confusion of clusters and categories on a run's page."""

import numpy as np
from u2seg.engine.end_to_end_report import confusion_heatmap
from u2seg.evaluation.tables.segment_tables import GT, OVERLAPS, PREDICTED, TableSpace, empty_tables
from u2seg.structures.label_space import LabelSpace


def test_shares_are_of_each_clusters_pixels_on_ground_truth():
    categories = LabelSpace((1, 2), (3,), ("cat", "dog"), ("sky",))
    empty = empty_tables(TableSpace("toy", 2, 1, categories, ("panoptic",)))
    # Two images; predicted segments: thing 0 twice, thing 1, stuff 0 (joint 2). Ground truth: cat, dog, sky, cat.
    predicted = np.array([(0, 0, 50, 0.9), (1, 0, 30, 0.8), (1, 1, 5, 0.7), (0, 2, 20, 0.0)], PREDICTED)
    gt = np.array([(0, 0, 40, False), (0, 1, 10, False), (0, 2, 20, False), (1, 0, 35, False)], GT)
    # The last two rows are void on one side, and count nowhere.
    overlaps = [(0, 0, 40), (1, 0, 10), (2, 3, 20), (3, 1, 30), (3, 2, 5), (-1, 3, 1000), (0, -1, 1000)]
    tables = type(empty)(**{**vars(empty), "predicted": predicted, "gt": gt, "overlaps": np.array(overlaps, OVERLAPS)})
    heatmap = confusion_heatmap(tables)
    assert heatmap.columns == ("cat", "dog", "sky")
    assert [name for name, _ in heatmap.rows] == [
        "thing 1 (76.2 % of the pixels)",
        "stuff 3 (19.0 % of the pixels)",
        "thing 2 (4.8 % of the pixels)",
    ]
    assert [shares for _, shares in heatmap.rows] == [[87.5, 12.5, 0.0], [0.0, 0.0, 100.0], [100.0, 0.0, 0.0]]
    short = confusion_heatmap(tables, max_rows=1)
    assert len(short.rows) == 1 and "The 2 smallest clusters are left out" in short.note
    assert not confusion_heatmap(empty).rows
