"""Keys of evaluation: ``TEST``."""

from detectron2.config import CfgNode as CN

from u2seg.config.validation import COUNT, NON_NEGATIVE, SHARE, flag, integer, number, register_rules, several, text


def add_test_config(cfg: CN) -> None:
    """Adds the keys of evaluation to a configuration, in place."""
    # Iterations between images of predictions in OUTPUT_DIR/samples and TensorBoard; 0: none [ours].
    cfg.TEST.SAMPLE_PERIOD = 0
    cfg.TEST.NUM_SAMPLES = 4  # images, the first of DATASETS.TEST (of DATASETS.TRAIN where there is none)
    # Names in u2seg.evaluation's PROTOCOL_REGISTRY, one row of the table each.
    cfg.TEST.PROTOCOLS = ("hungarian", "u2seg_paper", "cups")
    cfg.TEST.LABEL_MAP = CN()
    cfg.TEST.LABEL_MAP.FIT_ON = ""  # "": the scored dataset, as the literature does (the output says so); else another
    cfg.TEST.LABEL_MAP.FILE = ""  # a saved label map (JSON) instead of a fit
    cfg.TEST.SAVE_TABLES = True  # keep the segment tables under OUTPUT_DIR for u2seg score
    cfg.TEST.BOOTSTRAP = 0  # resamples of the images for 95 % intervals; 0: none
    # COCO's 53 stuff categories are scored as their 15 supercategories [U2Seg]; False: as they are. Other datasets keep theirs.
    cfg.TEST.STUFF_SUPERCATEGORIES = True
    # Half-width of a boundary as a share of the image's diagonal, for boundary IoU; 0: not computed [Boundary IoU, CVPR 2021].
    cfg.TEST.BOUNDARY_RATIO = 0.02
    # Box IoU above which, of two detections whose clusters stand for one category, the lower one is dropped; 0: none is [ours].
    cfg.TEST.NMS_ACROSS_CLUSTERS = 0.0


register_rules(
    {
        "TEST.EVAL_PERIOD": NON_NEGATIVE,
        "TEST.DETECTIONS_PER_IMAGE": COUNT,
        "TEST.SAMPLE_PERIOD": NON_NEGATIVE,
        "TEST.NUM_SAMPLES": NON_NEGATIVE,
        "TEST.PROTOCOLS": several(text()),
        "TEST.LABEL_MAP.FIT_ON": text(empty=True),
        "TEST.LABEL_MAP.FILE": text(empty=True),
        "TEST.SAVE_TABLES": flag(),
        "TEST.BOOTSTRAP": integer(0, 1_000_000),
        "TEST.STUFF_SUPERCATEGORIES": flag(),
        "TEST.BOUNDARY_RATIO": number(0, 0.5),
        "TEST.NMS_ACROSS_CLUSTERS": SHARE,
    }
)
