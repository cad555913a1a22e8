"""A dataset in ImageNet-S's layout: an ellipse with a class's texture on a smooth background, in random colors."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from u2seg.config import get_config_file
from u2seg.luss.data.id_maps import LUSS_IGNORE, write_id_map

SIZE = 64
SYNSETS = ("n00000001", "n00000002", "n00000003", "n00000004")


def texture(label: int) -> np.ndarray:
    """Returns the pattern of class 1..4, bool (SIZE, SIZE)."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return [y % 6 < 3, x % 6 < 3, (y // 3 + x // 3) % 2 == 0, (y // 8 + x // 8) % 2 == 0][label - 1]


def draw_scene(label: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image, uint8 (SIZE, SIZE, 3), and its map of ids with some pixels to ignore."""
    corners = rng.uniform(0.2, 0.8, (2, 2, 3))
    t = np.linspace(0, 1, SIZE)
    image = np.einsum("iy,jx,ijc->yxc", np.stack([1 - t, t]), np.stack([1 - t, t]), corners)
    center, radii, angle = rng.uniform(22, 42, 2), rng.uniform(14, 26, 2), rng.uniform(0, np.pi)
    y, x = np.mgrid[:SIZE, :SIZE] - center[:, None, None]
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    inside = (u / radii[0]) ** 2 + (v / radii[1]) ** 2 < 1
    light, dark = rng.uniform(0.45, 1, 3), rng.uniform(0, 0.55, 3)
    image = np.where(inside[..., None], np.where(texture(label)[..., None], light, dark), image)
    image = np.clip(image + rng.normal(0, 0.02, image.shape), 0, 1)
    ids = np.where(inside, label, 0)
    top, left = rng.integers(0, SIZE - 8, 2)
    ids[top : top + 6, left : left + 6] = LUSS_IGNORE
    return (image * 255).astype(np.uint8), ids


def make_toy(root: Path, train: int, semi: int, val: int, seed: int = 0, flat_val: bool = True) -> dict[str, dict]:
    """Writes the dataset and returns the descriptions of its splits for ``DATASETS.BY_PATH``."""
    rng = np.random.default_rng(seed)
    count = len(SYNSETS)
    (root / "lists/categories").mkdir(parents=True)
    (root / f"lists/categories/ImageNetS_categories_im{count}.txt").write_text("\n".join(SYNSETS))
    names: dict[str, list[str]] = {"semi": [], "val": [], "test": []}
    for index in range(train):
        label = index % count + 1
        synset = SYNSETS[label - 1]
        image, ids = draw_scene(label, rng)
        _save(root / f"imagenet/train/{synset}/{synset}_{index}.JPEG", image)
        if index < semi:
            write_id_map(root / f"masks/train-semi-segmentation/{synset}/{synset}_{index}.png", ids)
            names["semi"].append(f"{synset}/{synset}_{index}.JPEG {synset}/{synset}_{index}.png")
    for index in range(2 * val):
        label = index % count + 1
        synset, name, split = SYNSETS[label - 1], f"ILSVRC2012_val_{index:08d}.JPEG", "val" if index < val else "test"
        image, ids = draw_scene(label, rng)
        _save(root / "imagenet/val" / ("" if flat_val else "n09999999") / name, image)
        if split == "val":
            write_id_map(root / f"masks/validation-segmentation/{synset}/{Path(name).stem}.png", ids)
        names[split].append(f"n09999999/{name} {synset}/{name}")
    for directory, file, split in (
        ("names", f"ImageNetSemi_im{count}_train.txt", "semi"),
        ("mapping", f"ImageNetS_im{count}_mapping_validation.txt", "val"),
        ("mapping", f"ImageNetS_im{count}_mapping_test.txt", "test"),
    ):
        path = root / "lists" / directory / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(names[split]) + "\n")
    common = {"FORMAT": "imagenet_s", "CLASSES": count, "IMAGES": str(root / "imagenet"), "LISTS": str(root / "lists")}
    return {
        split: {**common, "SPLIT": split, **({} if split in ("train", "test") else {"MASKS": str(root / "masks")})}
        for split in ("train", "train_semi", "val", "test")
    }


def write_config(path: Path, base: str, by_path: dict[str, dict], train: str, test: str | None = None) -> str:
    """Writes a configuration that derives from a shipped one and uses other datasets; returns its path."""
    datasets = {"BY_PATH": by_path, "TRAIN": [train], "TEST": [test] if test else []}
    path.write_text(yaml.safe_dump({"_BASE_": get_config_file(base), "DATASETS": datasets}))
    return str(path)


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
