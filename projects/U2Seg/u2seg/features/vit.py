"""Vision transformers as patch features: DINO, DINOv2 and DINOv3 through timm."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from u2seg.features.extractor import FEATURE_EXTRACTOR_REGISTRY, FeatureExtractor
from u2seg.features.vit_weights import (
    Architecture,
    WeightsError,
    check_state_dict,
    find_weights,
    get_architecture,
    read_state_dict,
    to_timm_names,
)
from u2seg.utils.manifest import reads

# Position of each facet among the three parts of the fused projection.
_FACETS = {"query": 0, "key": 1, "value": 2}
TOKEN, NORMALIZED_TOKEN = "token", "normalized_token"
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, with which all these models were trained
_STD = (0.229, 0.224, 0.225)


@FEATURE_EXTRACTOR_REGISTRY.register()
@reads("FEATURES.IMAGE_SIZE", "FEATURES.VIT")
class TimmViT(FeatureExtractor):
    """Keys, queries, values or tokens of one block of a vision transformer.

    Blocks after that one are not computed, and where keys, queries or values are asked for, of the block itself nothing but that
    part of its projection: no attention map is ever held in memory.
    """

    @configurable
    def __init__(
        self,
        *,
        arch: str,
        weights: str,
        image_size: tuple[int, int],
        block: int = -1,
        facet: str = "key",
        precision: str = "float32",
    ):
        """Builds the model and loads its weights.

        Args:
            arch: key of :data:`u2seg.features.vit_weights.ARCHITECTURES`.
            weights: file in the authors' format; "": theirs, downloaded.
            image_size: (height, width) in pixels, multiples of the patch size.
            block: transformer block, 0-based; negative counts from the last.
            facet: "key", "query", "value" (the projections, before any normalization or rotation, heads concatenated), "token"
                (the block's output) or "normalized_token" (the last block's output behind the model's final normalization, which is
                what STEGO and CAUSE take).
            precision: "float32" or "bfloat16", of the matrix products; everything else stays float32.

        Raises:
            ValueError: a setting does not fit; the message names its key.
            WeightsError: the weights cannot be had or do not fit.
        """
        super().__init__()
        architecture = get_architecture(arch)
        self.model = _build_model(architecture)
        path = find_weights(architecture, weights)
        state_dict = to_timm_names(read_state_dict(path), architecture.family)
        check_state_dict(state_dict, self.model.state_dict(), f"{path} does not fit {arch}")
        self.model.load_state_dict(state_dict)
        self.patch_size = self.model.patch_embed.patch_size[0]
        self.num_channels = self.model.embed_dim
        self.image_size = _checked_image_size(image_size, self.patch_size)
        self.block = _checked_block(block, len(self.model.blocks))
        self.facet = _checked_choice("FACET", facet, [*_FACETS, TOKEN, NORMALIZED_TOKEN])
        if self.facet == NORMALIZED_TOKEN and self.block != len(self.model.blocks) - 1:
            raise ValueError(
                f"FEATURES.VIT.FACET normalized_token is of the last block, FEATURES.VIT.BLOCK is {block}; set it to -1, or take token"
            )
        self.precision = _PRECISIONS[_checked_choice("PRECISION", precision, _PRECISIONS)]
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("positions", self._position_embedding(architecture), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Returns the constructor's arguments."""
        return {
            "arch": cfg.FEATURES.VIT.ARCH,
            "weights": cfg.FEATURES.VIT.WEIGHTS,
            "image_size": tuple(cfg.FEATURES.IMAGE_SIZE),
            "block": cfg.FEATURES.VIT.BLOCK,
            "facet": cfg.FEATURES.VIT.FACET,
            "precision": cfg.FEATURES.VIT.PRECISION,
        }

    def forward(self, images: Tensor) -> Tensor:
        """Returns float32 (B, C, rows, columns), C the model's width; see the base class."""
        with self._autocast(images):
            tokens, rotation = self._embed_patches(images)
            last = self.block if self.facet in _FACETS else self.block + 1
            tokens = self._run_blocks(tokens, rotation, last)
            if self.facet == NORMALIZED_TOKEN:
                tokens = self.model.norm(tokens)
            elif self.facet in _FACETS:
                block = self.model.blocks[self.block]
                tokens = _project(block.attn, block.norm1(tokens), _FACETS[self.facet])
        patches = tokens[:, self.model.num_prefix_tokens :]
        rows, columns = self.grid_size
        return patches.transpose(1, 2).reshape(len(images), -1, rows, columns).float()

    def embed(self, images: Tensor) -> Tensor:
        """Returns the CLS token after the last block and the final normalization, float32 (B, C)."""
        with self._autocast(images):
            tokens, rotation = self._embed_patches(images)
            tokens = self._run_blocks(tokens, rotation, len(self.model.blocks))
            return self.model.norm(tokens[:, :1])[:, 0].float()

    def _autocast(self, images: Tensor) -> torch.autocast:
        lower = self.precision != torch.float32
        return torch.autocast(images.device.type, dtype=self.precision if lower else torch.bfloat16, enabled=lower)

    def _embed_patches(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the tokens (B, CLS + registers + patches, C) that enter the first block, and DINOv3's rotary embedding."""
        if tuple(images.shape[1:]) != (3, *self.image_size):
            raise ValueError(
                f"images must have shape (B, 3, {self.image_size[0]}, {self.image_size[1]}), got {tuple(images.shape)}"
            )
        model = self.model
        patches = model.patch_embed.proj((images - self.mean) / self.std).flatten(2).transpose(1, 2)
        prefix = [model.cls_token] if model.reg_token is None else [model.cls_token, model.reg_token]
        prefix = [token.expand(len(images), -1, -1) for token in prefix]
        if self.positions is None:
            rotation = model.rope.get_embed(shape=list(self.grid_size))
            return torch.cat([*prefix, patches], dim=1), rotation
        if model.no_embed_class:
            return torch.cat([*prefix, patches + self.positions], dim=1), None
        return torch.cat([*prefix, patches], dim=1) + self.positions, None

    def _run_blocks(self, tokens: Tensor, rotation: Tensor | None, count: int) -> Tensor:
        for block in self.model.blocks[:count]:
            tokens = block(tokens) if rotation is None else block(tokens, rope=rotation)
        return tokens

    def _position_embedding(self, architecture: Architecture) -> Tensor | None:
        """Returns the position embedding for this image size, float32 (1, CLS and patches, C); None for rotary models."""
        learned = self.model.pos_embed
        if learned is None:
            return None
        num_prefix = 0 if self.model.no_embed_class else 1
        patches = resize_position_embedding(
            learned.detach()[:, num_prefix:],
            self.grid_size,
            offset=architecture.position_offset,
            antialias=architecture.position_antialias,
        )
        return torch.cat([learned.detach()[:, :num_prefix], patches], dim=1)


def resize_position_embedding(
    learned: Tensor, grid_size: tuple[int, int], *, offset: float = 0.1, antialias: bool = False
) -> Tensor:
    """Returns a position embedding resized as the authors of DINO and DINOv2 do it, float32 (1, rows * columns, C).

    Bicubic, by the scale factor (size + offset) / learned size rather than by the size itself: the samples lie where that factor puts
    them, so that 60 patches from 28 are taken at steps of 28 / 60.1. An embedding of the wanted size is returned as it is.

    Args:
        learned: float32 (1, N, C), N a square number, row by row.
        grid_size: (rows, columns) wanted.
        offset: 0.1 for DINO and DINOv2, where it guards against a floor that gives one patch too few; 0 for DINOv2 with registers,
            which resizes by the size.
        antialias: filter when the grid gets smaller; DINOv2 with registers does.

    Source: DINO's and DINOv2's published vision transformers, method ``interpolate_pos_encoding``.
    """
    side = math.isqrt(learned.shape[1])
    if side * side != learned.shape[1]:
        raise ValueError(f"a learned position embedding must be square, got {learned.shape[1]} positions")
    if grid_size == (side, side):
        return learned
    square = learned.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if offset:
        how: dict[str, Any] = {
            "scale_factor": tuple((size + offset) / side for size in grid_size),
            "recompute_scale_factor": False,
        }
    else:
        how = {"size": grid_size}
    resized = F.interpolate(square, mode="bicubic", antialias=antialias, **how)
    if resized.shape[2:] != grid_size:
        raise ValueError(f"the position embedding became {tuple(resized.shape[2:])}, wanted {grid_size}")
    return resized.flatten(2).transpose(1, 2)


def _build_model(architecture: Architecture) -> nn.Module:
    import timm

    if not timm.is_model(architecture.timm_name):
        raise WeightsError(
            f"timm {timm.__version__} does not know {architecture.timm_name}; install a newer one (DINOv3 came with 1.0.20)"
        )
    return timm.create_model(
        architecture.timm_name, pretrained=False, num_classes=0, img_size=architecture.pretrained_size
    )


def _project(attention: nn.Module, tokens: Tensor, part: int) -> Tensor:
    """Returns one of query (0), key (1) and value (2) of an attention layer, (B, N, C), heads concatenated."""
    width = attention.qkv.out_features // 3
    rows = slice(part * width, (part + 1) * width)
    bias = attention.qkv.bias
    if bias is None and getattr(attention, "q_bias", None) is not None:  # DINOv3: apart, since the keys have none
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return F.linear(tokens, attention.qkv.weight[rows], None if bias is None else bias[rows])


def _checked_image_size(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    if any(size < patch_size or size % patch_size for size in image_size):
        nearest = tuple(max(1, round(size / patch_size)) * patch_size for size in image_size)
        raise ValueError(
            f"FEATURES.IMAGE_SIZE must be multiples of the patch size {patch_size}, got {image_size}; the nearest is {nearest}"
        )
    height, width = image_size
    return height, width


def _checked_block(block: int, depth: int) -> int:
    if not -depth <= block < depth:
        raise ValueError(f"FEATURES.VIT.BLOCK must be in {-depth}..{depth - 1}, got {block}")
    return block % depth


def _checked_choice(key: str, value: str, choices: Iterable[str]) -> str:
    if value not in choices:
        raise ValueError(f"FEATURES.VIT.{key} must be one of {', '.join(choices)}, got {value!r}")
    return value
