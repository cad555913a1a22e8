"""Photos in which no mask is found: labels of stuff alone, with a warning, and a training on them."""

import json

import numpy as np
import pytest
from detectron2.config import CfgNode
from PIL import Image
from u2seg.config import setup_cfg
from u2seg.engine import U2SegTrainer
from u2seg.modeling import complete_config
from u2seg.pseudo_labels.pipeline import make_pseudo_labels

OPTIONS = [
    *("FEATURES.IMAGE_SIZE", "(24,32)", "MASKS.NUM_WORKERS", "0", "MASKS.NUM_THREADS", "1"),
    *("MASKS.MIN_AREA", "0.19"),  # with the configuration's MAX_AREA of 0.2: nearly nothing is of that size
    *("CLUSTERS.NUM_CLUSTERS", "3", "SEMANTICS.NUM_CLUSTERS", "2", "SEMANTICS.NUM_RESTARTS", "1"),
]


def test_without_a_mask_labels_hold_stuff_alone_and_can_be_trained_on(tmp_path, tiny_cfg, caplog):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        rng = np.random.default_rng(number)
        pixels = np.full((48, 64, 3), (120, 160, 220)) + rng.integers(-9, 10, (48, 64, 3))
        pixels[24:] -= 80
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(photos / f"{number}.png")
    labels = make_pseudo_labels(setup_cfg("quick_schedules/scenes.yaml", OPTIONS), photos, tmp_path / "labels")
    assert "No mask was found in any image" in caplog.text
    instances = json.loads((labels / "panoptic/instances.json").read_text())
    panoptic = json.loads((labels / "panoptic/panoptic.json").read_text())
    assert len(instances["images"]) == 4 and instances["annotations"] == [] and len(instances["categories"]) == 3
    assert all(row["segments_info"] for row in panoptic["annotations"])

    cfg = tiny_cfg(tmp_path / "run", "SOLVER.MAX_ITER", 2, "INPUT.COPY_PASTE.ENABLED", True)
    cfg.DATASETS.BY_PATH.stuff_only = CfgNode({"FORMAT": "pseudo_labels", "ROOT": str(labels), "IMAGES": str(photos)})
    cfg.DATASETS.TRAIN = ("stuff_only",)
    cfg.INPUT.COPY_PASTE.PARTNER = "any_image"
    complete_config(cfg)
    U2SegTrainer(cfg).train()
    assert (tmp_path / "run" / "model_final.pth").is_file()

    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True
    with pytest.raises(
        ValueError, match=r"stuff_only cannot be trained on: No valid data .*EMPTY_ANNOTATIONS leaves out"
    ):
        U2SegTrainer(cfg)
