"""Equal scores in the order of their places, whatever device or runtime a model runs on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class StableOrder(TorchFunctionMode):
    """A block in which ``Tensor.topk`` and ``Tensor.sort`` put the first of equal values first, as ONNX's ``TopK`` does.

    PyTorch leaves their order open. A network that was trained briefly gives many proposals exactly the same score, and the order
    decides which of them pass the cut before non-maximum suppression and which suppress the others.

    Example:
        >>> with StableOrder():
        ...     torch.zeros(100).topk(3).indices.tolist()
        [0, 1, 2]
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.topk:
            return _largest(*args, **kwargs)
        if func is Tensor.sort:
            kwargs = {**kwargs, "stable": True}
        return func(*args, **kwargs)


def _largest(values: Tensor, k: int | Tensor, dim: int = -1) -> torch.return_types.topk:
    """Returns what ``values.topk(k, dim)`` does; ``k`` is a tensor while a model is traced."""
    ordered, indices = torch.sort(values, dim=dim, descending=True, stable=True)
    return torch.return_types.topk((ordered.narrow(dim, 0, k), indices.narrow(dim, 0, k)))
