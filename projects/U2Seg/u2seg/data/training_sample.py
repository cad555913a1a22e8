"""One training sample as plain arrays, between decoding and packing: what augmentation, copy-paste and tests work on."""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from u2seg.structures import THING_LABEL


@dataclass(frozen=True)
class Sample:
    """A decoded, augmented image with its targets, all at one resolution.

    Attributes:
        image: uint8 (H, W, 3), channels in the order of ``INPUT.FORMAT``.
        masks: bool (N, H, W), the instances; they may overlap.
        boxes_xyxy: float64 (N, 4), pixels, absolute.
        classes: int64 (N,), contiguous ids 0..K-1.
        sem_seg: uint8 (H, W), semantic target: 0 "thing", 1..S stuff, 255 ignore; None where there
            is none.
        scores: float32 (N,), 0..1, confidence of the pseudo-labels; None where labels have none.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes_xyxy: np.ndarray
    classes: np.ndarray
    sem_seg: np.ndarray | None
    scores: np.ndarray | None = None

    @property
    def confidences(self) -> np.ndarray:
        """``scores``, float32 (N,); 1 where labels have none."""
        return np.ones(len(self.classes), np.float32) if self.scores is None else self.scores

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[:2]


def boxes_of_masks(masks: np.ndarray) -> np.ndarray:
    """Returns float64 (N, 4) tight XYXY boxes of bool masks (N, H, W); an empty mask has the box 0, 0, 0, 0.

    The right and lower edges lie behind the last pixel, so that a one-pixel mask has a box of area
    1, as in Detectron2's BitMasks.
    """
    boxes = np.zeros((len(masks), 4))
    columns, rows = np.any(masks, axis=1), np.any(masks, axis=2)
    for index in np.flatnonzero(np.any(rows, axis=1)):
        xs, ys = np.flatnonzero(columns[index]), np.flatnonzero(rows[index])
        boxes[index] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes


def segment_targets(segments_info: list[dict]) -> dict[int, int]:
    """Returns segment id -> semantic target.

    Args:
        segments_info: dicts with ``id``, ``isthing``, ``category_id`` (contiguous; of stuff that is
            the target itself).

    Source: U2Seg release, ``prepare_stuff_panoptic_fpn.py`` (0 thing, 1..S stuff, 255 void).
    """
    return {s["id"]: THING_LABEL if s["isthing"] else s["category_id"] for s in segments_info}


def to_instances(sample: Sample) -> Instances:
    """Returns a sample's instances in the form that Detectron2's models train on, without those that have no pixel or no box.

    Like Detectron2's ``annotations_to_instances``, an image without instances gets no ``gt_masks``
    field. Pseudo-labels with scores have ``gt_scores``, which the losses with soft targets take.
    """
    keep = sample.masks.any(axis=(1, 2)) & ((sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]) > 1e-5).all(axis=1)
    instances = Instances(sample.size)
    instances.gt_boxes = Boxes(torch.from_numpy(sample.boxes_xyxy[keep]))
    instances.gt_classes = torch.from_numpy(sample.classes[keep])
    if len(sample.masks):
        instances.gt_masks = BitMasks(torch.from_numpy(sample.masks[keep]))
    if sample.scores is not None:
        instances.gt_scores = torch.from_numpy(sample.scores[keep])
    return instances
