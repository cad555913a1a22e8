"""SOLVER.OPTIMIZER LARC against a slow restatement of its formula, and what a resumed training must not notice."""

import io

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from u2seg.config import add_u2seg_config
from u2seg.solver.build import build_optimizer


def slow_larc(values, gradients, *, lr, momentum, decay):
    """Returns a tensor's values, float64 (steps, n), after each step; ``gradients`` (steps, n)."""
    values, velocity, history = np.array(values, np.float64), None, []
    for g in np.array(gradients, np.float64):
        length, g_length = np.sqrt((values**2).sum()), np.sqrt((g**2).sum())
        step = g + decay * values
        if length > 0 and g_length > 0:
            step *= 0.001 * length / (g_length + decay * length + 1e-8)
        velocity = step if velocity is None else momentum * velocity + step
        values = values - lr * velocity
        history.append(values)
    return np.array(history)


class TwoTensors(torch.nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first = torch.nn.Parameter(torch.tensor(first, dtype=torch.float64))
        self.second = torch.nn.Parameter(torch.tensor(second, dtype=torch.float64))


def larc(model, *, lr=0.5, momentum=0.9, decay=0.1, multipliers=()):
    cfg = get_cfg()
    add_u2seg_config(cfg)
    cfg.SOLVER.OPTIMIZER = "LARC"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = lr, momentum, decay
    cfg.SOLVER.LR_MULTIPLIERS = list(multipliers)
    return build_optimizer(cfg, model)


def take_step(optimizer, model, first, second):
    model.first.grad = None if first is None else torch.tensor(first, dtype=torch.float64)
    model.second.grad = None if second is None else torch.tensor(second, dtype=torch.float64)
    optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_every_step_is_the_formulas(momentum, decay):
    rng = np.random.default_rng(0)
    starts, gradients = rng.normal(size=(2, 5)), rng.normal(size=(6, 2, 5))
    model = TwoTensors(*starts)
    optimizer = larc(model, momentum=momentum, decay=decay, multipliers=[("second", 3.0)])
    expected = [
        slow_larc(starts[i], gradients[:, i], lr=lr, momentum=momentum, decay=decay) for i, lr in ((0, 0.5), (1, 1.5))
    ]
    for step, (first, second) in enumerate(gradients):
        take_step(optimizer, model, first, second)
        np.testing.assert_allclose(model.first.detach(), expected[0][step], rtol=1e-12)
        np.testing.assert_allclose(model.second.detach(), expected[1][step], rtol=1e-12)


def test_one_step_by_hand():
    model = TwoTensors([3.0, 4.0], [0.0])
    take_step(larc(model, lr=6.0, decay=0.1), model, [0.0, 2.0], [0.0])
    # |p| = 5, |g| = 2: the rate is 0.001 * 5 / (2 + 0.1 * 5) = 0.002, the step 6 * 0.002 * (0.3, 2.4).
    assert model.first.tolist() == pytest.approx([3 - 0.0036, 4 - 0.0288], abs=1e-9)


def test_the_length_of_a_gradient_does_not_matter():
    short, long = TwoTensors([1.0, 2.0], [1.0]), TwoTensors([1.0, 2.0], [1.0])
    take_step(larc(short, decay=0.0), short, [0.1, -0.3], [1.0])
    take_step(larc(long, decay=0.0), long, [100.0, -300.0], [1.0])
    torch.testing.assert_close(short.first, long.first, rtol=1e-6, atol=0)


def test_tensors_of_length_zero_and_zero_gradients_take_sgds_step():
    model = TwoTensors([0.0, 0.0], [1.0, 1.0])
    take_step(larc(model, lr=0.5, decay=0.1), model, [1.0, 0.0], [0.0, 0.0])
    assert model.first.tolist() == [-0.5, 0.0]
    assert model.second.tolist() == pytest.approx([0.95, 0.95])


def test_a_tensor_without_gradient_stays():
    model = TwoTensors([1.0], [1.0])
    take_step(larc(model), model, [1.0], None)
    assert model.second.tolist() == [1.0]
    assert model.first.item() < 1


def test_a_resumed_training_takes_the_same_steps():
    rng = np.random.default_rng(1)
    starts, gradients = rng.normal(size=(2, 4)), rng.normal(size=(6, 2, 4))
    whole, part = TwoTensors(*starts), TwoTensors(*starts)
    optimizer = larc(whole)
    for first, second in gradients:
        take_step(optimizer, whole, first, second)
    before = larc(part)
    for first, second in gradients[:3]:
        take_step(before, part, first, second)
    file = io.BytesIO()
    torch.save({"model": part.state_dict(), "optimizer": before.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    resumed = TwoTensors(*np.zeros((2, 4)))
    resumed.load_state_dict(checkpoint["model"])
    after = larc(resumed)
    after.load_state_dict(checkpoint["optimizer"])
    for first, second in gradients[3:]:
        take_step(after, resumed, first, second)
    assert torch.equal(resumed.first, whole.first)
    assert torch.equal(resumed.second, whole.second)
