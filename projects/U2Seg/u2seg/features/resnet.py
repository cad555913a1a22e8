"""Patch features of a ResNet: Detectron2's, or one that PASS has trained on the user's own images."""

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from u2seg.checkpoint.reading import read_weights
from u2seg.config import setup_cfg
from u2seg.features.extractor import FEATURE_EXTRACTOR_REGISTRY, FeatureExtractor
from u2seg.utils.manifest import reads

# What stands before "stem." and "res2." in checkpoints of pretraining, of an FPN detector, and of a bare backbone.
BACKBONE_PREFIXES = ("backbone.bottom_up.", "backbone.", "bottom_up.", "")


@FEATURE_EXTRACTOR_REGISTRY.register()
@reads("FEATURES.IMAGE_SIZE", "FEATURES.RESNET")
class ResNetFeatures(FeatureExtractor):
    """One stage of a ResNet as patch features, centered on each image's mean."""

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        out_feature: str,
        stride: int,
        image_size: tuple[int, int],
        pixel_mean: list[float],
        pixel_std: list[float],
        bgr: bool,
        center: bool,
    ):
        """Takes the network and how to use it; see ``FEATURES.RESNET``.

        Args:
            backbone: a Detectron2 ResNet that gives ``out_feature``.
            out_feature: name of the output.
            stride: pixels between features; 0 for the output's own.
            image_size: (height, width) of the resized images.
            pixel_mean: of each channel, in the order that the network reads, 0..255.
            pixel_std: likewise.
            bgr: whether the network reads BGR.
            center: whether each image's mean feature is subtracted: features after a ReLU all point into one octant, and cosine
                similarity tells them apart only after that.

        Raises:
            ValueError: an image size that the stride does not divide, or a stride that the network cannot have.
        """
        super().__init__()
        if out_feature not in backbone.output_shape():
            raise ValueError(
                f"FEATURES.RESNET.OUT_FEATURE is {out_feature!r}, the network gives {sorted(backbone.output_shape())}"
            )
        if stride:
            dilate_to_stride(backbone, out_feature, stride)
        shape = backbone.output_shape()[out_feature]
        self.patch_size = stride or shape.stride
        if any(side % self.patch_size for side in image_size):
            raise ValueError(
                f"FEATURES.IMAGE_SIZE {tuple(image_size)} must be a multiple of the network's stride {self.patch_size}"
            )
        self.image_size = (image_size[0], image_size[1])
        self.num_channels = shape.channels
        self.backbone = backbone
        self.out_feature = out_feature
        self.bgr = bgr
        self.center = center
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments; builds the network from ``FEATURES.RESNET.CONFIG_FILE`` and loads its weights."""
        from detectron2.modeling import build_backbone

        settings = cfg.FEATURES.RESNET
        network_cfg = setup_cfg(settings.CONFIG_FILE)
        network_cfg.MODEL.RESNETS.OUT_FEATURES = [settings.OUT_FEATURE]
        network_cfg.MODEL.RESNETS.NORM = _inference_norm(network_cfg.MODEL.RESNETS.NORM)
        with torch.random.fork_rng(devices=[]):
            # Without a checkpoint the weights are random, but the same ones in every run: one that was killed goes on with them.
            torch.default_generator.manual_seed(0)  # torch.manual_seed would seed the GPUs as well
            backbone = build_backbone(network_cfg)
        if settings.WEIGHTS:
            load_backbone_weights(backbone, settings.WEIGHTS)
        return {
            "backbone": backbone,
            "out_feature": settings.OUT_FEATURE,
            "stride": settings.STRIDE,
            "image_size": tuple(cfg.FEATURES.IMAGE_SIZE),
            "pixel_mean": network_cfg.MODEL.PIXEL_MEAN,
            "pixel_std": network_cfg.MODEL.PIXEL_STD,
            "bgr": network_cfg.INPUT.FORMAT == "BGR",
            "center": settings.CENTER,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Returns float32 (B, C, rows, columns); see the base class."""
        features = self._feature_map(images)
        return features - features.mean(dim=(2, 3), keepdim=True) if self.center else features

    def embed(self, images: Tensor) -> Tensor:
        """Returns the mean feature of each image, float32 (B, C), not centered."""
        return self._feature_map(images).mean(dim=(2, 3))

    def mean_feature(self, images: Tensor) -> Tensor:
        """Returns what :meth:`embed` does."""
        return self.embed(images)

    def _feature_map(self, images: Tensor) -> Tensor:
        pixels = images * 255
        if self.bgr:
            pixels = pixels.flip(1)
        return self.backbone((pixels - self.pixel_mean) / self.pixel_std)[self.out_feature].float()


def dilate_to_stride(backbone: nn.Module, out_feature: str, stride: int) -> None:
    """Makes ``out_feature`` of a Detectron2 ResNet denser, in place: strides become dilations.

    The features at every second (fourth ...) position stay exactly what they were: each 3x3 convolution behind a removed stride
    skips as many positions as the stride did.

    Args:
        backbone: a Detectron2 ``ResNet``.
        out_feature: "res2" ... "res5".
        stride: wanted, a power of two between the stem's and the output's own.

    Raises:
        ValueError: no such stride.
    """
    own = backbone.output_shape()[out_feature].stride
    current = backbone.stem.stride
    if stride not in [current << power for power in range(10) if current << power <= own]:
        raise ValueError(
            f"FEATURES.RESNET.STRIDE must be 0, or a power of two from the stem's stride {current} to {out_feature}'s own "
            f"{own}; got {stride}"
        )
    dilation = 1
    for stage in backbone.stages:
        for block in stage:
            strided = block.stride > 1 and current * block.stride > stride
            if not strided:
                current *= block.stride
            dilation = _dilate_block(block, dilation, remove_stride=strided)


def _dilate_block(block: nn.Module, dilation: int, remove_stride: bool) -> int:
    """Applies ``dilation`` to a residual block, removes its stride if asked to, and returns the dilation of what follows."""
    for name in ("conv1", "conv2", "conv3"):
        conv = getattr(block, name, None)
        if conv is None:
            continue
        if conv.kernel_size != (1, 1):
            conv.dilation = (dilation, dilation)
            conv.padding = (dilation, dilation)
        if remove_stride and conv.stride != (1, 1):
            dilation *= conv.stride[0]
            conv.stride = (1, 1)
    if remove_stride and block.shortcut is not None:
        block.shortcut.stride = (1, 1)
    return dilation


def load_backbone_weights(backbone: nn.Module, path: str) -> None:
    """Loads a backbone's weights from a checkpoint of it or of a model around it, in place.

    Args:
        backbone: a Detectron2 ResNet.
        path: ``.pth`` (``{"model": state dict}`` or a state dict) or Detectron2's ``.pkl``, with Detectron2's names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights that the network needs are missing, or have another shape; the message names the first ones.
    """
    state = read_backbone_state(path)
    own = backbone.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [
        f"{key} is {tuple(state[key].shape)}, the network has {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or wrong:
        problems = [f"{key} is missing" for key in missing] + wrong
        raise ValueError(
            f"{path} does not fit the network that FEATURES.RESNET.CONFIG_FILE describes: {'; '.join(problems[:5])}"
            f"{f' and {len(problems) - 5} more' if len(problems) > 5 else ''}"
        )
    backbone.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def read_backbone_state(path: str) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint's backbone under bare names ("stem.conv1.weight", "res2.0.conv1.weight").

    Raises:
        FileNotFoundError: no such file.
        ValueError: no backbone is in it.
    """
    state = read_weights(path)
    for prefix in BACKBONE_PREFIXES:
        found = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(f"{prefix}stem.")}
        if found:
            rest = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(f"{prefix}res")}
            return {**found, **rest}
    raise ValueError(
        f"{path} holds no ResNet under Detectron2's names (stem.*, res2.* ...; found {', '.join(list(state)[:3])} ...). "
        "For a published PASS or torchvision checkpoint, run `u2seg convert pass` first."
    )


def _inference_norm(norm: str) -> str:
    # Between processes only training statistics are shared; for inference it is plain batch norm, which runs anywhere.
    return "BN" if norm in ("SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N") else norm
