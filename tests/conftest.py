"""Fixtures that several packages' tests share."""

import pytest
import tiny_coco


@pytest.fixture(scope="session")
def write_coco_panoptic():
    """Returns a function that writes a tiny COCO panoptic dataset: ``(root, split="train", count=6, size=(48, 64), seed=0)``."""
    return tiny_coco.write_coco_panoptic


@pytest.fixture(scope="session")
def tiny_cfg(tmp_path_factory):
    """Returns a function that makes a complete configuration of a tiny Panoptic-FPN on the tiny dataset, on the CPU.

    ``tiny_cfg(output_dir, "KEY", value, ...)``; one image size, a 16-channel FPN, batches of 2, no test set.
    """
    root = tiny_coco.write_coco_panoptic(tmp_path_factory.mktemp("tiny"))

    def make(output_dir, *opts):
        from detectron2.config import CfgNode
        from u2seg.config import setup_cfg
        from u2seg.modeling import complete_config

        cfg = setup_cfg("quick_schedules/Base-Scenes-R18-FPN.yaml")
        cfg.DATASETS.BY_PATH.tiny_train = CfgNode({"FORMAT": "coco_panoptic", "ROOT": str(root), "SPLIT": "train"})
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("tiny_train",), ()
        cfg.INPUT.MIN_SIZE_TRAIN = (48,)
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
        cfg.MODEL.SEM_SEG_HEAD.NORM = ""
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 40
        cfg.SOLVER.IMS_PER_BATCH = 2
        cfg.SOLVER.MAX_ITER = 4
        cfg.OUTPUT_DIR = str(output_dir)
        cfg.merge_from_list(list(opts))
        return complete_config(cfg)

    return make
