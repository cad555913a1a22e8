"""Keys of datasets and training samples: ``DATASETS``, ``INPUT``."""

from detectron2.config import CfgNode as CN

from u2seg.config.validation import (
    NON_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    choice,
    flag,
    integer,
    number,
    register_rules,
    several,
    text,
)


def add_data_config(cfg: CN) -> None:
    """Adds the keys of datasets and training samples to a configuration, in place."""
    # Datasets registered by path: a name that DATASETS.TRAIN/TEST use -> {FORMAT, ROOT, ...};
    # u2seg.data.datasets.registration.
    cfg.DATASETS.BY_PATH = CN(new_allowed=True)
    # Share of each training set in the stream of samples, any positive scale; (): proportional to
    # their sizes [ours]; the paper mixes COCO and ImageNet without saying how.
    cfg.DATASETS.TRAIN_RATIO = ()
    cfg.INPUT.DATASET_MAPPER_NAME = "PanopticMapper"  # name in DATASET_MAPPER_REGISTRY (Mask2Former's key)

    # Copy-paste in the loader [U2Seg, equation 4; CutLER, section 3.3].
    cfg.INPUT.COPY_PASTE = CN()
    cfg.INPUT.COPY_PASTE.ENABLED = False
    # How instances are pasted, name in COPY_PASTE_REGISTRY: "CutLERCopyPaste" [CutLER's code] or
    # "LayeredCopyPaste" [ours].
    cfg.INPUT.COPY_PASTE.NAME = "CutLERCopyPaste"
    # Where they come from, name in PASTE_SOURCES_REGISTRY: "reversed_batch" [CutLER's code] or
    # "any_image" [ours].
    cfg.INPUT.COPY_PASTE.PARTNER = "reversed_batch"
    cfg.INPUT.COPY_PASTE.PROBABILITY = 1.0  # of pasting into a sample
    cfg.INPUT.COPY_PASTE.SAME_CLUSTER = False  # paste only instances of a cluster that the image holds [U2Seg]
    # Share of the target's sides that the source fills, drawn uniformly [CutLER; (0.5, 1.0) in its
    # self-training]
    cfg.INPUT.COPY_PASTE.SCALE_RANGE = (0.3, 1.0)
    # Overlap with an existing mask, as a share of that mask, from which a paste is refused
    # [CutLER's code]
    cfg.INPUT.COPY_PASTE.MAX_IOY = 0.5
    # Pasted into one sample at most; 0: as many as NAME allows [ours]
    cfg.INPUT.COPY_PASTE.MAX_INSTANCES = 0


register_rules(
    {
        "DATASETS.TRAIN": several(text()),
        "DATASETS.TEST": several(text()),
        "DATASETS.TRAIN_RATIO": several(POSITIVE),
        "DATALOADER.NUM_WORKERS": integer(0, 1024),
        "DATALOADER.ASPECT_RATIO_GROUPING": flag(),
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": flag(),
        "INPUT.DATASET_MAPPER_NAME": text(),
        "INPUT.FORMAT": choice("BGR", "RGB"),
        "INPUT.MASK_FORMAT": choice("polygon", "bitmask"),
        "INPUT.MIN_SIZE_TEST": integer(0, 65536),
        "INPUT.MAX_SIZE_TEST": integer(1, 65536),
        "INPUT.MIN_SIZE_TRAIN": several(integer(1, 65536), at_least=1),
        "INPUT.MAX_SIZE_TRAIN": integer(1, 65536),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": choice("choice", "range"),
        "INPUT.RANDOM_FLIP": choice("horizontal", "vertical", "none"),
        "INPUT.COPY_PASTE.ENABLED": flag(),
        "INPUT.COPY_PASTE.NAME": text(),
        "INPUT.COPY_PASTE.PARTNER": text(),
        "INPUT.COPY_PASTE.PROBABILITY": PROBABILITY,
        "INPUT.COPY_PASTE.SAME_CLUSTER": flag(),
        "INPUT.COPY_PASTE.SCALE_RANGE": several(number(0, 10, above=True), count=2, ascending=True),
        "INPUT.COPY_PASTE.MAX_IOY": number(0),
        "INPUT.COPY_PASTE.MAX_INSTANCES": NON_NEGATIVE,
    }
)
