"""Activation checkpointing: a residual block keeps its input alone and is computed again in the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from detectron2.layers import CNNBlockBase
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_residual_blocks(backbone: nn.Module) -> int:
    """Makes every residual block below ``backbone`` recompute its activations in training; returns how many there are.

    Losses, gradients and running statistics stay as they are: batch norm must not count a batch twice, so its running statistics
    rest while a block is recomputed. Works in place; names of parameters do not change.

    Raises:
        ValueError: there is no residual block.
    """
    # The stem is small and a CNNBlockBase, too; its input is the image, which needs no gradient.
    blocks = [
        module for name, module in backbone.named_modules() if isinstance(module, CNNBlockBase) and "stem" not in name
    ]
    if not blocks:
        raise ValueError("MODEL.ACTIVATION_CHECKPOINTING needs a backbone with residual blocks (ResNet); found none")
    for block in blocks:
        block.forward = partial(_run, block, block.forward)
    return len(blocks)


def _run(block: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not (block.training and x.requires_grad):
        return forward(x)
    return checkpoint(
        forward, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _running_statistics_rest(block))
    )


@contextmanager
def _running_statistics_rest(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, count
