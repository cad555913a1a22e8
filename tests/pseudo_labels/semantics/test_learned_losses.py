"""The losses of STEGO and CAUSE against slow restatements, and on graphs whose communities are known."""

import math

import numpy as np
import pytest
import torch
from u2seg.pseudo_labels.semantics.learned.cluster_probe import ClusterProbe
from u2seg.pseudo_labels.semantics.learned.losses.concept_contrast import ConceptBank, concept_contrast
from u2seg.pseudo_labels.semantics.learned.losses.modularity import (
    affinity,
    modularity_loss,
    modularity_matrix,
    nearest_codeword,
    shared_codeword,
)
from u2seg.pseudo_labels.semantics.learned.losses.stego_loss import (
    CorrelationWeights,
    center_pointwise,
    correlation,
    correlation_term,
    random_points,
    sample_at,
    shifted_permutation,
    stego_losses,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def slow_term(features: tuple, codes: tuple, shift: float) -> float:
    """Restates STEGO's term with loops over images, points and partners."""
    (f1, f2), (c1, c2) = ([maps.double().numpy() for maps in pair] for pair in (features, codes))
    count, _, rows, columns = f1.shape
    places = [(y, x) for y in range(rows) for x in range(columns)]
    table = np.array(
        [[[cosine(f1[b, :, y, x], f2[b, :, i, j]) for i, j in places] for y, x in places] for b in range(count)]
    )
    total, mean = 0.0, table.mean()
    centered = [[row - row.mean() for row in image] for image in table]
    new_mean = np.mean(centered)
    for b in range(count):
        for p, (y, x) in enumerate(places):
            for q, (i, j) in enumerate(places):
                code = max(0.0, cosine(c1[b, :, y, x], c2[b, :, i, j]))
                total -= code * (centered[b][p][q] - new_mean + mean - shift)
    return total / table.size


def test_a_term_equals_its_slow_restatement():
    features, codes = (normal(2, 5, 2, 3), normal(2, 5, 2, 3, seed=1)), (normal(2, 4, 2, 3), normal(2, 4, 2, 3, seed=2))
    found = correlation_term(correlation(*features), correlation(*codes), 0.3)
    assert found.item() == pytest.approx(slow_term(features, codes, 0.3), abs=1e-6)


def test_centering_takes_a_point_that_resembles_everything_down_to_the_mean():
    # Of two points the first has correlation 1 with all partners: that says nothing about any of them.
    table = torch.tensor([[1.0, 1.0], [0.0, 0.5]]).reshape(1, 1, 2, 1, 2)
    torch.testing.assert_close(center_pointwise(table)[0, 0, :, 0], torch.tensor([[0.625, 0.625], [0.375, 0.875]]))
    assert center_pointwise(table).mean().item() == pytest.approx(table.mean().item())


def test_only_codes_that_point_the_same_way_get_a_gradient():
    codes = torch.tensor([[1.0, 0.1], [-1.0, 0.1]]).T.reshape(1, 2, 1, 2).requires_grad_()
    features = normal(1, 3, 1, 2).requires_grad_()
    table = correlation(codes, codes)
    # Of the four pairs two are of a place with itself, at the maximum of the cosine; the other two are below 0 and clamped.
    correlation_term(correlation(features, features), table, -5.0).backward()
    assert table[0, 0, 0, 0, 1] < 0 and codes.grad.abs().max() < 1e-6
    assert features.grad is None


def test_points_are_sampled_where_they_lie():
    maps = torch.arange(6.0).reshape(1, 1, 2, 3)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]]).reshape(1, 2, 2, 2)
    torch.testing.assert_close(sample_at(maps, corners).flatten(), torch.tensor([0.0, 2.0, 3.0, 2.5]))
    points = random_points(500, 2, torch.device("cpu"))
    assert points.shape == (500, 2, 2, 2) and -1 <= points.min() < -0.99 and 0.99 < points.max() <= 1


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_permutation_without_fixed_points(count):
    torch.manual_seed(0)
    for _ in range(50):
        found = shifted_permutation(count, torch.device("cpu"))
        assert (found != torch.arange(count)).all() and found.min() >= 0 and found.max() < count


def test_the_three_terms_are_weighted_and_an_image_is_its_own_best_partner():
    torch.manual_seed(0)
    features = normal(3, 6, 4, 4)
    weights = CorrelationWeights(2.0, 0.0, 4.0, 0.0, 0.0, 0.0)
    double = CorrelationWeights(4.0, 1.0, 2.0, 0.0, 0.0, 0.0)

    def losses(chosen: CorrelationWeights) -> dict:
        torch.manual_seed(1)
        return stego_losses((features, features), (features, features), chosen, side=5, num_negatives=2)

    first, second = losses(weights), losses(double)
    assert first["loss_neighbor"] == 0 and second["loss_neighbor"] < 0
    assert second["loss_self"] == 2 * first["loss_self"] and first["loss_negative"] == 2 * second["loss_negative"]
    assert second["loss_self"] / 4 < second["loss_negative"] / 2  # codes equal to features agree most within an image


def test_the_probe_moves_to_where_codes_are_and_leaves_them_alone():
    codes = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).T.reshape(1, 2, 1, 2).requires_grad_()
    probe = ClusterProbe(2, 2, logit_scale=2.0)
    probe.clusters.data = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    loss = probe.loss(codes)
    assert loss.item() == pytest.approx(-(1 + math.sqrt(0.5)) / 2)
    loss.backward()
    assert codes.grad is None and probe.clusters.grad[1, 1] < 0 < probe.clusters.grad[1, 0]


def test_probabilities_are_those_of_interpolated_codes():
    codes, probe = normal(2, 19, 3, 4), ClusterProbe(5, 19, logit_scale=3.0)
    whole = torch.nn.functional.interpolate(codes, size=(7, 9), mode="bilinear", align_corners=False)
    cosines = torch.cosine_similarity(whole[:, None], probe.clusters[None, :, :, None, None], dim=2)
    expected = torch.log_softmax(3 * cosines, dim=1)
    torch.testing.assert_close(probe.log_probabilities(codes, (7, 9)), expected, atol=1e-5, rtol=1e-5)


def slow_modularity(tokens: np.ndarray, codebook: np.ndarray) -> float:
    """Restates the modularity of one image's tokens with loops."""
    count = len(tokens)
    graph = np.array([[max(0.0, cosine(a, b)) for b in tokens] for a in tokens]) * (1 - np.eye(count))
    degrees, total = graph.sum(axis=1), graph.sum()
    held = [[max(0.0, cosine(token, word)) for word in codebook] for token in tokens]
    return (
        sum(
            (graph[i, j] - degrees[i] * degrees[j] / total)
            * max(math.tanh(held[i][k] * held[j][k] / 0.1) for k in range(len(codebook)))
            for i in range(count)
            for j in range(count)
        )
        / total
    )


def test_the_modularity_loss_equals_its_slow_restatement_and_so_does_its_gradient():
    tokens, codebook = normal(2, 6, 3).double(), normal(4, 3, seed=1).double().requires_grad_()
    loss = modularity_loss(tokens, codebook)
    expected = -np.mean([slow_modularity(one.numpy(), codebook.detach().numpy()) for one in tokens])
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(lambda words: modularity_loss(tokens, words), codebook)


def test_modularity_of_two_separate_pairs_is_one_half_if_told_apart_and_zero_if_not():
    # Two edges of weight 1 without a link: e = 4, each degree 1, so that one community holds 2 (1 - 1/4) - 2/4 of 4.
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])[None]
    graph = affinity(tokens)
    assert graph.sum() == 4 and graph[0, 0, 1] == 1 and graph.diagonal(dim1=1, dim2=2).sum() == 0
    torch.testing.assert_close(modularity_matrix(graph).sum(), torch.tensor(0.0), atol=1e-7, rtol=0)
    apart, together = torch.eye(2), torch.ones(1, 2)
    assert modularity_loss(tokens, apart).item() == pytest.approx(-0.5, abs=1e-6)
    assert modularity_loss(tokens, together).item() == pytest.approx(0.0, abs=1e-6)


def test_a_graph_without_edges_has_no_modularity():
    tokens = torch.eye(3)[None]
    codebook = torch.eye(3).requires_grad_()
    loss = modularity_loss(tokens, codebook)
    loss.backward()
    assert loss == 0 and torch.isfinite(codebook.grad).all()


def test_shared_codewords_do_not_depend_on_how_many_products_are_held():
    membership = normal(9, 5).clamp_min(0)
    whole = shared_codeword(membership)
    assert torch.equal(whole, shared_codeword(membership, max_values=1)) and torch.equal(whole, whole.T)
    tokens, codebook = torch.tensor([[2.0, 0.1], [0.1, 1.0]]), torch.tensor([[0.0, 5.0], [1.0, 0.0]])
    assert nearest_codeword(tokens, codebook).tolist() == [1, 0]


def slow_contrast(anchors, keys, relation, temperature, positive, negative) -> float:
    """Restates the contrastive loss with loops over pairs."""
    losses = []
    for m, anchor in enumerate(anchors):
        scores = [cosine(anchor, key) / temperature for key in keys]
        kinds = [r > positive if r > positive or r < negative else None for r in relation[m]]
        total = sum(math.exp(s) for s, kind in zip(scores, kinds) if kind is not None)
        losses += [-s + math.log(total) for s, kind in zip(scores, kinds) if kind]
    return float(np.mean(losses))


def test_the_contrastive_loss_equals_its_slow_restatement():
    anchors, keys = normal(4, 3), normal(5, 3, seed=1)
    relation = torch.rand(4, 5, generator=torch.Generator().manual_seed(2))
    relation[0, 0] = relation[3, 2] = float("nan")
    relation[1] = 0.2  # neither positive nor negative to anything
    options = {"temperature": 0.5, "positive": 0.6, "negative": 0.1}
    found = concept_contrast(anchors, keys, relation, **options)
    expected = slow_contrast(anchors.numpy(), keys.numpy(), relation.numpy(), *options.values())
    assert found.item() == pytest.approx(expected, abs=1e-5)


def test_a_batch_without_positive_pairs_costs_nothing():
    anchors = normal(2, 3).requires_grad_()
    options = {"temperature": 0.07, "positive": 0.3, "negative": 0.1}
    for keys in (normal(2, 3), normal(0, 3)):
        loss = concept_contrast(anchors, keys, torch.zeros(2, len(keys)), **options)
        loss.backward()
        assert loss == 0 and (anchors.grad == 0).all()


def test_the_bank_keeps_the_latest_keys_of_each_codeword():
    bank, rng = ConceptBank(3, 4, 1), np.random.default_rng(0)
    queues: list[list[float]] = [[], [], []]
    for start in range(0, 60, 6):
        codewords = rng.integers(0, 3, 6) if start != 24 else np.full(6, 1)  # once more of one than there are places
        values = np.arange(start, start + 6, dtype=np.float32)
        bank.append(torch.from_numpy(codewords), torch.from_numpy(values)[:, None])
        for word, value in zip(codewords, values):
            queues[word] = [*queues[word], float(value)][-4:]
        keys, owners = bank.contents()
        for word in range(3):
            assert sorted(keys[owners == word, 0].tolist()) == queues[word]
