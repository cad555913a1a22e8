"""Keys of label making: ``MASKS``, ``CLUSTERS``, ``SEMANTICS``, ``PANOPTIC_LABELS``, ``SELF_TRAINING``."""

from detectron2.config import CfgNode as CN

from u2seg.config.validation import (
    COUNT,
    NON_NEGATIVE,
    SHARE,
    choice,
    flag,
    integer,
    number,
    register_order,
    register_rules,
    several,
    text,
)


def add_masks_config(cfg: CN) -> None:
    """Adds the keys of ``MASKS`` to a configuration, in place."""
    cfg.MASKS = CN()
    # Name in MASK_GENERATOR_REGISTRY: "MaskCut", "StrictMaskCut", "VoteCut", "RecursiveCut", "RegionHierarchy"
    cfg.MASKS.GENERATOR = "MaskCut"
    # Subtract the image's mean feature before the cosine: needed by hand-made features, not by DINO's keys [ours].
    cfg.MASKS.CENTER_FEATURES = False
    cfg.MASKS.TAU = 0.15  # cosine similarity above which two patches are joined [MaskCut]; belongs to DINO keys
    cfg.MASKS.EPS = 1e-5  # affinity of patches that are not joined [MaskCut]
    cfg.MASKS.ROUNDS = 3  # masks sought in an image, N [MaskCut]
    cfg.MASKS.MAX_PREVIOUS_IOU = 0.5  # a later mask that overlaps the previous one more is rejected [MaskCut]
    cfg.MASKS.MIN_AREA = 0.01  # share of the patches at or below which a mask is rejected [MaskCut: not for the first]
    cfg.MASKS.MAX_AREA = 1.0  # share of the patches above which a mask is rejected; 1.0: none is [MaskCut]
    cfg.MASKS.MAX_CORNERS = 3  # a mask that owns so many of the image's corners is background [MaskCut]
    # MaskCut's own additions to the published rules [ours]; what the published code does is in brackets, and all of it together in
    # configs/Base-U2Seg-R50.yaml.
    cfg.MASKS.RULES = CN()
    # A region grows from a patch that no mask holds yet, and none is taken from a side without one [False].
    cfg.MASKS.RULES.LIVE_SEEDS = True
    cfg.MASKS.RULES.CHECK_FIRST_AREA = True  # MIN_AREA holds for the first mask too [False]
    cfg.MASKS.RULES.MEASURE_NEW_PATCHES = True  # areas are of what no earlier mask holds [False: of the whole region]
    # A region with MAX_CORNERS corners is rejected [False: corners choose a side].
    cfg.MASKS.RULES.REJECT_CORNERS = True
    # Share of the patches left above which a region is rejected as "all the rest" [1.0: never].
    cfg.MASKS.RULES.MAX_LIVE_SHARE = 0.95
    # A rejected region does not come back: it is removed like a mask [False].
    cfg.MASKS.RULES.REMOVE_REJECTED = True
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
    cfg.MASKS.VOTE.MAX_MASKS = 10  # an image [CuVLER]
    cfg.MASKS.VOTE.MAX_CORNERS = 2  # a candidate that owns so many of the image's corners is background [CuVLER]
    # VoteCut's differences from the published rules [ours]; what the published code does is in brackets, and all of it together in
    # configs/masks/votecut_cuvler.yaml.
    cfg.MASKS.VOTE.RULES = CN()
    cfg.MASKS.VOTE.RULES.DIVIDE_BY_DEGREE = True  # MaskCut's x = D^-1/2 u is grouped [False: u]
    # The best k-means there is, which ten random starts look for [True]; False: one start from equally spaced centers.
    cfg.MASKS.VOTE.RULES.BEST_GROUPS = False
    # MAX_CORNERS corners in a level group drop it whole [True]; False: in a connected part, that part.
    cfg.MASKS.VOTE.RULES.COUNT_GROUP_CORNERS = False
    cfg.MASKS.VOTE.RULES.MAX_PARTS = 0  # connected parts of a level group above which it is dropped [30]; 0: no limit
    cfg.MASKS.VOTE.RULES.MIN_SIDE = 0  # patches; parts narrower and lower are dropped [5, and MASKS.MIN_AREA 0]
    # Groups grow around a pivot that moves to their middle [True]; False: the most overlapped mask and what overlaps it.
    cfg.MASKS.VOTE.RULES.REFINE_PIVOTS = False
    cfg.MASKS.VOTE.RULES.KEEP_OVERLAPS = False  # [True]; False: better voted masks take what they share with others
    # Scores are shares of the image's largest group [True]; False: of all votes.
    cfg.MASKS.VOTE.RULES.SCORE_BY_LARGEST = False
    # "KMeansRegions", a baseline: connected regions of so many clusters of an image's features [ours].
    cfg.MASKS.KMEANS_REGIONS = CN()
    cfg.MASKS.KMEANS_REGIONS.NUM_CLUSTERS = 8
    # "RecursiveCut": every region is cut in two again until it holds together; for features without semantics [ours].
    cfg.MASKS.RECURSIVE = CN()
    cfg.MASKS.RECURSIVE.RADIUS = 0.1  # feature distance below which two patches are joined, in the descriptor's unit
    cfg.MASKS.RECURSIVE.MAX_CUT = 0.6  # normalized-cut value, 0..1, from which a region is one piece
    cfg.MASKS.RECURSIVE.MAX_EXTERNAL_LINKS = 0.3  # share of a region's links that may leave it
    cfg.MASKS.RECURSIVE.MAX_BORDERS = 1  # image borders that an object may touch
    cfg.MASKS.RECURSIVE.MAX_CUTS_PER_IMAGE = 64
    # "RegionHierarchy": regions of superpixels that are merged in several ways, ranked by objectness; needs no weights [ours].
    # Chosen on 20 to 24 of COCO's training photos at 384x512 pixels.
    cfg.MASKS.HIERARCHY = CN()
    cfg.MASKS.HIERARCHY.SIGMAS = (1.0, 2.0)  # pixels, smoothing of each scale of the contours
    # Pixels, odd: a superpixel starts where the contour is weakest in a square of this side.
    cfg.MASKS.HIERARCHY.WINDOW = 9
    # One value for each hierarchy: the cost of merging two neighbors is the sum of these weights times the mean contour between
    # them, the distances of their CIELAB, HSV and texture histograms and of their patch features, the share of the image that
    # both cover, and the share that their common box covers beyond them; all times the smaller one's area to the exponent.
    # Chosen by the AR of all regions of one hierarchy: 18.9 by contours, 20.1 by CIELAB, 22.7 and 23.7 by texture with both.
    cfg.MASKS.HIERARCHY.CONTOUR_WEIGHTS = (1.0, 0.15, 0.3, 0.0, 0.3)
    cfg.MASKS.HIERARCHY.LAB_WEIGHTS = (0.0, 0.5, 0.5, 1.0, 0.0)
    cfg.MASKS.HIERARCHY.HSV_WEIGHTS = (0.0, 0.0, 0.0, 0.0, 1.0)
    cfg.MASKS.HIERARCHY.TEXTURE_WEIGHTS = (0.0, 1.0, 1.0, 0.0, 0.5)
    cfg.MASKS.HIERARCHY.FEATURE_WEIGHTS = (0.0, 0.0, 0.0, 0.0, 0.0)
    cfg.MASKS.HIERARCHY.SIZE_WEIGHTS = (0.0, 0.5, 0.0, 0.0, 0.0)
    cfg.MASKS.HIERARCHY.GAP_WEIGHTS = (0.0, 0.5, 0.0, 0.0, 0.5)
    cfg.MASKS.HIERARCHY.SIZE_EXPONENTS = (0.3, 0.0, 0.3, 0.2, 0.2)
    cfg.MASKS.HIERARCHY.MAX_IOU = 0.75  # from which the worse of two masks is a duplicate
    # Share of a mask that better masks may hold: 1.0 allows nested masks, which is best for recall; labels need about 0.
    cfg.MASKS.HIERARCHY.MAX_SHARED = 1.0
    # Share of the outline of a large region (from 5 % of the image) that may be the image's border. With more it is sky, ground or
    # wall, and left to stuff; 1.0: none is. 0.3 on COCO's training photos: 83 % of such regions are mostly stuff.
    cfg.MASKS.HIERARCHY.MAX_IMAGE_BORDER = 1.0
    cfg.MASKS.HIERARCHY.MIN_SCORE = 0.0  # objectness, 0..1, below which a region is no mask
    cfg.MASKS.HIERARCHY.MAX_MASKS = 100  # an image
    # Name in MASK_REFINEMENT_REGISTRY: "dense_crf" [MaskCut], "dense_crf_on_crops" [CuVLER], "guided_filter" (cheaper), "none".
    cfg.MASKS.REFINEMENT = "dense_crf"
    cfg.MASKS.CRF = CN()
    cfg.MASKS.CRF.GAUSSIAN_SXY = 3.0  # pixels [MaskCut]; STEGO: 1
    cfg.MASKS.CRF.GAUSSIAN_COMPAT = 7.0  # weight [MaskCut]; STEGO: 3
    cfg.MASKS.CRF.BILATERAL_SXY = 50.0  # pixels [MaskCut]; STEGO: 67
    cfg.MASKS.CRF.BILATERAL_SRGB = 5.0  # 8-bit color units [MaskCut]; STEGO: 3
    cfg.MASKS.CRF.BILATERAL_COMPAT = 10.0  # weight [MaskCut]; STEGO: 4
    cfg.MASKS.CRF.NUM_ITERATIONS = 10  # mean-field updates [MaskCut]
    # IoU of a mask's boxes before and after "dense_crf_on_crops" below which it stays as it was [CuVLER]
    cfg.MASKS.CRF.MIN_BOX_IOU = 0.5
    cfg.MASKS.GUIDED_FILTER = CN()
    cfg.MASKS.GUIDED_FILTER.RADIUS = 16  # pixels: two patches, about how far a coarse border may be off [ours]
    cfg.MASKS.GUIDED_FILTER.EPS = 1e-4  # squared color contrast, range 0..1, that counts as an edge [ours]
    cfg.MASKS.MIN_REFINED_IOU = 0.5  # masks that the refinement changes more are dropped [MaskCut]
    # Whether the generator's score is multiplied by the IoU of a mask before and after refinement [ours; CuVLER: False]
    cfg.MASKS.SCORE_TIMES_IOU = True
    # Whether an image's masks may overlap [MaskCut]; False: the smaller one keeps the pixels [ours].
    cfg.MASKS.ALLOW_OVERLAPS = True
    # Images in one file on disk, what a kill loses at most; 0: 64 up to 64,000 images, then more, up to 8192.
    cfg.MASKS.SHARD_SIZE = 0
    cfg.MASKS.NUM_WORKERS = 2  # decoding processes; 0: decode in the main one
    cfg.MASKS.NUM_THREADS = 2  # threads that refine and encode
    cfg.MASKS.MAX_FAILURES = 0.01  # share of unreadable images above which the run ends with an error


def add_clusters_config(cfg: CN) -> None:
    """Adds the keys of ``CLUSTERS`` to a configuration, in place."""
    cfg.CLUSTERS = CN()
    # K, the one place where the number of thing clusters is written [U2Seg]: 300 or 800.
    cfg.CLUSTERS.NUM_CLUSTERS = 800
    # Name in MASK_EMBEDDING_REGISTRY. "masked_crop": CLS token of the crop on white [U2Seg]; "mask_pooled": patch features
    # pooled over the mask [ours]; "random_vectors": the baseline.
    cfg.CLUSTERS.EMBEDDING = "mask_pooled"
    cfg.CLUSTERS.NORMALIZE = True  # L2 before k-means; the paper's mode does not
    cfg.CLUSTERS.NUM_ITERATIONS = 100  # [U2Seg]
    cfg.CLUSTERS.NUM_RESTARTS = 3  # the best of so many seeded starts [ours]
    # Vectors drawn for each starting centroid, the best of which is taken; 1: plain k-means++; 0: 2 + ln K, as scikit-learn.
    cfg.CLUSTERS.SEEDING_CANDIDATES = 1
    cfg.CLUSTERS.MAX_TRAINING_SAMPLES = 1_000_000  # embeddings that k-means sees; all are assigned
    cfg.CLUSTERS.SEED = 0
    # centroids.npy of an earlier run's clusters/, to label new images with its clusters; "": found on these masks.
    cfg.CLUSTERS.CENTROIDS = ""


def add_semantics_config(cfg: CN) -> None:
    """Adds the keys of ``SEMANTICS`` to a configuration, in place."""
    cfg.SEMANTICS = CN()
    cfg.SEMANTICS.PROVIDER = "PatchKMeans"  # name in SEMANTIC_PROVIDER_REGISTRY
    cfg.SEMANTICS.NUM_CLUSTERS = 27  # S, the one place where the number of stuff clusters is written [U2Seg]
    cfg.SEMANTICS.PATCHES_PER_IMAGE = 64  # sampled for k-means
    # Sample only where no instance mask lies, so that things found no stuff clusters [ours]
    cfg.SEMANTICS.SKIP_MASKED = True
    cfg.SEMANTICS.SEEDING_CANDIDATES = 1  # as CLUSTERS.SEEDING_CANDIDATES
    cfg.SEMANTICS.MAX_TRAINING_SAMPLES = 1_000_000
    cfg.SEMANTICS.NUM_ITERATIONS = 50
    cfg.SEMANTICS.NUM_RESTARTS = 3
    cfg.SEMANTICS.SEED = 0
    cfg.SEMANTICS.CENTROIDS = ""  # as CLUSTERS.CENTROIDS, from an earlier run's semantics/
    cfg.SEMANTICS.DIRECTORY = (
        ""  # provider "DirectoryOfMaps": 8-bit id PNGs named like the images, ids from 0, 255 unknown
    )
    # Provider "RegionKMeans" [ours].
    cfg.SEMANTICS.REGIONS = CN()
    cfg.SEMANTICS.REGIONS.MAX_REGIONS = 12  # into which an image is divided
    # Weights of a region's color, texture, height in the image and mean patch feature, all of norm 1 or less before.
    cfg.SEMANTICS.REGIONS.COLOR_WEIGHT = 1.0
    cfg.SEMANTICS.REGIONS.TEXTURE_WEIGHT = 1.0
    cfg.SEMANTICS.REGIONS.HEIGHT_WEIGHT = 1.0
    cfg.SEMANTICS.REGIONS.FEATURE_WEIGHT = 1.0


def add_panoptic_labels_config(cfg: CN) -> None:
    """Adds the keys of ``PANOPTIC_LABELS`` to a configuration, in place."""
    cfg.PANOPTIC_LABELS = CN()
    # By what size instances are drawn, the largest first: "box_area" [U2Seg release] or "mask_area" [ours].
    cfg.PANOPTIC_LABELS.ORDER_BY = "box_area"
    # Whether instances.json holds what is visible of an instance in the panoptic map [ours], not its whole mask [U2Seg release].
    cfg.PANOPTIC_LABELS.CARVE_INSTANCES = False
    # A semantic cluster more than this covered by instances is left void [U2Seg release, stage 3].
    cfg.PANOPTIC_LABELS.MAX_COVERED = 0.7
    cfg.PANOPTIC_LABELS.MIN_INSTANCE_PIXELS = 1  # visible pixels below which the panoptic map lacks an instance
    cfg.PANOPTIC_LABELS.MIN_STUFF_PIXELS = 1
    # "coco": two JSON files and two PNGs an image, what COCO's tools read. "shards": a Parquet file and a tar of PNGs for each shard,
    # which training reads in less memory. A second run with "coco" turns shards into COCO's files [ours].
    cfg.PANOPTIC_LABELS.FORMAT = "coco"


def add_self_training_config(cfg: CN) -> None:
    """Adds the keys of ``SELF_TRAINING`` to a configuration, in place."""
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
    cfg.SELF_TRAINING.FLIP = False  # predict on the mirrored image as well [ours]
    cfg.SELF_TRAINING.NEW_SEMANTICS = False  # stuff from the model as well, not from the old labels [ours]
    cfg.SELF_TRAINING.SHARD_SIZE = 64  # images; what a kill loses at most


register_rules(
    {
        "MASKS.GENERATOR": text(),
        "MASKS.CENTER_FEATURES": flag(),
        "MASKS.TAU": number(-1, 1),
        "MASKS.EPS": number(0, 1, above=True),
        "MASKS.ROUNDS": integer(1, 1000),
        "MASKS.MAX_PREVIOUS_IOU": SHARE,
        "MASKS.MIN_AREA": SHARE,
        "MASKS.MAX_AREA": SHARE,
        "MASKS.MAX_CORNERS": integer(0, 5),
        "MASKS.RULES.LIVE_SEEDS": flag(),
        "MASKS.RULES.CHECK_FIRST_AREA": flag(),
        "MASKS.RULES.MEASURE_NEW_PATCHES": flag(),
        "MASKS.RULES.REJECT_CORNERS": flag(),
        "MASKS.RULES.MAX_LIVE_SHARE": SHARE,
        "MASKS.RULES.REMOVE_REJECTED": flag(),
        "MASKS.VOTE.TAUS": several(number(-1, 1), at_least=1),
        "MASKS.VOTE.NUM_GROUPS": several(integer(2, 10_000), at_least=1),
        "MASKS.VOTE.MIN_IOU": SHARE,
        "MASKS.VOTE.MIN_SHARE": SHARE,
        "MASKS.VOTE.MAX_MASKS": COUNT,
        "MASKS.VOTE.MAX_CORNERS": integer(0, 5),
        "MASKS.VOTE.RULES.DIVIDE_BY_DEGREE": flag(),
        "MASKS.VOTE.RULES.BEST_GROUPS": flag(),
        "MASKS.VOTE.RULES.COUNT_GROUP_CORNERS": flag(),
        "MASKS.VOTE.RULES.MAX_PARTS": NON_NEGATIVE,
        "MASKS.VOTE.RULES.MIN_SIDE": NON_NEGATIVE,
        "MASKS.VOTE.RULES.REFINE_PIVOTS": flag(),
        "MASKS.VOTE.RULES.KEEP_OVERLAPS": flag(),
        "MASKS.VOTE.RULES.SCORE_BY_LARGEST": flag(),
        "MASKS.KMEANS_REGIONS.NUM_CLUSTERS": integer(1, 10_000),
        "MASKS.RECURSIVE.RADIUS": number(0, 1000, above=True),
        "MASKS.RECURSIVE.MAX_CUT": SHARE,
        "MASKS.RECURSIVE.MAX_EXTERNAL_LINKS": SHARE,
        "MASKS.RECURSIVE.MAX_BORDERS": integer(0, 4),
        "MASKS.RECURSIVE.MAX_CUTS_PER_IMAGE": COUNT,
        "MASKS.HIERARCHY.SIGMAS": several(number(0.1, 100), at_least=1),
        "MASKS.HIERARCHY.WINDOW": integer(1, 1000),
        "MASKS.HIERARCHY.CONTOUR_WEIGHTS": several(number(0, 1000), at_least=1),
        "MASKS.HIERARCHY.LAB_WEIGHTS": several(number(0, 1000), at_least=1),
        "MASKS.HIERARCHY.HSV_WEIGHTS": several(number(0, 1000), at_least=1),
        "MASKS.HIERARCHY.TEXTURE_WEIGHTS": several(number(0, 1000), at_least=1),
        "MASKS.HIERARCHY.FEATURE_WEIGHTS": several(number(0, 1000), at_least=1),
        "MASKS.HIERARCHY.SIZE_WEIGHTS": several(number(0, 1000), at_least=1),
        "MASKS.HIERARCHY.GAP_WEIGHTS": several(number(0, 1000), at_least=1),
        "MASKS.HIERARCHY.SIZE_EXPONENTS": several(number(0, 10), at_least=1),
        "MASKS.HIERARCHY.MAX_IOU": SHARE,
        "MASKS.HIERARCHY.MAX_SHARED": SHARE,
        "MASKS.HIERARCHY.MAX_IMAGE_BORDER": SHARE,
        "MASKS.HIERARCHY.MIN_SCORE": SHARE,
        "MASKS.HIERARCHY.MAX_MASKS": COUNT,
        "MASKS.REFINEMENT": text(),
        "MASKS.ALLOW_OVERLAPS": flag(),
        "MASKS.CRF.GAUSSIAN_SXY": number(0, 1e6, above=True),
        "MASKS.CRF.GAUSSIAN_COMPAT": number(0, 1e6),
        "MASKS.CRF.BILATERAL_SXY": number(0, 1e6, above=True),
        "MASKS.CRF.BILATERAL_SRGB": number(0, 1e6, above=True),
        "MASKS.CRF.BILATERAL_COMPAT": number(0, 1e6),
        "MASKS.CRF.NUM_ITERATIONS": integer(0, 10_000),
        "MASKS.CRF.MIN_BOX_IOU": SHARE,
        "MASKS.SCORE_TIMES_IOU": flag(),
        "MASKS.GUIDED_FILTER.RADIUS": integer(1, 1000),
        "MASKS.GUIDED_FILTER.EPS": number(0, 1e6, above=True),
        "MASKS.MIN_REFINED_IOU": SHARE,
        "MASKS.SHARD_SIZE": NON_NEGATIVE,
        "MASKS.NUM_WORKERS": integer(0, 1024),
        "MASKS.NUM_THREADS": integer(1, 1024),
        "MASKS.MAX_FAILURES": SHARE,
        "CLUSTERS.NUM_CLUSTERS": COUNT,
        "CLUSTERS.EMBEDDING": text(),
        "CLUSTERS.NORMALIZE": flag(),
        "CLUSTERS.NUM_ITERATIONS": integer(1, 100_000),
        "CLUSTERS.NUM_RESTARTS": integer(1, 1000),
        "CLUSTERS.SEEDING_CANDIDATES": integer(0, 1000),
        "CLUSTERS.MAX_TRAINING_SAMPLES": COUNT,
        "CLUSTERS.SEED": NON_NEGATIVE,
        "CLUSTERS.CENTROIDS": text(empty=True),
        "SEMANTICS.PROVIDER": text(),
        "SEMANTICS.NUM_CLUSTERS": integer(1, 254),
        "SEMANTICS.PATCHES_PER_IMAGE": COUNT,
        "SEMANTICS.SKIP_MASKED": flag(),
        "SEMANTICS.SEEDING_CANDIDATES": integer(0, 1000),
        "SEMANTICS.MAX_TRAINING_SAMPLES": COUNT,
        "SEMANTICS.NUM_ITERATIONS": integer(1, 100_000),
        "SEMANTICS.NUM_RESTARTS": integer(1, 1000),
        "SEMANTICS.SEED": NON_NEGATIVE,
        "SEMANTICS.CENTROIDS": text(empty=True),
        "SEMANTICS.DIRECTORY": text(empty=True),
        "SEMANTICS.REGIONS.MAX_REGIONS": COUNT,
        "SEMANTICS.REGIONS.COLOR_WEIGHT": number(0, 1000),
        "SEMANTICS.REGIONS.TEXTURE_WEIGHT": number(0, 1000),
        "SEMANTICS.REGIONS.HEIGHT_WEIGHT": number(0, 1000),
        "SEMANTICS.REGIONS.FEATURE_WEIGHT": number(0, 1000),
        "PANOPTIC_LABELS.MAX_COVERED": SHARE,
        "PANOPTIC_LABELS.ORDER_BY": text(),
        "PANOPTIC_LABELS.CARVE_INSTANCES": flag(),
        "PANOPTIC_LABELS.FORMAT": choice("coco", "shards"),
        "PANOPTIC_LABELS.MIN_INSTANCE_PIXELS": COUNT,
        "PANOPTIC_LABELS.MIN_STUFF_PIXELS": COUNT,
        "SELF_TRAINING.SCORE_THRESH": several(SHARE, at_least=1),
        "SELF_TRAINING.MERGE": text(),
        "SELF_TRAINING.MAX_IOU": SHARE,
        "SELF_TRAINING.CONFIRM_THRESH": SHARE,
        "SELF_TRAINING.FLIP": flag(),
        "SELF_TRAINING.NEW_SEMANTICS": flag(),
        "SELF_TRAINING.SHARD_SIZE": COUNT,
    }
)
register_order("MASKS.MIN_AREA", "MASKS.MAX_AREA")
