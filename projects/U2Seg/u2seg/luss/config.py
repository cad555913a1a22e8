"""Every configuration key of LUSS and PASS."""

from detectron2.config import CfgNode as CN

from u2seg.config import CONFIG_REGISTRY
from u2seg.config.validation import (
    COUNT,
    NON_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SHARE,
    Rule,
    choice,
    flag,
    integer,
    number,
    register_rules,
    several,
    text,
)


@CONFIG_REGISTRY.register()
def add_luss_config(cfg: CN) -> None:
    """Adds the keys of LUSS and PASS to a configuration, in place."""
    # PASS: representation learning and pixel attention. Defaults are those for ImageNet-S 300 and 919 [LUSS].
    cfg.MODEL.PASS = CN()
    cfg.MODEL.PASS.DEEP_FEATURE = "res5"  # output of the backbone for swapped prediction, pixels and attention
    cfg.MODEL.PASS.SHALLOW_STAGES = ("res4",)  # outputs that learn to predict the deep codes
    cfg.MODEL.PASS.LOSS_WEIGHTS = (1.0, 1.0)  # deep, then one for each shallow stage; divided by their sum
    cfg.MODEL.PASS.P2P_WEIGHT = 1.0  # pixel-to-pixel; 0 leaves it out
    cfg.MODEL.PASS.P2P_GRID = 7  # points a side in the overlap of two crops
    # Beyond the outermost feature cells: "border" continues them [ours]; "zeros" fades to zero [LUSS, released code].
    cfg.MODEL.PASS.P2P_PADDING = "border"
    cfg.MODEL.PASS.HIDDEN_DIM = 2048  # of every MLP; 512 for ResNet-18
    cfg.MODEL.PASS.FEAT_DIM = 128
    cfg.MODEL.PASS.NUM_PROTOTYPES = 3000  # K; 500 for ImageNet-S 50
    cfg.MODEL.PASS.TEMPERATURE = 0.1
    cfg.MODEL.PASS.SINKHORN_EPS = 0.05
    cfg.MODEL.PASS.SINKHORN_ITERS = 3
    cfg.MODEL.PASS.QUEUE_LENGTH = 3840  # embeddings over all processes, for each view; 0: none
    cfg.MODEL.PASS.QUEUE_START_ITER = 0  # iteration from which the queue fills [LUSS: 15 epochs]
    cfg.MODEL.PASS.FREEZE_PROTOTYPES_ITERS = 5005  # iterations in which the prototypes get no gradient
    # Iterations with loss and code entropy at ln K before a warning; 0: never [ours]
    cfg.MODEL.PASS.COLLAPSE_PATIENCE = 500
    cfg.MODEL.PASS.PIXEL_ATTENTION = CN()
    # Whether batch-norm statistics of the frozen backbone follow the data in the attention stage [LUSS, released code: True].
    cfg.MODEL.PASS.PIXEL_ATTENTION.FROZEN_NORM_MOVES = False

    # Dense contrastive pretraining, "DenseContrastPretrainer" [DenseCL; ours where marked]. Views and points: INPUT.MULTI_CROP and
    # MODEL.PASS.P2P_GRID.
    cfg.MODEL.DENSE_CONTRAST = CN()
    cfg.MODEL.DENSE_CONTRAST.FEATURE = "res5"  # output of the backbone that is trained
    cfg.MODEL.DENSE_CONTRAST.HIDDEN_DIM = 256  # of both heads [ours: for narrow networks]
    cfg.MODEL.DENSE_CONTRAST.FEAT_DIM = 64  # [ours; DenseCL: 128]
    cfg.MODEL.DENSE_CONTRAST.TEMPERATURE = 0.2
    cfg.MODEL.DENSE_CONTRAST.POINT_WEIGHT = 0.5  # share of the dense loss; 0: whole views alone
    # Whether other points of the same image are negatives as well [ours; DenseCL: points of other images alone].
    cfg.MODEL.DENSE_CONTRAST.SAME_IMAGE_NEGATIVES = False

    # Views of one image: one value in each list for each kind of crop; mapper "MultiCropMapper" [SwAV; LUSS].
    cfg.INPUT.MULTI_CROP = CN()
    cfg.INPUT.MULTI_CROP.COUNTS = (2,)  # (2, 6) for ImageNet-S 50
    cfg.INPUT.MULTI_CROP.SIZES = (224,)  # pixels a side
    cfg.INPUT.MULTI_CROP.MIN_SCALES = (0.08,)  # share of the image's area
    cfg.INPUT.MULTI_CROP.MAX_SCALES = (1.0,)
    cfg.INPUT.MULTI_CROP.FLIP_PROBABILITY = 0.5
    cfg.INPUT.MULTI_CROP.JITTER = (0.8, 0.8, 0.8, 0.2)  # brightness, contrast, saturation, hue
    cfg.INPUT.MULTI_CROP.JITTER_PROBABILITY = 0.8
    cfg.INPUT.MULTI_CROP.GRAY_PROBABILITY = 0.2
    cfg.INPUT.MULTI_CROP.BLUR_PROBABILITY = 0.5
    cfg.INPUT.MULTI_CROP.BLUR_RADIUS = (0.1, 2.0)  # pixels

    # LUSS: the evaluator "luss", clustering, pseudo-labels and distance matching [LUSS].
    cfg.TEST.LUSS = CN()
    # "hungarian" (fully unsupervised), "majority", "none" (predictions are class ids), or a match.json that an earlier run saved.
    cfg.TEST.LUSS.MATCHING = "hungarian"
    cfg.TEST.LUSS.BOUNDARY_RATIO = 0.03  # depth of a boundary as a share of the diagonal
    # First, last and number of the attention thresholds that are scored in the same pass; used where a model gives attention.
    cfg.TEST.LUSS.SWEEP = (0.0, 0.8, 81)
    cfg.TEST.LUSS.SUBMISSION = False  # write predictions as id PNGs (matched ids) and a zip for the server
    cfg.TEST.LUSS.MAX_ELEMENTS = 2**25  # logits held at once while the argmax at native size is taken [ours]
    cfg.TEST.LUSS.KNN_K = 10  # neighbors that vote in distance matching
    cfg.TEST.LUSS.KNN_TEMPERATURE = 0.07

    # One crop of an image and its id map; mapper "LussSemanticMapper" [LUSS, fine-tuning]. For inference: INPUT.MIN_SIZE_TEST.
    cfg.INPUT.SEMANTIC_CROP = CN()
    cfg.INPUT.SEMANTIC_CROP.SIZE = 224  # pixels a side
    cfg.INPUT.SEMANTIC_CROP.SCALE = (0.08, 1.0)  # share of the image's area
    cfg.INPUT.SEMANTIC_CROP.FLIP_PROBABILITY = 0.5
    cfg.INPUT.SEMANTIC_CROP.DISTORT_COLOR = False  # as INPUT.MULTI_CROP says; True for the semi-supervised protocol

    cfg.LUSS = CN()
    cfg.LUSS.NUM_CLUSTERS = 919  # k-means clusters: the number of classes in the fully unsupervised protocol
    cfg.LUSS.KMEANS_ITERATIONS = 20
    cfg.LUSS.KMEANS_RESTARTS = 30
    cfg.LUSS.MAX_TRAINING_SAMPLES = (
        512 * 919
    )  # embeddings that k-means sees, all are assigned [ours; the reference: all]
    cfg.LUSS.SEED = 0
    cfg.LUSS.BATCH_SIZE = 32  # images in one forward pass
    cfg.LUSS.SHARD_SIZE = 1024  # images in one file on disk; what a kill loses at most
    # Sides in pixels: images are resized so that the short one has the first, and cut to the second for clustering.
    cfg.LUSS.RESIZE = 256
    cfg.LUSS.CENTER_CROP = 224
    cfg.LUSS.CENTROIDS = ""  # what clustering saved; PASSPixelClusterer reads it
    cfg.LUSS.BANK = ""  # what distance matching saved; DistanceMatcher reads it
    # k-NN accuracy monitored while PASS pretrains, every TEST.EVAL_PERIOD iterations and at the end. Its labels are for monitoring only:
    # no loss, no stopping, no choice of a checkpoint depends on them.
    cfg.LUSS.KNN = CN()
    cfg.LUSS.KNN.TRAIN = ()  # datasets whose images have classes (formats class_directories, imagenet_s): the bank; (): off
    # Datasets whose images are classified; (): those of the bank. An image that is in both never votes for itself.
    cfg.LUSS.KNN.TEST = ()
    cfg.LUSS.KNN.K = 20  # neighbors that vote [DINO]
    cfg.LUSS.KNN.TEMPERATURE = 0.07  # a neighbor of cosine s weighs exp(s / T) [InstDisc, DINO]
    # Of the bank, and of the others; more are drawn from, with LUSS.SEED; 0: all [ours].
    cfg.LUSS.KNN.MAX_IMAGES = 50_000
    cfg.LUSS.THRESHOLD = 0.37  # attention below which a pixel is "other": 0.41 for ImageNet-S 50, 0.40 for 300
    # The single-layer segmentation head: targets are shrunk by this factor before the loss.
    cfg.MODEL.SEM_SEG_HEAD.TARGET_STRIDE = 2


register_rules(
    {
        "MODEL.PASS.DEEP_FEATURE": text(),
        "MODEL.PASS.SHALLOW_STAGES": several(text()),
        "MODEL.PASS.LOSS_WEIGHTS": several(number(0), at_least=1),
        "MODEL.PASS.P2P_WEIGHT": number(0),
        "MODEL.PASS.P2P_GRID": integer(1, 1024),
        "MODEL.PASS.P2P_PADDING": choice("border", "zeros"),
        "MODEL.PASS.HIDDEN_DIM": integer(1, 65536),
        "MODEL.PASS.FEAT_DIM": integer(1, 65536),
        "MODEL.PASS.NUM_PROTOTYPES": integer(2, 1_000_000),
        "MODEL.PASS.TEMPERATURE": POSITIVE,
        "MODEL.PASS.SINKHORN_EPS": POSITIVE,
        "MODEL.PASS.SINKHORN_ITERS": integer(1, 10_000),
        "MODEL.PASS.QUEUE_LENGTH": integer(0, 10_000_000),
        "MODEL.PASS.QUEUE_START_ITER": NON_NEGATIVE,
        "MODEL.PASS.FREEZE_PROTOTYPES_ITERS": NON_NEGATIVE,
        "MODEL.PASS.COLLAPSE_PATIENCE": NON_NEGATIVE,
        "MODEL.PASS.PIXEL_ATTENTION.FROZEN_NORM_MOVES": flag(),
        "MODEL.DENSE_CONTRAST.FEATURE": text(),
        "MODEL.DENSE_CONTRAST.HIDDEN_DIM": integer(1, 65536),
        "MODEL.DENSE_CONTRAST.FEAT_DIM": integer(1, 65536),
        "MODEL.DENSE_CONTRAST.TEMPERATURE": POSITIVE,
        "MODEL.DENSE_CONTRAST.POINT_WEIGHT": SHARE,
        "MODEL.DENSE_CONTRAST.SAME_IMAGE_NEGATIVES": flag(),
        "MODEL.SEM_SEG_HEAD.TARGET_STRIDE": integer(1, 64),
        "INPUT.MULTI_CROP.COUNTS": several(integer(1, 1000), at_least=1),
        "INPUT.MULTI_CROP.SIZES": several(integer(1, 8192), at_least=1),
        "INPUT.MULTI_CROP.MIN_SCALES": several(number(0, 1, above=True), at_least=1),
        "INPUT.MULTI_CROP.MAX_SCALES": several(number(0, 1, above=True), at_least=1),
        "INPUT.MULTI_CROP.FLIP_PROBABILITY": PROBABILITY,
        "INPUT.MULTI_CROP.JITTER": several(number(0), count=4),
        "INPUT.MULTI_CROP.JITTER_PROBABILITY": PROBABILITY,
        "INPUT.MULTI_CROP.GRAY_PROBABILITY": PROBABILITY,
        "INPUT.MULTI_CROP.BLUR_PROBABILITY": PROBABILITY,
        "INPUT.MULTI_CROP.BLUR_RADIUS": several(number(0), count=2, ascending=True),
        "INPUT.SEMANTIC_CROP.SIZE": integer(1, 8192),
        "INPUT.SEMANTIC_CROP.SCALE": several(number(0, 1, above=True), count=2, ascending=True),
        "INPUT.SEMANTIC_CROP.FLIP_PROBABILITY": PROBABILITY,
        "INPUT.SEMANTIC_CROP.DISTORT_COLOR": flag(),
        "TEST.LUSS.MATCHING": Rule(
            "one of hungarian, majority, none, or a match.json",
            lambda value: (
                value in ("hungarian", "majority", "none") or (isinstance(value, str) and value.endswith(".json"))
            ),
        ),
        "TEST.LUSS.BOUNDARY_RATIO": number(0, 0.5),
        "TEST.LUSS.SWEEP": several(number(0), count=3),
        "TEST.LUSS.SUBMISSION": flag(),
        "TEST.LUSS.MAX_ELEMENTS": COUNT,
        "TEST.LUSS.KNN_K": COUNT,
        "TEST.LUSS.KNN_TEMPERATURE": POSITIVE,
        "LUSS.NUM_CLUSTERS": COUNT,
        "LUSS.KMEANS_ITERATIONS": integer(1, 100_000),
        "LUSS.KMEANS_RESTARTS": integer(1, 1000),
        "LUSS.MAX_TRAINING_SAMPLES": COUNT,
        "LUSS.SEED": NON_NEGATIVE,
        "LUSS.BATCH_SIZE": integer(1, 65536),
        "LUSS.SHARD_SIZE": COUNT,
        "LUSS.RESIZE": integer(1, 8192),
        "LUSS.CENTER_CROP": integer(1, 8192),
        "LUSS.CENTROIDS": text(empty=True),
        "LUSS.BANK": text(empty=True),
        "LUSS.KNN.TRAIN": several(text()),
        "LUSS.KNN.TEST": several(text()),
        "LUSS.KNN.K": COUNT,
        "LUSS.KNN.TEMPERATURE": POSITIVE,
        "LUSS.KNN.MAX_IMAGES": NON_NEGATIVE,
        "LUSS.THRESHOLD": SHARE,
    }
)
