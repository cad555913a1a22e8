"""An image of what training sees: samples behind augmentation and copy-paste, with their targets drawn."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from PIL import Image, ImageDraw

from u2seg.data import build_train_loader
from u2seg.structures.label_space import IGNORE_LABEL, THING_LABEL
from u2seg.visualization.colors import Color, cluster_color
from u2seg.visualization.image_grid import image_grid, load_font, save_image

_Entry = tuple[Color, bool, str]  # color, whether its box is outlined, text

_CAPTIONS = ("instances and boxes", "semantic target")
_EXPLANATION = (
    "Left: the augmented image; each thing has its cluster's color, box and name.",
    "Right: what the semantic head learns for each pixel.",
)
_VOID_COLOR = (0, 0, 0)
_THING_COLOR = (255, 255, 255)


def show_training_samples(cfg: CfgNode, path: str | Path, count: int = 8) -> Path:
    """Writes one image with ``count`` training samples, a row each, and returns its path.

    A row holds the image with the instances' outlines and boxes in their clusters' colors and numbers, and the semantic target:
    white "thing", black ignored, stuff in its cluster's color. Both resized and augmented as the trainer gets them. A legend below
    says what the panels are and lists the classes that occur, with their colors and names.

    Args:
        cfg: complete.
        path: .png or .jpg to write.
        count: samples.
    """
    samples = [one for batch in islice(build_train_loader(cfg, max(cfg.SEED, 0)), count) for one in batch][:count]
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    things, stuff = metadata.get("thing_classes", []), metadata.get("stuff_classes", [])
    grid = image_grid([_row(sample, cfg.INPUT.FORMAT, things) for sample in samples], _CAPTIONS)
    return save_image(path, _with_legend(grid, legend_entries(samples, things, stuff)))


def legend_entries(samples: Sequence[dict], thing_names: Sequence[str], stuff_names: Sequence[str]) -> list[_Entry]:
    """Returns (color, outlined, text) of what the samples show: things by cluster, then stuff, then "thing" and ignored pixels.

    Args:
        samples: as the loader yields them.
        thing_names: by contiguous id; empty: clusters keep their numbers.
        stuff_names: by semantic target, entry 0 being "things"; empty: the same.
    """
    things = sorted({int(c) for sample in samples for c in sample["instances"].gt_classes})
    targets = sorted({int(v) for sample in samples if "sem_seg" in sample for v in sample["sem_seg"].unique()})
    stuff = [value for value in targets if value not in (THING_LABEL, IGNORE_LABEL)]
    named = {value: stuff_names[value] if value < len(stuff_names) else str(value) for value in stuff}
    entries = [
        (cluster_color("thing", c), True, f"thing {thing_names[c] if c < len(thing_names) else c}") for c in things
    ]
    entries += [(cluster_color("stuff", value - 1), False, f"stuff {named[value]}") for value in stuff]
    if THING_LABEL in targets:
        entries.append((_THING_COLOR, False, "some thing"))
    if IGNORE_LABEL in targets:
        entries.append((_VOID_COLOR, False, "ignored: no loss"))
    return entries


def _with_legend(grid: np.ndarray, entries: Sequence[_Entry]) -> np.ndarray:
    """Returns the image with a legend below it, uint8 (H', W, 3)."""
    font, line, pad, box = load_font(13), 20, 8, 12
    height, width = grid.shape[:2]
    widest = max((font.getlength(text) for *_, text in entries), default=0) + 2 * box + pad
    columns = max(1, int((width - pad) // widest))
    lines = [*_EXPLANATION, *[""] * -(-len(entries) // columns)]
    canvas = Image.new("RGB", (width, height + len(lines) * line + pad), (255, 255, 255))
    canvas.paste(Image.fromarray(grid), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, text in enumerate(_EXPLANATION):
        draw.text((pad, height + index * line), text, (25, 25, 25), font=font)
    top = height + len(_EXPLANATION) * line
    for index, (color, outlined, text) in enumerate(entries):
        x, y = pad + round(index % columns * widest), top + index // columns * line
        outline = (0, 0, 0) if outlined else (170, 170, 170)
        draw.rectangle((x, y, x + box, y + box), fill=color, outline=outline, width=2 if outlined else 1)
        draw.text((x + round(1.5 * box), y - 2), text, (25, 25, 25), font=font)
    return np.array(canvas)


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
