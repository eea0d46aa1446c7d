"""Muon: steps whose matrices have nearly equal singular values (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

As `torch.optim.Muon`, but in single precision: that one multiplies in bfloat16, which takes a hundred times as long on
processors without instructions for it.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

from gampen_ray.training.worker import Worker

__all__ = ["Muon", "orthogonal"]

_STEPS, _COEFFICIENTS = 3, (3.4445, -4.7750, 2.0315)
"""Newton-Schulz iterations and the coefficients of their polynomial, of Jordan et al. Their five iterations took half as long
again, and losses were no lower."""
_RMS = 0.2
"""Root mean square of a step, in learning rates: about that of AdamW's (Liu et al. 2025, arXiv:2502.16982, eq. 4)."""


class Muon(torch.optim.Optimizer):
    """Stochastic gradient descent with Nesterov momentum, each step replaced by the nearest semi-orthogonal matrix.

    Parameters
    ----------
    params
        Matrices.
    lr
        Learning rate, as long a step as AdamW's.
    weight_decay
        Decoupled, in learning rates.
    momentum
        Of the gradients.
    worker
        Workers with the same weights and gradients share the matrices among them; None: there is one.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        worker: Worker | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self._worker = worker

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take a step on each matrix with a gradient."""
        assert closure is None
        rank, count = (self._worker.rank, self._worker.world_size) if self._worker else (0, 1)
        for group in self.param_groups:
            weights, updates = [weight for weight in group["params"] if weight.grad is not None], []
            for i, weight in enumerate(weights):
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                own = i % count == rank
                updates.append(orthogonal(weight.grad.lerp(mean, group["momentum"])) if own else torch.zeros_like(weight))
            if self._worker and updates:
                self._worker.average(updates)
            for weight, update in zip(weights, updates, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                # All but one worker have zero.
                weight.add_(update, alpha=-group["lr"] * _RMS * math.sqrt(max(weight.shape)) * count)


def orthogonal(matrix_FE: torch.Tensor) -> torch.Tensor:
    """Return a matrix with the singular vectors of another; singular values are near one, but for those far below its norm."""
    x = matrix_FE / matrix_FE.norm().clamp(min=torch.finfo(matrix_FE.dtype).tiny)
    x = x if len(x) <= x.shape[1] else x.T
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if len(matrix_FE) <= matrix_FE.shape[1] else x.T
