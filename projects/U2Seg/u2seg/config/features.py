"""Keys of ``FEATURES``: the extractor that masks, clusters and semantics are made from."""

from detectron2.config import CfgNode as CN

from u2seg.config.validation import COUNT, Rule, choice, device, flag, integer, number, register_rules, several, text


def add_features_config(cfg: CN) -> None:
    """Adds the keys of ``FEATURES`` to a configuration, in place."""
    cfg.FEATURES = CN()
    # Name in FEATURE_EXTRACTOR_REGISTRY. "HandmadeDescriptor" needs no weights: the offline default [ours].
    cfg.FEATURES.NAME = "HandmadeDescriptor"
    # (height, width) in pixels to which every image is resized, aspect ratio not kept [MaskCut].
    cfg.FEATURES.IMAGE_SIZE = (480, 480)
    # Images in one forward pass.
    cfg.FEATURES.BATCH_SIZE = 8
    cfg.FEATURES.DEVICE = "auto"  # "auto": CUDA where there is one, else the CPU

    # Share of the channels that are projected out since they tell where a patch lies: the main directions of an image without content
    # [INSID3: 500 of 1024]; 0.0: none.
    cfg.FEATURES.POSITION_SHARE = 0.0

    # Further backbones that vote in the mask generator "VoteCut", each as KEY VALUE ... below FEATURES, what is left out being as here:
    # [["VIT.ARCH", "dinov2_vitb14", "VIT.FACET", "normalized_token", "IMAGE_SIZE", [476, 476]]] [CuVLER: six backbones].
    cfg.FEATURES.OTHERS = ()

    # Hand-made descriptor: color and gradient orientations, smoothed [ours].
    cfg.FEATURES.HANDMADE = CN()
    cfg.FEATURES.HANDMADE.PATCH_SIZE = 8  # pixels
    cfg.FEATURES.HANDMADE.COLOR_WEIGHT = 1.0
    cfg.FEATURES.HANDMADE.TEXTURE_WEIGHT = 2.0

    # "RawPixels", a baseline: the mean RGB of each patch.
    cfg.FEATURES.RAW_PIXELS = CN()
    cfg.FEATURES.RAW_PIXELS.PATCH_SIZE = 1  # pixels

    # Vision transformers through timm.
    cfg.FEATURES.VIT = CN()
    cfg.FEATURES.VIT.ARCH = "dino_vitb8"  # key of u2seg.features.vit_weights.ARCHITECTURES [MaskCut]
    # "": the authors' file, downloaded through PathManager and checked; else a local file in the authors' format.
    cfg.FEATURES.VIT.WEIGHTS = ""
    cfg.FEATURES.VIT.BLOCK = -1  # transformer block, negative counts from the last [MaskCut]
    cfg.FEATURES.VIT.FACET = "key"  # "key", "query", "value", "token" or "normalized_token" [MaskCut]: key
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
    # Subtract each image's mean feature: after a ReLU all cosines are positive [ours]
    cfg.FEATURES.RESNET.CENTER = True


_ANYTHING = Rule("a key or its value", lambda value: True)

register_rules(
    {
        "FEATURES.NAME": text(),
        "FEATURES.IMAGE_SIZE": several(integer(16, 8192), count=2),
        "FEATURES.BATCH_SIZE": COUNT,
        "FEATURES.DEVICE": device(),
        "FEATURES.POSITION_SHARE": number(0, 0.99),
        "FEATURES.OTHERS": several(several(_ANYTHING, at_least=2)),
        "FEATURES.HANDMADE.PATCH_SIZE": integer(1, 1024),
        "FEATURES.HANDMADE.COLOR_WEIGHT": number(0, 1e6),
        "FEATURES.HANDMADE.TEXTURE_WEIGHT": number(0, 1e6),
        "FEATURES.RAW_PIXELS.PATCH_SIZE": integer(1, 1024),
        "FEATURES.VIT.ARCH": text(),
        "FEATURES.VIT.WEIGHTS": text(empty=True),
        "FEATURES.VIT.BLOCK": integer(-1000, 1000),
        "FEATURES.VIT.FACET": choice("key", "query", "value", "token", "normalized_token"),
        "FEATURES.VIT.PRECISION": choice("float32", "bfloat16"),
        "FEATURES.RESNET.CONFIG_FILE": text(),
        "FEATURES.RESNET.WEIGHTS": text(empty=True),
        "FEATURES.RESNET.OUT_FEATURE": text(),
        "FEATURES.RESNET.STRIDE": integer(0, 64),
        "FEATURES.RESNET.CENTER": flag(),
    }
)
