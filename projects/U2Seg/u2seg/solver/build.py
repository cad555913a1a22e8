"""Optimizers by name, and the learning rate that each parameter gets."""

from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from u2seg.utils.registry import NamedRegistry, get_registered

OPTIMIZER_REGISTRY = NamedRegistry("OPTIMIZER")
OPTIMIZER_REGISTRY.__doc__ = """
Optimizers, chosen by ``SOLVER.OPTIMIZER``; an entry is called as ``(cfg, parameter_groups)`` and returns a
``torch.optim.Optimizer``. Gradient clipping is added around it.
"""


@OPTIMIZER_REGISTRY.register("SGD")
def build_sgd(cfg: CfgNode, parameter_groups: list[dict]) -> torch.optim.Optimizer:
    """Returns stochastic gradient descent with momentum, as Detectron2 builds it."""
    solver = cfg.SOLVER
    return torch.optim.SGD(
        parameter_groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
    )


@OPTIMIZER_REGISTRY.register("AdamW")
def build_adamw(cfg: CfgNode, parameter_groups: list[dict]) -> torch.optim.Optimizer:
    """Returns AdamW with PyTorch's own betas."""
    return torch.optim.AdamW(parameter_groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


@OPTIMIZER_REGISTRY.register("LARC")
def build_larc(cfg: CfgNode, parameter_groups: list[dict]) -> torch.optim.Optimizer:
    """Returns LARC without clipping, the optimizer of PASS's recipe: a step is a fixed share of each tensor's own length.

    Each gradient g of a tensor p becomes ``0.001 (g + wd p) |p| / (|g| + wd |p| + 1e-8)`` before momentum and learning rate. Norm
    layers and biases are treated alike. Where p or g has length 0, the tensor takes SGD's step with weight decay, unscaled. In PASS
    only the frozen prototypes have such a gradient; they are normalized before each use, so that the decay has no effect.

    Source: You et al., Large Batch Training of Convolutional Networks (arXiv 1708.03888), equation 6; LUSS's recipe (trust 0.001).
    """
    from timm.optim import Lars

    solver = cfg.SOLVER
    return Lars(
        parameter_groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        weight_decay=solver.WEIGHT_DECAY,
        trust_coeff=1e-3,
        eps=1e-8,
        trust_clip=False,
        always_adapt=True,
    )


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer that the configuration names, with its learning-rate multipliers and gradient clipping.

    Raises:
        UnknownNameError: no optimizer of that name.
        ValueError: a multiplier fits no parameter, so that it would have no effect.
    """
    factors = lr_factors(cfg.SOLVER.LR_MULTIPLIERS, [name for name, _ in model.named_parameters()])
    # Detectron2 calls a parameter of the model itself ".name".
    factor_of = (lambda name: factors[name.removeprefix(".")]) if cfg.SOLVER.LR_MULTIPLIERS else None
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=factor_of,
    )
    optimizer = get_registered(OPTIMIZER_REGISTRY, cfg.SOLVER.OPTIMIZER, "SOLVER.OPTIMIZER")(cfg, groups)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
        return maybe_add_gradient_clipping(cfg, optimizer)
    optimizer.register_step_pre_hook(partial(_clip_full_model, clip.CLIP_VALUE, clip.NORM_TYPE))
    return optimizer


def lr_factors(multipliers: list[tuple[str, float]], names: list[str]) -> dict[str, float]:
    """Returns the learning-rate factor of each parameter: that of the longest beginning of its name, 1.0 where none fits.

    Raises:
        ValueError: a beginning fits no parameter; the message lists the modules that there are.
    """
    for prefix, _ in multipliers:
        if not any(_begins(name, prefix) for name in names):
            modules = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(
                f"SOLVER.LR_MULTIPLIERS: no parameter's name begins with {prefix!r}; modules: {', '.join(modules)}"
            )
    longest_first = sorted(multipliers, key=lambda pair: -len(pair[0]))
    return {name: next((float(f) for prefix, f in longest_first if _begins(name, prefix)), 1.0) for name in names}


def _clip_full_model(
    max_norm: float, norm_type: float, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict
) -> None:
    """Scales all gradients together so that their common norm is at most ``max_norm``.

    Detectron2's own ``norm`` clips each tensor alone, which is what CutLER and U2Seg train with.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")
