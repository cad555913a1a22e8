"""The panoptic stage's rule: what instances.json holds, and what a configuration chooses."""

import numpy as np
import pytest
from u2seg.config import setup_cfg
from u2seg.pseudo_labels.panoptic.panoptic_stage import PanopticRule
from u2seg.structures.label_space import LabelSpace

SPACE = LabelSpace.of_clusters(3, 2)


def make_cfg(*options):
    return setup_cfg("COCO-PanopticSegmentation/u2seg_R50_800.yaml", options)


def test_the_u2seg_configurations_follow_the_release_and_the_demo_keeps_its_rule():
    release, demo = (
        PanopticRule.from_config(make_cfg()),
        PanopticRule.from_config(setup_cfg("quick_schedules/scenes.yaml")),
    )
    assert (release.order_by, release.carve_instances) == ("box_area", False)
    assert (demo.order_by, demo.carve_instances) == ("mask_area", True)
    assert make_cfg().MASKS.ALLOW_OVERLAPS and not setup_cfg("quick_schedules/scenes.yaml").MASKS.ALLOW_OVERLAPS


def test_an_unknown_order_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"PANOPTIC_LABELS.ORDER_BY 'area'; registered: box_area, mask_area"):
        PanopticRule.from_config(make_cfg("PANOPTIC_LABELS.ORDER_BY", "area"))


@pytest.mark.parametrize("carve", [False, True])
def test_instances_are_whole_or_as_they_are_seen(carve):
    # A square of 4 x 4, and two equal squares of 2 x 2 on it, of which the later one hides the other.
    masks = np.zeros((3, 6, 6), bool)
    masks[0, 1:5, 1:5] = masks[1, 2:4, 2:4] = masks[2, 2:4, 2:4] = True
    rule = PanopticRule.from_config(make_cfg("PANOPTIC_LABELS.CARVE_INSTANCES", carve))
    clusters, scores = np.array([0, 1, 2]), np.array([0.9, 0.8, 0.7])
    merged = rule.merge(masks, clusters, np.zeros((6, 6), int))
    rows = rule.instances(5, masks, clusters, scores, merged, SPACE)
    expected = [(1, 12, 0.9), (3, 4, 0.7)] if carve else [(1, 16, 0.9), (2, 4, 0.8), (3, 4, 0.7)]
    assert [(row["category_id"], row["area"], row["score"]) for row in rows] == expected
    assert all(row["image_id"] == 5 for row in rows)
