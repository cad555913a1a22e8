"""Normalized cuts of binary patch graphs: the second eigenvector by a block Krylov method, for a batch of images at once.

The graph of MaskCut joins two patches with weight 1 where their features' cosine similarity is above tau, and with weight eps
otherwise: A = (1 - eps) B + eps 1 1^T with B binary. The second smallest solution of (D - A) x = lambda D x is
x = D^-1/2 u, where u is the second eigenvector, from the top, of M = D^-1/2 A D^-1/2 with eigenvalue 1 - lambda. The top one is
known, D^1/2 1, and is projected out. Only B is ever stored as a matrix, in one byte an entry on a CPU.

Products with B are exact: vectors are written as 32-bit fixed-point numbers, cut into short integer digits whose sums float32
(or int32) holds without rounding. So a product does not depend on device, thread count or batch, and everything else happens on
float64 arrays of a few columns. Hence the answer is that of a float64 solver although no float64 matrix is built.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils.logger import log_first_n
from torch import Tensor

from u2seg.pseudo_labels.masks.component_cut import solve_by_components

BLOCK_SIZE = 4  # vectors iterated together; eigenvalues that lie close come out of one block [ours]
MAX_STEPS = 40  # products with the matrix before the graph is solved component by component [ours]
RELATIVE_TOLERANCE = 1e-6  # residual norm as a share of the eigen-gap: the error of the unit vector [ours]
ABSOLUTE_TOLERANCE = (
    1e-8  # residual norm that products in fixed point can reach; enough where the gap is not small [ours]
)
SMALL_GAP = 1e-3  # between eigenvalues, below which ABSOLUTE_TOLERANCE is not enough [ours]
NO_STRUCTURE = 1e-9  # 1 - lambda at or below which the graph has no second direction (uniform or empty images) [ours]

_ROWS_AT_ONCE = 512  # of the affinity
_FIXED_POINT_BITS = 30  # magnitude bits of a vector's entries relative to its largest one


@dataclass(frozen=True)
class CutVectors:
    """Second eigenvectors of a batch of graphs.

    Attributes:
        vectors: float64 (B, n), x of (D - A) x = lambda D x, scaled so that D^1/2 x has norm 1; the sign is arbitrary.
        cut_values: float64 (B,), lambda, range 0..1; 1 where the graph has no structure to cut.
        num_products: block products with the matrix that the slowest image took.
        is_by_components: bool (B,), images that the iteration left open and that were solved component by component.
    """

    vectors: Tensor
    cut_values: Tensor
    num_products: int
    is_by_components: Tensor


class BinaryAffinity:
    """The binary part B of the patch graphs of a batch of images: B_ij = 1 where cosine similarity > tau.

    Attributes:
        batch_size, num_patches: B and n.
        device: where the matrices lie.
    """

    def __init__(self, features: Tensor, tau: float):
        """Builds the graphs.

        Args:
            features: float (B, C, n), patch features, not necessarily normalized; a zero feature is joined to nothing.
            tau: threshold on the cosine similarity, strict.

        Source: CutLER, section 3.1; TokenCut, equation 5.
        """
        unit = F.normalize(_checked(features), dim=1)
        self._store(unit, lambda rows, columns: (rows.T @ columns) > tau)

    @classmethod
    def of_distances(cls, features: Tensor, radius: float) -> "BinaryAffinity":
        """Returns the graphs that join patches whose features lie closer than a radius; the inverse of a Gaussian's threshold.

        Args:
            features: float (B, C, n).
            radius: Euclidean distance, strict, in the features' unit.
        """
        features = _checked(features)
        affinity = cls.__new__(cls)
        affinity._store(features, lambda rows, columns: torch.cdist(rows.T, columns.T) < radius)
        return affinity

    def subgraph(self, index: int, nodes: Tensor) -> "BinaryAffinity":
        """Returns a batch of one: the graph of some of one image's patches.

        Args:
            index: of the image.
            nodes: int64 (m,), the patches to keep.
        """
        part = BinaryAffinity.__new__(BinaryAffinity)
        part.batch_size, part.num_patches, part.device = 1, len(nodes), self.device
        part._is_integer = self._is_integer
        matrix = self._matrix[index]
        # All patches, in their order: no copy.
        is_whole = len(nodes) == self.num_patches and bool((nodes[1:] > nodes[:-1]).all())
        part._matrix = (matrix if is_whole else self._rows_and_columns(matrix, nodes))[None]
        return part

    def _rows_and_columns(self, matrix: Tensor, nodes: Tensor) -> Tensor:
        if not self._is_integer:
            return matrix[nodes][:, nodes].contiguous()
        # NumPy takes single bytes several times faster.
        chosen = nodes.numpy()
        return torch.from_numpy(matrix.numpy().take(chosen, axis=0).take(chosen, axis=1))

    def _store(self, features: Tensor, are_concatenate: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Fills the matrices; ``are_concatenate`` takes features (C, r) and (C, c) and returns bool (r, c)."""
        self.batch_size, _, self.num_patches = features.shape
        self.device = features.device
        # One byte an entry where the integer product exists (CPUs; three to seven times faster than float32).
        self._is_integer = self.device.type == "cpu" and _has_integer_product()
        dtype = torch.int8 if self._is_integer else torch.float32
        self._matrix = torch.empty(
            (self.batch_size, self.num_patches, self.num_patches), dtype=dtype, device=self.device
        )
        for image, matrix in zip(features, self._matrix):
            # The lower triangle is computed and mirrored: half the work, and symmetric to the last bit, which a float product
            # need not be. Blocks of rows, so that no n x n matrix of floats is ever held.
            for start in range(0, self.num_patches, _ROWS_AT_ONCE):
                end = min(start + _ROWS_AT_ONCE, self.num_patches)
                joined = are_concatenate(image[:, start:end], image[:, :end]).to(dtype)
                own = joined[:, start:].tril()
                joined[:, start:] = own + own.tril(-1).T
                matrix[start:end, :end] = joined
                matrix[:start, start:end] = joined[:, :start].T

    def product(self, vectors: Tensor) -> Tensor:
        """Returns B @ vectors, float64 (B, n, k), exact but for rounding the vectors to 2^-30 of each column's largest entry.

        Args:
            vectors: float64 (B, n, k).
        """
        scale = vectors.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        scale = scale * 2.0**-_FIXED_POINT_BITS
        fixed = torch.round(vectors / scale).to(torch.int64)
        digit_bits = 8 if self._is_integer else self._exact_float_bits()
        total = torch.zeros_like(vectors)
        digits: list[Tensor] = []
        while len(digits) * digit_bits <= _FIXED_POINT_BITS:
            # Balanced digits, -2^(b-1) .. 2^(b-1) - 1, so that they fit a signed byte.
            low = (fixed + (1 << (digit_bits - 1))) % (1 << digit_bits) - (1 << (digit_bits - 1))
            digits.append(low)
            fixed = (fixed - low) >> digit_bits
        sums = self._integer_product(torch.cat(digits, dim=2))
        for power, part in enumerate(sums.split(vectors.shape[2], dim=2)):
            total += part.to(torch.float64) * float(1 << (power * digit_bits))
        return total * scale

    def degrees(self, eps: float) -> Tensor:
        """Returns the diagonal of D, float64 (B, n): each patch's sum of weights, patches that are not joined counting eps.

        Args:
            eps: weight of patches that are not joined.
        """
        ones = torch.ones((self.batch_size, self.num_patches, 1), dtype=torch.float64, device=self.device)
        return (1 - eps) * self.product(ones)[:, :, 0] + eps * self.num_patches

    def joined(self, index: int) -> np.ndarray:
        """Returns one image's B, bool (n, n), on the CPU; on a CPU without a copy."""
        matrix = self._matrix[index]
        return (matrix if self._is_integer else matrix.to(torch.int8)).cpu().numpy().view(bool)

    def dense(self, index: int) -> Tensor:
        """Returns one image's B, float64 (n, n)."""
        return self._matrix[index].to(torch.float64)

    def _exact_float_bits(self) -> int:
        # Sums of n digits of at most 2^(bits - 1) must stay below 2^24, what float32 counts without a gap; and a digit must fit the
        # 11 bits of TF32, should the user have allowed that.
        return min(11, 25 - max(1, (self.num_patches - 1).bit_length()))

    def _integer_product(self, digits: Tensor) -> Tensor:
        if not self._is_integer:
            return torch.bmm(self._matrix, digits.to(torch.float32))
        digits = digits.to(torch.int8)
        return torch.stack([torch._int_mm(matrix, block) for matrix, block in zip(self._matrix, digits)])


def _has_integer_product() -> bool:
    """Returns whether this torch multiplies byte matrices on this CPU; a private function, hence the trial."""
    if not hasattr(torch, "_int_mm"):
        return False
    try:
        product = torch._int_mm(torch.ones(32, 32, dtype=torch.int8), torch.full((32, 8), 127, dtype=torch.int8))
    except RuntimeError:
        return False
    return bool((product == 32 * 127).all())


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 3:
        raise ValueError(f"features must be (batch, channels, patches), got shape {tuple(features.shape)}")
    return features.float()


def second_eigenvectors(
    affinity: BinaryAffinity, removed: Tensor, eps: float, *, max_steps: int = MAX_STEPS
) -> CutVectors:
    """Returns the second smallest generalized eigenvector of each image's graph, removed patches joined to nothing.

    Removed patches all have weight eps to everything, themselves included, hence one common entry in the eigenvector. They are
    replaced, exactly, by one node of weight eps * m to each other patch, eps * m^2 to itself and degree m * n * eps.

    Args:
        affinity: the graphs of B images with n patches.
        removed: bool (B, n), patches whose features count as zero.
        eps: weight of patches that are not joined, above 0.
        max_steps: block products after which an image that has not converged is solved component by component; 0: all are.

    Source: CutLER, section 3.1; Shi and Malik, TPAMI 2000, section 2. The block Krylov method: Golub and Van Loan, section 10.3.6.
    """
    problem = _CollapsedProblem(affinity, removed, eps)
    result = _block_krylov(problem, max_steps)
    left_open = torch.nonzero(result.is_by_components).flatten().tolist()
    if not left_open:
        return result
    block = torch.zeros_like(problem.top)
    for index in left_open:
        result.cut_values[index], x = exact_second_eigenvector(affinity, removed, eps, index)
        is_live = ~removed[index]
        block[index, :-1, 0][is_live] = x[is_live] / problem.inverse_root[index, is_live, 0]
        if bool(removed[index].any()):
            block[index, -1, 0] = x[removed[index]][0] / problem.super_inverse_root[index, 0, 0]
    # As in the iteration: one exact product further, so that patches with equal neighbors have equal entries.
    block = problem.product(block)
    vectors = problem.expand(block / block.norm(dim=1, keepdim=True).clamp_min(NO_STRUCTURE))[:, :, 0]
    for index in left_open:
        if result.cut_values[index] < 1:
            result.vectors[index] = vectors[index]
    return result


def exact_second_eigenvector(
    affinity: BinaryAffinity, removed: Tensor, eps: float, index: int = 0
) -> tuple[float, Tensor]:
    """Returns lambda and x, float64 (n,), of one image's graph, component by component on the CPU.

    Exact in float64 however close eigenvalues lie, and the faster way for graphs of a few hundred patches or of many components;
    see ``component_cut``. Where there is nothing to cut lambda is 1 and x is zero.

    Args:
        affinity: as for ``second_eigenvectors``.
        removed: as for ``second_eigenvectors``.
        eps: as for ``second_eigenvectors``.
        index: of the image.
    """
    joined = affinity.joined(index)
    if bool(removed[index].any()):
        live = ~removed[index].cpu().numpy()
        joined = joined & live[:, None] & live
    cut = solve_by_components(joined, eps)
    if cut.num_full:
        log_first_n(
            logging.INFO,
            "a component of an image's graph did not converge and was decomposed completely, which is slow; "
            "later cases are not reported",
            name=__name__,
        )
    if cut.cut_value > 1 - NO_STRUCTURE:
        return 1.0, torch.zeros(affinity.num_patches, dtype=torch.float64, device=affinity.device)
    return cut.cut_value, torch.from_numpy(cut.vector).to(affinity.device)


class _CollapsedProblem:
    """M = D^-1/2 A D^-1/2 for n patches, of which the removed ones are zero, and one super-node in row n."""

    def __init__(self, affinity: BinaryAffinity, removed: Tensor, eps: float):
        self.affinity = affinity
        self.eps = eps
        n = affinity.num_patches
        live = (~removed).to(torch.float64)
        self.live = live[:, :, None]
        self.num_removed = removed.sum(dim=1).to(torch.float64)[:, None, None]  # m
        degrees = (1 - eps) * affinity.product(self.live) * self.live + eps * n
        self.inverse_root = self.live * degrees.rsqrt()
        has_removed = (self.num_removed > 0).to(torch.float64)
        super_degree = self.num_removed * n * eps
        self.super_inverse_root = has_removed * (super_degree + (1 - has_removed)).rsqrt()
        top = torch.cat([self.live * degrees.sqrt(), super_degree.sqrt()], dim=1)
        self.top = top / top.norm(dim=1, keepdim=True)  # unit eigenvector of eigenvalue 1

    @property
    def size(self) -> tuple[int, int]:
        """(B, n + 1)."""
        return self.top.shape[0], self.top.shape[1]

    def project(self, block: Tensor) -> Tensor:
        """Returns (B, n + 1, k) with the top eigenvector and the removed patches' entries taken out."""
        exists = torch.cat([self.live, (self.num_removed > 0).to(torch.float64)], dim=1)
        block = block * exists
        return block - self.top @ (self.top.mT @ block)

    def product(self, block: Tensor) -> Tensor:
        """Returns M @ block, (B, n + 1, k)."""
        scaled = block[:, :-1] * self.inverse_root
        scaled_super = block[:, -1:] * self.super_inverse_root
        weighted_sum = self.eps * (scaled.sum(dim=1, keepdim=True) + self.num_removed * scaled_super)
        patches = self.inverse_root * ((1 - self.eps) * self.affinity.product(scaled) + weighted_sum)
        return torch.cat([patches, self.super_inverse_root * self.num_removed * weighted_sum], dim=1)

    def expand(self, block: Tensor) -> Tensor:
        """Returns x = D^-1/2 u over all n patches, removed ones included, (B, n, k)."""
        return block[:, :-1] * self.inverse_root + (1 - self.live) * block[:, -1:] * self.super_inverse_root


def _block_krylov(problem: _CollapsedProblem, max_steps: int) -> CutVectors:
    """Rayleigh-Ritz on the block Krylov space, fully re-orthogonalized; each image keeps its answer of when it converged."""
    batch, size = problem.size
    device = problem.top.device
    # An image with fewer live nodes than the space has dimensions has converged before; more would only add noise.
    max_steps = min(max_steps, max(1, (size - 2) // BLOCK_SIZE))
    vectors = torch.zeros((batch, size - 1), dtype=torch.float64, device=device)
    values = torch.ones(batch, dtype=torch.float64, device=device)
    is_open = problem.live.sum(dim=(1, 2)) > 1
    block = _orthonormal(problem, _start_block(problem), None)
    # Filled from the left. The columns of ``images`` are M times those of ``basis``; ``projected`` is basis^T M basis.
    basis = torch.zeros((batch, size, max_steps * BLOCK_SIZE), dtype=torch.float64, device=device)
    images = torch.zeros_like(basis)
    projected = torch.zeros((batch, basis.shape[2], basis.shape[2]), dtype=torch.float64)
    width, any_open = 0, bool(is_open.any())
    while any_open and width < basis.shape[2]:
        image = problem.project(problem.product(block))
        new = slice(width, width + BLOCK_SIZE)
        width += BLOCK_SIZE
        basis[:, :, new], images[:, :, new] = block, image
        # Only the new columns and, by symmetry, the new rows. A few dozen numbers: a GPU would take longer.
        columns = (basis[:, :, :width].mT @ image).cpu()
        projected[:, :width, new] = columns
        projected[:, new, :width] = columns.mT
        ritz_values, ritz_vectors = _rayleigh_ritz(projected[:, :width, :width], device)
        u = (basis[:, :, :width] @ ritz_vectors[:, :, :1])[:, :, 0]
        image_of_u = (images[:, :, :width] @ ritz_vectors[:, :, :1])[:, :, 0]
        residual = (image_of_u - ritz_values[:, :1] * u).norm(dim=1)
        gap = ritz_values[:, 0] - ritz_values[:, 1]
        tolerance = RELATIVE_TOLERANCE * gap
        done = is_open & (residual <= torch.where(gap < SMALL_GAP, tolerance, tolerance.clamp_min(ABSOLUTE_TOLERANCE)))
        # Both at once, since each look at a value makes a GPU wait.
        any_done, any_open = torch.stack([done.any(), (is_open & ~done).any()]).tolist()
        if any_done:
            # One power step further: patches with equal neighbors get equal entries, as in the exact vector, since products are
            # exact. Ties, which decide where an object is seeded, are then the same for every solver.
            u = image_of_u / image_of_u.norm(dim=1, keepdim=True).clamp_min(NO_STRUCTURE)
            x = problem.expand(u[:, :, None])[:, :, 0]
            has_structure = ritz_values[:, 0] > NO_STRUCTURE
            vectors = torch.where((done & has_structure)[:, None], x, vectors)
            values = torch.where(done & has_structure, 1 - ritz_values[:, 0], values)
            is_open = is_open & ~done
        if any_open and width < basis.shape[2]:
            block = _orthonormal(problem, image, basis[:, :, :width])
    return CutVectors(vectors, values, width // BLOCK_SIZE, is_open)


def _rayleigh_ritz(projected: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the Ritz values, largest first, and their coefficients in the basis."""
    values, coefficients = torch.linalg.eigh((projected + projected.mT) / 2)
    return values.flip(1).to(device), coefficients.flip(2).to(device)


def _start_block(problem: _CollapsedProblem) -> Tensor:
    batch, size = problem.size
    # Drawn on the CPU, so that all devices start alike.
    noise = np.random.default_rng(0).standard_normal((size, BLOCK_SIZE))
    return torch.from_numpy(noise).to(problem.top.device).expand(batch, size, BLOCK_SIZE).clone()


def _orthonormal(problem: _CollapsedProblem, block: Tensor, basis: Tensor | None) -> Tensor:
    """Returns an orthonormal block, orthogonal to the top eigenvector and the basis; done twice, which is enough for rounding."""
    for _ in range(2):
        block = problem.project(block)
        if basis is not None:
            block = block - basis @ (basis.mT @ block)
        block = torch.linalg.qr(block).Q
    return problem.project(block)
