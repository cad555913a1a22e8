"""DropLoss: no classification loss for regions that no pseudo-label touches.

They may be objects that the labels missed.

``MODEL.ROI_HEADS.DROP_LOSS.TARGETS`` says what a region is compared with: "labels", all
pseudo-labels of its image, or "guessed", the boxes that CutLER's code takes for them
(:func:`guessed_targets`), which drops more regions where an image has several labels.

Source: CutLER, section 3.2, equation 3; U2Seg, section 3.4.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn

from u2seg.modeling.roi_heads.soft_targets import (
    confidences_of,
    rematched_scores,
    soft_box_loss,
    soft_class_loss,
)


def drop_loss_weights(predicted_boxes: list[Tensor], targets: list[Boxes], iou_thresh: float) -> Tensor:
    """Returns the weight of each region's classification loss, float32 (R,): 0 where it is dropped, else 1.

    A region is dropped when the largest IoU of its predicted box with any target of its image is at
    most ``iou_thresh``; so is every region of an image without targets.

    Args:
        predicted_boxes: for each image, boxes after regression, float (Ri, 4), XYXY, pixels.
        targets: for each image, its pseudo-labels' boxes, all of them.
        iou_thresh: 0..1.

    Source: CutLER, equation 3.
    """
    weights = []
    for boxes, target in zip(predicted_boxes, targets, strict=True):
        if len(target):
            best = pairwise_iou(Boxes(boxes.detach()), target).max(dim=1).values
        else:
            best = boxes.new_zeros(len(boxes))
        weights.append((best > iou_thresh).float())
    return torch.cat(weights) if weights else torch.zeros(0)


def drop_loss(scores: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Returns the mean over all regions, dropped ones included, of the weighted softmax cross-entropy; a scalar.

    Args:
        scores: float (R, K + 1), logits; the last class is background.
        classes: int64 (R,), 0..K.
        weights: float (R,).

    Source: CutLER, equation 3; that dropped regions stay in the denominator is its code's rule.
    """
    if not len(classes):
        return scores.sum() * 0.0
    return (F.cross_entropy(scores.float(), classes, reduction="none") * weights).mean()


# How many of an image's sampled regions CutLER's code looks at to count the image's targets.
_NUM_COUNTED = 100


def guessed_targets(proposals: list[Instances]) -> list[Boxes] | None:
    """Returns for each image the boxes that CutLER's code takes for its targets; None: it drops nothing.

    The code does not know the targets. It counts the distinct boxes that the first 100 sampled
    regions are matched with, n, and takes the boxes that the first n regions are matched with.
    These may hold one target twice and lack another, so regions on a real target may be dropped.

    In the first stage an image without labels has no matched boxes at all; the code then gives up
    on the whole batch, and None is returned. In later stages of the cascade Detectron2 matches such
    an image's regions with an empty box, so all of them are dropped.

    Args:
        proposals: for each image, its sampled regions with ``gt_boxes``, the target that each is
            matched with; an image without labels may lack the field.

    Source: CutLER's code, as its published numbers were trained with; neither paper describes it.
    """
    if not all(one.has("gt_boxes") for one in proposals):
        return None
    matched = [one.gt_boxes for one in proposals]
    counts = [len(torch.unique(boxes.tensor[:_NUM_COUNTED], dim=0)) for boxes in matched]
    return [boxes[:count] for boxes, count in zip(matched, counts)]


class _DropLossOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor with DropLoss in place of the plain classification loss."""

    iou_thresh: float = 0.01
    soft_targets: bool = False

    def targets_of(self, proposals: list[Instances]) -> list[Boxes] | None:
        """Returns for each image the boxes to compare its regions with; None: nothing is dropped."""
        raise NotImplementedError

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Returns ``loss_cls`` and ``loss_box_reg``; see the base class."""
        if self.soft_targets:
            return self._soft_losses(predictions, proposals)
        losses = super().losses(predictions, proposals)
        weights = self._weights(predictions, proposals)
        if weights is None:
            return losses
        classes = torch.cat([one.gt_classes for one in proposals])
        loss = drop_loss(predictions[0], classes, weights)
        return {**losses, "loss_cls": loss * self.loss_weight.get("loss_cls", 1.0)}

    def _weights(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> Tensor | None:
        """Returns DropLoss's weight of each region, float32 (R,); None where nothing is dropped."""
        targets = self.targets_of(proposals)
        if targets is None:
            return None
        return drop_loss_weights(self.predict_boxes(predictions, proposals), targets, self.iou_thresh)

    def _soft_losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Returns the losses with CuVLER's soft targets; see :mod:`u2seg.modeling.roi_heads.soft_targets`."""
        scores, deltas = predictions
        classes = torch.cat([one.gt_classes for one in proposals])
        confidences, weights = confidences_of(proposals), self._weights(predictions, proposals)
        boxes = torch.cat([one.proposal_boxes.tensor for one in proposals])
        # Regions of an image without labels are background, whose boxes count for nothing.
        matched = torch.cat([(one.gt_boxes if one.has("gt_boxes") else one.proposal_boxes).tensor for one in proposals])
        is_object = classes < self.num_classes
        losses = {
            "loss_cls": soft_class_loss(
                scores, classes, confidences, torch.ones_like(confidences) if weights is None else weights
            ),
            "loss_box_reg": soft_box_loss(
                deltas[is_object],
                self.box2box_transform.get_deltas(boxes[is_object], matched[is_object]),
                confidences[is_object],
                self.smooth_l1_beta,
            )
            / max(len(classes), 1),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}


class DropLossOutputLayers(_DropLossOutputLayers):
    """DropLoss with the image's own pseudo-labels as targets, which the heads hand over before each batch."""

    targets: list[Boxes] | None = None

    def targets_of(self, proposals: list[Instances]) -> list[Boxes]:
        """Returns the targets of the batch at hand.

        Raises:
            RuntimeError: nobody set them.
        """
        if self.targets is None:
            raise RuntimeError("DropLossOutputLayers.losses needs the targets; the DropLoss heads set them")
        return self.targets


class GuessedDropLossOutputLayers(_DropLossOutputLayers):
    """DropLoss with the targets that CutLER's code guesses."""

    def targets_of(self, proposals: list[Instances]) -> list[Boxes] | None:
        """Returns :func:`guessed_targets`."""
        return guessed_targets(proposals)


_OUTPUT_LAYERS = {"labels": DropLossOutputLayers, "guessed": GuessedDropLossOutputLayers}


class _TargetsKnown(ROIHeads):
    """A part of heads that lets their box predictors know the targets of the batch at hand."""

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Returns proposals and losses in training, detections and no losses otherwise; see the base class."""
        if not self.training:
            return super().forward(images, features, proposals, targets)
        assert targets is not None, "training needs targets"
        with self._targets_known(targets):
            return super().forward(images, features, proposals, targets)

    @contextmanager
    def _targets_known(self, targets: list[Instances]) -> Iterator[None]:
        predictors = [one for one in self.box_predictor.modules() if isinstance(one, DropLossOutputLayers)]
        boxes = [one.gt_boxes for one in targets]
        for predictor in predictors:
            predictor.targets = boxes
        try:
            yield
        finally:
            for predictor in predictors:
                predictor.targets = None


@ROI_HEADS_REGISTRY.register()
class DropLossCascadeROIHeads(_TargetsKnown, CascadeROIHeads):
    """Cascade heads with DropLoss in the classification loss of every stage.

    With ``MODEL.ROI_HEADS.DROP_LOSS.ENABLED: False`` they are Detectron2's ``CascadeROIHeads``: the
    same modules, random numbers and losses. Parameters have the same names either way.
    """

    def _match_and_label_boxes(
        self, proposals: list[Instances], stage: int, targets: list[Instances]
    ) -> list[Instances]:
        """Returns a later stage's regions with what they are matched with, scores included; see the base class."""
        matched = super()._match_and_label_boxes(proposals, stage, targets)
        rematched_scores(matched, targets)
        return matched

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        if cfg.MODEL.ROI_HEADS.DROP_LOSS.ENABLED:
            pairs = zip(parts["box_heads"], parts["box_predictors"])
            parts["box_predictors"] = [_with_drop_loss(cfg, head, plain) for head, plain in pairs]
        return parts


@ROI_HEADS_REGISTRY.register()
class DropLossStandardROIHeads(_TargetsKnown, StandardROIHeads):
    """Mask R-CNN's heads with DropLoss in the classification loss; without it Detectron2's ``StandardROIHeads``."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        if cfg.MODEL.ROI_HEADS.DROP_LOSS.ENABLED:
            parts["box_predictor"] = _with_drop_loss(cfg, parts["box_head"], parts["box_predictor"])
        return parts


def _with_drop_loss(cfg: CfgNode, head: nn.Module, plain: FastRCNNOutputLayers) -> _DropLossOutputLayers:
    """Returns a predictor with the weights of ``plain`` and the DropLoss that the configuration describes."""
    settings = cfg.MODEL.ROI_HEADS.DROP_LOSS
    if cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
        raise ValueError(
            "DROP_LOSS works on the softmax classification loss; set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE to False"
        )
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        raise ValueError(
            "DROP_LOSS compares one predicted box of each region; set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True"
        )
    if cfg.MODEL.ROI_HEADS.SOFT_TARGETS and cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE != "smooth_l1":
        raise ValueError(
            "SOFT_TARGETS weighs the smooth L1 loss of boxes; set MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE to smooth_l1"
        )
    if settings.TARGETS not in _OUTPUT_LAYERS:
        known = " or ".join(repr(name) for name in _OUTPUT_LAYERS)
        raise ValueError(f"MODEL.ROI_HEADS.DROP_LOSS.TARGETS must be {known}, got {settings.TARGETS!r}")
    layers = _OUTPUT_LAYERS[settings.TARGETS]
    predictor = layers(cfg, head.output_shape, box2box_transform=plain.box2box_transform)
    predictor.load_state_dict(plain.state_dict())
    predictor.iou_thresh = settings.IOU_THRESH
    predictor.soft_targets = cfg.MODEL.ROI_HEADS.SOFT_TARGETS
    return predictor
