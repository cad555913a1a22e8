"""DropLoss against a slow, obvious implementation; switched off, the heads are Detectron2's."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from u2seg.data import build_train_loader
from u2seg.modeling.roi_heads.drop_loss import (
    DropLossOutputLayers,
    GuessedDropLossOutputLayers,
    drop_loss,
    drop_loss_weights,
    guessed_targets,
)


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


@pytest.mark.parametrize("stock_name", ["CascadeROIHeads", "StandardROIHeads"])
def test_switched_off_equals_stock_exactly(tiny_cfg, tmp_path, stock_name):
    ours = build(tiny_cfg(tmp_path, "MODEL.ROI_HEADS.NAME", f"DropLoss{stock_name}"))
    cfg = tiny_cfg(tmp_path, "MODEL.ROI_HEADS.NAME", stock_name)
    stock = build(cfg)
    assert type(ours.roi_heads) is not type(stock.roi_heads)
    for (name, a), (other, b) in zip(ours.state_dict().items(), stock.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b), name
    batch = next(iter(build_train_loader(cfg, 0)))
    for (name, a), b in zip(losses_of(ours, batch).items(), losses_of(stock, batch).values(), strict=True):
        assert torch.equal(a, b), name


def slow_guess(matched_of_images):
    """The rule in words: count the distinct ones among the first hundred, take as many from the front."""
    guesses = []
    for matched in matched_of_images:
        if matched is None:
            return None
        distinct = []
        for box in matched[:100]:
            if box not in distinct:
                distinct.append(box)
        guesses.append(matched[: len(distinct)])
    return guesses


def matched_with(*boxes):
    regions = Instances((100, 100))
    regions.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    return regions


A, B, C = [0.0, 0, 10, 10], [50.0, 50, 60, 60], [20.0, 70, 30, 80]


def test_the_guess_on_hand_made_cases():
    def guess(*images):
        targets = guessed_targets([matched_with(*boxes) for boxes in images])
        return [one.tensor.tolist() for one in targets]

    assert guess([A, B, A, B]) == [[A, B]]
    # Repeats at the front: one target is held twice and C is missing.
    assert guess([A, A, B, C]) == [[A, A, B]]
    # A target that only regions from the 101st on are matched with is not counted.
    assert guess([A] * 100 + [B] * 10) == [[A]]
    assert guess([B], [A, C]) == [[B], [A, C]]


def test_the_guess_is_off_for_the_whole_batch_where_an_image_has_no_labels():
    assert guessed_targets([matched_with(A, B), Instances((100, 100))]) is None
    # As later stages of the cascade match such an image's regions: with an empty box, so that all of them are dropped.
    targets = guessed_targets([matched_with(A), matched_with([0.0] * 4, [0.0] * 4)])
    boxes = [torch.tensor([A]), torch.tensor([[0.0, 0, 5, 5], A])]
    assert drop_loss_weights(boxes, targets, 0.01).tolist() == [1, 0, 0]


@pytest.fixture(params=["DropLossCascadeROIHeads", "DropLossStandardROIHeads"])
def heads(request):
    return request.param


def compare_with_the_slow_one(tiny_cfg, tmp_path, monkeypatch, heads, kind, batch, targets_of_images, thresh=0.05):
    """Checks each stage's classification loss and returns (ours, slow, plain) of each; other losses must be untouched."""
    name = ("MODEL.ROI_HEADS.NAME", heads)
    stock = build(tiny_cfg(tmp_path, *name))
    weights = {key: value.clone() for key, value in stock.state_dict().items()}
    plain = losses_of(stock, batch)
    on = ("MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True, "MODEL.ROI_HEADS.DROP_LOSS.IOU_THRESH", thresh)
    model = build(tiny_cfg(tmp_path, *name, *on, "MODEL.ROI_HEADS.DROP_LOSS.TARGETS", kind))
    model.load_state_dict(weights)
    layers = {"labels": DropLossOutputLayers, "guessed": GuessedDropLossOutputLayers}[kind]
    seen, losses = [], layers.losses

    def record(self, predictions, proposals):
        boxes = [one.tolist() for one in self.predict_boxes(predictions, proposals)]
        matched = [one.gt_boxes.tensor.tolist() if one.has("gt_boxes") else None for one in proposals]
        seen.append((predictions[0].tolist(), [c for p in proposals for c in p.gt_classes.tolist()], boxes, matched))
        return losses(self, predictions, proposals)

    monkeypatch.setattr(layers, "losses", record)
    got = losses_of(model, batch)
    names = ["loss_cls"] if heads == "DropLossStandardROIHeads" else [f"loss_cls_stage{stage}" for stage in range(3)]
    assert len(seen) == len(names)
    rows = []
    for key, (scores, classes, boxes, matched) in zip(names, seen):
        targets = targets_of_images(matched)
        slow = plain[key].item() if targets is None else slow_drop_loss(scores, classes, boxes, targets, thresh)
        rows.append((got[key].item(), slow, plain[key].item()))
    for key in set(plain) - set(names):
        assert torch.equal(got[key], plain[key]), key
    return rows


def test_with_labels_every_stage_equals_the_slow_one(tiny_cfg, tmp_path, monkeypatch, heads):
    batch = next(iter(build_train_loader(tiny_cfg(tmp_path), 0)))
    targets = [record["instances"].gt_boxes.tensor.tolist() for record in batch]
    rows = compare_with_the_slow_one(tiny_cfg, tmp_path, monkeypatch, heads, "labels", batch, lambda matched: targets)
    for ours, slow, plain in rows:
        assert ours == pytest.approx(slow, rel=1e-5)
        assert slow < plain  # something was dropped, or this proves nothing


def test_with_guessed_targets_every_stage_equals_the_slow_one(tiny_cfg, tmp_path, monkeypatch, heads):
    batches = iter(build_train_loader(tiny_cfg(tmp_path), 0))
    batch = next(one for one in batches if all(len(record["instances"]) > 1 for record in one))
    rows = compare_with_the_slow_one(tiny_cfg, tmp_path, monkeypatch, heads, "guessed", batch, slow_guess)
    for ours, slow, plain in rows:
        assert ours == pytest.approx(slow, rel=1e-5)
        assert slow < plain


def test_guessing_in_a_batch_with_an_empty_image(tiny_cfg, tmp_path, monkeypatch, heads):
    batches = iter(build_train_loader(tiny_cfg(tmp_path), 0))
    batch = next(one for one in batches if sorted(len(record["instances"]) > 0 for record in one) == [False, True])
    rows = compare_with_the_slow_one(tiny_cfg, tmp_path, monkeypatch, heads, "guessed", batch, slow_guess)
    assert all(ours == pytest.approx(slow, rel=1e-5) for ours, slow, _ in rows)
    # The first stage is plain; the later ones drop at least all regions of the empty image.
    assert rows[0][0] == rows[0][2]
    assert all(ours < plain for ours, _, plain in rows[1:])


def test_targets_are_forgotten_after_the_batch(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path, "MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True)
    model = build(cfg)
    losses_of(model, next(iter(build_train_loader(cfg, 0))))
    assert all(predictor.targets is None for predictor in model.roi_heads.box_predictor)
    with pytest.raises(RuntimeError, match="needs the targets"):
        model.roi_heads.box_predictor[0].losses((torch.zeros(0, 3), torch.zeros(0, 4)), [])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "USE_SIGMOID_CE to False"),
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "CLS_AGNOSTIC_BBOX_REG to True"),
        ("MODEL.ROI_HEADS.DROP_LOSS.TARGETS", "true", "TARGETS must be 'labels' or 'guessed', got 'true'"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(tiny_cfg, tmp_path, key, value, message):
    name = ("MODEL.ROI_HEADS.NAME", "DropLossStandardROIHeads", "MODEL.ROI_HEADS.DROP_LOSS.ENABLED", True)
    with pytest.raises(ValueError, match=message):
        build(tiny_cfg(tmp_path, *name, key, value))
