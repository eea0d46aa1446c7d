"""Gaussian likelihoods of standardised targets, from raw network outputs.

Outputs in order: mean (D), log-diagonal of the LDL^T factor (D), strict lower triangle of unit L, row by row (D(D-1)/2).
Shape legend: N galaxies, D targets, P outputs; ``...`` is any batch shape.
"""

import torch


def num_outputs(family: str, num_targets: int) -> int:
    """Return P for a likelihood family: D (mse), 2 D (diagonal) or (3 D + D^2) / 2 (full)."""
    d = num_targets
    return {"mse": d, "diagonal": 2 * d, "full": (3 * d + d * d) // 2}[family]


def split_outputs(outputs_P: torch.Tensor, num_targets: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean (... x D), log-diagonal (... x D) and unit lower-triangular L (... x D x D) of raw outputs (... x P).

    What a family does not predict is zero: the log-diagonal for ``mse``, the triangle for ``mse`` and ``diagonal``.
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
    mean, log_diagonal, lower = split_outputs(outputs_NP, targets_ND.shape[-1])
    residual = (targets_ND - mean).unsqueeze(-1)
    whitened = torch.linalg.solve_triangular(lower, residual, upper=False, unitriangular=True).squeeze(-1)
    return 0.5 * (whitened.square() * torch.exp(-log_diagonal) + log_diagonal).sum(-1)


def gaussian(outputs_P: torch.Tensor, num_targets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean (... x D) and lower Cholesky factor of the covariance (... x D x D) of raw outputs (... x P)."""
    mean, log_diagonal, lower = split_outputs(outputs_P, num_targets)
    return mean, lower * torch.exp(0.5 * log_diagonal).unsqueeze(-2)
