"""A fully connected conditional random field on one image, by mean field on permutohedral lattices, in torch (CPU and GPU).

Source: Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NIPS 2011.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from u2seg.pseudo_labels.masks.permutohedral import PermutohedralLattice, padded_columns


@dataclass(frozen=True)
class CRFSettings:
    """Constants of the two pairwise terms.

    Attributes:
        gaussian_sxy: standard deviation of the smoothness kernel, pixels.
        gaussian_compat: its weight.
        bilateral_sxy: standard deviation of the appearance kernel in space, pixels.
        bilateral_srgb: and in color, 8-bit units.
        bilateral_compat: its weight.
        num_iterations: mean-field updates.
    """

    gaussian_sxy: float = 3.0
    gaussian_compat: float = 7.0
    bilateral_sxy: float = 50.0
    bilateral_srgb: float = 5.0
    bilateral_compat: float = 10.0
    num_iterations: int = 10


MASKCUT_CRF = CRFSettings()  # TokenCut's and MaskCut's constants
STEGO_CRF = CRFSettings(
    gaussian_sxy=1.0, gaussian_compat=3.0, bilateral_sxy=67.0, bilateral_srgb=3.0, bilateral_compat=4.0
)


class DenseCRF:
    """The pairwise terms of one image, ready for the unaries of any number of masks.

        crf = DenseCRF(image_rgb, device="cuda")
        foreground = crf.foreground(2.0 * masks - 1) > 0.5

    Each mask is a two-label problem of its own; all share the image's lattices, which are built once.

    Source: Kraehenbuehl and Koltun, algorithm 1, with symmetrically normalized kernels, as their published code has it.
    """

    def __init__(self, image_rgb: np.ndarray | Tensor, settings: CRFSettings = MASKCUT_CRF, device: str = "cpu"):
        """Builds the lattices.

        Args:
            image_rgb: uint8 (H, W, 3).
            settings: ``MASKCUT_CRF``, ``STEGO_CRF`` or your own.
            device: where to compute.

        Raises:
            ValueError: ``image_rgb`` is not uint8 (H, W, 3).
        """
        image = image_rgb if isinstance(image_rgb, Tensor) else torch.tensor(image_rgb)
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image_rgb must be uint8 (H, W, 3), got {image.dtype} {tuple(image.shape)}")
        device = torch.device(device)
        self.settings = settings
        self.size = (image.shape[0], image.shape[1])
        colors = image.to(device).permute(2, 0, 1).reshape(3, -1).to(torch.float32) / settings.bilateral_srgb
        positions = _positions(self.size, device) / settings.bilateral_sxy
        self._kernels = (
            _gaussian_kernel(self.size, settings.gaussian_sxy, settings.gaussian_compat, device),
            _normalized(PermutohedralLattice(torch.cat([positions, colors]).T), settings.bilateral_compat),
        )

    @torch.no_grad()
    def foreground(self, log_odds: Tensor) -> Tensor:
        """Returns the marginal foreground probability of each pixel in each mask, float32 (N, H, W), range 0..1.

        Args:
            log_odds: float (N, H, W), log of foreground over background probability before the CRF, on the CRF's device. MaskCut's
                unary for a binary mask is ``2 * mask - 1``: a softmax over 0/1 "logits".

        Raises:
            ValueError: ``log_odds`` has another shape.
        """
        if log_odds.ndim != 3 or tuple(log_odds.shape[1:]) != self.size:
            raise ValueError(
                f"log_odds must be (N, {self.size[0]}, {self.size[1]}) to match the image, got {tuple(log_odds.shape)}"
            )
        count = len(log_odds)
        if not count:
            return log_odds.float()
        # Padded once, rather than in every filter.
        unary = log_odds.new_zeros((self.size[0] * self.size[1], padded_columns(count)), dtype=torch.float32)
        unary[:, :count] = log_odds.flatten(1).T
        # With marginals q and 1 - q, the log-odds are the unary plus the kernels applied to q - (1 - q): one column a mask is enough.
        balance = _balance(unary)
        for _ in range(self.settings.num_iterations):
            balance = _balance(self._message(balance).add_(unary))
        return ((1 + balance[:, :count]) / 2).T.reshape(count, *self.size)

    @torch.no_grad()
    def marginals(self, log_probabilities: Tensor) -> Tensor:
        """Returns the marginal probabilities of several labels that exclude one another, float32 (K, H, W), adding up to 1.

        With two labels it is :meth:`foreground` of the difference of their log-probabilities.

        Args:
            log_probabilities: float (K, H, W), before the CRF, on the CRF's device; a constant may be missing at each pixel.

        Raises:
            ValueError: ``log_probabilities`` has another shape.
        """
        if log_probabilities.ndim != 3 or tuple(log_probabilities.shape[1:]) != self.size:
            raise ValueError(
                f"log_probabilities must be (K, {self.size[0]}, {self.size[1]}) to match the image, got "
                f"{tuple(log_probabilities.shape)}"
            )
        count = len(log_probabilities)
        # A column that fills the last block never gets a share.
        unary = log_probabilities.new_full(
            (self.size[0] * self.size[1], padded_columns(count)), -torch.inf, dtype=torch.float32
        )
        unary[:, :count] = log_probabilities.flatten(1).T
        shares = unary.softmax(dim=1)
        for _ in range(self.settings.num_iterations):
            shares = self._message(shares).add_(unary).softmax(dim=1)
        return shares[:, :count].T.reshape(count, *self.size)

    def _message(self, values: Tensor) -> Tensor:
        """Returns the weighted sum of the kernels applied to values, float32 (H * W, C)."""
        first, second = self._kernels
        return first.filter(values).add_(second.filter(values))


def _balance(log_odds: Tensor) -> Tensor:
    """Returns q - (1 - q) of the probability q with these log-odds; it is tanh(log-odds / 2), which torch computes ten times slower."""
    return torch.sigmoid(log_odds).mul_(2).sub_(1)


def _normalized(lattice: PermutohedralLattice, weight: float) -> PermutohedralLattice:
    """Returns the lattice, its kernel matrix K symmetrically normalized to weight * n K n with n = (K 1)^-1/2."""
    ones = torch.ones((lattice.num_points, 1), device=lattice.device)
    root = (lattice.filter(ones)[:, 0] + 1e-20).rsqrt()
    lattice.scale(root, weight * root)
    return lattice


@lru_cache(maxsize=4)
def _gaussian_kernel(size: tuple[int, int], sxy: float, weight: float, device: torch.device) -> PermutohedralLattice:
    """Returns the smoothness kernel, which depends on the image's size alone."""
    with torch.inference_mode(False):  # kept for callers in any mode
        return _normalized(PermutohedralLattice((_positions(size, device) / sxy).T), weight)


def _positions(size: tuple[int, int], device: torch.device) -> Tensor:
    """Returns each pixel's x and y, float32 (2, H * W)."""
    y, x = torch.meshgrid(
        torch.arange(size[0], dtype=torch.float32, device=device),
        torch.arange(size[1], dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x.flatten(), y.flatten()])
