"""Normalized cuts of graphs that fall apart: connected components are solved one by one and joined by a scalar equation.

The graph of MaskCut is A = (1 - eps) B + eps 1 1^T with B binary. If B has many components, and on photos it often has a hundred,
then the second eigenvalue is one of as many that lie within about n eps of one another, and iterations on the whole graph do not
tell them apart. But without the rank-one term the components are independent. Let p_i and v_i be the eigenvalues and unit eigenvectors
of I - (1 - eps) D^-1/2 B D^-1/2, and g_i = v_i . D^-1/2 1. Then lambda solves

    sum_i (g_i^2 / p_i) / (p_i - lambda) = 0,        u = sum_i g_i / (p_i - lambda) v_i,        x = D^-1/2 u,

with exactly one solution between two neighboring p_i that differ, so that the second smallest lambda lies between the two smallest.

A clique counts with one p_i alone, in closed form; so do patches that are joined to nothing. Small components are decomposed completely.
Of large ones the ends of the spectrum that matter are found by inverse iteration with a Cholesky factor, much cheaper than a dense
eigensolver, until the residual of the whole vector is as small as float64 allows.

Source: the scalar equation is that of rank-one modifications, Golub and Van Loan, section 8.4.3; its use here is ours.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import lapack
from scipy.optimize import brentq
from threadpoolctl import ThreadpoolController

FULL_BELOW = 96  # patches up to which a component is decomposed completely, which is faster there [ours]
MAX_GROWTHS = 40  # inverse iterations after which a component is decomposed completely after all [ours]
RELATIVE_TOLERANCE = 1e-7  # residual norm as a share of the eigen-gap: the error of the unit vector [ours]
ABSOLUTE_TOLERANCE = 1e-12  # residual norm that ends the iteration whatever the gap [ours]

_MIN_GROWTHS = 3  # before convergence is believed
_BLOCK_SIZE = 4  # directions that inverse iteration multiplies at once
_LOG_SMALLEST = -200.0  # natural logarithm of the smallest distance to a pole, as a share of the interval
_ORTHOGONAL = 1e-8  # overlap of unit vectors whose square float64 does not see
_MAX_DIVISIONS = 12  # after which the root is bracketed
_SAME = 4e-16  # relative difference of a number from itself, rounded
_WEAKEST = 1e-13  # eps n as a share of the largest degree, below which Cholesky factors drown in rounding
_FLOOR = 1e-30  # of g: a direction without any weight keeps its eigenvalue, as the limit of a small weight


@dataclass(frozen=True)
class ComponentCut:
    """The second smallest solution of (D - A) x = lambda D x.

    Attributes:
        cut_value: lambda; at or above 1 the graph has nothing to cut.
        vector: float64 (n,), x, scaled so that D^1/2 x has norm 1; the sign is arbitrary.
        num_components: connected components of the binary graph.
        num_full: components above ``FULL_BELOW`` patches that did not converge and were decomposed completely.
    """

    cut_value: float
    vector: np.ndarray
    num_components: int
    num_full: int


@lru_cache(maxsize=1)
def _thread_pools() -> ThreadpoolController:
    """Returns the thread pools of the libraries that are loaded; finding them costs more than a small cut."""
    return ThreadpoolController()


def solve_by_components(joined: np.ndarray, eps: float) -> ComponentCut:
    """Returns the second smallest generalized eigenpair of a patch graph.

    Args:
        joined: bool or 0/1 integers (n, n), symmetric: the binary graph; patches that are removed have empty rows.
        eps: weight of patches that are not joined, above 0.

    Raises:
        ValueError: ``eps`` is so small that float64 does not see it beside the links.

    Source: CutLER, section 3.1; Shi and Malik, TPAMI 2000, section 2.
    """
    # Several threads wait for one another on matrices so small: on two cores, 200 scenes took 131 s with two threads and 43 s with one.
    with _thread_pools().limit(limits=1, user_api="blas"):
        return _solve_by_components(joined, eps)


def _solve_by_components(joined: np.ndarray, eps: float) -> ComponentCut:
    joined = joined.view(bool) if joined.dtype.itemsize == 1 else joined.astype(bool)
    n = len(joined)
    counts = joined.sum(axis=1, dtype=np.int64)
    degrees = (1 - eps) * counts + eps * n
    if eps * n < _WEAKEST * degrees.max(initial=0.0):
        raise ValueError(
            f"eps (MASKS.EPS) is {eps}, lost in rounding beside {counts.max()} links of weight 1; set it to 1e-10 or more"
        )
    components = connected_components(joined, counts)
    cliques = _Cliques(degrees, eps)
    others: list[_Part | _GrowingPart] = []
    for nodes in components:
        if counts[nodes].min() == len(nodes):
            cliques.add(nodes)
        elif len(nodes) <= FULL_BELOW:
            others.append(_full_part(nodes, _reduced_matrix(joined, nodes, degrees, eps), degrees))
        else:
            others.append(_GrowingPart(nodes, _reduced_matrix(joined, nodes, degrees, eps), degrees, eps * n))
    cliques.add_unjoined(np.flatnonzero(counts == 0))
    cut_value, u, num_full = _solve([cliques.close(), *others], n)
    return ComponentCut(cut_value, u / np.sqrt(degrees), len(components) + int((counts == 0).sum()), num_full)


def connected_components(joined: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Returns the nodes of each connected component, int64, ordered by their lowest node; nodes without any link are in none.

    Args:
        joined: bool (n, n), symmetric.
        counts: int64 (n,), its row sums.
    """
    is_open = counts > 0
    is_alone = (counts == 1) & joined.diagonal()
    is_open &= ~is_alone
    found = [np.array([node]) for node in np.flatnonzero(is_alone)]
    while is_open.any():
        frontier = np.array([is_open.argmax()])
        is_member = np.zeros(len(joined), bool)
        while len(frontier):
            is_member[frontier] = True
            is_open[frontier] = False
            frontier = np.flatnonzero(joined[frontier].any(axis=0) & is_open) if is_open.any() else frontier[:0]
        found.append(np.flatnonzero(is_member))
    return sorted(found, key=lambda nodes: nodes[0])


def _reduced_matrix(joined: np.ndarray, nodes: np.ndarray, degrees: np.ndarray, eps: float) -> np.ndarray:
    """Returns D - (1 - eps) B of one component, float64 (m, m)."""
    # Rows, then columns: on single bytes several times faster than np.ix_.
    own = joined if len(nodes) == len(joined) else joined.take(nodes, axis=0).take(nodes, axis=1)
    matrix = own * (eps - 1.0)
    matrix[np.diag_indices_from(matrix)] += degrees[nodes]
    return matrix


@dataclass
class _Part:
    """One component, or all cliques: eigenpairs of I - (1 - eps) D^-1/2 B D^-1/2, those that count.

    Attributes:
        nodes: int64 (m,).
        poles: float64 (k,), p.
        weights: float64 (k,), g.
        vectors: float64 (m, k), v.
        links: float64 (m,), D^-1/2 1.
    """

    nodes: np.ndarray
    poles: np.ndarray
    weights: np.ndarray
    vectors: np.ndarray
    links: np.ndarray

    def combine(self, coefficients: np.ndarray) -> np.ndarray:
        """Returns the part's entries of u, float64 (m,)."""
        return self.vectors @ coefficients

    def residual(self, coefficients: np.ndarray, cut_value: float, scale: float) -> float:
        """Returns the norm of what is missing in this part's rows of the eigenvalue equation: nothing where all pairs are known."""
        return 0.0


class _Cliques:
    """Collects cliques and patches without links, which have one eigenvalue each that counts."""

    def __init__(self, degrees: np.ndarray, eps: float):
        self._inverse_roots = 1 / np.sqrt(degrees)
        self._free = eps * len(degrees)
        self._nodes: list[np.ndarray] = []

    def add(self, nodes: np.ndarray) -> None:
        self._nodes.append(nodes)

    def add_unjoined(self, nodes: np.ndarray) -> None:
        """Adds patches without links, which all have the same entry: together they act like one clique."""
        if len(nodes):
            self._nodes.append(nodes)

    def close(self) -> "_CliquePart":
        sizes = np.array([len(nodes) for nodes in self._nodes], np.int64)
        nodes = np.concatenate(self._nodes) if self._nodes else np.zeros(0, np.int64)
        links = self._inverse_roots[nodes]
        first = links[np.cumsum(sizes) - sizes] if len(sizes) else links
        return _CliquePart(nodes, self._free * first**2, np.sqrt(sizes) * first, np.zeros((0, 0)), links, sizes)


@dataclass
class _CliquePart(_Part):
    """Cliques: constant on each, ``vectors`` is not filled in."""

    sizes: np.ndarray

    def combine(self, coefficients: np.ndarray) -> np.ndarray:
        return np.repeat(coefficients / np.sqrt(self.sizes), self.sizes)


def _full_part(nodes: np.ndarray, matrix: np.ndarray, degrees: np.ndarray) -> _Part:
    links = 1 / np.sqrt(degrees[nodes])
    poles, vectors = np.linalg.eigh(links[:, None] * matrix * links)
    return _Part(nodes, poles, vectors.T @ links, vectors, links)


class _GrowingPart:
    """A large component: Ritz pairs of a Krylov space of the inverse, which grows until it is good enough.

    With S = D^-1/2 (D - (1 - eps) B) D^-1/2 and q = D^1/2 1, for which S q = eps n D^-1/2 1, the part's rows of the eigenvalue
    equation are u - lambda S^-1 u = s / (eps n) q. So S^-1 alone is applied, from a Cholesky factor, and its Ritz values are 1 / p.
    The small ones among the p, in which components resemble one another, have full relative precision, and since q and S q are in
    the space, the known solution lambda = 0 stays exact.

    Attributes:
        nodes: int64 (m,).
        poles, weights: as in :class:`_Part`, of the space.
        num_growths: inverse iterations so far.
        is_full: whether the space is the whole one.
    """

    def __init__(self, nodes: np.ndarray, matrix: np.ndarray, degrees: np.ndarray, free: float):
        """Takes the component and grows its first space.

        Args:
            nodes: int64 (m,).
            matrix: float64 (m, m), D - (1 - eps) B of the component; is overwritten.
            degrees: float64 (n,), of the whole graph.
            free: eps n.
        """
        self.nodes = nodes
        self.num_growths = 0
        self.is_full = False
        self._free = free
        self._roots = np.sqrt(degrees[nodes])
        # The transposed view of a symmetric matrix has the memory layout that LAPACK wants, which spares it a copy.
        self._factor, _ = lapack.dpotrf(matrix.T, lower=True, clean=False, overwrite_a=True)
        self._basis = self._solved = np.zeros((len(nodes), 0))
        self._projected = np.zeros((0, 0))
        noise = np.random.default_rng(0).standard_normal((len(nodes), _BLOCK_SIZE - 2))
        self._extend(np.column_stack([self._roots, 1 / self._roots, noise]))
        for _ in range(_MIN_GROWTHS - 1):
            self._grow()
        self.grow()

    def grow(self) -> None:
        """Adds the inverse's image of the newest directions; after ``MAX_GROWTHS`` decomposes the component completely."""
        self._grow()
        if not self.is_full:
            self._find_pairs()

    def combine(self, coefficients: np.ndarray) -> np.ndarray:
        """Returns the part's entries of u, float64 (m,)."""
        return self._basis @ (self._rotation @ coefficients)

    def residual(self, coefficients: np.ndarray, cut_value: float, scale: float) -> float:
        """Returns the norm of what is missing in this part's rows of the equation."""
        inner = self._rotation @ coefficients
        found = self._basis @ inner - cut_value * (self._solved @ inner)
        return float(np.linalg.norm(found - scale / self._free * self._roots))

    def _grow(self) -> None:
        if self.is_full:
            return
        self.num_growths += 1
        if self.num_growths > MAX_GROWTHS or self._basis.shape[1] + _BLOCK_SIZE > len(self.nodes):
            self._decompose()
        else:
            self._extend(self._solved[:, -_BLOCK_SIZE:])

    def _extend(self, block: np.ndarray) -> None:
        block, _ = np.linalg.qr(block - self._basis @ (self._basis.T @ block))
        # What rounding left of the old directions; where the new ones are hardly new, it is much.
        overlap = self._basis.T @ block
        block = block - self._basis @ overlap
        if np.abs(overlap).max(initial=0.0) > _ORTHOGONAL:
            block, _ = np.linalg.qr(block)
        roots = self._roots[:, None]
        solved, _ = lapack.dpotrs(self._factor, np.asfortranarray(roots * block), lower=True, overwrite_b=True)
        solved *= roots
        cross = self._basis.T @ solved
        self._projected = np.block([[self._projected, cross], [cross.T, block.T @ solved]])
        self._basis, self._solved = np.hstack([self._basis, block]), np.hstack([self._solved, solved])

    def _find_pairs(self) -> None:
        """Finds the Ritz pairs of the space."""
        values, self._rotation = np.linalg.eigh((self._projected + self._projected.T) / 2)
        self.poles = 1 / values
        self.weights = self.poles * ((self._roots @ self._basis) @ self._rotation) / self._free

    def _decompose(self) -> None:
        """Makes the space the whole one, of eigenvectors."""
        self.is_full = True
        lower = np.tril(self._factor) / self._roots[:, None]
        self.poles, self._basis = np.linalg.eigh(lower @ lower.T)
        self._rotation = np.eye(len(self.nodes))
        self.weights = (1 / self._roots) @ self._basis


def _solve(parts: list, n: int) -> tuple[float, np.ndarray, int]:
    """Returns lambda, u and the number of growing parts that were decomposed completely."""
    while True:
        bounds = np.cumsum([len(part.poles) for part in parts])[:-1]
        poles = np.concatenate([part.poles for part in parts])
        weights = np.concatenate([part.weights for part in parts])
        if len(poles) < 2:
            return 1.0, np.zeros(n), 0
        cut_value, coefficients, scale, gap = _second_root(poles, weights)
        pieces = np.split(coefficients, bounds)
        # The residuals are those of u - lambda S^-1 u, whose eigenvalues are 0 and, for the next solution, 1 - lambda / (lambda + gap).
        tolerance = max(RELATIVE_TOLERANCE * gap / (cut_value + gap), ABSOLUTE_TOLERANCE)
        # Only components that are not good enough yet grow.
        rough = [
            part
            for part, piece in zip(parts, pieces)
            if isinstance(part, _GrowingPart)
            and not part.is_full
            and part.residual(piece, cut_value, scale) > tolerance
        ]
        if not rough:
            break
        for part in rough:
            part.grow()
    u = np.zeros(n)
    for part, piece in zip(parts, pieces):
        u[part.nodes] = part.combine(piece)
    return cut_value, u, sum(isinstance(part, _GrowingPart) and part.is_full for part in parts)


def _second_root(poles: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, float, float]:
    """Returns the smallest positive lambda of the scalar equation, the coefficients of u, their scale, and the gap to the next.

    Args:
        poles: float64 (k,), p, k >= 2, above 0.
        weights: float64 (k,), g.
    """
    order = np.argsort(poles, kind="stable")
    p, g = poles[order], weights[order]
    g = np.where(g < 0, -1.0, 1.0) * np.maximum(np.abs(g), _FLOOR)
    w = g**2 / p
    if p[0] == p[1]:
        # Equal components: lambda is their own eigenvalue, and u lives on them alone, the first against the others.
        num_equal = int(np.searchsorted(p, p[0], side="right"))
        c = np.zeros(len(p))
        c[1:num_equal] = -g[1:num_equal]
        c[0] = (g[1:num_equal] ** 2).sum() / g[0]
        value, scale, gap = p[0], 0.0, 0.0 if num_equal > 2 else p[min(2, len(p) - 1)] - p[0]
    else:
        anchor, delta = _root_between(p, w, 0)
        value = p[anchor] + delta
        c = g / ((p - p[anchor]) - delta)
        scale = 1.0
        gap = p[1] - value if anchor == 0 else _gap_above(p, w, delta)
    norm = np.linalg.norm(c)
    coefficients = np.empty_like(c)
    coefficients[order] = c / norm
    return float(value), coefficients, scale / norm, float(gap)


def _gap_above(p: np.ndarray, w: np.ndarray, delta: float) -> float:
    """Returns the distance from lambda, which lies at p[1] + delta, to the next solution."""
    if len(p) < 3:
        return 1.0
    if p[1] == p[2]:
        return -delta
    anchor, above = _root_between(p, w, 1)
    return (p[anchor] - p[1]) + above - delta


def _root_between(p: np.ndarray, w: np.ndarray, low: int) -> tuple[int, float]:
    """Returns the solution of sum_i w_i / (p_i - lambda) = 0 in (p[low], p[low + 1]) as (nearest pole, distance to it).

    The distance keeps its relative precision where the solution all but coincides with the pole.
    """
    half = (p[low + 1] - p[low]) / 2
    is_low = (w / ((p - p[low]) - half)).sum() > 0
    anchor, sign = (low, 1.0) if is_low else (low + 1, -1.0)
    offsets, others = np.delete(p - p[anchor], anchor), np.delete(w, anchor)

    # Near its pole the others' sum hardly changes with the distance, so that repeated division settles within a few steps.
    delta = sign * half
    for _ in range(_MAX_DIVISIONS):
        total = (others / (offsets - delta)).sum()
        if total * sign <= 0:
            break
        previous, delta = delta, sign * min(w[anchor] / (total * sign), half)
        if abs(delta - previous) <= _SAME * abs(delta):
            return anchor, float(delta)

    def excess(log_share: float) -> float:
        delta = sign * half * np.exp(log_share)
        return float(delta * (others / (offsets - delta)).sum() - w[anchor])

    if excess(0.0) <= 0:
        return anchor, sign * half
    return anchor, sign * half * float(np.exp(brentq(excess, _LOG_SMALLEST, 0.0, xtol=1e-15, rtol=1e-15)))
