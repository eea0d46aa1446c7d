"""Mode of a physical-space marginal density whose transformed value is an equal-weight Gaussian mixture.

With t the transformed value, p(y) = f(t) |dt/dy| and f a Gaussian mixture. As |dt/dy| is 1 (identity), exp(-t) (log) or
exp(t) + 2 + exp(-t) (logit), p is, as a function of t, again a Gaussian mixture: its components are those of f shifted by
0, -sigma^2, or each of (-sigma^2, 0, sigma^2). Hence every mode lies between the outermost shifted centres, and the search
is global.

Shape legend: R rows (a galaxy and target each), K components, M trial points of all rows in one list.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gampen_ray.posterior.quantiles import LAST_NEWTON, bracketed_newton

# Multiples of sigma^2 by which |dt/dy| shifts a component.
_SHIFTS = {"identity": (0.0, 0.0, 0.0), "log": (-1.0, -1.0, -1.0), "logit": (-1.0, 0.0, 1.0)}
# In units of the narrowest sigma, below which no mixture has structure.
_GRID_STEP = 0.75
_MAX_GRID = 256
# Peaks whose log densities differ by less are equally high: the one at the smallest value is the mode.
_TIE = 1e-9
# Some trial point is within 3/8 sigma of a peak, which lowers its log height by about 0.07.
_CONTENDER = 0.3


def mixture_mode(transforms_R: Sequence[str], mean_RK: Tensor, sigma_RK: Tensor) -> Tensor:
    """Return the transformed value at which each row's physical density is highest, R.

    Trial points are three quarters of the narrowest sigma apart, or the component centres where that would take too many. Each
    local maximum among them that may be the highest is refined, and the highest is returned, the smallest of equals.
    """
    kinds = torch.tensor([_SHIFTS[name] for name in transforms_R], dtype=mean_RK.dtype, device=mean_RK.device).reshape(-1, 3)
    row, t = _trial_points(kinds, mean_RK, sigma_RK)
    height = torch.log(_density(t, mean_RK[row], (1 / sigma_RK)[row])) + _log_jacobian(t, kinds[row])

    # Neighbours within the row; a row's first and last points are their own neighbours.
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = row[1:] != row[:-1]
    last = torch.roll(first, -1)
    index = torch.arange(len(row), device=row.device)
    below, above = index - (~first).long(), index + (~last).long()
    highest_R = torch.full_like(mean_RK[:, 0], -torch.inf).scatter_reduce(0, row, height, "amax")
    peak = (height >= height[below]) & (height >= height[above]) & (height >= highest_R[row] - _CONTENDER)
    peak = peak.nonzero()[:, 0]

    row_P = row[peak]
    kinds_P3, mean_PK, sigma_PK = kinds[row_P], mean_RK[row_P], sigma_RK[row_P]
    # Heights at the last but one iterate, from which the maximum differs by the square of a tiny step.
    height_P = torch.empty_like(t[peak])

    def step(t: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        value, gradient, curvature = _derivatives(t, kinds_P3[chosen], mean_PK[chosen], sigma_PK[chosen])
        height_P[chosen] = value
        return gradient >= 0, gradient <= 0, torch.where(curvature < 0, -gradient / curvature, torch.nan)

    t_P = bracketed_newton(step, t[peak], t[below[peak]], t[above[peak]], LAST_NEWTON * sigma_PK.amin(1))
    best_R = torch.full_like(highest_R, -torch.inf).scatter_reduce(0, row_P, height_P, "amax")
    rivals = torch.where(height_P >= best_R[row_P] - _TIE, t_P, torch.inf)
    return torch.full_like(best_R, torch.inf).scatter_reduce(0, row_P, rivals, "amin")


def _trial_points(kinds_R3: Tensor, mean_RK: Tensor, sigma_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Row and position of the trial points, ascending within each row."""
    # R x 3 x K -> R x 3K
    centres = (mean_RK[:, None, :] + kinds_R3[:, :, None] * sigma_RK.square()[:, None, :]).flatten(1).sort(dim=1).values
    low, high = centres[:, 0], centres[:, -1]
    wanted = torch.ceil((high - low) / (_GRID_STEP * sigma_RK.amin(-1))) + 1
    fine = wanted <= _MAX_GRID
    count = torch.where(fine, wanted, centres.shape[1]).long()
    row = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    place = torch.arange(len(row), device=count.device) - (count.cumsum(0) - count)[row]
    grid = low[row] + (high - low)[row] * place / (count - 1).clamp(min=1)[row]
    return row, torch.where(fine[row], grid, centres[row, place.clamp(max=centres.shape[1] - 1)])


def _density(t_M: Tensor, mean_MK: Tensor, precision_MK: Tensor) -> Tensor:
    """Density of the transformed value, up to a constant; ``precision_MK`` is 1 / sigma."""
    u = (mean_MK - t_M[:, None]).mul_(precision_MK)
    return u.mul_(u).mul_(-0.5).exp_().mul_(precision_MK).sum(1)


def _log_jacobian(t_M: Tensor, kinds_M3: Tensor) -> Tensor:
    log, logit = _flags(kinds_M3)
    return log * -t_M + logit * (softplus(t_M) + softplus(-t_M))


def _flags(kinds_M3: Tensor) -> tuple[Tensor, Tensor]:
    """1 where the transform is log, 1 where it is logit: the shifts sum to -3 in the one case and span 2 in the other."""
    return kinds_M3.sum(1) / -3, (kinds_M3[:, 2] - kinds_M3[:, 0]) / 2


def _derivatives(t_M: Tensor, kinds_M3: Tensor, mean_MK: Tensor, sigma_MK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the physical density, up to a constant, with its first and second derivatives in t."""
    log, logit = _flags(kinds_M3)
    u = (mean_MK - t_M[:, None]) / sigma_MK
    exponent = -0.5 * u * u - torch.log(sigma_MK)
    total = torch.logsumexp(exponent, dim=1)
    share = torch.exp(exponent - total[:, None])
    slope = u / sigma_MK
    mean_slope = (share * slope).sum(1)
    tanh = torch.tanh(0.5 * t_M)
    spread = (share * (slope - mean_slope[:, None]).square()).sum(1)
    curvature = spread - (share / sigma_MK.square()).sum(1) + 0.5 * logit * (1 - tanh * tanh)
    return total + _log_jacobian(t_M, kinds_M3), mean_slope - log + logit * tanh, curvature
