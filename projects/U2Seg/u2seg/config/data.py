"""Keys of datasets and training samples: ``DATASETS``, ``INPUT``."""

from detectron2.config import CfgNode as CN


def add_data_config(cfg: CN) -> None:
    """Adds the keys of datasets and training samples to a configuration, in place."""
    # Datasets registered by path: a name that DATASETS.TRAIN/TEST use -> {FORMAT, ROOT, ...}; u2seg.data.datasets.registration.
    cfg.DATASETS.BY_PATH = CN(new_allowed=True)
    # Share of each training set in the stream of samples, any positive scale; (): proportional to their sizes [ours]; the paper
    # mixes COCO and ImageNet without saying how.
    cfg.DATASETS.TRAIN_RATIO = ()
    cfg.INPUT.DATASET_MAPPER_NAME = "PanopticMapper"  # name in DATASET_MAPPER_REGISTRY (Mask2Former's key)

    # Copy-paste in the loader [U2Seg, equation 4; CutLER, section 3.3].
    cfg.INPUT.COPY_PASTE = CN()
    cfg.INPUT.COPY_PASTE.ENABLED = False
    cfg.INPUT.COPY_PASTE.PROBABILITY = 1.0  # of pasting into a sample
    cfg.INPUT.COPY_PASTE.SAME_CLUSTER = False  # paste only instances of a cluster that the image holds [U2Seg]
    cfg.INPUT.COPY_PASTE.SCALE_RANGE = (0.3, 1.0)
    # Overlap with an existing mask, as a share of that mask, from which a paste is refused
    cfg.INPUT.COPY_PASTE.MAX_IOY = 0.5
    cfg.INPUT.COPY_PASTE.MAX_INSTANCES = 0  # pasted into one sample; 0: any number of the source's
