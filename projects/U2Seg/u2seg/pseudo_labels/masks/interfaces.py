"""The interfaces of mask generators and mask refinements, and their registries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from u2seg.utils.manifest import keys_read_by
from u2seg.utils.registry import NamedRegistry, get_registered

MASK_GENERATOR_REGISTRY = NamedRegistry("MASK_GENERATOR")
MASK_GENERATOR_REGISTRY.__doc__ = (
    "Mask generators: patch features and pixels in, masks on a grid out. Called as NAME(cfg)."
)

MASK_REFINEMENT_REGISTRY = NamedRegistry("MASK_REFINEMENT")
MASK_REFINEMENT_REGISTRY.__doc__ = (
    "Mask refinements: image and coarse masks in, masks at its resolution out. Called as NAME(cfg)."
)


# (image_rgb uint8 (height, width, 3), masks bool (N, height, width)) -> refined masks, bool (N, height, width).
MaskRefinement = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class PatchMasks:
    """Masks of one image on a grid, in the order in which they were found.

    Attributes:
        masks: bool (N, rows, columns): one entry a patch, or one a pixel of the resized image. Whether they overlap is
            the generator's choice.
        cut_values: float64 (N,), normalized-cut value that gave each mask, range 0..1, lower is a cleaner cut; NaN: none.
        scores: float64 (N,), range 0..1, the generator's own confidence.
    """

    masks: np.ndarray
    cut_values: np.ndarray
    scores: np.ndarray


class MaskGenerator:
    """Turns the patch features of a batch of images, or their pixels, or both, into masks."""

    def __call__(self, features: Tensor, images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks of each image.

        Args:
            features: float (B, C, rows, columns), on any device.
            images_rgb: B images, uint8 (height, width, 3), at the size at which the features were computed: multiples of
                (rows, columns). Only a generator that looks at pixels needs them.
        """
        raise NotImplementedError

    def from_views(self, views: list[Tensor], images_rgb: Sequence[np.ndarray] = ()) -> list[PatchMasks]:
        """Returns the masks of each image, on the grid of the first of several backbones' features.

        Args:
            views: float (B, Ci, rows i, columns i), one for each backbone.
            images_rgb: as for a call.

        Raises:
            ValueError: there are several, and this generator has a use for one alone.
        """
        if len(views) > 1:
            raise ValueError(
                f"{type(self).__name__} takes the features of one backbone, FEATURES.OTHERS names {len(views) - 1} more; they vote in "
                "MASKS.GENERATOR VoteCut"
            )
        return self(views[0], images_rgb)


def generator_keys(cfg: CfgNode) -> tuple[str, ...]:
    """Returns the configuration keys and nodes that the generator in use reads; all of ``MASKS`` where it does not declare them.

    Raises:
        UnknownNameError: no such generator; the message lists those that are registered.
    """
    keys = keys_read_by(get_registered(MASK_GENERATOR_REGISTRY, cfg.MASKS.GENERATOR, "MASKS.GENERATOR"))
    return ("MASKS",) if keys is None else keys


def refinement_keys(cfg: CfgNode) -> tuple[str, ...]:
    """Returns the configuration keys and nodes that the refinement in use reads; all of ``MASKS`` where it does not declare them.

    Raises:
        UnknownNameError: no such refinement; the message lists those that are registered.
    """
    keys = keys_read_by(get_registered(MASK_REFINEMENT_REGISTRY, cfg.MASKS.REFINEMENT, "MASKS.REFINEMENT"))
    return ("MASKS",) if keys is None else keys


def build_mask_generator(cfg: CfgNode) -> MaskGenerator:
    """Returns the generator that ``cfg.MASKS.GENERATOR`` names.

    Raises:
        UnknownNameError: no such generator; the message lists those that are registered.
    """
    return get_registered(MASK_GENERATOR_REGISTRY, cfg.MASKS.GENERATOR, "MASKS.GENERATOR")(cfg)


def build_mask_refinement(cfg: CfgNode) -> MaskRefinement:
    """Returns the refinement that ``cfg.MASKS.REFINEMENT`` names.

    Raises:
        UnknownNameError: no such refinement; the message lists those that are registered.
    """
    return get_registered(MASK_REFINEMENT_REGISTRY, cfg.MASKS.REFINEMENT, "MASKS.REFINEMENT")(cfg)
