"""CutLER's configuration keys: a file or a command line that uses one ends with an error that names ours."""

from detectron2.config import CfgNode as CN

CUTLER_KEYS: dict[str, tuple[str, str]] = {
    "DATALOADER.COPY_PASTE": ("INPUT.COPY_PASTE.ENABLED", ""),
    "DATALOADER.COPY_PASTE_RATE": ("INPUT.COPY_PASTE.PROBABILITY", ""),
    "DATALOADER.COPY_PASTE_MIN_RATIO": ("INPUT.COPY_PASTE.SCALE_RANGE", "It is the first of two values."),
    "DATALOADER.COPY_PASTE_MAX_RATIO": ("INPUT.COPY_PASTE.SCALE_RANGE", "It is the second of two values."),
    "DATALOADER.COPY_PASTE_RANDOM_NUM": ("INPUT.COPY_PASTE.MAX_INSTANCES", "0 sets no limit."),
    "DATALOADER.VISUALIZE_COPY_PASTE": ("the command `u2seg show-samples`", ""),
    "MODEL.ROI_HEADS.USE_DROPLOSS": ("MODEL.ROI_HEADS.DROP_LOSS.ENABLED", ""),
    "MODEL.ROI_HEADS.DROPLOSS_IOU_THRESH": ("MODEL.ROI_HEADS.DROP_LOSS.IOU_THRESH", ""),
    "SOLVER.BASE_LR_MULTIPLIER": (
        "SOLVER.LR_MULTIPLIERS",
        "It holds pairs of the beginning of a parameter's name and its factor.",
    ),
    "SOLVER.BASE_LR_MULTIPLIER_NAMES": (
        "SOLVER.LR_MULTIPLIERS",
        "It holds pairs of the beginning of a parameter's name and its factor.",
    ),
    "TEST.NO_SEGM": ("MODEL.MASK_ON", "Masks are scored where the model predicts them."),
}
"""CutLER's key -> what does the same here, and a sentence to add. Source: the keys that CutLER adds to Detectron2's."""


def add_renamed_keys(cfg: CN) -> None:
    """Makes a configuration refuse CutLER's keys, in place."""
    for key, (ours, note) in CUTLER_KEYS.items():
        if not cfg.key_is_renamed(key):
            cfg.register_renamed_key(key, ours, note)
