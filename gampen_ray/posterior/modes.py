"""Mode of a physical-space marginal density whose transformed value is an equal-weight Gaussian mixture.

With t the transformed value, p(y) = f(t) |dt/dy| and f a Gaussian mixture. As |dt/dy| is 1 (identity), exp(-t) (log) or
exp(t) + 2 + exp(-t) (logit), p is, as a function of t, again a Gaussian mixture: its components are those of f shifted by 0,
-sigma^2, or each of (-sigma^2, 0, sigma^2). Hence every mode lies between the outermost shifted centres, and the search is global.

Shape legend: R rows (a galaxy and target each), K components, M trial points of all rows in one list.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from gampen_ray.model.targets import Transform

# Multiples of sigma^2 by which |dt/dy| shifts a component.
_SHIFTS = {"identity": (0.0, 0.0, 0.0), "log": (-1.0, -1.0, -1.0), "logit": (-1.0, 0.0, 1.0)}
_GRID_STEP = 0.5
_MAX_GRID = 256
_MAX_ITERATIONS = 300
# Peaks whose log densities differ by less are equally high: the one at the smallest value is the mode.
_TIE = 1e-9


def mixture_mode(transforms_R: list[Transform], mean_RK: Tensor, sigma_RK: Tensor) -> Tensor:
    """Return the transformed value at which each row's physical density is highest, R.

    Trial points are half the narrowest sigma apart, or the component centres where that would take too many; each local maximum
    among them is refined by Newton steps with bisection as the fallback, and the highest wins, the smallest of equals.
    """
    kinds = torch.tensor([_SHIFTS[name] for name in transforms_R], dtype=mean_RK.dtype, device=mean_RK.device).reshape(-1, 3)
    row, t = _trial_points(kinds, mean_RK, sigma_RK)
    height, _, _ = _log_density(t, kinds[row], mean_RK[row], sigma_RK[row])

    # Neighbours within the row; a row's first and last points are its own neighbours.
    first = torch.ones_like(row, dtype=torch.bool)
    first[1:] = row[1:] != row[:-1]
    last = torch.roll(first, -1)
    index = torch.arange(len(row), device=row.device)
    below, above = index - (~first).long(), index + (~last).long()
    peak = ((height >= height[below]) & (height >= height[above])).nonzero()[:, 0]

    row_P = row[peak]
    t_P = _refine(t[peak], t[below[peak]], t[above[peak]], (kinds[row_P], mean_RK[row_P], sigma_RK[row_P]))
    height_P, _, _ = _log_density(t_P, kinds[row_P], mean_RK[row_P], sigma_RK[row_P])
    best_R = torch.full_like(mean_RK[:, 0], -torch.inf).scatter_reduce(0, row_P, height_P, "amax")
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


def _log_density(t_M: Tensor, kinds_M3: Tensor, mean_MK: Tensor, sigma_MK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the physical density, up to a constant, with its first and second derivatives in t."""
    # The kinds sum to 0, -3, 0 for identity, log, logit, and their spread is 0, 0, 2.
    log, logit = kinds_M3.sum(1) / 3, (kinds_M3[:, 2] - kinds_M3[:, 0]) / 2
    u = (mean_MK - t_M[:, None]) / sigma_MK
    exponent = -0.5 * u * u - torch.log(sigma_MK)
    total = torch.logsumexp(exponent, dim=1)
    share = torch.exp(exponent - total[:, None])
    slope = u / sigma_MK
    mean_slope = (share * slope).sum(1)
    tanh = torch.tanh(0.5 * t_M)
    value = total + log * t_M + logit * (softplus(t_M) + softplus(-t_M))
    gradient = mean_slope + log + logit * tanh
    spread = (share * (slope - mean_slope[:, None]).square()).sum(1)
    curvature = spread - (share / sigma_MK.square()).sum(1) + 0.5 * logit * (1 - tanh * tanh)
    return value, gradient, curvature


def _refine(t: Tensor, low: Tensor, high: Tensor, row: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Local maxima in [low, high]; each point stops on its own, so its result does not depend on the others."""
    tolerance = 1e-6 * row[2].amin(-1)
    before = previous = high - low
    done = torch.zeros_like(t, dtype=torch.bool)
    for _ in range(_MAX_ITERATIONS):
        _, gradient, curvature = _log_density(t, *row)
        low = torch.where(gradient >= 0, t, low)
        high = torch.where(gradient <= 0, t, high)
        step = -gradient / curvature
        newton = (curvature < 0) & (t + step >= low) & (t + step <= high) & (step.abs() <= 0.5 * before)
        step = torch.where(newton, step, 0.5 * (low + high) - t)
        t = torch.where(done, t, t + step)
        narrow = high - low <= 4 * torch.finfo(t.dtype).eps * torch.maximum(low.abs(), high.abs())
        done |= (newton & (step.abs() <= tolerance)) | narrow
        before, previous = previous, step.abs()
        if bool(done.all()):
            return t
    raise AssertionError("mode search did not converge")
