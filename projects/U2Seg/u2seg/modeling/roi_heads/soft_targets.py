"""Losses that trust a pseudo-label as far as its score says: CuVLER's soft targets.

Source: CuVLER, CVPR 2024, section 3.2, and its released code.
"""

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, MaskRCNNConvUpsampleHead
from detectron2.structures import Instances, pairwise_iou
from fvcore.nn import smooth_l1_loss
from torch import Tensor


def confidences_of(proposals: list[Instances]) -> Tensor:
    """Returns the score of the label that each region is matched with, float32 (R,), 0..1; 1 where labels have none.

    Args:
        proposals: for each image, its regions with ``gt_classes`` and, from labels with scores, ``gt_scores``.
    """
    return torch.cat(
        [
            one.gt_scores.float() if one.has("gt_scores") else torch.ones(len(one), device=one.gt_classes.device)
            for one in proposals
        ]
    )


def soft_class_loss(scores: Tensor, classes: Tensor, confidences: Tensor, weights: Tensor) -> Tensor:
    """Returns the mean over all regions of the weighted cross-entropy with soft targets; a scalar.

    A region of a label with score s shall be of its class with probability s and background with 1 - s; a background region is
    background.

    Args:
        scores: float (R, K + 1), logits; the last class is background.
        classes: int64 (R,), 0..K.
        confidences: s, float (R,), 0..1; of a background region any.
        weights: float (R,), such as DropLoss's.
    """
    if not len(classes):
        return scores.sum() * 0.0
    log_probabilities = F.log_softmax(scores.float(), dim=1)
    background = log_probabilities[:, -1]
    own = log_probabilities.gather(1, classes[:, None])[:, 0]
    losses = -(confidences * own + (1 - confidences) * background)
    losses = torch.where(classes == scores.shape[1] - 1, -background, losses)
    return (losses * weights).mean()


def soft_box_loss(deltas: Tensor, targets: Tensor, confidences: Tensor, beta: float) -> Tensor:
    """Returns the sum over regions of smooth L1, each region's times its score; a scalar.

    Args:
        deltas: float (R, 4), predicted.
        targets: float (R, 4), wanted.
        confidences: float (R,), 0..1.
        beta: of smooth L1; 0 is L1.
    """
    return (smooth_l1_loss(deltas, targets, beta, reduction="none").sum(dim=1) * confidences).sum()


def soft_mask_loss(logits: Tensor, targets: Tensor, confidences: Tensor) -> Tensor:
    """Returns the mean over all pixels of the binary cross-entropy, each region's times its score; a scalar.

    Args:
        logits: float (R, M, M).
        targets: bool or 0..1 (R, M, M).
        confidences: float (R,), 0..1.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    return (losses * confidences[:, None, None]).mean()


def rematched_scores(proposals: list[Instances], targets: list[Instances]) -> None:
    """Sets ``gt_scores`` of regions to that of the target with the largest IoU, in place, where the targets have scores.

    Later stages of a cascade match their regions anew, by this rule, and Detectron2 then sets classes and boxes alone.

    Args:
        proposals: for each image, regions with ``proposal_boxes``.
        targets: for each image, its pseudo-labels.
    """
    for one, target in zip(proposals, targets, strict=True):
        if target.has("gt_scores") and len(target) and len(one):
            one.gt_scores = target.gt_scores[pairwise_iou(target.gt_boxes, one.proposal_boxes).argmax(dim=0)]
        elif one.has("gt_scores"):
            one.remove("gt_scores")


@ROI_MASK_HEAD_REGISTRY.register()
class SoftTargetMaskHead(MaskRCNNConvUpsampleHead):
    """Mask R-CNN's mask head whose loss counts a region as far as the score of its label; parameters have the same names."""

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """Returns ``loss_mask`` in training, the instances with masks otherwise; see the base class.

        Args:
            x: float (R, C, H, W), features of the foreground regions.
            instances: for each image, these regions with their labels' fields.
        """
        if not self.training:
            return super().forward(x, instances)
        logits = self.layers(x)
        present = [one for one in instances if len(one)]
        if not present:
            return {"loss_mask": logits.sum() * 0}
        targets = torch.cat(
            [one.gt_masks.crop_and_resize(one.proposal_boxes.tensor, logits.shape[-1]) for one in present]
        )
        classes = torch.cat([one.gt_classes for one in present])
        own = logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(logits)), classes]
        loss = soft_mask_loss(own, targets.to(logits.device), confidences_of(present))
        return {"loss_mask": loss * self.loss_weight}
