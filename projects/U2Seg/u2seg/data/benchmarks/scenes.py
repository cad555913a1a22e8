"""Renders scenes like those of the demo: textured things over textured stuff, as a COCO panoptic dataset.

    u2seg prepare scenes --output DIR [--train 240] [--val 60] [--seed 0]

Every kind of thing is a shape with a two-colored texture, every kind of stuff a texture. Sizes, poses, colors, light, blur and
noise vary from image to image, things hide one another, and most things share a color with some stuff, so that no threshold
on color tells them apart. The training images come without any annotation; with ``--annotate-train`` (for the supervised
upper bound) theirs are written beside the validation images'. The tree is COCO's:

    DIR/train/*.jpg  DIR/val/*.jpg  DIR/annotations/{panoptic,instances}_val.json  DIR/panoptic_val/*.png
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from u2seg.structures.mask_boxes import mask_box_xywh
from u2seg.utils.files import write_json
from u2seg.utils.manifest import close_stage, is_complete, open_stage
from u2seg.utils.progress import track

HEIGHT, WIDTH = 128, 160

Rgb = tuple[float, float, float]  # 0..1

# Kind -> (shape, texture, light color, dark color), colors in RGB 0..1.
THINGS = {
    "ball": ("disc", "dots", (0.95, 0.85, 0.75), (0.72, 0.16, 0.14)),
    "crate": ("square", "hatch", (0.85, 0.68, 0.42), (0.32, 0.20, 0.10)),
    "beetle": ("ellipse", "stripes", (0.90, 0.80, 0.20), (0.10, 0.12, 0.40)),
    "tent": ("triangle", "bars", (0.96, 0.94, 0.90), (0.90, 0.45, 0.10)),
    "bush": ("blob", "blotches", (0.34, 0.62, 0.20), (0.05, 0.22, 0.08)),
    "kite": ("diamond", "checks", (0.95, 0.80, 0.95), (0.55, 0.10, 0.55)),
}
STUFF = {
    "sky": ("clouds", (0.90, 0.93, 0.98), (0.45, 0.65, 0.92)),
    "wall": ("bricks", (0.86, 0.80, 0.74), (0.66, 0.30, 0.24)),
    "water": ("waves", (0.45, 0.68, 0.82), (0.10, 0.26, 0.48)),
    "grass": ("blades", (0.52, 0.74, 0.30), (0.22, 0.46, 0.12)),
    "sand": ("grains", (0.93, 0.83, 0.62), (0.74, 0.60, 0.38)),
    "paving": ("tiles", (0.62, 0.62, 0.64), (0.30, 0.30, 0.34)),
}
UPPER_STUFF = ("sky", "wall")
LOWER_STUFF = ("water", "grass", "sand", "paving")
CATEGORIES = [
    {"id": index + 1, "name": name, "isthing": int(name in THINGS), "supercategory": "scene"}
    for index, name in enumerate([*THINGS, *STUFF])
]
CATEGORY_IDS = {category["name"]: category["id"] for category in CATEGORIES}


def render_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Returns one image, its segments and their kinds.

    Args:
        rng: source of everything that varies.

    Returns:
        image_rgb: uint8 (HEIGHT, WIDTH, 3).
        segments: int32 (HEIGHT, WIDTH), index into ``kinds``; every pixel belongs to one.
        kinds: names; stuff kinds come once, thing kinds once for each visible instance.
    """
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    segments = np.zeros((HEIGHT, WIDTH), np.int32)
    kinds: list[str] = []

    for kind, region in _stuff_regions(rng, rows, columns):
        if kind not in kinds:
            kinds.append(kind)
        texture, light, dark = STUFF[kind]
        canvas[region] = _texture(texture, rows, columns, light, dark, rng, jitter=0.05)[region]
        segments[region] = kinds.index(kind)

    for _ in range(int(rng.integers(1, 5))):
        kind = str(rng.choice(list(THINGS)))
        shape, texture, light, dark = THINGS[kind]
        size = float(np.exp(rng.uniform(np.log(13), np.log(30))))
        center = rng.uniform(0.12, 0.88) * HEIGHT, rng.uniform(0.1, 0.9) * WIDTH
        angle = rng.uniform(-0.4, 0.4)
        u = ((columns - center[1]) * np.cos(angle) + (rows - center[0]) * np.sin(angle)) / size
        v = (-(columns - center[1]) * np.sin(angle) + (rows - center[0]) * np.cos(angle)) / size
        inside = _inside(shape, u, v, rng)
        colors = _texture(texture, v * size, u * size, light, dark, rng, jitter=0.07)
        shade = 1.0 - 0.25 * np.clip(u * 0.5 + v * 0.7, -1, 1)  # lit from the upper left
        canvas[inside] = (colors * shade[..., None])[inside]
        segments[inside] = len(kinds)
        kinds.append(kind)

    return _photograph(canvas, rng, rows, columns), *_visible(segments, kinds)


def _stuff_regions(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> list[tuple[str, np.ndarray]]:
    def border(level: float, amplitude: float) -> np.ndarray:
        phase, period = rng.uniform(0, 6.3), rng.uniform(50, 160)
        tilt = rng.uniform(-0.15, 0.15) * (columns - WIDTH / 2)
        return rows > level + amplitude * np.sin(columns / period * 6.283 + phase) + tilt

    upper, lower = str(rng.choice(UPPER_STUFF)), rng.permutation(LOWER_STUFF)
    ground = border(rng.uniform(0.3, 0.55) * HEIGHT, rng.uniform(0, 6))
    regions = [(upper, ~ground), (str(lower[0]), ground)]
    if rng.random() < 0.5:
        regions.append((str(lower[1]), ground & border(rng.uniform(0.7, 0.85) * HEIGHT, rng.uniform(0, 5))))
    return regions


def _inside(shape: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    if shape == "disc":
        return radius < 0.9
    if shape == "ellipse":
        return (u / 1.2) ** 2 + (v / 0.7) ** 2 < 1
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) < 0.8
    if shape == "diamond":
        return np.abs(u) / 0.9 + np.abs(v) / 1.2 < 1
    if shape == "triangle":
        return (v < 0.7) & (v > -1 + 1.6 * np.abs(u))
    phases = rng.uniform(0, 6.3, 3)
    lumps = sum(0.09 * np.sin((k + 3) * angle + phase) for k, phase in enumerate(phases))
    return radius < 0.9 + lumps


def _texture(
    name: str, rows: np.ndarray, columns: np.ndarray, light: Rgb, dark: Rgb, rng: np.random.Generator, jitter: float
) -> np.ndarray:
    """Returns float32 (H, W, 3) in 0..1: a pattern between two colors that vary by ``jitter`` from instance to instance."""
    pattern = _PATTERNS[name](rows, columns, rng)
    bright, deep = (np.clip(np.array(c) + rng.normal(0, jitter, 3), 0.02, 1) for c in (light, dark))
    return (deep + (bright - deep) * np.clip(pattern, 0, 1)[..., None]).astype(np.float32)


def _noise(shape: tuple[int, ...], rng: np.random.Generator, scale: float) -> np.ndarray:
    """Returns smooth noise of about the given scale in pixels, standard deviation 1."""
    field = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), scale)
    return field / (field.std() + 1e-6)


def _wave(x: np.ndarray, period: float, sharpness: float = 3.0) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(sharpness * np.sin(6.283 * x / period))


_PATTERNS = {
    "dots": lambda r, c, g: (np.hypot((r % 6) - 3, (c % 6) - 3) < 1.9).astype(np.float32),
    "hatch": lambda r, c, g: np.maximum(_wave(r + c, 7), _wave(r - c, 7)) * 0.9,
    "stripes": lambda r, c, g: _wave(c, 5),
    "bars": lambda r, c, g: _wave(r, 6),
    "blotches": lambda r, c, g: 0.5 + 0.5 * _noise(r.shape, g, 1.4),
    "checks": lambda r, c, g: ((np.floor(r / 3) + np.floor(c / 3)) % 2).astype(np.float32),
    "clouds": lambda r, c, g: 0.3 + 0.2 * _noise(r.shape, g, 12) - 0.1 * r / HEIGHT,
    "bricks": lambda r, c, g: (
        0.6 * (((r % 5) < 1.2) | (((c + 5 * (np.floor(r / 5) % 2)) % 10) < 1.2)).astype(np.float32)
        + 0.12 * _noise(r.shape, g, 1)
    ),
    "waves": lambda r, c, g: 0.15 + 0.6 * _wave(r + 2 * np.sin(c / 9) + 0.5 * _noise(r.shape, g, 5), 6, 1),
    "blades": lambda r, c, g: 0.5 + 0.4 * cv2.GaussianBlur(_noise(r.shape, g, 0.8), (1, 5), 0),
    "grains": lambda r, c, g: 0.6 + 0.28 * _noise(r.shape, g, 0.7),
    "tiles": lambda r, c, g: np.where(((r % 8) < 1.2) | ((c % 8) < 1.2), 0.2, 0.75 + 0.08 * _noise(r.shape, g, 3)),
}


def _photograph(canvas: np.ndarray, rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the canvas as a camera would see it: uneven light, color cast, blur, noise; uint8."""
    direction = rng.uniform(0, 6.3)
    slope = ((columns - WIDTH / 2) * np.cos(direction) + (rows - HEIGHT / 2) * np.sin(direction)) / WIDTH
    light = rng.uniform(0.7, 1.1) * (1 + rng.uniform(0, 0.4) * slope)
    cast = 1 + rng.normal(0, 0.04, 3)
    seen = canvas * light[..., None] * cast
    seen = cv2.GaussianBlur(seen.astype(np.float32), (0, 0), rng.uniform(0.3, 0.8))
    seen += rng.normal(0, rng.uniform(0.01, 0.04), seen.shape)
    return np.rint(np.clip(seen, 0, 1) * 255).astype(np.uint8)


def _visible(segments: np.ndarray, kinds: list[str]) -> tuple[np.ndarray, list[str]]:
    """Returns segments and kinds without those of which fewer than 24 pixels can be seen; their pixels go to a neighbor."""
    counts = np.bincount(segments.ravel(), minlength=len(kinds))
    keep = np.flatnonzero(counts >= 24)
    if len(keep) < len(kinds):
        distances = np.stack([cv2.distanceTransform((segments != k).astype(np.uint8), cv2.DIST_L2, 5) for k in keep])
        hidden = ~np.isin(segments, keep)
        segments = np.where(hidden, keep[distances.argmin(0)], segments)
    lookup = np.zeros(len(kinds), np.int32)
    lookup[keep] = np.arange(len(keep))
    return lookup[segments], [kinds[k] for k in keep]


def write_split(root: Path, split: str, count: int, seed: int, annotated: bool) -> None:
    """Renders ``count`` images into ``root/split``, and their ground truth where ``annotated``."""
    directories = [root / split] + ([root / f"panoptic_{split}", root / "annotations"] if annotated else [])
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    images: list[dict] = []
    panoptic: list[dict] = []
    instances: list[dict] = []
    for number in track(range(1, count + 1), f"rendering {split}"):
        # One generator an image: the first images of a larger set are those of a smaller one.
        image_rgb, segments, kinds = render_scene(np.random.default_rng([seed, split == "val", number]))
        name = f"{number:06d}"
        Image.fromarray(image_rgb).save(root / split / f"{name}.jpg", quality=92)
        if annotated:
            images.append({"id": number, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH})
            infos = _segments_info(segments, kinds)
            panoptic.append({"image_id": number, "file_name": f"{name}.png", "segments_info": infos})
            instances += _instances(segments, kinds, number, first_id=len(instances) + 1)
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            pixels[..., 0] = segments + 1  # a scene has far fewer than 255 segments: the red channel is the id
            Image.fromarray(pixels).save(root / f"panoptic_{split}" / f"{name}.png")
    if annotated:
        common = {"images": images, "info": {"description": "rendered scenes"}}
        write_json(
            root / "annotations" / f"panoptic_{split}.json",
            {**common, "annotations": panoptic, "categories": CATEGORIES},
        )
        things = [category for category in CATEGORIES if category["isthing"]]
        write_json(
            root / "annotations" / f"instances_{split}.json", {**common, "annotations": instances, "categories": things}
        )


def _segments_info(segments: np.ndarray, kinds: list[str]) -> list[dict]:
    infos = []
    for index, kind in enumerate(kinds):
        mask = segments == index
        category, area = CATEGORY_IDS[kind], int(mask.sum())
        infos.append(
            {"id": index + 1, "category_id": category, "iscrowd": 0, "area": area, "bbox": mask_box_xywh(mask)}
        )
    return infos


def _instances(segments: np.ndarray, kinds: list[str], image_id: int, first_id: int) -> list[dict]:
    annotations: list[dict] = []
    for info, kind in zip(_segments_info(segments, kinds), kinds):
        if kind in THINGS:
            rle = mask_utils.encode(np.asfortranarray(segments == info["id"] - 1))
            rle["counts"] = rle["counts"].decode()
            annotations.append({**info, "id": first_id + len(annotations), "image_id": image_id, "segmentation": rle})
    return annotations


def prepare_scenes(output: Path, train: int, val: int, seed: int, annotate_train: bool) -> Path:
    """Renders both splits below ``output`` and returns it; a directory made with other settings is refused."""
    settings = {"train": train, "val": val, "seed": seed, "annotate_train": annotate_train}
    open_stage(output, "scenes", settings)
    if not is_complete(output):
        write_split(output, "train", train, seed, annotated=annotate_train)
        write_split(output, "val", val, seed, annotated=True)
        close_stage(output, {"train": train, "val": val})
    return output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("--output", type=Path, required=True, help="directory to write the dataset to")
    parser.add_argument("--train", type=int, default=240, help="training images")
    parser.add_argument("--val", type=int, default=60, help="validation images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--annotate-train", action="store_true", help="also write the training images' ground truth")


run = prepare_scenes
