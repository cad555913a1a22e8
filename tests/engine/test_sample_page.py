"""The image of training samples, and the images of predictions during training."""

import os

import numpy as np
from PIL import Image
from u2seg.engine import U2SegTrainer
from u2seg.visualization import cluster_color
from u2seg.visualization.training_samples import _semantic_colors, show_training_samples


def test_one_row_a_sample(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path, "INPUT.COPY_PASTE.ENABLED", True)
    one, three = (Image.open(show_training_samples(cfg, tmp_path / f"{n}.png", n)) for n in (1, 3))
    assert one.width == three.width
    # 24 pixels of caption and 8 of margin, then a row of 320 x 240 and its gap of 8 for each sample (64 x 48, scaled).
    assert one.height == 32 + 248 and three.height == 32 + 3 * 248


def test_semantic_colors():
    colors = _semantic_colors(np.array([[0, 255, 2]]))
    assert colors.tolist() == [[[255, 255, 255], [0, 0, 0], list(cluster_color("stuff", 1))]]


def test_images_of_predictions_are_drawn_every_so_often(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path, "TEST.SAMPLE_PERIOD", 2, "TEST.NUM_SAMPLES", 1, "SOLVER.MAX_ITER", 3)
    trainer = U2SegTrainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    assert sorted(os.listdir(tmp_path / "samples")) == ["000001_0000002.png", "000001_0000003.png"]
    assert trainer.model.training
