"""Rules for those of Detectron2's own keys that this project's models and trainings rely on.

Names that a registry or a backbone gives meaning to (heads, features) are checked when the model is built.
"""

from u2seg.config.validation import (
    COUNT,
    NON_NEGATIVE,
    POSITIVE,
    SHARE,
    Rule,
    choice,
    flag,
    integer,
    number,
    optional,
    register_order,
    register_rules,
    several,
    text,
)

_CHANNELS = integer(1, 65536)
_LAYERS = integer(0, 100)
_RESOLUTION = integer(1, 1024)
_WEIGHT = number(0, 1e6)
_NORM = choice("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
_NAMES = several(text(), at_least=1)
_POOLER = choice("ROIAlign", "ROIAlignV2", "ROIPool", "ROIAlignRotated")
_BOX_LOSS = choice("smooth_l1", "giou", "diou", "ciou")
_BOX_WEIGHTS = several(POSITIVE, count=4)


def _pyramid(rule: Rule) -> Rule:
    """Returns the rule for one list of values, or one list for each feature."""
    return several(several(rule, at_least=1), at_least=1)


register_rules(
    {
        "MODEL.MASK_ON": flag(),
        "MODEL.KEYPOINT_ON": flag(),
        "MODEL.LOAD_PROPOSALS": flag(),
        "MODEL.PIXEL_MEAN": several(number(), count=3),
        "MODEL.PIXEL_STD": several(POSITIVE, count=3),
        "MODEL.BACKBONE.NAME": text(),
        "MODEL.BACKBONE.FREEZE_AT": integer(0, 5),
        "MODEL.FPN.IN_FEATURES": several(text()),
        "MODEL.FPN.OUT_CHANNELS": _CHANNELS,
        "MODEL.FPN.NORM": _NORM,
        "MODEL.FPN.FUSE_TYPE": choice("sum", "avg"),
        "MODEL.PROPOSAL_GENERATOR.NAME": text(),
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": number(0),
        "MODEL.ANCHOR_GENERATOR.NAME": text(),
        "MODEL.ANCHOR_GENERATOR.SIZES": _pyramid(POSITIVE),
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _pyramid(POSITIVE),
        "MODEL.ANCHOR_GENERATOR.OFFSET": number(0, 0.999),
        "MODEL.RPN.HEAD_NAME": text(),
        "MODEL.RPN.IN_FEATURES": _NAMES,
        "MODEL.RPN.BOUNDARY_THRESH": integer(-1),
        "MODEL.RPN.IOU_THRESHOLDS": several(SHARE, count=2, ascending=True),
        "MODEL.RPN.IOU_LABELS": several(integer(-1, 1), count=3),
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": COUNT,
        "MODEL.RPN.POSITIVE_FRACTION": SHARE,
        "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _WEIGHT,
        "MODEL.RPN.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
        "MODEL.RPN.SMOOTH_L1_BETA": _WEIGHT,
        "MODEL.RPN.LOSS_WEIGHT": _WEIGHT,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": COUNT,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": COUNT,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": COUNT,
        "MODEL.RPN.POST_NMS_TOPK_TEST": COUNT,
        "MODEL.RPN.NMS_THRESH": SHARE,
        "MODEL.RPN.CONV_DIMS": several(integer(-1, 65536), at_least=1),
        "MODEL.ROI_HEADS.NAME": text(),
        "MODEL.ROI_HEADS.IN_FEATURES": _NAMES,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": several(SHARE, at_least=1, ascending=True),
        "MODEL.ROI_HEADS.IOU_LABELS": several(integer(-1, 1), at_least=2),
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": SHARE,
        "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": flag(),
        "MODEL.ROI_BOX_HEAD.NAME": text(empty=True),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _WEIGHT,
        "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _WEIGHT,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": _RESOLUTION,
        "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": NON_NEGATIVE,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLER,
        "MODEL.ROI_BOX_HEAD.NUM_FC": _LAYERS,
        "MODEL.ROI_BOX_HEAD.FC_DIM": _CHANNELS,
        "MODEL.ROI_BOX_HEAD.NUM_CONV": _LAYERS,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": _CHANNELS,
        "MODEL.ROI_BOX_HEAD.NORM": _NORM,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": flag(),
        "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": flag(),
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": flag(),
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": flag(),
        "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": _WEIGHT,
        "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": COUNT,
        "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": several(_BOX_WEIGHTS, at_least=1),
        "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": several(SHARE, at_least=1, ascending=True),
        "MODEL.ROI_MASK_HEAD.NAME": text(),
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": _RESOLUTION,
        "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": NON_NEGATIVE,
        "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLER,
        "MODEL.ROI_MASK_HEAD.NUM_CONV": _LAYERS,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": _CHANNELS,
        "MODEL.ROI_MASK_HEAD.NORM": _NORM,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": flag(),
        "MODEL.SEM_SEG_HEAD.NAME": text(),
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": _NAMES,
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": integer(-1),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": integer(1, 65536),
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": _CHANNELS,
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": integer(1, 64),
        "MODEL.SEM_SEG_HEAD.NORM": _NORM,
        "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": _WEIGHT,
        "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": _WEIGHT,
        "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": flag(),
        "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH": SHARE,
        "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": number(0),
        "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": SHARE,
        "MODEL.RESNETS.DEPTH": Rule("one of 18, 34, 50, 101, 152", lambda value: value in (18, 34, 50, 101, 152)),
        "MODEL.RESNETS.OUT_FEATURES": several(choice("stem", "res2", "res3", "res4", "res5", "linear"), at_least=1),
        "MODEL.RESNETS.NUM_GROUPS": integer(1, 1024),
        "MODEL.RESNETS.NORM": _NORM,
        "MODEL.RESNETS.WIDTH_PER_GROUP": integer(1, 4096),
        "MODEL.RESNETS.STRIDE_IN_1X1": flag(),
        "MODEL.RESNETS.RES5_DILATION": integer(1, 2),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": integer(1, 8192),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": integer(1, 8192),
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": several(flag(), count=4),
        "MODEL.RESNETS.DEFORM_MODULATED": flag(),
        "MODEL.RESNETS.DEFORM_NUM_GROUPS": COUNT,
        "INPUT.CROP.ENABLED": flag(),
        "INPUT.CROP.TYPE": choice("relative", "relative_range", "absolute", "absolute_range"),
        "INPUT.CROP.SIZE": several(POSITIVE, count=2),
        "DATALOADER.SAMPLER_TRAIN": text(),
        "DATALOADER.REPEAT_THRESHOLD": number(0),
        "DATALOADER.REPEAT_SQRT": flag(),
        "SOLVER.LR_SCHEDULER_NAME": choice("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
        "SOLVER.BASE_LR_END": number(0),
        "SOLVER.NESTEROV": flag(),
        "SOLVER.WEIGHT_DECAY_NORM": optional(number(0)),
        "SOLVER.WEIGHT_DECAY_BIAS": optional(number(0)),
        "SOLVER.GAMMA": number(0, 1),
        "SOLVER.NUM_DECAYS": COUNT,
        "SOLVER.WARMUP_FACTOR": number(0, 1),
        "SOLVER.WARMUP_METHOD": choice("linear", "constant"),
        "SOLVER.RESCALE_INTERVAL": flag(),
        "SOLVER.REFERENCE_WORLD_SIZE": NON_NEGATIVE,
        "SOLVER.BIAS_LR_FACTOR": number(0),
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE": POSITIVE,
        "TEST.EXPECTED_RESULTS": several(
            Rule(
                "[task, metric, value, tolerance], two names and two numbers",
                lambda row: (
                    isinstance(row, (list, tuple))
                    and len(row) == 4
                    and all(text().accepts(name) for name in row[:2])
                    and number().accepts(row[2])
                    and number(0).accepts(row[3])
                ),
            )
        ),
        "TEST.AUG.ENABLED": flag(),
        "TEST.AUG.MIN_SIZES": several(COUNT, at_least=1),
        "TEST.AUG.MAX_SIZE": COUNT,
        "TEST.AUG.FLIP": flag(),
        "TEST.PRECISE_BN.ENABLED": flag(),
        "TEST.PRECISE_BN.NUM_ITER": COUNT,
        "OUTPUT_DIR": text(),
        "CUDNN_BENCHMARK": flag(),
        "VIS_PERIOD": NON_NEGATIVE,
    }
)
register_order("SOLVER.BASE_LR_END", "SOLVER.BASE_LR")
