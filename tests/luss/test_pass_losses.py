"""Codes, swapped prediction and pixel agreement against hand-made cases and slow restatements."""

import math

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from u2seg.luss.modeling.pass_losses import (
    code_cross_entropy,
    code_entropy,
    pixel_agreement_loss,
    sample_points,
    sinkhorn_codes,
)


def slow_sinkhorn(scores, epsilon, iterations):
    """The transport plan by scaling vectors (Cuturi 2013), in float64: rows sum to 1, columns to B / K."""
    kernel = torch.exp(scores.double() / epsilon)
    rows, columns = kernel.shape
    u, v = torch.ones(rows).double(), torch.ones(columns).double()
    for _ in range(iterations):
        v = (1 / columns) / (kernel.T @ u)
        u = (1 / rows) / (kernel @ v)
    return rows * u[:, None] * kernel * v[None]


def random_scores(rows=64, columns=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(rows, 16, generator=generator), dim=1)
    return embeddings @ F.normalize(torch.randn(columns, 16, generator=generator), dim=1).T


def test_codes_equal_the_transport_plan():
    scores = random_scores()
    torch.testing.assert_close(
        sinkhorn_codes(scores, 0.05, 3).double(), slow_sinkhorn(scores, 0.05, 3), atol=1e-5, rtol=1e-4
    )


def test_rows_sum_to_one_and_columns_are_balanced():
    scores = random_scores(256, 8)
    codes = sinkhorn_codes(scores, 0.05, 10)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(256))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((8,), 32.0), rtol=0.05, atol=0)


def test_equal_scores_give_uniform_codes():
    codes = sinkhorn_codes(torch.full((6, 4), 0.3), 0.05, 3)
    torch.testing.assert_close(codes, torch.full((6, 4), 0.25))
    assert code_entropy(codes) == pytest.approx(math.log(4))


def test_codes_do_not_overflow_at_small_epsilon():
    codes = sinkhorn_codes(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), 0.01, 3)
    torch.testing.assert_close(codes, torch.eye(2))


def test_iterations_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sinkhorn_codes(torch.zeros(2, 2), 0.05, 0)


def _codes_of_rank(rank, directory, scores):
    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    torch.save(sinkhorn_codes(scores[rank::2], 0.05, 3), directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_codes_of_one(tmp_path):
    scores = random_scores(32, 6)
    # Forked, since two fresh interpreters would spend seconds on imports.
    mp.start_processes(_codes_of_rank, args=(tmp_path, scores), nprocs=2, start_method="fork")
    whole = sinkhorn_codes(scores, 0.05, 3)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), whole[rank::2])


def test_cross_entropy_by_hand():
    # Scores 0.1 and 0 at temperature 0.1: softmax of (1, 0) = (e, 1) / (e + 1); code (1, 0) costs log(1 + 1/e).
    loss = code_cross_entropy(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.1, 0.0]]), 0.1)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)))


def test_pixel_agreement_by_hand_and_without_gradient_to_the_target():
    prediction = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(2, 2, 1, 1).requires_grad_()
    target = torch.tensor([[3.0, 0.0], [0.0, 5.0]]).view(2, 2, 1, 1).requires_grad_()
    loss = pixel_agreement_loss(prediction, target, torch.tensor([True, True]))
    assert float(loss) == pytest.approx(-0.5)  # cosines 1 and 0
    loss.backward()
    assert target.grad is None and prediction.grad is not None
    # The first pair does not overlap: it counts as 0 in the mean of two.
    assert float(pixel_agreement_loss(prediction, target, torch.tensor([False, True]))) == pytest.approx(0)


def test_points_are_sampled_where_the_grid_says():
    feature_map = torch.arange(6.0).view(1, 1, 2, 3)  # cell centers: x -2/3, 0, 2/3; y -1/2, 1/2
    grid = torch.tensor([[[[-2 / 3, -0.5], [2 / 3, 0.5]]]])
    sampled = sample_points(feature_map, grid, torch.tensor([True]), "border")
    torch.testing.assert_close(sampled.flatten(), torch.tensor([0.0, 5.0]))
    assert not sample_points(feature_map, grid, torch.tensor([False]), "border").any()
