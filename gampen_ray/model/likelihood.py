"""Gaussian likelihoods of standardised targets, from raw network outputs.

Outputs in order: mean (D), log-diagonal of the LDL^T factor (D), strict lower triangle of unit L, row by row (D(D-1)/2).
Shape legend: N galaxies, D targets, P outputs; ``...`` is any batch shape.
"""

import torch


def num_outputs(family: str, num_targets: int) -> int:
    """Return P for a likelihood family: D (unit_variance), 2 D (diagonal) or (3 D + D^2) / 2 (full)."""
    d = num_targets
    return {"unit_variance": d, "diagonal": 2 * d, "full": (3 * d + d * d) // 2}[family]


def split_outputs(outputs_P: torch.Tensor, num_targets: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean (... x D), log-diagonal (... x D) and unit lower-triangular L (... x D x D) of raw outputs (... x P).

    What a family does not predict is zero: the log-diagonal for ``unit_variance``, the triangle for it and ``diagonal``.
    """
    d = num_targets
    mean, rest = outputs_P[..., :d], outputs_P[..., d:]
    log_diagonal = rest[..., :d] if rest.shape[-1] else torch.zeros_like(mean)
    lower = torch.eye(d, dtype=outputs_P.dtype, device=outputs_P.device).expand(*outputs_P.shape[:-1], d, d)
    if rest.shape[-1] > d:
        row, column = torch.tril_indices(d, d, offset=-1, device=outputs_P.device)
        lower = lower.clone()
        lower[..., row, column] = rest[..., d:]
    return mean, log_diagonal, lower


def negative_log_likelihood(outputs_NP: torch.Tensor, targets_ND: torch.Tensor) -> torch.Tensor:
    """Return 1/2 r^T Sigma^-1 r + 1/2 log det Sigma of each galaxy (N), without the constant D/2 log(2 pi).

    Sigma = L diag(exp(log_diagonal)) L^T (Ghosh et al. 2022, eq. 8), by triangular solve.
    """
    return training_loss(outputs_NP, targets_ND)


def training_loss(
    outputs_NP: torch.Tensor, targets_ND: torch.Tensor, *, beta: float = 0.0, mean_only: bool = False
) -> torch.Tensor:
    """Return each galaxy's loss (N): the negative log-likelihood, or a variant of the same minimum that learns means sooner.

    With w = L^-1 r (r = target - mean) and d the log-diagonal, the loss is sum_i exp(beta d_i) / 2 (w_i^2 exp(-d_i) + d_i),
    where exp(beta d_i) is a weight through which no gradient flows: beta-NLL (Seitzer et al. 2022, eq. 5) for each whitened
    component. It equals theirs where L = 1. The gradient in the means is -L^-T diag(exp((beta - 1) d)) w: that of
    `negative_log_likelihood` at 0; at 1 it no longer shrinks with the predicted variance, and for the diagonal family is that
    of half the squared error. The gradient in d_i, exp(beta d_i) / 2 (1 - w_i^2 exp(-d_i)), and that in L vanish in the mean
    where mean and covariance are the true ones, whatever beta. The weights of ``unit_variance`` are 1.

    Parameters
    ----------
    outputs_NP, targets_ND
        Raw network outputs and standardised targets.
    beta
        Exponent of the weights, 0 to 1; 0.5 is what Seitzer et al. recommend.
    mean_only
        1/2 r^T r, whatever the family: all gradients but those of the means are zero (not None), and ``beta`` has no effect.
    """
    num_targets = targets_ND.shape[-1]
    mean, log_diagonal, lower = split_outputs(outputs_NP[:, :num_targets] if mean_only else outputs_NP, num_targets)
    residual = (targets_ND - mean).unsqueeze(-1)
    whitened = torch.linalg.solve_triangular(lower, residual, upper=False, unitriangular=True).squeeze(-1)
    weight = torch.exp(beta * log_diagonal.detach())
    return 0.5 * (weight * (whitened.square() * torch.exp(-log_diagonal) + log_diagonal)).sum(-1)


def gaussian(outputs_P: torch.Tensor, num_targets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean (... x D) and lower Cholesky factor of the covariance (... x D x D) of raw outputs (... x P)."""
    mean, log_diagonal, lower = split_outputs(outputs_P, num_targets)
    return mean, lower * torch.exp(0.5 * log_diagonal).unsqueeze(-2)
