"""A ResNet for small images, which ``build_resnet_backbone`` cannot give: fewer blocks, narrower, half the stride."""

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone.build import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.modeling.backbone.resnet import CNNBlockBase as BlockBase
from fvcore.nn import weight_init
from torch import Tensor


class SmallStem(BlockBase):
    """One 3x3 convolution of stride 2, its normalization and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: str):
        super().__init__(in_channels, out_channels, 2)
        self.conv1 = Conv2d(
            in_channels, out_channels, 3, stride=2, padding=1, bias=False, norm=get_norm(norm, out_channels)
        )
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, C, H / 2, W / 2) for images (B, 3, H, W)."""
        return F.relu(self.conv1(x))


class SmallResNet(ResNet):
    """A ResNet of basic blocks behind a stem of stride 2, built by explicit arguments or from a configuration."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        width: int,
        blocks_per_stage: int,
        strides: tuple[int, int, int, int],
        norm: str,
        out_features: list[str],
        freeze_at: int,
    ):
        """Takes the settings of ``MODEL.SMALL_RESNET``.

        Args:
            in_channels: of the images.
            width: channels of res2, doubled by each later stage.
            blocks_per_stage: of two convolutions each.
            strides: of the first block of res2 to res5.
            norm: Detectron2's name of the norm layers.
            out_features: names of the outputs.
            freeze_at: stages at the beginning that are frozen.
        """
        # Half the width, so that res2 has a projection in its shortcut and may have a stride.
        stem = SmallStem(in_channels, width // 2, norm)
        stages = []
        channels = width
        for stride in strides:
            stages.append(
                self.make_stage(
                    BasicBlock,
                    blocks_per_stage,
                    stride_per_block=[stride] + [1] * (blocks_per_stage - 1),
                    in_channels=channels // 2,
                    out_channels=channels,
                    norm=norm,
                )
            )
            channels *= 2
        super().__init__(stem, stages, out_features=out_features, freeze_at=freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
        """Returns the constructor's arguments."""
        return {
            "in_channels": input_shape.channels,
            "width": cfg.MODEL.SMALL_RESNET.WIDTH,
            "blocks_per_stage": cfg.MODEL.SMALL_RESNET.BLOCKS_PER_STAGE,
            "strides": tuple(cfg.MODEL.SMALL_RESNET.STRIDES),
            "norm": cfg.MODEL.RESNETS.NORM,
            "out_features": list(cfg.MODEL.RESNETS.OUT_FEATURES),
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }


@BACKBONE_REGISTRY.register()
def build_small_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SmallResNet:
    """Returns the small ResNet that ``MODEL.SMALL_RESNET`` and ``MODEL.RESNETS.{NORM,OUT_FEATURES}`` describe."""
    return SmallResNet(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_small_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Returns a feature pyramid on the small ResNet, as ``build_resnet_fpn_backbone`` does on the large ones.

    The weights of pretraining fit whatever ``MODEL.SMALL_RESNET.STRIDES`` are; a pyramid needs (2, 2, 2, 2).

    Raises:
        ValueError: the strides of the outputs in ``MODEL.FPN.IN_FEATURES`` do not double from one to the next.
    """
    bottom_up = SmallResNet(cfg, input_shape)
    in_features = list(cfg.MODEL.FPN.IN_FEATURES)
    strides = [bottom_up.output_shape()[name].stride for name in in_features]
    if any(second != 2 * first for first, second in zip(strides, strides[1:])):
        raise ValueError(
            f"the strides of {', '.join(in_features)} must double from one to the next, got {strides}; set "
            "MODEL.SMALL_RESNET.STRIDES to (2, 2, 2, 2)"
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
