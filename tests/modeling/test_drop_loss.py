"""DropLoss against a slow, obvious implementation; switched off, the heads are Detectron2's."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from u2seg.data import build_train_loader
from u2seg.modeling.roi_heads.drop_loss import DropLossOutputLayers, drop_loss, drop_loss_weights


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
    inter = width * height
    return inter / (area(a) + area(b) - inter) if inter else 0.0


def slow_drop_loss(scores, classes, boxes_of_images, targets_of_images, thresh):
    total, row = 0.0, 0
    for boxes, targets in zip(boxes_of_images, targets_of_images):
        for box in boxes:
            best = max((slow_iou(box, target) for target in targets), default=0.0)
            if best > thresh:
                logits = scores[row]
                log_sum = math.log(sum(math.exp(v - max(logits)) for v in logits)) + max(logits)
                total += log_sum - logits[classes[row]]
            row += 1
    return total / row


def test_weights_on_a_hand_made_case():
    # Image 1: the first box is the target itself, the second overlaps it by 1x10 of 100 + 100 - 10 (IoU 0.0526), the third lies
    # apart. Image 2 has no target.
    boxes = [torch.tensor([[0.0, 0, 10, 10], [9, 0, 19, 10], [50, 50, 60, 60]]), torch.tensor([[0.0, 0, 5, 5]])]
    targets = [Boxes(torch.tensor([[0.0, 0, 10, 10]])), Boxes(torch.zeros(0, 4))]
    assert drop_loss_weights(boxes, targets, 0.01).tolist() == [1, 1, 0, 0]
    assert drop_loss_weights(boxes, targets, 0.06).tolist() == [1, 0, 0, 0]
    assert drop_loss_weights(boxes, targets, 1.0).tolist() == [0, 0, 0, 0]


def test_dropped_regions_stay_in_the_denominator():
    # Two regions, logits 0: cross-entropy log 2 each; one is dropped: log 2 / 2.
    loss = drop_loss(torch.zeros(2, 2), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx(math.log(2) / 2)


def test_no_region_at_all_gives_zero_with_a_gradient():
    scores = torch.zeros(0, 3, requires_grad=True)
    loss = drop_loss(scores, torch.zeros(0, dtype=torch.long), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg).train()


def losses_of(model, batch):
    torch.manual_seed(1)
    with EventStorage(0):
        return model(batch)


def test_switched_off_equals_stock_exactly(tiny_cfg, tmp_path):
    ours = build(tiny_cfg(tmp_path))
    cfg = tiny_cfg(tmp_path, "MODEL.ROI_HEADS.NAME", "CascadeROIHeads")
    stock = build(cfg)
    assert type(ours.roi_heads) is not type(stock.roi_heads)
    for (name, a), (other, b) in zip(ours.state_dict().items(), stock.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b), name
    batch = next(iter(build_train_loader(cfg, 0)))
    for (name, a), b in zip(losses_of(ours, batch).items(), losses_of(stock, batch).values(), strict=True):
        assert torch.equal(a, b), name


def test_switched_on_every_stage_equals_the_slow_one_and_leaves_other_losses(tiny_cfg, tmp_path, monkeypatch):
    stock_cfg = tiny_cfg(tmp_path)
    batch = next(iter(build_train_loader(stock_cfg, 0)))
    stock = build(stock_cfg)
    weights = {name: value.clone() for name, value in stock.state_dict().items()}
    plain = losses_of(stock, batch)
    thresh = 0.05
    options = ("MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True, "MODEL.ROI_HEADS.DROP_LOSS.IOU_THRESH", thresh)
    model = build(tiny_cfg(tmp_path, *options))
    model.load_state_dict(weights)
    seen = []
    losses = DropLossOutputLayers.losses

    def record(self, predictions, proposals):
        boxes = [one.tolist() for one in self.predict_boxes(predictions, proposals)]
        seen.append((predictions[0].tolist(), [c for p in proposals for c in p.gt_classes.tolist()], boxes))
        return losses(self, predictions, proposals)

    monkeypatch.setattr(DropLossOutputLayers, "losses", record)
    got = losses_of(model, batch)
    targets = [record["instances"].gt_boxes.tensor.tolist() for record in batch]
    assert len(seen) == 3
    for stage, (scores, classes, boxes) in enumerate(seen):
        expected = slow_drop_loss(scores, classes, boxes, targets, thresh)
        assert got[f"loss_cls_stage{stage}"].item() == pytest.approx(expected, rel=1e-5)
        assert expected < plain[f"loss_cls_stage{stage}"].item()  # something was dropped, or this proves nothing
    for name in plain:
        if not name.startswith("loss_cls_stage"):
            assert torch.equal(got[name], plain[name]), name


def test_targets_are_forgotten_after_the_batch(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path, "MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True)
    model = build(cfg)
    losses_of(model, next(iter(build_train_loader(cfg, 0))))
    assert all(predictor.targets is None for predictor in model.roi_heads.box_predictor)
    with pytest.raises(RuntimeError, match="needs the targets"):
        model.roi_heads.box_predictor[0].losses((torch.zeros(0, 3), torch.zeros(0, 4)), [])


def test_the_sigmoid_loss_is_refused(tiny_cfg, tmp_path):
    options = ("MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)
    with pytest.raises(ValueError, match="USE_SIGMOID_CE to False"):
        build(tiny_cfg(tmp_path, *options))
