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
from torch import Tensor

logger = logging.getLogger(__name__)

BLOCK_SIZE = 4  # vectors iterated together; eigenvalues that lie close come out of one block [ours]
MAX_STEPS = 40  # products with the matrix before the dense solver is asked [ours]
RELATIVE_TOLERANCE = 1e-6  # residual norm as a share of the eigen-gap: the error of the unit vector [ours]
ABSOLUTE_TOLERANCE = 1e-8  # residual norm that ends the iteration whatever the gap [ours]
NO_STRUCTURE = 1e-9  # 1 - lambda at or below which the graph has no second direction (uniform or empty images) [ours]

_TINY = 256  # patches up to which a dense solution is a matter of course
_ROWS_AT_ONCE = 512  # of the affinity
_FIXED_POINT_BITS = 30  # magnitude bits of a vector's entries relative to its largest one


@dataclass(frozen=True)
class CutVectors:
    """Second eigenvectors of a batch of graphs.

    Attributes:
        vectors: float64 (B, n), x of (D - A) x = lambda D x, scaled so that D^1/2 x has norm 1; the sign is arbitrary.
        cut_values: float64 (B,), lambda, range 0..1; 1 where the graph has no structure to cut.
        num_products: block products with the matrix that the slowest image took.
        is_dense: bool (B,), images that did not converge and were solved by the dense float64 solver.
    """

    vectors: Tensor
    cut_values: Tensor
    num_products: int
    is_dense: Tensor


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
        part._matrix = self._matrix[index][nodes][:, nodes][None].contiguous()
        return part

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
    affinity: BinaryAffinity, removed: Tensor, eps: float, *, max_steps: int = MAX_STEPS, start: Tensor | None = None
) -> CutVectors:
    """Returns the second smallest generalized eigenvector of each image's graph, removed patches joined to nothing.

    Removed patches all have weight eps to everything, themselves included, hence one common entry in the eigenvector. They are
    replaced, exactly, by one node of weight eps * m to each other patch, eps * m^2 to itself and degree m * n * eps.

    Args:
        affinity: the graphs of B images with n patches.
        removed: bool (B, n), patches whose features count as zero.
        eps: weight of patches that are not joined, above 0.
        max_steps: block products after which an image that has not converged is solved by a dense float64 solver.
        start: float64 (B, n, k), k < BLOCK_SIZE directions that help to start with; None: random ones. The result does not depend
            on them beyond the tolerance.

    Source: CutLER, section 3.1; Shi and Malik, TPAMI 2000, section 2. The block Krylov method: Golub and Van Loan, section 10.3.6.
    """
    problem = _CollapsedProblem(affinity, removed, eps)
    result = _block_krylov(problem, max_steps, start)
    for index in torch.nonzero(result.is_dense).flatten().tolist():
        value, vector = problem.solve_dense(index)
        result.cut_values[index] = value
        result.vectors[index] = vector
    num_dense = int(result.is_dense.sum())
    if num_dense:
        # Tiny graphs exhaust the Krylov space before they converge; that is no news.
        level = logging.INFO if affinity.num_patches > _TINY else logging.DEBUG
        logger.log(
            level,
            "%d of %d eigenproblems did not converge in %d steps and were solved densely in float64",
            num_dense,
            affinity.batch_size,
            max_steps,
        )
    return result


def dense_second_eigenvector(affinity: BinaryAffinity, removed: Tensor, eps: float, index: int) -> tuple[float, Tensor]:
    """Returns lambda and x, float64 (n,), of one image's graph by a dense float64 solver: exact, and fast for small graphs.

    Args:
        affinity: as for ``second_eigenvectors``.
        removed: as for ``second_eigenvectors``.
        eps: as for ``second_eigenvectors``.
        index: of the image.
    """
    return _CollapsedProblem(affinity, removed, eps).solve_dense(index)


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
        has_painted = (self.num_removed > 0).to(torch.float64)
        super_degree = self.num_removed * n * eps
        self.super_inverse_root = has_painted * (super_degree + (1 - has_painted)).rsqrt()
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

    def solve_dense(self, index: int) -> tuple[float, Tensor]:
        """Returns lambda and x (n,) of one image, by a dense float64 solver on the collapsed graph."""
        from scipy.linalg import eigh

        keep = torch.nonzero(self.live[index, :, 0]).flatten()
        n, m = self.affinity.num_patches, float(self.num_removed[index, 0, 0])
        weights = (1 - self.eps) * self.affinity.dense(index)[keep][:, keep].cpu().numpy() + self.eps
        if m:
            weights = np.pad(weights, (0, 1), constant_values=self.eps * m)
            weights[-1, -1] = self.eps * m * m
        degrees = weights.sum(axis=1)
        scale = 1 / np.sqrt(degrees)
        last = len(weights) - 1
        matrix = scale[:, None] * weights * scale[None]
        values, vectors = eigh(matrix, subset_by_index=[last - 1, last - 1])
        if not len(values):
            # LAPACK's drivers for a part of the spectrum may find nothing where many eigenvalues are equal (patches joined to nothing).
            values, vectors = eigh(matrix, driver="evd")
            values, vectors = values[last - 1 : last], vectors[:, last - 1 : last]
        x = np.full(n, scale[-1] * vectors[-1, 0] if m else 0.0)
        x[keep.cpu().numpy()] = scale[: len(keep)] * vectors[: len(keep), 0]
        return float(1 - values[0]), torch.from_numpy(x)


def _block_krylov(problem: _CollapsedProblem, max_steps: int, start: Tensor | None) -> CutVectors:
    """Rayleigh-Ritz on the block Krylov space, fully re-orthogonalized; each image keeps its answer of when it converged."""
    batch, size = problem.size
    device = problem.top.device
    # An image with fewer live nodes than the space has dimensions has converged before; more would only add noise.
    max_steps = min(max_steps, max(1, (size - 2) // BLOCK_SIZE))
    vectors = torch.zeros((batch, size - 1), dtype=torch.float64, device=device)
    values = torch.ones(batch, dtype=torch.float64, device=device)
    is_open = problem.live.sum(dim=(1, 2)) > 1
    block = _orthonormal(problem, _start_block(problem, start), None)
    basis = torch.zeros((batch, size, 0), dtype=torch.float64, device=device)
    images = basis
    steps = 0
    while bool(is_open.any()) and steps < max_steps:
        image = problem.project(problem.product(block))
        basis, images = torch.cat([basis, block], dim=2), torch.cat([images, image], dim=2)
        steps += 1
        ritz_values, ritz_vectors = _rayleigh_ritz(basis, images)
        u = (basis @ ritz_vectors[:, :, :1])[:, :, 0]
        image_of_u = (images @ ritz_vectors[:, :, :1])[:, :, 0]
        residual = (image_of_u - ritz_values[:, :1] * u).norm(dim=1)
        gap = ritz_values[:, 0] - ritz_values[:, 1]
        done = is_open & (residual <= torch.clamp_min(RELATIVE_TOLERANCE * gap, ABSOLUTE_TOLERANCE))
        if bool(done.any()):
            # One power step further: patches with equal neighbors get equal entries, as in the exact vector, since products are
            # exact. Ties, which decide where an object is seeded, are then the same for every solver.
            u = image_of_u / image_of_u.norm(dim=1, keepdim=True).clamp_min(NO_STRUCTURE)
            x = problem.expand(u[:, :, None])[:, :, 0]
            has_structure = ritz_values[:, 0] > NO_STRUCTURE
            vectors = torch.where((done & has_structure)[:, None], x, vectors)
            values = torch.where(done & has_structure, 1 - ritz_values[:, 0], values)
            is_open = is_open & ~done
        block = _orthonormal(problem, image, basis)
    return CutVectors(vectors, values, steps, is_open)


def _rayleigh_ritz(basis: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the Ritz values, largest first, and their coefficients in the basis."""
    projected = (basis.mT @ images).cpu()  # a few dozen rows: a GPU would take longer
    values, coefficients = torch.linalg.eigh((projected + projected.mT) / 2)
    return values.flip(1).to(basis.device), coefficients.flip(2).to(basis.device)


def _start_block(problem: _CollapsedProblem, start: Tensor | None) -> Tensor:
    batch, size = problem.size
    # Drawn on the CPU, so that all devices start alike.
    noise = np.random.default_rng(0).standard_normal((size, BLOCK_SIZE))
    block = torch.from_numpy(noise).to(problem.top.device).expand(batch, size, BLOCK_SIZE).clone()
    if start is not None:
        block[:, :-1, : start.shape[2]] = start
    return block


def _orthonormal(problem: _CollapsedProblem, block: Tensor, basis: Tensor | None) -> Tensor:
    """Returns an orthonormal block, orthogonal to the top eigenvector and the basis; done twice, which is enough for rounding."""
    for _ in range(2):
        block = problem.project(block)
        if basis is not None:
            block = block - basis @ (basis.mT @ block)
        block = torch.linalg.qr(block).Q
    return problem.project(block)
