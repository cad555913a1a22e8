"""LARC's step against the closed formula."""

import pytest
import torch
from u2seg.solver.larc import LARC


def test_one_step_is_the_closed_formula():
    p, g = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    param = torch.nn.Parameter(p.clone())
    param.grad = g.clone()
    LARC([param], lr=6.0, momentum=0.9, weight_decay=0.1).step()
    # |p| = 5, |g| = 2: the rate is 0.001 * 5 / (2 + 0.1 * 5).
    expected = p - 6.0 * 0.002 * (g + 0.1 * p)
    torch.testing.assert_close(param.detach(), expected)


def test_momentum_is_of_the_scaled_gradient():
    param = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = LARC([param], lr=1.0, momentum=0.5)
    for _ in range(2):
        param.grad = torch.tensor([10.0, 0.0])  # scaled: 0.001 |p| in the direction of g, whatever |g|
        optimizer.step()
    # Step 1: buffer 0.001, p = 0.999. Step 2: buffer 0.0005 + 0.000999, p = 0.997501.
    torch.testing.assert_close(param.detach(), torch.tensor([0.997501, 0.0]))


def test_tensors_of_length_zero_keep_their_gradient_and_have_no_decay():
    zero, still = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(2))
    zero.grad, still.grad = torch.tensor([1.0, 0.0]), torch.zeros(2)
    optimizer = LARC([zero, still], lr=0.5, weight_decay=0.1)
    optimizer.step()
    torch.testing.assert_close(zero.detach(), torch.tensor([-0.5, 0.0]))
    torch.testing.assert_close(still.detach(), torch.ones(2))
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_groups_without_gradients_and_closures_are_fine():
    used, unused = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = LARC([{"params": [used]}, {"params": [unused]}], lr=1.0)

    def closure():
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == pytest.approx(1)
    assert float(used) == pytest.approx(0.999)
    assert float(unused) == 1
