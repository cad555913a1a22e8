import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from u2seg.pseudo_labels.masks import ncut
from u2seg.pseudo_labels.masks.ncut import BinaryAffinity, dense_second_eigenvector, second_eigenvectors

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
    assert not cuts.is_dense.any()
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


def test_the_dense_fallback_gives_the_same_and_is_counted(caplog):
    affinity = BinaryAffinity(torch.cat([noisy_features(330, seed) for seed in range(3)]), 0.15)
    removed = torch.from_numpy(np.random.default_rng(0).random((3, 330)) < 0.3)
    iterated = second_eigenvectors(affinity, removed, EPS)
    with caplog.at_level("INFO", logger=ncut.__name__):
        dense = second_eigenvectors(affinity, removed, EPS, max_steps=1)
    assert dense.is_dense.all()
    assert not iterated.is_dense.any()
    assert "3 of 3 eigenproblems did not converge in 1 steps" in caplog.text
    assert torch.allclose(dense.cut_values, iterated.cut_values, atol=1e-9)
    for index in range(3):
        assert_same_vector(dense.vectors[index].numpy(), iterated.vectors[index].numpy(), 1e-5)


@pytest.mark.parametrize("n", [50, 163, 400])
def test_the_dense_solver_copes_with_patches_joined_to_nothing(n):
    # D^-1/2 A D^-1/2 is a constant diagonal plus a rank-one term: all eigenvalues but the first are (1 - eps) / degree.
    eps = 1e-5
    features = torch.eye(n)[None]
    affinity = BinaryAffinity(features, 0.5)
    value, vector = dense_second_eigenvector(affinity, torch.zeros(1, n, dtype=torch.bool), eps, 0)
    assert value == pytest.approx(1 - (1 - eps) / (1 - eps + n * eps), rel=1e-6)
    assert vector.shape == (n,) and bool(torch.isfinite(vector).all())


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
