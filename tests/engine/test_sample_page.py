"""The image of training samples, and the images of predictions during training."""

import os

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image
from u2seg.engine import U2SegTrainer
from u2seg.visualization import cluster_color
from u2seg.visualization.training_samples import _semantic_colors, legend_entries, show_training_samples


def test_one_row_a_sample(tiny_cfg, tmp_path):
    cfg = tiny_cfg(tmp_path, "INPUT.COPY_PASTE.ENABLED", True)
    one, three = (Image.open(show_training_samples(cfg, tmp_path / f"{n}.png", n)) for n in (1, 3))
    assert one.width == three.width
    # 24 pixels of caption and 8 of margin, then a row of 320 x 240 and its gap of 8 for each sample (64 x 48, scaled). The legend has
    # two lines of text and at least one of classes, of 20 pixels each, and a margin of 8.
    for image, rows in ((one, 1), (three, 3)):
        legend = image.height - (32 + rows * 248) - 8
        assert legend % 20 == 0 and 60 <= legend <= 200


def test_the_legend_lists_what_occurs_once():
    instances = Instances((2, 3), gt_classes=torch.tensor([4, 1, 4]))
    target = torch.tensor([[0, 2, 2], [255, 3, 0]])
    samples = [
        {"instances": instances, "sem_seg": target},
        {"instances": Instances((2, 3), gt_classes=torch.tensor([1]))},
    ]
    names = ["a", "b", "c", "d", "cup"], ["things", "x", "sky", "grass"]
    assert legend_entries(samples, *names) == [
        (cluster_color("thing", 1), True, "thing b"),
        (cluster_color("thing", 4), True, "thing cup"),
        (cluster_color("stuff", 1), False, "stuff sky"),
        (cluster_color("stuff", 2), False, "stuff grass"),
        ((255, 255, 255), False, "some thing"),
        ((0, 0, 0), False, "ignored: no loss"),
    ]
    assert [text for *_, text in legend_entries(samples[1:], [], [])] == ["thing 1"]


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
