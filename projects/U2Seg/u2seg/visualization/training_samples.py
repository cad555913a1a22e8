"""An image of what training sees: samples behind augmentation and copy-paste, with their targets drawn."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from u2seg.data import build_train_loader
from u2seg.structures.label_space import IGNORE_LABEL, THING_LABEL
from u2seg.visualization import cluster_color, image_grid, save_image

_VOID_COLOR = (0, 0, 0)
_THING_COLOR = (255, 255, 255)


def show_training_samples(cfg: CfgNode, path: str | Path, count: int = 8) -> Path:
    """Writes one image with ``count`` training samples, a row each, and returns its path.

    A row holds the image with the instances' outlines and boxes in their clusters' colors and numbers, and the semantic target:
    white "thing", black ignored, stuff in its cluster's color. Both resized and augmented as the trainer gets them.

    Args:
        cfg: complete.
        path: .png or .jpg to write.
        count: samples.
    """
    samples = [one for batch in islice(build_train_loader(cfg, max(cfg.SEED, 0)), count) for one in batch][:count]
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", [])
    rows = [_row(sample, cfg.INPUT.FORMAT, names) for sample in samples]
    return save_image(path, image_grid(rows, ("instances and boxes", "semantic target")))


def _row(sample: dict, image_format: str, names: list[str]) -> list[np.ndarray]:
    image = sample["image"].numpy().transpose(1, 2, 0)
    image = np.ascontiguousarray(image if image_format == "RGB" else image[:, :, ::-1])
    factor = max(1, round(640 / image.shape[1]))  # outlines of one pixel are lost on small images
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    instances = sample["instances"]
    for index in range(len(instances)):
        _draw_instance(image, instances, index, factor, names)
    row = [image]
    if "sem_seg" in sample:
        row.append(_semantic_colors(sample["sem_seg"].numpy()))
    return row


def _draw_instance(image: np.ndarray, instances: Instances, index: int, factor: int, names: list[str]) -> None:
    cluster = int(instances.gt_classes[index])
    color = cluster_color("thing", cluster)
    mask = instances.gt_masks.tensor[index].numpy().astype(np.uint8)
    mask = cv2.resize(mask, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outlines, -1, color, 2)
    left, top, right, bottom = (round(float(v) * factor) for v in instances.gt_boxes.tensor[index])
    cv2.rectangle(image, (left, top), (right - 1, bottom - 1), color, 1)
    name = names[cluster] if names else str(cluster)
    cv2.putText(image, name, (left + 2, top + 14), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3)
    cv2.putText(image, name, (left + 2, top + 14), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)


def _semantic_colors(target: np.ndarray) -> np.ndarray:
    colors = np.zeros((256, 3), np.uint8)
    for value in np.unique(target):
        colors[value] = cluster_color("stuff", int(value) - 1) if value not in (THING_LABEL, IGNORE_LABEL) else 0
    colors[THING_LABEL], colors[IGNORE_LABEL] = _THING_COLOR, _VOID_COLOR
    return colors[target]
