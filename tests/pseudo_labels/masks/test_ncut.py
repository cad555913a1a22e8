import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from u2seg.pseudo_labels.masks import component_cut
from u2seg.pseudo_labels.masks.component_cut import connected_components, solve_by_components
from u2seg.pseudo_labels.masks.ncut import BinaryAffinity, exact_second_eigenvector, second_eigenvectors

EPS = 1e-5


def one_hot(labels):
    """Features (1, C, n) that join exactly the patches of one label; label -1 is a zero feature, joined to nothing."""
    labels = torch.as_tensor(labels)
    features = torch.zeros(int(labels.max()) + 1, len(labels))
    features[labels[labels >= 0], torch.nonzero(labels >= 0).flatten()] = 1
    return features[None]


def noisy_features(n, seed, num_groups=4, noise=0.6, channels=12):
    """Features (1, channels, n) of patches that belong to groups of unequal size."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(num_groups, channels))
    groups = rng.choice(num_groups, n, p=rng.dirichlet(np.full(num_groups, 3.0)))
    return torch.from_numpy((centers[groups] + noise * rng.normal(size=(n, channels))).T[None]).float()


def nothing_painted(affinity):
    return torch.zeros(affinity.batch_size, affinity.num_patches, dtype=torch.bool)


def dense_solution(affinity, index, removed, eps=EPS):
    """Returns the three smallest lambdas of the full problem, removed rows and all, and the second vector."""
    joined = affinity.dense(index).numpy().astype(bool)
    live = ~removed
    weights = np.where(joined & live[:, None] & live, 1.0, eps)
    degrees = weights.sum(1)
    values, vectors = eigh(np.diag(degrees) - weights, np.diag(degrees), subset_by_index=[0, 2])
    return values, vectors[:, 1], degrees


def assert_same_vector(got, expected, tolerance):
    got, expected = got / np.abs(got).max(), expected / np.abs(expected).max()
    assert min(np.abs(got - expected).max(), np.abs(got + expected).max()) < tolerance


@pytest.mark.parametrize(("a", "b"), [(150, 150), (250, 50), (297, 3)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_two_cliques_have_the_known_cut_value(a, b, eps):
    # x takes one value on each clique; the random walk leaves clique a with probability b eps / (a + b eps), clique b with
    # a eps / (b + a eps), and lambda of a two-state walk is the sum of the two.
    affinity = BinaryAffinity(one_hot([0] * a + [1] * b), 0.15)
    cuts = second_eigenvectors(affinity, nothing_painted(affinity), eps)
    expected = b * eps / (a + b * eps) + a * eps / (b + a * eps)
    assert cuts.cut_values.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    vector = cuts.vectors[0].numpy()
    assert np.ptp(vector[:a]) < 1e-9 * np.abs(vector).max()
    assert np.ptp(vector[a:]) < 1e-9 * np.abs(vector).max()
    # Orthogonal to the constant vector under the degrees.
    degrees = np.r_[np.full(a, a + b * eps), np.full(b, b + a * eps)]
    assert abs(vector @ degrees) < 1e-6 * np.abs(vector * degrees).sum()


@pytest.mark.parametrize("seed", range(12))
def test_equals_scipy(seed):
    affinity = BinaryAffinity(noisy_features(330, seed), 0.15)
    cuts = second_eigenvectors(affinity, nothing_painted(affinity), EPS)
    values, vector, degrees = dense_solution(affinity, 0, np.zeros(330, bool))
    assert not cuts.is_by_components.any()
    assert cuts.cut_values.item() == pytest.approx(values[1], abs=1e-9)
    assert values[2] - values[1] > 1e-3, "the seeds were chosen so that the second vector is well defined"
    assert_same_vector(cuts.vectors[0].numpy(), vector, 1e-5)
    assert (cuts.vectors[0].numpy() ** 2 * degrees).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_collapsed_painted_patches_equal_the_full_problem(seed, share):
    affinity = BinaryAffinity(noisy_features(330, seed), 0.15)
    removed = np.random.default_rng(seed).random(330) < share
    cuts = second_eigenvectors(affinity, torch.from_numpy(removed)[None], EPS)
    values, vector, _ = dense_solution(affinity, 0, removed)
    assert cuts.cut_values.item() == pytest.approx(values[1], abs=1e-6)
    got = cuts.vectors[0].numpy()
    assert_same_vector(got, vector, 1e-5)
    assert np.ptp(got[removed]) == 0
    # The common entry of removed patches is mean(x) / (1 - lambda).
    assert got[removed][0] == pytest.approx(got.mean() / (1 - values[1]), rel=1e-5, abs=1e-9)


def test_what_the_iteration_leaves_open_is_solved_by_components_with_the_same_result():
    affinity = BinaryAffinity(torch.cat([noisy_features(330, seed) for seed in range(3)]), 0.15)
    removed = torch.from_numpy(np.random.default_rng(0).random((3, 330)) < 0.3)
    iterated = second_eigenvectors(affinity, removed, EPS)
    apart = second_eigenvectors(affinity, removed, EPS, max_steps=1)
    assert apart.is_by_components.all()
    assert not iterated.is_by_components.any()
    assert torch.allclose(apart.cut_values, iterated.cut_values, atol=1e-9)
    for index in range(3):
        assert_same_vector(apart.vectors[index].numpy(), iterated.vectors[index].numpy(), 1e-5)
        assert np.ptp(apart.vectors[index][removed[index]].numpy()) == 0


@pytest.mark.parametrize("n", [50, 163, 400])
def test_patches_joined_to_nothing(n):
    # D^-1/2 A D^-1/2 is a constant diagonal plus a rank-one term: all eigenvalues but the first are (1 - eps) / degree.
    affinity = BinaryAffinity(torch.eye(n)[None], 0.5)
    value, vector = exact_second_eigenvector(affinity, torch.zeros(1, n, dtype=torch.bool), EPS)
    assert value == pytest.approx(1 - (1 - EPS) / (1 - EPS + n * EPS), rel=1e-6)
    assert vector.shape == (n,) and bool(torch.isfinite(vector).all()) and abs(float(vector.sum())) < 1e-9


def scattered_graph(seed):
    """Returns a binary graph, bool (n, n), of points in one to three dimensions: one piece, or up to a few hundred."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 400))
    points = rng.random((n, rng.integers(1, 4)))
    joined = np.linalg.norm(points[:, None] - points[None], axis=2) < rng.choice([0.01, 0.03, 0.06, 0.1, 0.2, 0.4])
    if seed % 3 == 0:
        removed = rng.random(n) < rng.random()
        joined[removed] = joined[:, removed] = False
    return joined


def assert_equals_dense(joined, eps):
    """Compares with a dense solver, to rounding: the vector as far as the distance to the neighboring eigenvalues allows."""
    n = len(joined)
    weights = np.where(joined, 1.0, eps)
    degrees = weights.sum(1)
    root = np.sqrt(degrees)
    values, vectors = eigh(weights / root[:, None] / root)
    values, vectors = 1 - values[::-1], vectors[:, ::-1]
    cut = solve_by_components(joined, eps)
    if values[1] > 1 - 1e-9:
        assert cut.cut_value > 1 - 1e-9
        return cut
    assert cut.cut_value == pytest.approx(values[1], abs=1e-11)
    u = root * cut.vector
    assert np.linalg.norm(u) == pytest.approx(1, abs=1e-9)
    gap = values[2] - values[1] if n > 2 else 1.0
    assert min(np.abs(u - vectors[:, 1]).max(), np.abs(u + vectors[:, 1]).max()) * gap < 1e-7 * gap + 1e-11
    return cut


@pytest.mark.parametrize("start", range(0, 120, 20))
def test_components_equal_the_dense_solver_on_connected_and_scattered_graphs(start):
    counts = [
        assert_equals_dense(scattered_graph(seed), eps).num_components
        for seed in range(start, start + 20)
        for eps in (1e-5, 1e-3)
    ]
    assert min(counts) == 1 and max(counts) > 50


def test_near_equal_eigenvalues_are_told_apart():
    # Cliques of 150, 7, 7 and 6 patches, and 40 of one; the two of 7 are equal, and the gap to the next is about 1e-6.
    sizes = [150, 7, 7, 6, *[1] * 40]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    joined = labels[:, None] == labels
    assert_equals_dense(joined, 1e-5)
    # A chain of three loosely joined cliques beside them has inner eigenvalues as small as those of the components.
    joined[0, 150] = joined[150, 0] = joined[3, 158] = joined[158, 3] = True
    assert_equals_dense(joined, 1e-5)


def test_equal_cliques_are_cut_from_one_another():
    labels = np.repeat([0, 1, 2], [20, 20, 5])
    joined = labels[:, None] == labels
    for eps in (1e-5, 0.01):
        cut = assert_equals_dense(joined, eps)
        assert cut.cut_value < 1
    # Two equal cliques alone: their own eigenvalue, and opposite signs.
    cut = solve_by_components(joined[:40, :40], 1e-3)
    assert cut.cut_value == pytest.approx(2e-3 / (1 + 1e-3), rel=1e-12)
    assert np.array_equal(np.sign(cut.vector[:20]), -np.sign(cut.vector[20:]))


def test_a_large_component_that_does_not_converge_is_decomposed(monkeypatch):
    points = np.random.default_rng(5).random((300, 1))
    joined = np.abs(points - points.T) < 0.05  # a long chain in one piece
    expected = solve_by_components(joined, EPS)
    assert expected.num_full == 0
    monkeypatch.setattr(component_cut, "MAX_GROWTHS", component_cut._MIN_GROWTHS)
    slow = solve_by_components(joined, EPS)
    assert slow.num_full == 1
    assert slow.cut_value == pytest.approx(expected.cut_value, abs=1e-11)
    assert_same_vector(slow.vector, expected.vector, 1e-6)


def test_components_are_those_of_the_links():
    joined = np.eye(7, dtype=bool)
    joined[6, 6] = False  # without a feature: joined to nothing
    for one, other in ((0, 3), (3, 5), (1, 2)):
        joined[one, other] = joined[other, one] = True
    found = connected_components(joined, joined.sum(1))
    assert [nodes.tolist() for nodes in found] == [[0, 3, 5], [1, 2], [4]]


def test_an_image_s_answer_does_not_depend_on_its_batch():
    features = torch.cat([noisy_features(330, seed, num_groups=2 + seed) for seed in range(5)])
    together = second_eigenvectors(BinaryAffinity(features, 0.15), torch.zeros(5, 330, dtype=torch.bool), EPS)
    for index in range(5):
        affinity = BinaryAffinity(features[index : index + 1], 0.15)
        alone = second_eigenvectors(affinity, nothing_painted(affinity), EPS)
        assert alone.cut_values.item() == pytest.approx(together.cut_values[index].item(), abs=1e-12)
        assert_same_vector(alone.vectors[0].numpy(), together.vectors[index].numpy(), 1e-10)


def test_products_are_exact_and_the_same_in_bytes_and_in_floats(monkeypatch):
    features = noisy_features(500, 0)
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal(size=(1, 500, 5)) * 10.0 ** rng.integers(-8, 9, 5))
    with_bytes = BinaryAffinity(features, 0.15)
    expected = with_bytes.dense(0) @ vectors[0]
    tolerance = (
        500 * 2.0**-31 * vectors.abs().amax(dim=1)
    )  # n entries, each rounded by at most half of 2^-30 of the largest
    product_in_bytes = with_bytes.product(vectors)
    assert bool(((product_in_bytes[0] - expected).abs() <= tolerance).all())
    monkeypatch.delattr(torch, "_int_mm")
    with_floats = BinaryAffinity(features, 0.15)
    assert torch.equal(with_floats.dense(0), with_bytes.dense(0))
    assert torch.equal(with_floats.product(vectors), product_in_bytes)


def test_whole_numbers_are_multiplied_without_any_error():
    affinity = BinaryAffinity(noisy_features(500, 0), 0.15)
    counts = affinity.product(torch.ones(1, 500, 1, dtype=torch.float64))
    assert torch.equal(counts[0, :, 0], affinity.dense(0).sum(1))


def test_affinity_is_symmetric_strict_and_reflexive():
    # Cosines with the first patch: 1, 0.6 (not above 0.6), 0.8, and 0 for a patch without a feature.
    features = torch.tensor([[[1.0, 0.6, 0.8, 0.0], [0.0, 0.8, 0.6, 0.0]]])
    joined = BinaryAffinity(features, 0.6).dense(0)
    assert joined.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"features must be \(batch, channels, patches\), got shape \(3, 4\)"):
        BinaryAffinity(torch.zeros(3, 4), 0.15)


@pytest.mark.parametrize(
    "labels",
    [[0] * 40, [-1] * 40, [-1] * 39 + [0]],
    ids=["uniform", "without features", "one patch"],
)
def test_graphs_without_structure_have_cut_value_one(labels):
    affinity = BinaryAffinity(one_hot(labels) if max(labels) >= 0 else torch.zeros(1, 3, 40), 0.15)
    cuts = second_eigenvectors(affinity, nothing_painted(affinity), EPS)
    if labels[-1] == labels[0]:
        assert cuts.cut_values.item() == 1
        assert not cuts.vectors.any()
    assert torch.isfinite(cuts.vectors).all()


@pytest.mark.parametrize("num_live", [0, 1, 2, 3])
def test_hardly_anything_left(num_live):
    affinity = BinaryAffinity(noisy_features(60, 0), 0.15)
    removed = torch.ones(1, 60, dtype=torch.bool)
    removed[0, :num_live] = False
    cuts = second_eigenvectors(affinity, removed, EPS)
    assert torch.isfinite(cuts.vectors).all()
    assert 0 <= cuts.cut_values.item() <= 1 + 1e-9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_cpu():
    features = torch.cat([noisy_features(900, seed) for seed in range(4)])
    removed = torch.from_numpy(np.random.default_rng(0).random((4, 900)) < 0.3)
    on_cpu = second_eigenvectors(BinaryAffinity(features, 0.15), removed, EPS)
    on_gpu = second_eigenvectors(BinaryAffinity(features.cuda(), 0.15), removed.cuda(), EPS)
    assert torch.allclose(on_cpu.cut_values, on_gpu.cut_values.cpu(), atol=1e-6)
    for index in range(4):
        assert_same_vector(on_cpu.vectors[index].numpy(), on_gpu.vectors[index].cpu().numpy(), 1e-4)


def test_links_too_weak_for_floats_have_a_clear_error():
    points = np.random.default_rng(0).random((200, 2))
    joined = np.linalg.norm(points[:, None] - points, axis=2) < 0.3
    assert 0 < solve_by_components(joined, 1e-10).cut_value < 1
    with pytest.raises(ValueError, match=r"eps \(MASKS\.EPS\) is 1e-16, lost in rounding beside \d+ links"):
        solve_by_components(joined, 1e-16)
