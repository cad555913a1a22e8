"""LARC: SGD whose step is, for each tensor, a fixed share of the tensor's own length."""

import torch


class LARC(torch.optim.SGD):
    """SGD with layer-wise adaptive rates, without clipping.

    Each gradient g of a tensor p becomes ``trust (g + wd p) |p| / (|g| + wd |p| + eps)`` before momentum and learning rate; tensors
    of which p or g has length 0 keep their gradient, without weight decay. Norm layers and biases are treated alike.

    Source: You et al., Large Batch Training of Convolutional Networks (arXiv 1708.03888), equation 6; LUSS's recipe (trust 0.001).
    """

    def __init__(self, params, lr: float, *, trust: float = 1e-3, eps: float = 1e-8, **sgd):
        """Takes ``torch.optim.SGD``'s arguments, and:

        Args:
            params: as for SGD.
            lr: as for SGD.
            trust: relative size of a step at learning rate 1.
            eps: keeps the quotient finite.
            **sgd: momentum, weight_decay, nesterov and so on.
        """
        super().__init__(params, lr, **sgd)
        self.trust = trust
        self.eps = eps

    @torch.no_grad()
    def step(self, closure=None):
        """Scales the gradients in place and takes SGD's step; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group["weight_decay"] for group in self.param_groups]
        try:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = 0.0  # it is in the scaled gradient already
                self._scale([p for p in group["params"] if p.grad is not None], decay)
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay
        return loss

    def _scale(self, params: list[torch.nn.Parameter], decay: float) -> None:
        if not params:
            return
        grads = [p.grad for p in params]
        p_norms = torch._foreach_norm(params)
        g_norms = torch._foreach_norm(grads)
        # One transfer instead of two for each tensor.
        moves = torch.stack([(p > 0) & (g > 0) for p, g in zip(p_norms, g_norms)]).tolist()
        for param, grad, p_norm, g_norm, move in zip(params, grads, p_norms, g_norms, moves):
            if move:
                grad.add_(param, alpha=decay).mul_(self.trust * p_norm / (g_norm + decay * p_norm + self.eps))
