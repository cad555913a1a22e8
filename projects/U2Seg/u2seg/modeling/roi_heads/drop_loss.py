"""DropLoss: no classification loss for regions that no pseudo-label touches, since they may be objects that the labels missed.

Source: CutLER, section 3.2, equation 3; U2Seg, section 3.4.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torch import Tensor, nn


def drop_loss_weights(predicted_boxes: list[Tensor], targets: list[Boxes], iou_thresh: float) -> Tensor:
    """Returns the weight of each region's classification loss, float32 (R,): 0 where it is dropped, else 1.

    A region is dropped when the largest IoU of its predicted box with any target of its image is at most ``iou_thresh``; so is
    every region of an image without targets.

    Args:
        predicted_boxes: for each image, boxes after regression, float (Ri, 4), XYXY, pixels.
        targets: for each image, its pseudo-labels' boxes, all of them.
        iou_thresh: 0..1.

    Source: CutLER, equation 3. Differs from its code in taking the image's real targets; that code guesses them from the first 100
    matched proposals.
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


class DropLossOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor, with DropLoss in place of the plain classification loss while it knows the targets."""

    iou_thresh: float = 0.01
    targets: list[Boxes] | None = None  # of the batch at hand

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """Returns ``loss_cls`` and ``loss_box_reg``; see the base class."""
        losses = super().losses(predictions, proposals)
        if self.targets is None:
            raise RuntimeError("DropLossOutputLayers.losses needs the targets; DropLossCascadeROIHeads sets them")
        weights = drop_loss_weights(self.predict_boxes(predictions, proposals), self.targets, self.iou_thresh)
        classes = torch.cat([one.gt_classes for one in proposals])
        loss = drop_loss(predictions[0], classes, weights)
        return {**losses, "loss_cls": loss * self.loss_weight.get("loss_cls", 1.0)}


@ROI_HEADS_REGISTRY.register()
class DropLossCascadeROIHeads(CascadeROIHeads):
    """Cascade heads with DropLoss in the classification loss of every stage.

    With ``MODEL.ROI_HEADS.DROP_LOSS.ENABLED: False`` they are Detectron2's ``CascadeROIHeads``: the same modules, random numbers and
    losses. Parameters have the same names either way.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        parts = super()._init_box_head(cfg, input_shape)
        settings = cfg.MODEL.ROI_HEADS.DROP_LOSS
        if not settings.ENABLED:
            return parts
        if cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
            raise ValueError(
                "DROP_LOSS works on the softmax classification loss; set MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE to False"
            )
        parts["box_predictors"] = [
            _predictor(cfg, head, predictor, settings.IOU_THRESH)
            for head, predictor in zip(parts["box_heads"], parts["box_predictors"])
        ]
        return parts

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
        predictors = [one for one in self.box_predictor if isinstance(one, DropLossOutputLayers)]
        boxes = [one.gt_boxes for one in targets]
        for predictor in predictors:
            predictor.targets = boxes
        try:
            yield
        finally:
            for predictor in predictors:
                predictor.targets = None


def _predictor(cfg: CfgNode, head: nn.Module, plain: FastRCNNOutputLayers, iou_thresh: float) -> DropLossOutputLayers:
    predictor = DropLossOutputLayers(cfg, head.output_shape, box2box_transform=plain.box2box_transform)
    predictor.load_state_dict(plain.state_dict())
    predictor.iou_thresh = iou_thresh
    return predictor
