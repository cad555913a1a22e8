"""What ``u2seg run`` starts from, with a network so small that a training of two iterations takes seconds on any machine."""

from pathlib import Path

CONFIG = """\
_BASE_: quick_schedules/photos.yaml
FEATURES:
  IMAGE_SIZE: [96, 128]
MODEL:
  FPN: {OUT_CHANNELS: 16}
  SEM_SEG_HEAD: {CONVS_DIM: 16, NORM: ""}
  ROI_MASK_HEAD: {CONV_DIM: 16}
  ROI_BOX_HEAD: {FC_DIM: 16}
  RPN: {POST_NMS_TOPK_TRAIN: 40, POST_NMS_TOPK_TEST: 40}
INPUT: {MIN_SIZE_TRAIN: [96], MAX_SIZE_TRAIN: 160, MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 160}
SOLVER:
  IMS_PER_BATCH: 2
DATALOADER:
  NUM_WORKERS: 0
TEST:
  DETECTIONS_PER_IMAGE: 10
"""


def write_tiny_photos_config(path: Path) -> str:
    """Writes the configuration; returns its path, for ``run_config.PHOTOS_CONFIG``."""
    path.write_text(CONFIG)
    return str(path)
