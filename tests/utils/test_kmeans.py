"""k-means against an obvious implementation, and its promises: seeded, no dead cluster, best of its restarts."""

import numpy as np
import pytest
import torch
from u2seg.utils.kmeans import _best_candidate, _plus_plus, assign, kmeans, l2_normalize, nearest_by_torch


def blobs(seed=0, per_blob=30):
    rng = np.random.default_rng(seed)
    centers = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    labels = np.repeat(np.arange(4), per_blob)
    return (centers[labels] + rng.normal(size=(len(labels), 2)) * 0.3).astype(np.float32), labels


def test_separate_blobs_are_found_up_to_renaming():
    vectors, gt = blobs()
    result = kmeans(vectors, 4, num_iterations=50, num_restarts=2, seed=0)
    labels, _ = assign(vectors, result.centroids)
    pairs = set(zip(gt.tolist(), labels.tolist()))
    assert len(pairs) == 4
    assert sorted(result.counts) == [30, 30, 30, 30]


def test_assignment_and_inertia_equal_the_obvious_ones():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(200, 5)).astype(np.float32)
    result = kmeans(vectors, 7, num_iterations=100, num_restarts=1, seed=1)
    labels, distances = assign(vectors, result.centroids)
    squared = ((vectors[:, None].astype(np.float64) - result.centroids[None]) ** 2).sum(2)
    assert np.array_equal(labels, squared.argmin(1))
    np.testing.assert_allclose(distances, squared.min(1), rtol=1e-4, atol=1e-5)
    assert result.inertia == pytest.approx(squared.min(1).sum(), rel=1e-4)
    # A converged run is a fixed point: every centroid is the mean of what it owns.
    for cluster in range(7):
        np.testing.assert_allclose(result.centroids[cluster], vectors[labels == cluster].mean(0), atol=1e-5)


def test_pytorch_assigns_as_faiss_does_whatever_the_blocks():
    rng = np.random.default_rng(4)
    vectors, centroids = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=(9, 6)).astype(np.float32)
    labels, distances = assign(vectors, centroids)
    for block in (1, 7, 1000):
        others = nearest_by_torch(vectors, centroids, torch.device("cpu"), block)
        assert np.array_equal(labels, others[0]) and others[0].dtype == np.int64
        np.testing.assert_allclose(others[1], distances, rtol=1e-4, atol=1e-5)


def test_the_best_candidate_is_the_one_that_leaves_the_least():
    rng = np.random.default_rng(5)
    sample = rng.normal(size=(30, 3)).astype(np.float32)
    squared = ((sample[:, None].astype(np.float64) - sample[None]) ** 2).sum(2)
    nearest, drawn = squared[:, 0], np.array([4, 9, 17, 9])
    left = [np.minimum(nearest, squared[:, one]).sum() for one in drawn]
    assert _best_candidate(sample, (sample.astype(np.float64) ** 2).sum(1), nearest, drawn) == drawn[np.argmin(left)]


def test_greedy_seeding_finds_better_starts():
    vectors = np.random.default_rng(6).normal(size=(300, 2)).astype(np.float32)

    def mean_inertia(candidates):
        starts = [_plus_plus(vectors, 20, np.random.default_rng(seed), candidates) for seed in range(20)]
        return np.mean([assign(vectors, start)[1].sum() for start in starts])

    assert mean_inertia(4) < 0.95 * mean_inertia(1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_k_means_on_a_gpu_finds_the_same_blobs():
    vectors, gt = blobs()
    result = kmeans(vectors, 4, num_iterations=50, num_restarts=2, seed=0, device=torch.device("cuda"))
    labels, _ = assign(vectors, result.centroids, torch.device("cuda"))
    assert len(set(zip(gt.tolist(), labels.tolist()))) == 4


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not():
    vectors = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    first, again, other = (kmeans(vectors, 20, num_iterations=5, num_restarts=2, seed=s) for s in (5, 5, 6))
    assert first.centroids.tobytes() == again.centroids.tobytes()
    assert first.centroids.tobytes() != other.centroids.tobytes()


def test_more_restarts_are_never_worse():
    vectors = np.random.default_rng(2).normal(size=(300, 3)).astype(np.float32)
    one, five = (kmeans(vectors, 12, num_iterations=30, num_restarts=n, seed=0).inertia for n in (1, 5))
    assert five <= one


def test_no_cluster_stays_empty():
    # 97 copies of one point and three far ones: most starts give several centroids the same place.
    vectors = np.zeros((100, 2), np.float32)
    vectors[:3] = [[100, 0], [0, 100], [50, 50]]
    for seed in range(5):
        assert (kmeans(vectors, 4, num_iterations=20, num_restarts=1, seed=seed).counts > 0).all()


def test_bad_input_says_what_came():
    with pytest.raises(ValueError, match="5 clusters were asked for, 3 vectors came"):
        kmeans(np.zeros((3, 2)), 5, num_iterations=1, num_restarts=1, seed=0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        kmeans(np.full((3, 2), np.nan), 2, num_iterations=1, num_restarts=1, seed=0)
    with pytest.raises(ValueError, match="vectors have 3 channels, centroids 2"):
        assign(np.zeros((4, 3)), np.zeros((2, 2), np.float32))


def test_no_vectors_are_assigned_to_nothing():
    labels, distances = assign(np.zeros((0, 2)), np.zeros((2, 2), np.float32))
    assert labels.shape == distances.shape == (0,)


def test_normalised_vectors_have_length_one_and_zero_stays():
    out = l2_normalize(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(out, [[0.6, 0.8], [0, 0]], rtol=1e-6)
