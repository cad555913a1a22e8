"""The dense CRF against brute force on tiny images, and against ``pydensecrf2`` where it is installed."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from synthetic_images import synthetic_photo
from u2seg.pseudo_labels.masks import MASKCUT_CRF, STEGO_CRF, CRFSettings, DenseCRF
from u2seg.pseudo_labels.masks.permutohedral import PermutohedralLattice, _matches_by_merging, _matches_by_search


def random_image(height, width, seed=0):
    """Smooth random colors with some noise, like a photo's."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 4, 5), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0).numpy()
    return np.clip(smooth * 255 + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def box_masks(height, width):
    masks = np.zeros((5, height, width), bool)
    masks[0, height // 4 : height // 2, width // 3 : width // 2] = True
    masks[1, :, width // 2 :] = True
    masks[2, 3:5, 4:7] = True
    masks[3] = True  # and number 4 stays empty
    return masks


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
def test_lattice_is_close_to_a_gaussian(dims):
    # The lattice approximates exp(-|p - q|^2 / 2); the comparison is of normalized filters, as the CRF uses them.
    rng = np.random.default_rng(0)
    points = torch.from_numpy(rng.uniform(0, 4, (1500, dims)).astype(np.float32))
    values = torch.from_numpy(np.sin(points.sum(1, keepdim=True).numpy()).astype(np.float32))
    lattice = PermutohedralLattice(points)
    got = lattice.filter(values) / lattice.filter(torch.ones(1500, 1))
    kernel = torch.exp(-torch.cdist(points, points).square() / 2)
    expected = kernel @ values / kernel.sum(1, keepdim=True)
    assert (got - expected).abs().mean() < 0.05
    assert np.corrcoef(got[:, 0], expected[:, 0])[0, 1] > 0.95


def test_lattice_filter_is_linear():
    points = torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) * 3
    matrix = PermutohedralLattice(points).filter(torch.eye(200))
    values = torch.rand(200, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(PermutohedralLattice(points).filter(values), matrix @ values, atol=1e-5)
    assert matrix.min() >= 0


def test_one_point_keeps_its_own_value():
    # The point lies on a vertex a, whose simplex has two more, b and c: each axis joins two of the three. The blur takes 1 at a to
    # 1/2 at b (axis 0), to 1/4 at c (axis 1), and adds 1/8 to a (axis 2); the scale is 1 / (1 + 2^-2).
    lattice = PermutohedralLattice(torch.zeros(1, 2))
    assert lattice.num_vertices == 3
    assert lattice.filter(torch.tensor([[3.0]])).item() == pytest.approx(3 * 1.125 / 1.25)


def test_no_columns_and_values_with_gradients_are_fine():
    lattice = PermutohedralLattice(torch.rand(20, 3))
    assert lattice.filter(torch.zeros(20, 0)).shape == (20, 0)
    assert not lattice.filter(torch.ones(20, 5, requires_grad=True)).requires_grad


def test_features_too_far_apart_have_a_clear_error():
    with pytest.raises(ValueError, match="divide them by a larger standard deviation"):
        PermutohedralLattice(torch.tensor([[0.0] * 5, [1e5] * 5]))


def neighbor_value(vertices, step, vertex, sign):
    return vertices.get(tuple(np.array(vertex) + sign * step), 0)


def slow_filter(points, values):
    """Adams et al., figure 2, one point and one vertex at a time, vertices in a dictionary by their coordinates.

    Returns the filtered values and the smallest weight that a point has at one of its vertices.
    """
    n, d = points.shape
    vertices, corners, smallest = {}, [], np.inf
    for point in points.astype(np.float64):
        scaled = [point[i] * (d + 1) * np.sqrt(2 / 3) / np.sqrt((i + 1) * (i + 2)) for i in range(d)]
        elevated = np.array([sum(scaled[i:]) - (i * scaled[i - 1] if i else 0) for i in range(d + 1)])
        base = (d + 1) * np.rint(elevated / (d + 1))
        for _ in range(int(abs(base.sum())) // (d + 1)):  # back to the hyperplane, the furthest rounded first
            distance = elevated - base
            base[distance.argmin() if base.sum() > 0 else distance.argmax()] -= (d + 1) * np.sign(base.sum())
        order = np.argsort(-(elevated - base), kind="stable")
        sorted_distance = (elevated - base)[order] / (d + 1)
        weights = [1 + sorted_distance[-1] - sorted_distance[0]] + [
            sorted_distance[d - k] - sorted_distance[d + 1 - k] for k in range(1, d + 1)
        ]
        own, smallest = [], min(smallest, *weights)
        for remainder in range(d + 1):
            vertex = base + remainder
            vertex[order[d + 1 - remainder :]] -= d + 1
            own.append((tuple(vertex.astype(int)), weights[remainder]))
        corners.append(own)
    for own, value in zip(corners, values):
        for vertex, weight in own:
            vertices[vertex] = vertices.get(vertex, 0) + weight * value
    for axis in range(d + 1):
        step = np.ones(d + 1, int)
        step[axis] = -d
        near = partial(neighbor_value, vertices, step)
        vertices = {vertex: value + (near(vertex, 1) + near(vertex, -1)) / 2 for vertex, value in vertices.items()}
    filtered = [sum(weight * vertices[vertex] for vertex, weight in own) for own in corners]
    return np.array(filtered) / (1 + 2.0**-d), smallest


@given(dims=st.integers(1, 5), count=st.integers(1, 40), columns=st.integers(1, 9), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_lattice_equals_a_slow_one(dims, count, columns, seed):
    # Within half a standard deviation to hundreds: vertices with all their neighbors and with none, keys of 32 and of 64 bits.
    rng = np.random.default_rng(seed)
    points = rng.normal(0, rng.choice([0.5, 2, 8, 300]), (count, dims)).astype(np.float32)
    values = rng.normal(0, 1, (count, columns)).astype(np.float32)
    got = PermutohedralLattice(torch.from_numpy(points)).filter(torch.from_numpy(values)).numpy()
    expected, smallest_weight = slow_filter(points, values)
    # float32 knows a far point's place in its simplex less exactly. On the simplex's border it may fall on either side, and touch
    # another vertex: only vertices that are touched pass anything on.
    rounding = 1e-5 + 2.0**-21 * np.abs(points).max()
    assume(smallest_weight > rounding)
    assert np.abs(got - expected).max() < rounding


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_numbers_in_common_are_found_by_merging_and_by_search(dtype):
    numbers = torch.tensor([0, 3, 4, 9, 12, torch.iinfo(dtype).max // 2 - 1], dtype=dtype)
    wanted = torch.tensor([0, 1, 4, 5, 12, 13, torch.iinfo(dtype).max // 2 - 1], dtype=dtype)
    for matches in (_matches_by_merging, _matches_by_search):
        first, second = matches(numbers, wanted)
        assert first.tolist() == [0, 2, 4, 5] and second.tolist() == [0, 2, 4, 6]
        assert [places.tolist() for places in matches(numbers[:1], wanted[1:])] == [[], []]


def test_marginals_move_to_the_edge_of_the_image():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 200
    mask = np.zeros((1, 40, 60), np.float32)
    mask[:, :, 27:] = 1  # three pixels too far
    refined = DenseCRF(image).foreground(torch.from_numpy(2 * mask - 1))[0] > 0.5
    assert not refined[:, :30].any()
    assert refined[:, 30:].all()


@pytest.mark.parametrize("constants", [MASKCUT_CRF, STEGO_CRF], ids=["maskcut", "stego"])
def test_equals_mean_field_over_two_labels(constants):
    """Kraehenbuehl and Koltun, algorithm 1, with a column for each label, on the slow lattice."""
    height, width = 9, 14
    image, masks = random_image(height, width), box_masks(height, width)[:2]
    positions = np.stack(np.mgrid[:height, :width][::-1], axis=-1).reshape(-1, 2).astype(np.float32)
    kernels = []
    for points, weight in (
        (positions / constants.gaussian_sxy, constants.gaussian_compat),
        (
            np.concatenate([positions / constants.bilateral_sxy, image.reshape(-1, 3) / constants.bilateral_srgb], 1),
            constants.bilateral_compat,
        ),
    ):
        root = 1 / np.sqrt(slow_filter(points.astype(np.float32), np.ones((height * width, 1)))[0])
        kernels.append((points.astype(np.float32), weight, root))
    got = DenseCRF(image, constants).foreground(torch.from_numpy(2.0 * masks - 1).float()).numpy()
    for index, mask in enumerate(masks):
        logits = np.stack([~mask, mask], axis=-1).reshape(-1, 2).astype(float)
        marginals = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        for _ in range(constants.num_iterations):
            message = sum(w * root * slow_filter(points, root * marginals)[0] for points, w, root in kernels)
            marginals = np.exp(logits + message)
            marginals /= marginals.sum(1, keepdims=True)
        # Near a tie the iterations enlarge the rounding of float32.
        assert np.abs(got[index].ravel() - marginals[:, 1]).max() < 2e-3


def test_number_of_masks_does_not_matter():
    image = random_image(31, 45)
    log_odds = torch.from_numpy(2.0 * box_masks(31, 45) - 1).float()
    crf = DenseCRF(image)
    together = crf.foreground(log_odds)
    for index in range(len(log_odds)):
        assert torch.allclose(together[index], crf.foreground(log_odds[index : index + 1])[0], atol=1e-5)
    assert crf.foreground(log_odds[:0]).shape == (0, 31, 45)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2, 3)])
def test_tiny_images(size):
    image = random_image(*size)
    marginal = DenseCRF(image).foreground(torch.ones(1, *size))
    assert marginal.shape == (1, *size)
    assert bool((marginal >= 0.5).all())


def test_errors_say_what_came():
    with pytest.raises(ValueError, match=r"image_rgb must be uint8 \(H, W, 3\), got torch.float64 \(4, 5, 3\)"):
        DenseCRF(np.zeros((4, 5, 3)))
    with pytest.raises(ValueError, match=r"log_odds must be \(N, 4, 5\) to match the image, got \(1, 5, 4\)"):
        DenseCRF(np.zeros((4, 5, 3), np.uint8)).foreground(torch.zeros(1, 5, 4))


def oracle(image, masks, constants: CRFSettings):
    """Returns the foreground marginals of pydensecrf2, one mask after the other, float32 (N, H, W)."""
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="the oracle pydensecrf2 is not installed (extra: dev)")
    height, width = image.shape[:2]
    marginals = []
    for mask in masks:
        logits = np.stack([1 - mask.astype(np.float64), mask]).reshape(2, -1)
        probabilities = np.exp(logits) / np.exp(logits).sum(0)
        field = densecrf.DenseCRF2D(width, height, 2)
        field.setUnaryEnergy(np.ascontiguousarray(-np.log(probabilities), dtype=np.float32))
        field.addPairwiseGaussian(sxy=constants.gaussian_sxy, compat=constants.gaussian_compat)
        field.addPairwiseBilateral(
            sxy=constants.bilateral_sxy,
            srgb=constants.bilateral_srgb,
            rgbim=image.copy(),
            compat=constants.bilateral_compat,
        )
        marginals.append(np.array(field.inference(constants.num_iterations))[1].reshape(height, width))
    return np.stack(marginals)


@pytest.mark.parametrize("constants", [MASKCUT_CRF, STEGO_CRF], ids=["maskcut", "stego"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_oracle(constants, seed):
    image = random_image(90, 131, seed)
    masks = box_masks(90, 131)
    expected = oracle(image, masks, constants)
    got = DenseCRF(image, constants).foreground(torch.from_numpy(2.0 * masks - 1).float()).numpy()
    assert np.abs(got - expected).max() < 0.02
    assert np.mean((got > 0.5) == (expected > 0.5)) > 0.9999


def test_ten_images_equal_the_oracle():
    # Masks of all sizes: discs whose radius grows from image to image, 0.05 % to 80 % of 200 x 200 pixels.
    y, x = np.mgrid[:200, :200]
    num_equal = num_pixels = 0
    for index in range(10):
        image = synthetic_photo(index, (200, 200))
        radii = (3 + 10 * index, 102 - 10 * index)
        masks = np.stack([np.hypot(y - 100 + 4 * index, x - 84 - 2 * index) < radius for radius in radii])
        expected = oracle(image, masks, MASKCUT_CRF)
        got = DenseCRF(image).foreground(torch.from_numpy(2.0 * masks - 1).float()).numpy()
        assert np.abs(got - expected).max() < 0.02, index
        num_equal += ((got > 0.5) == (expected > 0.5)).sum()
        num_pixels += got.size
    assert num_equal / num_pixels > 0.995


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_cpu():
    image = random_image(120, 161)
    log_odds = torch.from_numpy(2.0 * box_masks(120, 161) - 1).float()
    on_cpu = DenseCRF(image).foreground(log_odds)
    assert (DenseCRF(image, device="cuda").foreground(log_odds.cuda()).cpu() - on_cpu).abs().max() < 0.02
