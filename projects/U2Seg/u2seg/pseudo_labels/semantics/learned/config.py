"""Every configuration key of the semantic providers that train: ``SEMANTICS.LEARNED``, ``SEMANTICS.STEGO``, ``SEMANTICS.CAUSE``."""

from detectron2.config import CfgNode as CN

from u2seg.config import CONFIG_REGISTRY
from u2seg.config.validation import (
    COUNT,
    NON_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SHARE,
    choice,
    flag,
    integer,
    number,
    register_rules,
    several,
    text,
)


@CONFIG_REGISTRY.register()
def add_learned_semantics_config(cfg: CN) -> None:
    """Adds the keys of the learned providers to a configuration, in place."""
    # What STEGO and CAUSE share.
    cfg.SEMANTICS.LEARNED = CN()
    # A trained head: model_final.pth of an earlier run's semantics/, or what `u2seg convert` wrote; "": trained on these images.
    cfg.SEMANTICS.LEARNED.WEIGHTS = ""
    # (height, width) in pixels to which the training crops are resized [STEGO]; CAUSE's TR head: 320. DINOv2: multiples of 14.
    cfg.SEMANTICS.LEARNED.TRAIN_SIZE = (224, 224)
    cfg.SEMANTICS.LEARNED.MAP_SIZE = (320, 320)  # and to which the images are resized that get a map [STEGO, CAUSE]
    # In place of FEATURES.VIT.FACET, of the last block: masks are cut from keys, heads are trained on normalized tokens [STEGO, CAUSE].
    cfg.SEMANTICS.LEARNED.FACET = "normalized_token"
    # Train on the four corners and the center of each image, of so much of its height and width [STEGO]; 1.0: on whole images.
    cfg.SEMANTICS.LEARNED.CROP_RATIO = 0.5
    # Subtract the training crops' mean feature: where all features resemble one another, after a ReLU for example, their cosines tell
    # little; a ResNet's features are then not centered image by image [ours].
    cfg.SEMANTICS.LEARNED.CENTER = False
    # Images to train on; of more, a seeded sample is drawn. 200,000 with five crops each and 384 channels take 5 GB [ours].
    cfg.SEMANTICS.LEARNED.MAX_IMAGES = 200_000
    cfg.SEMANTICS.LEARNED.BATCH_SIZE = 16  # crops [STEGO, CAUSE]
    cfg.SEMANTICS.LEARNED.CHECKPOINT_PERIOD = 500  # iterations; what a kill loses at most
    # Features of all crops are kept in memory where they need no more MiB than this; else computed anew for each batch [ours].
    cfg.SEMANTICS.LEARNED.CACHE_MIB = 1024
    cfg.SEMANTICS.LEARNED.NUM_THREADS = 2  # that read images
    cfg.SEMANTICS.LEARNED.MIRROR = True  # the mean of an image's codes and its mirror image's [STEGO]
    # Dense CRF on the maps; the constants are STEGO's, which CAUSE took over.
    cfg.SEMANTICS.LEARNED.CRF = CN()
    cfg.SEMANTICS.LEARNED.CRF.ENABLED = True
    cfg.SEMANTICS.LEARNED.CRF.GAUSSIAN_SXY = 1.0  # pixels
    cfg.SEMANTICS.LEARNED.CRF.GAUSSIAN_COMPAT = 3.0
    cfg.SEMANTICS.LEARNED.CRF.BILATERAL_SXY = 67.0  # pixels
    cfg.SEMANTICS.LEARNED.CRF.BILATERAL_SRGB = 3.0  # 8-bit color units
    cfg.SEMANTICS.LEARNED.CRF.BILATERAL_COMPAT = 4.0
    cfg.SEMANTICS.LEARNED.CRF.NUM_ITERATIONS = 10

    # Provider "STEGO". Weights and shifts are those for COCO-Stuff with ViT-S/8; see configs/semantics for the other published sets.
    cfg.SEMANTICS.STEGO = CN()
    cfg.SEMANTICS.STEGO.DIM = 70  # length of a code
    cfg.SEMANTICS.STEGO.DROPOUT = 0.1  # share of the channels, in each branch and in the features that the loss sees
    cfg.SEMANTICS.STEGO.NUM_NEIGHBORS = 7  # nearest crops of which one is drawn
    cfg.SEMANTICS.STEGO.NUM_POINTS = 11  # a side
    cfg.SEMANTICS.STEGO.NUM_NEGATIVES = 5  # permutations of the batch
    cfg.SEMANTICS.STEGO.SELF_WEIGHT = 0.67
    cfg.SEMANTICS.STEGO.NEIGHBOR_WEIGHT = 0.25
    cfg.SEMANTICS.STEGO.NEGATIVE_WEIGHT = 0.63
    cfg.SEMANTICS.STEGO.SELF_SHIFT = 0.08
    cfg.SEMANTICS.STEGO.NEIGHBOR_SHIFT = 0.02
    cfg.SEMANTICS.STEGO.NEGATIVE_SHIFT = 0.66
    cfg.SEMANTICS.STEGO.MAX_ITER = 5000
    cfg.SEMANTICS.STEGO.BASE_LR = 5e-4  # of the head, Adam
    cfg.SEMANTICS.STEGO.PROBE_LR = 5e-3  # of the cluster probe, Adam
    cfg.SEMANTICS.STEGO.LOGIT_SCALE = 2.0  # factor of the cosines before the softmax that the CRF starts from

    # Provider "CAUSE", without labels. Defaults are those for COCO-Stuff.
    cfg.SEMANTICS.CAUSE = CN()
    cfg.SEMANTICS.CAUSE.HEAD = "TR"  # "TR", a decoder layer that asks with codewords, or "MLP"
    cfg.SEMANTICS.CAUSE.CODEBOOK_SIZE = 2048
    cfg.SEMANTICS.CAUSE.DIM = 90  # length of a code
    cfg.SEMANTICS.CAUSE.PROJECTION_DIM = 2048
    cfg.SEMANTICS.CAUSE.DROPOUT = 0.1
    cfg.SEMANTICS.CAUSE.CELL = 4  # patches a side of the cells of which one token each is drawn
    cfg.SEMANTICS.CAUSE.TEMPERATURE = 0.07
    cfg.SEMANTICS.CAUSE.POSITIVE = 0.3  # cosine of two codewords above which their tokens attract each other
    cfg.SEMANTICS.CAUSE.NEGATIVE = 0.1  # and below which they repel each other
    # Keys of each codeword that are remembered; CODEBOOK_SIZE x BANK_SIZE x PROJECTION_DIM floats; 0: no bank.
    cfg.SEMANTICS.CAUSE.BANK_SIZE = 100
    cfg.SEMANTICS.CAUSE.BANK_SHARE = 0.5  # share of a batch's tokens that enter the bank
    cfg.SEMANTICS.CAUSE.EMA_DECAY = 0.99  # of the averaged head, a step
    cfg.SEMANTICS.CAUSE.CODEBOOK_EPOCHS = 1
    cfg.SEMANTICS.CAUSE.HEAD_EPOCHS = 2
    cfg.SEMANTICS.CAUSE.PROBE_EPOCHS = 5  # TR; MLP: 1
    cfg.SEMANTICS.CAUSE.BASE_LR = 1e-3  # Adam, of all three steps
    cfg.SEMANTICS.CAUSE.WEIGHT_DECAY = 1e-4  # of the head; Cityscapes: 0
    cfg.SEMANTICS.CAUSE.MAX_NORM = 2.0  # of the head's gradient (TR); MLP: 0.1; Cityscapes: 1
    cfg.SEMANTICS.CAUSE.PROBE_STEP_EPOCHS = 2  # after which the probe's learning rate is halved, again and again
    cfg.SEMANTICS.CAUSE.LOGIT_SCALE = 3.0


register_rules(
    {
        "SEMANTICS.LEARNED.WEIGHTS": text(empty=True),
        "SEMANTICS.LEARNED.TRAIN_SIZE": several(integer(16, 8192), count=2),
        "SEMANTICS.LEARNED.MAP_SIZE": several(integer(16, 8192), count=2),
        "SEMANTICS.LEARNED.FACET": choice("key", "query", "value", "token", "normalized_token"),
        "SEMANTICS.LEARNED.CROP_RATIO": number(0, 1, above=True),
        "SEMANTICS.LEARNED.CENTER": flag(),
        "SEMANTICS.LEARNED.BATCH_SIZE": integer(2, 65536),
        "SEMANTICS.LEARNED.CHECKPOINT_PERIOD": COUNT,
        "SEMANTICS.LEARNED.CACHE_MIB": NON_NEGATIVE,
        "SEMANTICS.LEARNED.MAX_IMAGES": COUNT,
        "SEMANTICS.LEARNED.NUM_THREADS": integer(1, 1024),
        "SEMANTICS.LEARNED.MIRROR": flag(),
        "SEMANTICS.LEARNED.CRF.ENABLED": flag(),
        "SEMANTICS.LEARNED.CRF.GAUSSIAN_SXY": number(0, 1e6, above=True),
        "SEMANTICS.LEARNED.CRF.GAUSSIAN_COMPAT": number(0, 1e6),
        "SEMANTICS.LEARNED.CRF.BILATERAL_SXY": number(0, 1e6, above=True),
        "SEMANTICS.LEARNED.CRF.BILATERAL_SRGB": number(0, 1e6, above=True),
        "SEMANTICS.LEARNED.CRF.BILATERAL_COMPAT": number(0, 1e6),
        "SEMANTICS.LEARNED.CRF.NUM_ITERATIONS": integer(0, 10_000),
        "SEMANTICS.STEGO.DIM": integer(1, 65536),
        "SEMANTICS.STEGO.DROPOUT": number(0, 0.99),
        "SEMANTICS.STEGO.NUM_NEIGHBORS": integer(1, 1000),
        "SEMANTICS.STEGO.NUM_POINTS": integer(1, 1024),
        "SEMANTICS.STEGO.NUM_NEGATIVES": integer(1, 1000),
        "SEMANTICS.STEGO.SELF_WEIGHT": number(0, 1e6),
        "SEMANTICS.STEGO.NEIGHBOR_WEIGHT": number(0, 1e6),
        "SEMANTICS.STEGO.NEGATIVE_WEIGHT": number(0, 1e6),
        "SEMANTICS.STEGO.SELF_SHIFT": number(-10, 10),
        "SEMANTICS.STEGO.NEIGHBOR_SHIFT": number(-10, 10),
        "SEMANTICS.STEGO.NEGATIVE_SHIFT": number(-10, 10),
        "SEMANTICS.STEGO.MAX_ITER": COUNT,
        "SEMANTICS.STEGO.BASE_LR": POSITIVE,
        "SEMANTICS.STEGO.PROBE_LR": POSITIVE,
        "SEMANTICS.STEGO.LOGIT_SCALE": POSITIVE,
        "SEMANTICS.CAUSE.HEAD": choice("TR", "MLP"),
        "SEMANTICS.CAUSE.CODEBOOK_SIZE": integer(2, 1_000_000),
        "SEMANTICS.CAUSE.DIM": integer(1, 65536),
        "SEMANTICS.CAUSE.PROJECTION_DIM": integer(1, 65536),
        "SEMANTICS.CAUSE.DROPOUT": number(0, 0.99),
        "SEMANTICS.CAUSE.CELL": integer(1, 1024),
        "SEMANTICS.CAUSE.TEMPERATURE": POSITIVE,
        "SEMANTICS.CAUSE.POSITIVE": number(-1, 1),
        "SEMANTICS.CAUSE.NEGATIVE": number(-1, 1),
        "SEMANTICS.CAUSE.BANK_SIZE": integer(0, 1_000_000),
        "SEMANTICS.CAUSE.BANK_SHARE": SHARE,
        "SEMANTICS.CAUSE.EMA_DECAY": PROBABILITY,
        "SEMANTICS.CAUSE.CODEBOOK_EPOCHS": COUNT,
        "SEMANTICS.CAUSE.HEAD_EPOCHS": COUNT,
        "SEMANTICS.CAUSE.PROBE_EPOCHS": COUNT,
        "SEMANTICS.CAUSE.BASE_LR": POSITIVE,
        "SEMANTICS.CAUSE.WEIGHT_DECAY": number(0, 1e6),
        "SEMANTICS.CAUSE.MAX_NORM": POSITIVE,
        "SEMANTICS.CAUSE.PROBE_STEP_EPOCHS": COUNT,
        "SEMANTICS.CAUSE.LOGIT_SCALE": POSITIVE,
    }
)
