"""Every configuration key that this project adds to Detectron2's, with its meaning, unit and source.

Sources: [MaskCut] = CutLER, CVPR 2023, section 3.1 and its published recipe; [U2Seg] = Unsupervised Universal Image
Segmentation, CVPR 2024; [STEGO] = ICLR 2022; [LUSS] = TPAMI 2022; [DINO] = ICCV 2021; [InstDisc] = CVPR 2018;
[ours] = chosen here, for the reason given.
"""

from difflib import get_close_matches
from pathlib import Path

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

_PACKAGE = Path(__file__).resolve().parent


def get_config_file(name: str) -> str:
    """Returns the path of a configuration file that the package ships.

    Args:
        name: path relative to the project's ``configs/``, for example ``"quick_schedules/scenes.yaml"``.

    Raises:
        FileNotFoundError: no such file; the message lists those that exist.
    """
    # Installed: the configs are package data. Editable install or checkout: they lie at the repository's root.
    roots = [_PACKAGE / "configs", _PACKAGE.parents[2] / "configs"]
    for root in roots:
        if (root / name).is_file():
            return str(root / name)
    known = sorted({path.relative_to(root).as_posix() for root in roots for path in root.rglob("*.yaml")})
    raise FileNotFoundError(f"No configuration file {name!r}; available: {', '.join(known)}")


def find_config_file(config_file: str | Path) -> str:
    """Returns the path of a configuration file on disk or, where there is none, among the shipped ones.

    Raises:
        FileNotFoundError: neither; the message lists the shipped ones.
    """
    return (
        str(config_file) if Path(config_file).is_file() else get_config_file(str(config_file).removeprefix("configs/"))
    )


def setup_cfg(config_file: str | Path, opts: list[str] | tuple = ()) -> CN:
    """Returns Detectron2's configuration with this project's keys, a file and then single keys merged into it; not frozen.

    Args:
        config_file: a YAML file; a path that does not exist is looked up among the shipped ones (``get_config_file``).
        opts: KEY VALUE KEY VALUE ..., as on the command line.

    Raises:
        FileNotFoundError: no such file, neither on disk nor shipped.
        KeyError: a key that neither Detectron2 nor this project has; the message names those that are spelt alike.
        ValueError: a key without a value.
    """
    cfg = get_cfg()
    add_u2seg_config(cfg)
    path = (
        str(config_file) if Path(config_file).is_file() else get_config_file(str(config_file).removeprefix("configs/"))
    )
    cfg.merge_from_file(path)
    _check_keys(cfg, list(opts))
    cfg.merge_from_list(list(opts))
    return cfg


def _check_keys(cfg: CN, opts: list[str]) -> None:
    if len(opts) % 2:
        raise ValueError(f"settings are KEY VALUE KEY VALUE ..., got {len(opts)} words: {' '.join(opts)}")
    for key in opts[::2]:
        node = cfg
        for part in key.split("."):
            if not isinstance(node, CN) or part not in node:
                known = get_close_matches(part, node, n=3) if isinstance(node, CN) else []
                hint = f"; did you mean {' or '.join(known)}?" if known else ""
                raise KeyError(f"Unknown configuration key {key!r}: nothing is called {part!r} there{hint}")
            node = node[part]


def add_u2seg_config(cfg: CN) -> None:
    """Adds this project's keys, with their defaults, to a Detectron2 configuration, in place."""
    _add_features(cfg)
    _add_masks(cfg)
    _add_clusters(cfg)
    _add_semantics(cfg)
    _add_panoptic_labels(cfg)
    _add_data(cfg)
    _add_model(cfg)
    _add_solver(cfg)
    _add_self_training(cfg)
    _add_test(cfg)
    _add_pass(cfg)


def _add_features(cfg: CN) -> None:
    cfg.FEATURES = CN()
    # Name in FEATURE_EXTRACTOR_REGISTRY. "HandmadeDescriptor" needs no weights: the offline default [ours].
    cfg.FEATURES.NAME = "HandmadeDescriptor"
    # (height, width) in pixels to which every picture is resized, aspect ratio not kept [MaskCut].
    cfg.FEATURES.IMAGE_SIZE = (480, 480)
    # Pictures in one forward pass.
    cfg.FEATURES.BATCH_SIZE = 8
    cfg.FEATURES.DEVICE = "auto"  # "auto": CUDA where there is one, else the CPU

    # Hand-made descriptor: colour and gradient orientations, smoothed [ours].
    cfg.FEATURES.HANDMADE = CN()
    cfg.FEATURES.HANDMADE.PATCH_SIZE = 8  # pixels
    cfg.FEATURES.HANDMADE.COLOUR_WEIGHT = 1.0
    cfg.FEATURES.HANDMADE.TEXTURE_WEIGHT = 2.0

    # "RawPixels", a baseline: the mean RGB of each patch.
    cfg.FEATURES.RAW_PIXELS = CN()
    cfg.FEATURES.RAW_PIXELS.PATCH_SIZE = 1  # pixels

    # Vision transformers through timm.
    cfg.FEATURES.VIT = CN()
    cfg.FEATURES.VIT.ARCH = "dino_vitb8"  # key of u2seg.features.weights.ARCHITECTURES [MaskCut]
    # "": the authors' file, downloaded through PathManager and checked; else a local file in the authors' format.
    cfg.FEATURES.VIT.WEIGHTS = ""
    cfg.FEATURES.VIT.BLOCK = -1  # transformer block, negative counts from the last [MaskCut]
    cfg.FEATURES.VIT.FACET = "key"  # "key", "query", "value" or "token" [MaskCut]: key
    # "float32", or "bfloat16": faster on GPUs that have it; features are float32 in either case [ours].
    cfg.FEATURES.VIT.PRECISION = "float32"

    # ResNetFeatures: a ResNet of Detectron2's, or one that PASS has trained, as patch features.
    cfg.FEATURES.RESNET = CN()
    # The config that the network was trained with (a file, or a name under configs/): its MODEL section describes the backbone.
    cfg.FEATURES.RESNET.CONFIG_FILE = "LUSS/pass_scenes.yaml"
    # A checkpoint of that network; "": random weights, always the same, for comparison.
    cfg.FEATURES.RESNET.WEIGHTS = ""
    cfg.FEATURES.RESNET.OUT_FEATURE = "res4"  # name of the backbone's output
    # Pixels between two features, smaller than the output's own: the stages behind are dilated. 0: the output's own stride.
    cfg.FEATURES.RESNET.STRIDE = 0
    cfg.FEATURES.RESNET.CENTER = (
        True  # subtract each picture's mean feature: after a ReLU all cosines are positive [ours]
    )


def _add_masks(cfg: CN) -> None:
    cfg.MASKS = CN()
    cfg.MASKS.GENERATOR = (
        "MaskCut"  # name in MASK_GENERATOR_REGISTRY: "MaskCut", "StrictMaskCut", "VoteCut", "RecursiveCut"
    )
    # Subtract the picture's mean feature before the cosine: needed by hand-made features, not by DINO's keys [ours].
    cfg.MASKS.CENTRE_FEATURES = False
    cfg.MASKS.TAU = 0.15  # cosine similarity above which two patches are joined [MaskCut]; belongs to DINO keys
    cfg.MASKS.EPS = 1e-5  # affinity of patches that are not joined [MaskCut]
    cfg.MASKS.ROUNDS = 3  # masks sought in a picture, N [MaskCut]
    cfg.MASKS.MAX_PREVIOUS_IOU = 0.5  # a later mask that overlaps the previous one more is rejected [MaskCut]
    cfg.MASKS.MIN_AREA = 0.01  # share of the patches at or below which a mask is rejected [MaskCut: not for the first]
    cfg.MASKS.MAX_AREA = 1.0  # share of the patches above which a mask is rejected; 1.0: none is [MaskCut]
    cfg.MASKS.MAX_CORNERS = 3  # a mask that owns so many of the image's corners is background [MaskCut]
    # VoteCut: the second eigenvectors of several graphs vote [CuVLER, CVPR 2024, section 3.1].
    cfg.MASKS.VOTE = CN()
    cfg.MASKS.VOTE.TAUS = (
        0.1,
        0.15,
        0.2,
        0.3,
    )  # thresholds like MASKS.TAU, one graph each [ours; CuVLER: six backbones]
    cfg.MASKS.VOTE.NUM_GROUPS = (2, 3)  # k-means groups of an eigenvector's entries, one vote each [CuVLER]
    cfg.MASKS.VOTE.MIN_IOU = 0.6  # from which two candidates are one object [CuVLER]
    cfg.MASKS.VOTE.MIN_SHARE = 0.2  # share of an object's candidates that must hold a patch [CuVLER]
    cfg.MASKS.VOTE.MAX_MASKS = 10  # a picture [CuVLER]
    cfg.MASKS.VOTE.MAX_CORNERS = 2  # a candidate that owns so many of the image's corners is background [CuVLER]
    # "KMeansRegions", a baseline: connected regions of so many clusters of a picture's features [ours].
    cfg.MASKS.KMEANS_REGIONS = CN()
    cfg.MASKS.KMEANS_REGIONS.NUM_CLUSTERS = 8
    # "RecursiveCut": every region is cut in two again until it holds together; for features without semantics [ours].
    cfg.MASKS.RECURSIVE = CN()
    cfg.MASKS.RECURSIVE.RADIUS = 0.1  # feature distance below which two patches are joined, in the descriptor's unit
    cfg.MASKS.RECURSIVE.MAX_CUT = 0.6  # normalised-cut value, 0..1, from which a region is one piece
    cfg.MASKS.RECURSIVE.MAX_LEAK = 0.3  # share of a region's links that may leave it
    cfg.MASKS.RECURSIVE.MAX_BORDERS = 1  # image borders that an object may touch
    cfg.MASKS.RECURSIVE.MAX_CUTS_PER_IMAGE = 64
    # Name in MASK_REFINEMENT_REGISTRY: "dense_crf" [MaskCut], "guided_filter" (cheaper), "none".
    cfg.MASKS.REFINEMENT = "dense_crf"
    cfg.MASKS.CRF = CN()
    cfg.MASKS.CRF.GAUSSIAN_SXY = 3.0  # pixels [MaskCut]; STEGO: 1
    cfg.MASKS.CRF.GAUSSIAN_COMPAT = 7.0  # weight [MaskCut]; STEGO: 3
    cfg.MASKS.CRF.BILATERAL_SXY = 50.0  # pixels [MaskCut]; STEGO: 67
    cfg.MASKS.CRF.BILATERAL_SRGB = 5.0  # 8-bit colour units [MaskCut]; STEGO: 3
    cfg.MASKS.CRF.BILATERAL_COMPAT = 10.0  # weight [MaskCut]; STEGO: 4
    cfg.MASKS.CRF.NUM_ITERATIONS = 10  # mean-field updates [MaskCut]
    cfg.MASKS.GUIDED_FILTER = CN()
    cfg.MASKS.GUIDED_FILTER.RADIUS = 16  # pixels: two patches, about how far a coarse border may be off [ours]
    cfg.MASKS.GUIDED_FILTER.EPS = 1e-4  # squared colour contrast, range 0..1, that counts as an edge [ours]
    cfg.MASKS.MIN_REFINED_IOU = 0.5  # masks that the refinement changes more are dropped [MaskCut]
    cfg.MASKS.SHARD_SIZE = 64  # pictures in one file on disk; what a kill loses at most
    cfg.MASKS.NUM_WORKERS = 2  # decoding processes; 0: decode in the main one
    cfg.MASKS.NUM_THREADS = 2  # threads that refine and encode
    cfg.MASKS.MAX_FAILURES = 0.01  # share of unreadable pictures above which the run ends with an error


def _add_clusters(cfg: CN) -> None:
    cfg.CLUSTERS = CN()
    # K, the one place where the number of thing clusters is written [U2Seg]: 300 or 800.
    cfg.CLUSTERS.NUM_CLUSTERS = 800
    # Name in MASK_EMBEDDING_REGISTRY. "masked_crop": CLS token of the crop on white [U2Seg]; "mask_pooled": patch features
    # pooled over the mask [ours]; "random_vectors": the baseline.
    cfg.CLUSTERS.EMBEDDING = "mask_pooled"
    cfg.CLUSTERS.NORMALIZE = True  # L2 before k-means; the paper's mode does not
    cfg.CLUSTERS.NUM_ITERATIONS = 100  # [U2Seg]
    cfg.CLUSTERS.NUM_RESTARTS = 3  # the best of so many seeded starts [ours]
    cfg.CLUSTERS.MAX_TRAINING_SAMPLES = 1_000_000  # embeddings that k-means sees; all are assigned
    cfg.CLUSTERS.SEED = 0
    # centroids.npy of an earlier run's clusters/, to label new pictures with its clusters; "": found on these masks.
    cfg.CLUSTERS.CENTROIDS = ""


def _add_semantics(cfg: CN) -> None:
    cfg.SEMANTICS = CN()
    cfg.SEMANTICS.PROVIDER = "PatchKMeans"  # name in SEMANTIC_PROVIDER_REGISTRY
    cfg.SEMANTICS.NUM_CLUSTERS = 27  # S, the one place where the number of stuff clusters is written [U2Seg]
    cfg.SEMANTICS.PATCHES_PER_IMAGE = 64  # sampled for k-means
    cfg.SEMANTICS.SKIP_MASKED = (
        True  # sample only where no instance mask lies, so that things found no stuff clusters [ours]
    )
    cfg.SEMANTICS.MAX_TRAINING_SAMPLES = 1_000_000
    cfg.SEMANTICS.NUM_ITERATIONS = 50
    cfg.SEMANTICS.NUM_RESTARTS = 3
    cfg.SEMANTICS.SEED = 0
    cfg.SEMANTICS.CENTROIDS = ""  # as CLUSTERS.CENTROIDS, from an earlier run's semantics/
    cfg.SEMANTICS.FOLDER = ""  # provider "FolderOfMaps": 8-bit id PNGs named like the pictures, ids from 0, 255 unknown


def _add_panoptic_labels(cfg: CN) -> None:
    cfg.PANOPTIC_LABELS = CN()
    # A semantic cluster more than this covered by instances is left void [U2Seg release, stage 3].
    cfg.PANOPTIC_LABELS.MAX_COVERED = 0.7
    cfg.PANOPTIC_LABELS.MIN_INSTANCE_PIXELS = 1  # visible pixels below which an instance is dropped
    cfg.PANOPTIC_LABELS.MIN_STUFF_PIXELS = 1


def _add_data(cfg: CN) -> None:
    # Data sets registered by path: a name that DATASETS.TRAIN/TEST use -> {FORMAT, ROOT, ...}; u2seg.data.registration.
    cfg.DATASETS.BY_PATH = CN(new_allowed=True)
    # Share of each training set in the stream of samples, any positive scale; (): proportional to their sizes [ours]; the paper
    # mixes COCO and ImageNet without saying how.
    cfg.DATASETS.TRAIN_RATIO = ()
    cfg.INPUT.DATASET_MAPPER_NAME = "u2seg_panoptic"  # name in DATASET_MAPPER_REGISTRY (Mask2Former's key)

    # Copy-paste in the loader [U2Seg, equation 4; CutLER, section 3.3].
    cfg.INPUT.COPY_PASTE = CN()
    cfg.INPUT.COPY_PASTE.ENABLED = False
    cfg.INPUT.COPY_PASTE.PROBABILITY = 1.0  # of pasting into a sample
    cfg.INPUT.COPY_PASTE.SAME_CLUSTER = False  # paste only instances of a cluster that the picture holds [U2Seg]
    cfg.INPUT.COPY_PASTE.SCALE_RANGE = (0.3, 1.0)
    cfg.INPUT.COPY_PASTE.MAX_IOY = (
        0.5  # overlap with an existing mask, as a share of that mask, from which a paste is refused
    )
    cfg.INPUT.COPY_PASTE.MAX_INSTANCES = 0  # pasted into one sample; 0: any number of the source's


def _add_model(cfg: CN) -> None:
    cfg.MODEL.CHANNELS_LAST = False  # NHWC memory layout of the convolutions; faster on GPUs with AMP [ours]
    # Recompute the backbone's residual blocks in the backward pass: less memory, about a third more time [ours].
    cfg.MODEL.ACTIVATION_CHECKPOINTING = False
    # DropLoss: no classification loss for proposals far from every pseudo-label [CutLER, equation 3].
    cfg.MODEL.ROI_HEADS.DROP_LOSS = CN()
    cfg.MODEL.ROI_HEADS.DROP_LOSS.ENABLED = False
    cfg.MODEL.ROI_HEADS.DROP_LOSS.IOU_THRESH = (
        0.01  # largest IoU with a target at or below which it is dropped [CutLER]
    )


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.OPTIMIZER = "SGD"  # name in u2seg.engine's OPTIMIZER_REGISTRY: "SGD", "ADAMW" or "LARC"
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": one norm over all gradients [CutLER], not one for each tensor.
    # Learning-rate multipliers: pairs (beginning of a parameter's name, factor); the longest that fits counts. Few-label
    # fine-tuning: (("roi_heads", 4.0), ("sem_seg_head", 4.0)) [U2Seg and CutLER, whose own keys have no effect].
    cfg.SOLVER.LR_MULTIPLIERS = ()
    # Batches whose gradients are averaged into one step; a batch holds IMS_PER_BATCH / ACCUMULATION_STEPS pictures [ours].
    cfg.SOLVER.ACCUMULATION_STEPS = 1
    # Of SOLVER.AMP: "auto" (bfloat16 where the GPU has it, else float16 with loss scaling; off on a CPU), "bf16", "fp16".
    cfg.SOLVER.AMP.PRECISION = "auto"
    # Exponential moving average of the weights: saved in the checkpoints as "ema", scored, and written as model_ema.pth [ours].
    cfg.SOLVER.EMA = CN()
    cfg.SOLVER.EMA.ENABLED = False
    cfg.SOLVER.EMA.DECAY = 0.999


def _add_self_training(cfg: CN) -> None:
    cfg.SELF_TRAINING = CN()
    # Score from which a prediction becomes a label, by round; the last one serves all later rounds [CutLER's README].
    cfg.SELF_TRAINING.SCORE_THRESH = (0.70, 0.65)
    # How predictions and old labels are merged: "predictions_first" [CutLER] or "confirmed_labels_first" [ours], which keeps the old
    # masks of what the model sees as well.
    cfg.SELF_TRAINING.MERGE = "predictions_first"
    # Mask IoU from which two masks are one object: an old label stays where it has less with every new one [CutLER]; of two
    # predictions that have more, in whatever clusters, the better one stays [ours].
    cfg.SELF_TRAINING.MAX_IOU = 0.5
    cfg.SELF_TRAINING.CONFIRM_THRESH = 0.1  # score from which a prediction confirms an old label [ours]
    cfg.SELF_TRAINING.FLIP = False  # predict on the mirrored picture as well [ours]
    cfg.SELF_TRAINING.NEW_SEMANTICS = False  # stuff from the model as well, not from the old labels [ours]
    cfg.SELF_TRAINING.SHARD_SIZE = 64  # pictures; what a kill loses at most


def _add_test(cfg: CN) -> None:
    # Iterations between pictures of predictions in OUTPUT_DIR/samples and TensorBoard; 0: none [ours].
    cfg.TEST.SAMPLE_PERIOD = 0
    cfg.TEST.NUM_SAMPLES = 4  # pictures, the first of DATASETS.TEST (of DATASETS.TRAIN where there is none)
    # Names in u2seg.evaluation's PROTOCOL_REGISTRY, one row of the table each.
    cfg.TEST.PROTOCOLS = ("hungarian", "u2seg_paper", "cups")
    cfg.TEST.LABEL_MAP = CN()
    cfg.TEST.LABEL_MAP.FIT_ON = ""  # "": the scored data set, as the literature does (the output says so); else another
    cfg.TEST.LABEL_MAP.FILE = ""  # a saved label map (JSON) instead of a fit
    cfg.TEST.SAVE_TABLES = True  # keep the segment tables under OUTPUT_DIR for tools/score.py
    cfg.TEST.BOOTSTRAP = 0  # resamples of the pictures for 95 % intervals; 0: none
    # COCO's 53 stuff categories are scored as their 15 supercategories [U2Seg]; False: as they are. Other data sets keep theirs.
    cfg.TEST.STUFF_SUPERCATEGORIES = True
    # Half-width of a boundary as a share of the picture's diagonal, for boundary IoU; 0: not computed [Boundary IoU, CVPR 2021].
    cfg.TEST.BOUNDARY_RATIO = 0.02
    # Box IoU above which, of two detections whose clusters stand for one category, the lower one is dropped; 0: none is [ours].
    cfg.TEST.NMS_ACROSS_CLUSTERS = 0.0


def _add_pass(cfg: CN) -> None:
    # build_small_resnet_backbone, for pictures of a hundred pixels [ours].
    cfg.MODEL.SMALL_RESNET = CN()
    cfg.MODEL.SMALL_RESNET.WIDTH = 32  # channels of res2, doubled by each later stage
    cfg.MODEL.SMALL_RESNET.BLOCKS_PER_STAGE = 1
    cfg.MODEL.SMALL_RESNET.STRIDES = (1, 2, 2, 2)  # of res2 to res5, behind a stem of stride 2

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
    cfg.MODEL.PASS.COLLAPSE_PATIENCE = (
        500  # iterations with loss and code entropy at ln K before a warning; 0: never [ours]
    )
    cfg.MODEL.PASS.PIXEL_ATTENTION = CN()
    # Whether batch-norm statistics of the frozen backbone follow the data in the attention stage [LUSS, released code: True].
    cfg.MODEL.PASS.PIXEL_ATTENTION.FROZEN_NORM_MOVES = False

    # Views of one picture: one value in each list for each kind of crop; mapper "pass_multi_crop" [SwAV; LUSS].
    cfg.INPUT.MULTI_CROP = CN()
    cfg.INPUT.MULTI_CROP.COUNTS = (2,)  # (2, 6) for ImageNet-S 50
    cfg.INPUT.MULTI_CROP.SIZES = (224,)  # pixels a side
    cfg.INPUT.MULTI_CROP.MIN_SCALES = (0.08,)  # share of the picture's area
    cfg.INPUT.MULTI_CROP.MAX_SCALES = (1.0,)
    cfg.INPUT.MULTI_CROP.FLIP_PROBABILITY = 0.5
    cfg.INPUT.MULTI_CROP.JITTER = (0.8, 0.8, 0.8, 0.2)  # brightness, contrast, saturation, hue
    cfg.INPUT.MULTI_CROP.JITTER_PROBABILITY = 0.8
    cfg.INPUT.MULTI_CROP.GREY_PROBABILITY = 0.2
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
    cfg.TEST.LUSS.KNN_K = 10  # neighbours that vote in distance matching
    cfg.TEST.LUSS.KNN_TEMPERATURE = 0.07

    # One crop of a picture and its id map; mapper "luss_semantic" [LUSS, fine-tuning]. For inference: INPUT.MIN_SIZE_TEST.
    cfg.INPUT.SEMANTIC_CROP = CN()
    cfg.INPUT.SEMANTIC_CROP.SIZE = 224  # pixels a side
    cfg.INPUT.SEMANTIC_CROP.SCALE = (0.08, 1.0)  # share of the picture's area
    cfg.INPUT.SEMANTIC_CROP.FLIP_PROBABILITY = 0.5
    cfg.INPUT.SEMANTIC_CROP.DISTORT_COLOUR = False  # as INPUT.MULTI_CROP says; True for the semi-supervised protocol

    cfg.LUSS = CN()
    cfg.LUSS.NUM_CLUSTERS = 919  # k-means clusters: the number of classes in the fully unsupervised protocol
    cfg.LUSS.KMEANS_ITERATIONS = 20
    cfg.LUSS.KMEANS_RESTARTS = 30
    cfg.LUSS.MAX_TRAINING_SAMPLES = (
        512 * 919
    )  # embeddings that k-means sees, all are assigned [ours; the reference: all]
    cfg.LUSS.SEED = 0
    cfg.LUSS.BATCH_SIZE = 32  # pictures in one forward pass
    cfg.LUSS.SHARD_SIZE = 1024  # pictures in one file on disk; what a kill loses at most
    # Sides in pixels: pictures are resized so that the short one has the first, and cut to the second for clustering.
    cfg.LUSS.RESIZE = 256
    cfg.LUSS.CENTER_CROP = 224
    cfg.LUSS.CENTROIDS = ""  # what clustering saved; PASSPixelClusterer reads it
    cfg.LUSS.BANK = ""  # what distance matching saved; DistanceMatcher reads it
    # k-NN accuracy watched while PASS pretrains, every TEST.EVAL_PERIOD iterations and at the end. Its labels are for watching alone:
    # no loss, no stopping, no choice of a checkpoint depends on them.
    cfg.LUSS.KNN = CN()
    cfg.LUSS.KNN.TRAIN = ()  # data sets whose pictures have classes (formats class_folders, imagenet_s): the bank; (): off
    # Data sets whose pictures are classified; (): those of the bank. A picture that is in both never votes for itself.
    cfg.LUSS.KNN.TEST = ()
    cfg.LUSS.KNN.K = 20  # neighbours that vote [DINO]
    cfg.LUSS.KNN.TEMPERATURE = 0.07  # a neighbour of cosine s weighs exp(s / T) [InstDisc, DINO]
    # Of the bank, and of the others; more are drawn from, with LUSS.SEED; 0: all [ours].
    cfg.LUSS.KNN.MAX_PICTURES = 50_000
    cfg.LUSS.THRESHOLD = 0.37  # attention below which a pixel is "other": 0.41 for ImageNet-S 50, 0.40 for 300
    # The single-layer segmentation head: targets are shrunk by this factor before the loss.
    cfg.MODEL.SEM_SEG_HEAD.TARGET_STRIDE = 2
