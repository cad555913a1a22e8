"""CuVLER's soft targets: by hand, equal to the plain losses where all scores are 1, and carried from file to head."""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from u2seg.data import build_train_loader
from u2seg.data.copy_paste import paste
from u2seg.data.training_sample import Sample, boxes_of_masks, to_instances
from u2seg.modeling.roi_heads.soft_targets import (
    confidences_of,
    rematched_scores,
    soft_box_loss,
    soft_class_loss,
    soft_mask_loss,
)


def test_the_class_loss_by_hand():
    # Two classes and background, probabilities 1/2, 1/4, 1/4.
    scores = torch.tensor([[math.log(2.0), 0.0, 0.0]]).expand(3, -1)
    classes, confidences = torch.tensor([0, 1, 2]), torch.tensor([0.75, 0.5, 0.1])
    log2, log4 = math.log(2), math.log(4)
    expected = [0.75 * log2 + 0.25 * log4, log4, log4]  # a background region is background, whatever its score
    for weights in ([1.0, 1.0, 1.0], [1.0, 0.0, 2.0]):
        found = soft_class_loss(scores, classes, confidences, torch.tensor(weights))
        assert found.item() == pytest.approx(np.dot(expected, weights) / 3)
    assert soft_class_loss(scores[:0], classes[:0], confidences[:0], torch.zeros(0)) == 0


def test_boxes_and_masks_count_as_far_as_their_score():
    deltas, confidences = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]]), torch.tensor([0.5, 0.25])
    assert soft_box_loss(deltas, torch.zeros(2, 4), confidences, 0.0).item() == pytest.approx(0.5 + 0.5)
    logits = torch.zeros(2, 3, 3)
    assert soft_mask_loss(logits, torch.ones(2, 3, 3), confidences).item() == pytest.approx(math.log(2) * 0.375)


def regions(boxes, scores=None):
    found = Instances((20, 20))
    found.proposal_boxes = found.gt_boxes = Boxes(torch.tensor(boxes))
    found.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    if scores is not None:
        found.gt_scores = torch.tensor(scores)
    return found


def test_regions_of_later_stages_get_the_score_of_what_they_overlap():
    targets = [regions([[0.0, 0, 10, 10], [10, 10, 20, 20]], [0.3, 0.9]), regions([[0.0, 0, 5, 5]])]
    moved = [regions([[9.0, 9, 19, 19], [1, 1, 9, 9]], [0.0, 0.0]), regions([[0.0, 0, 4, 4]], [0.2])]
    rematched_scores(moved, targets)
    assert confidences_of(moved).tolist() == pytest.approx([0.9, 0.3, 1.0])


def losses_of(cfg, batch):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    torch.manual_seed(1)
    with EventStorage(0):
        return model(batch)


@pytest.mark.parametrize("name", ["DropLossCascadeROIHeads", "DropLossStandardROIHeads"])
def test_scores_of_one_change_nothing_and_smaller_ones_lower_box_and_mask_losses(tiny_cfg, tmp_path, name):
    options = ["MODEL.ROI_HEADS.NAME", name, "MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True]
    plain = tiny_cfg(tmp_path, *options)
    soft = tiny_cfg(
        tmp_path, *options, "MODEL.ROI_HEADS.SOFT_TARGETS", True, "MODEL.ROI_MASK_HEAD.NAME", "SoftTargetMaskHead"
    )
    batch = next(iter(build_train_loader(plain, 0)))
    expected = losses_of(plain, batch)
    for scores in (None, 1.0):
        if scores is not None:
            for one in batch:
                one["instances"].gt_scores = torch.full((len(one["instances"]),), scores)
        found = losses_of(soft, batch)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-4)
    for one in batch:
        one["instances"].gt_scores = torch.full((len(one["instances"]),), 0.5)
    halved = losses_of(soft, batch)
    torch.testing.assert_close(halved["loss_mask"], expected["loss_mask"] / 2, atol=1e-5, rtol=1e-4)
    boxes = [key for key in expected if "box_reg" in key]
    for key in boxes:
        torch.testing.assert_close(halved[key], expected[key] / 2, atol=1e-5, rtol=1e-4)


def test_heads_that_pay_no_heed_to_scores_are_named_before_a_training(tiny_cfg, tmp_path, caplog):
    soft = ["MODEL.ROI_HEADS.SOFT_TARGETS", True]
    drop_loss = ["MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True]
    masks = ["MODEL.ROI_MASK_HEAD.NAME", "SoftTargetMaskHead"]
    for options, named in (
        (drop_loss, []),
        ([*soft, *drop_loss, *masks], []),
        ([*soft, *drop_loss, "MODEL.MASK_ON", False], []),
        ([*soft, *drop_loss], ["MODEL.ROI_MASK_HEAD.NAME to SoftTargetMaskHead"]),
        ([*soft, *masks], ["MODEL.ROI_HEADS.DROP_LOSS.ENABLED to True"]),
    ):
        caplog.clear()
        tiny_cfg(tmp_path, *options)
        warned = [record.getMessage() for record in caplog.records if "SOFT_TARGETS" in record.getMessage()]
        assert len(warned) == len(named) and all(key in text for key, text in zip(named, warned))


def sample(columns, scores=None):
    masks = np.zeros((len(columns), 4, 8), bool)
    for mask, column in zip(masks, columns):
        mask[:, column] = True
    values = None if scores is None else np.array(scores, np.float32)
    classes = np.arange(len(columns))
    return Sample(np.zeros((4, 8, 3), np.uint8), masks, boxes_of_masks(masks), classes, None, values)


def test_scores_follow_their_instances_through_copy_paste_to_the_model():
    target, source = sample([0, 1, 2], [0.1, 0.2, 0.3]), sample([1, 5], [0.8, 0.9])
    pasted = paste(target, source.image, source.masks, source.classes, 2.0, source.scores)
    np.testing.assert_allclose(pasted.scores, [0.1, 0.3, 0.8, 0.9])  # the second one is hidden whole
    np.testing.assert_allclose(to_instances(pasted).gt_scores.numpy(), [0.1, 0.3, 0.8, 0.9])
    without = paste(sample([0]), source.image, source.masks, source.classes, 2.0, source.scores)
    np.testing.assert_allclose(without.scores, [1.0, 0.8, 0.9])
    assert paste(sample([0]), source.image, source.masks, source.classes, 2.0).scores is None
    assert not to_instances(sample([0])).has("gt_scores")
