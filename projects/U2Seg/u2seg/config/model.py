"""Keys of the models: ``MODEL``."""

from detectron2.config import CfgNode as CN

from u2seg.config.validation import COUNT, SHARE, device, flag, integer, register_rules, several, text


def add_model_config(cfg: CN) -> None:
    """Adds the keys of the models to a configuration, in place."""
    cfg.MODEL.CHANNELS_LAST = False  # NHWC memory layout of the convolutions; faster on GPUs with AMP [ours]
    # Recompute the backbone's residual blocks in the backward pass: less memory, about a third more
    # time [ours].
    cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    # DropLoss: no classification loss for regions far from every pseudo-label [CutLER, equation 3].
    cfg.MODEL.ROI_HEADS.DROP_LOSS = CN()
    cfg.MODEL.ROI_HEADS.DROP_LOSS.ENABLED = False
    # Largest IoU with a target at or below which it is dropped [CutLER]
    cfg.MODEL.ROI_HEADS.DROP_LOSS.IOU_THRESH = 0.01
    # What the targets are: "labels", the image's pseudo-labels [CutLER, equation 3], or "guessed",
    # what CutLER's code takes for them.
    cfg.MODEL.ROI_HEADS.DROP_LOSS.TARGETS = "labels"
    # With DROP_LOSS: a label of score s counts as its class with probability s and as background with 1 - s, and its box loss s times
    # [CuVLER]. Masks likewise: MODEL.ROI_MASK_HEAD.NAME "SoftTargetMaskHead".
    cfg.MODEL.ROI_HEADS.SOFT_TARGETS = False

    # build_small_resnet_backbone, for images of a hundred pixels [ours].
    cfg.MODEL.SMALL_RESNET = CN()
    cfg.MODEL.SMALL_RESNET.WIDTH = 32  # channels of res2, doubled by each later stage
    cfg.MODEL.SMALL_RESNET.BLOCKS_PER_STAGE = 1
    cfg.MODEL.SMALL_RESNET.STRIDES = (1, 2, 2, 2)  # of res2 to res5, behind a stem of stride 2


register_rules(
    {
        "MODEL.DEVICE": device(),
        "MODEL.META_ARCHITECTURE": text(),
        "MODEL.WEIGHTS": text(empty=True),
        "MODEL.CHANNELS_LAST": flag(),
        "MODEL.ACTIVATION_CHECKPOINTING": flag(),
        "MODEL.ROI_HEADS.NUM_CLASSES": integer(1, 65536),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": COUNT,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": SHARE,
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": SHARE,
        "MODEL.ROI_HEADS.DROP_LOSS.ENABLED": flag(),
        "MODEL.ROI_HEADS.DROP_LOSS.IOU_THRESH": SHARE,
        "MODEL.ROI_HEADS.DROP_LOSS.TARGETS": text(),
        "MODEL.ROI_HEADS.SOFT_TARGETS": flag(),
        "MODEL.SMALL_RESNET.WIDTH": integer(2, 8192),
        "MODEL.SMALL_RESNET.BLOCKS_PER_STAGE": integer(1, 100),
        "MODEL.SMALL_RESNET.STRIDES": several(integer(1, 4), count=4),
    }
)
