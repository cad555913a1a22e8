"""A fully connected conditional random field on one picture, by mean field on permutohedral lattices, in torch (CPU and GPU).

Source: Kraehenbuehl and Koltun, Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials, NIPS 2011.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from u2seg.masks.permutohedral import PermutohedralLattice

_CONVERGED = 1e-6  # change of every marginal below which further updates cannot be seen
_COLUMNS = 4  # value columns are padded to a multiple of it: twice as fast on CPUs as three


@dataclass(frozen=True)
class CRFSettings:
    """Constants of the two pairwise terms.

    Attributes:
        gaussian_sxy: standard deviation of the smoothness kernel, pixels.
        gaussian_compat: its weight.
        bilateral_sxy: standard deviation of the appearance kernel in space, pixels.
        bilateral_srgb: and in colour, 8-bit units.
        bilateral_compat: its weight.
        num_iterations: mean-field updates; fewer are done where no marginal moves any more.
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


def dense_crf(image_rgb: np.ndarray | Tensor, log_odds: Tensor, settings: CRFSettings = MASKCUT_CRF) -> Tensor:
    """Returns the marginal foreground probability of each pixel in each mask, float32 (N, H, W), range 0..1.

    Each mask is a two-label problem of its own; all share the picture's lattices, which are built once.

    Args:
        image_rgb: uint8 (H, W, 3).
        log_odds: float (N, H, W), log of foreground over background probability before the CRF, on the device to compute on.
            MaskCut's unary for a binary mask is ``2 * mask - 1``: a softmax over 0/1 "logits".
        settings: ``MASKCUT_CRF``, ``STEGO_CRF`` or your own.

    Source: Kraehenbuehl and Koltun, algorithm 1, with symmetrically normalised kernels, as their published code has it.
    """
    return DenseCRF(image_rgb, settings, log_odds.device).foreground(log_odds)


class DenseCRF:
    """The pairwise terms of one picture, ready for any number of unaries."""

    def __init__(self, image_rgb: np.ndarray | Tensor, settings: CRFSettings = MASKCUT_CRF, device="cpu"):
        """Builds the lattices; see ``dense_crf`` for the arguments.

        Raises:
            ValueError: ``image_rgb`` is not uint8 (H, W, 3).
        """
        image = torch.as_tensor(image_rgb)
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image_rgb must be uint8 (H, W, 3), got {image.dtype} {tuple(image.shape)}")
        device = torch.device(device)
        self.settings = settings
        self.size = (image.shape[0], image.shape[1])
        colours = image.to(device=device, dtype=torch.float32).reshape(-1, 3) / settings.bilateral_srgb
        positions = _positions(self.size, device) / settings.bilateral_sxy
        bilateral = _Kernel(PermutohedralLattice(torch.cat([positions, colours], dim=1)))
        gaussian = _gaussian_kernel(self.size, settings.gaussian_sxy, device)
        self._terms = ((settings.gaussian_compat, gaussian), (settings.bilateral_compat, bilateral))
        self._total = sum(compat * kernel.total for compat, kernel in self._terms)  # (H * W, 1)

    def foreground(self, log_odds: Tensor) -> Tensor:
        """Returns marginal foreground probabilities of two-label problems, float32 (N, H, W); see ``dense_crf``."""
        if log_odds.ndim != 3 or tuple(log_odds.shape[1:]) != self.size:
            raise ValueError(
                f"log_odds must be (N, {self.size[0]}, {self.size[1]}) to match the image, got {tuple(log_odds.shape)}"
            )
        count = len(log_odds)
        if not count:
            return log_odds.float()
        padded = -(-count // _COLUMNS) * _COLUMNS
        unary = log_odds.new_zeros((self.size[0] * self.size[1], padded), dtype=torch.float32)
        unary[:, :count] = log_odds.flatten(1).T
        # The two marginals sum to 1 and the kernels are linear: K q0 = K 1 - K q1, so one column a mask is enough.
        marginal = torch.sigmoid(unary)
        for _ in range(self.settings.num_iterations):
            message = sum(compat * kernel(marginal) for compat, kernel in self._terms)
            previous, marginal = marginal, torch.sigmoid(message.mul_(2).sub_(self._total).add_(unary))
            if bool((previous - marginal).abs().amax() < _CONVERGED):
                break
        return marginal[:, :count].T.reshape(count, *self.size)

    def labels(self, log_probabilities: Tensor) -> Tensor:
        """Returns marginals of one problem with L labels and Potts compatibility, float32 (L, H, W), sum 1 over labels.

        Args:
            log_probabilities: float (L, H, W), up to a constant for each pixel.
        """
        if log_probabilities.ndim != 3 or tuple(log_probabilities.shape[1:]) != self.size:
            raise ValueError(
                f"log_probabilities must be (L, {self.size[0]}, {self.size[1]}) to match the image, "
                f"got {tuple(log_probabilities.shape)}"
            )
        unary = log_probabilities.flatten(1).T.float()
        marginal = torch.softmax(unary, dim=1)
        for _ in range(self.settings.num_iterations):
            message = sum(compat * kernel(marginal.contiguous()) for compat, kernel in self._terms)
            marginal = torch.softmax(message + unary, dim=1)
        return marginal.T.reshape(-1, *self.size)


class _Kernel:
    """A Gaussian kernel matrix K, symmetrically normalised: n K n with n = (K 1)^-1/2."""

    def __init__(self, lattice: PermutohedralLattice):
        self._lattice = lattice
        ones = torch.ones((lattice.num_points, _COLUMNS), device=lattice.device)
        self._norm = (lattice.filter(ones)[:, :1] + 1e-20).rsqrt()
        self.total = self(ones)[:, :1]  # the normalised kernel's row sums, float32 (points, 1)

    def __call__(self, values: Tensor) -> Tensor:
        return self._lattice.filter(values * self._norm).mul_(self._norm)


@lru_cache(maxsize=4)
def _gaussian_kernel(size: tuple[int, int], sxy: float, device: torch.device) -> _Kernel:
    """Returns the smoothness kernel, which depends on the picture's size alone."""
    return _Kernel(PermutohedralLattice(_positions(size, device) / sxy))


def _positions(size: tuple[int, int], device: torch.device) -> Tensor:
    """Returns each pixel's x and y, float32 (H * W, 2)."""
    y, x = torch.meshgrid(
        torch.arange(size[0], dtype=torch.float32, device=device),
        torch.arange(size[1], dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x.flatten(), y.flatten()], dim=1)
