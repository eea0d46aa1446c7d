"""Exact distribution function and quantiles of one-dimensional, equal-weight Gaussian mixtures.

Shape legend: R rows (a galaxy and target each), K components, Q quantile levels, G points, M (row, level) pairs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_SQRT2 = math.sqrt(2)
_SQRT_2PI = math.sqrt(2 * math.pi)
# What is left after a step h is of the order of h^2 / sigma for Newton's and of h^3 / sigma^2 for Halley's: 1e-12 sigma.
LAST_NEWTON, _LAST_HALLEY = 1e-6, 1e-4
_MAX_ITERATIONS = 300
# Halley's step over Newton's, inverted, where the start is far off.
_HALLEY = (0.5, 2.0)


def mixture_cdf(x_RG: Tensor, mean_RK: Tensor, sigma_RK: Tensor) -> Tensor:
    """Return P(X <= x) of each row's mixture, R x G."""
    # R x G x K
    v = (x_RG[:, :, None] - mean_RK[:, None, :]) / (_SQRT2 * sigma_RK[:, None, :])
    return 0.5 * torch.erfc(-v).mean(-1)


def mixture_quantile(p_Q: Tensor, mean_RK: Tensor, sigma_RK: Tensor) -> Tensor:
    """Return the quantiles of each row's mixture, R x Q.

    The root of the exact CDF F lies in [min_k q_k, max_k q_k], q_k the component quantiles. `bracketed_newton` solves
    probit(F(x)) = probit(p), which is nearly linear in x, by Halley's steps from the Cornish-Fisher expansion. Where the
    mixture has no mass between two modes, any point there is a quantile and one of them is returned.

    Parameters
    ----------
    p_Q
        Probabilities in (0, 1).
    mean_RK, sigma_RK
        Component means and standard deviations.
    """
    rows, levels = len(mean_RK), len(p_Q)
    probit_Q = torch.special.ndtri(p_Q)
    ends_RQK = mean_RK[:, None, :] + sigma_RK[:, None, :] * probit_Q[:, None]
    low, high = (end.reshape(-1) for end in torch.aminmax(ends_RQK, dim=-1))
    start = _cornish_fisher(probit_Q, mean_RK, sigma_RK).reshape(-1).clamp(low, high)
    half_RK = 1 / (_SQRT2 * sigma_RK)

    def step(x: Tensor, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        row = pair // levels
        cdf, pdf, slope = _cdf_pdf_slope(x, mean_RK[row], half_RK[row])
        probit = torch.special.ndtri(cdf)
        excess = probit - probit_Q[pair % levels]
        # Derivative of the probit, and the logarithm of that differentiated.
        rate = _SQRT_2PI * pdf * torch.exp(0.5 * probit * probit)
        bend = slope / pdf + probit * rate
        newton = -excess / rate
        return excess < 0, excess >= 0, newton / (1 + 0.5 * newton * bend).clamp(*_HALLEY)

    last = _LAST_HALLEY * sigma_RK.amin(-1).repeat_interleave(levels)
    return bracketed_newton(step, start, low, high, last).reshape(rows, levels)


def bracketed_newton(
    step_at: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]], start: Tensor, low: Tensor, high: Tensor, last: Tensor
) -> Tensor:
    """Return one root per element by steps like Newton's, with bisection where one leaves the bracket or they stop halving.

    Press et al., Numerical Recipes, "rtsafe". Each element stops on its own, so its result does not depend on the others.

    Parameters
    ----------
    step_at
        Function of positions and the indices of their elements that returns where the root is at or above the position, where
        it is at or below, and the step; one of NaN is refused.
    start, low, high
        First positions and their brackets.
    last
        A step no longer than this is the last, of each element.
    """
    result = start.clone()
    active = torch.arange(len(start), device=start.device)
    x, before = start, high - low
    previous = before
    for _ in range(_MAX_ITERATIONS):
        if active.numel() == 0:
            break
        above, below, step = step_at(x, active)
        low, high = torch.where(above, x, low), torch.where(below, x, high)
        newton = (x + step >= low) & (x + step <= high) & (step.abs() <= 0.5 * before)
        step = torch.where(newton, step, 0.5 * (low + high) - x)
        x = x + step
        result[active] = x
        narrow = high - low <= 4 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())
        going = ~((newton & (step.abs() <= last[active])) | narrow)
        before, previous = previous[going], step.abs()[going]
        active, x, low, high = active[going], x[going], low[going], high[going]
    assert active.numel() == 0, "the search did not converge"
    return result


def _cdf_pdf_slope(x_M: Tensor, mean_MK: Tensor, half_MK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CDF, density and its derivative at one point per mixture; ``half_MK`` is 1 / (sqrt(2) sigma)."""
    v = (x_M[:, None] - mean_MK).mul_(half_MK)
    density = (v * v).neg_().exp_().mul_(half_MK)
    pdf = density.mean(-1).div_(math.sqrt(math.pi))
    slope = density.mul_(v).mul_(half_MK).mean(-1).mul_(-2 / math.sqrt(math.pi))
    return torch.special.ndtr(v.mul_(_SQRT2)).mean(-1), pdf, slope


def _cornish_fisher(probit_Q: Tensor, mean_RK: Tensor, sigma_RK: Tensor) -> Tensor:
    mean_R1 = mean_RK.mean(-1, keepdim=True)
    offset2, variance = (mean_RK - mean_R1).square(), sigma_RK.square()
    std_R1 = (offset2 + variance).mean(-1, keepdim=True).sqrt()
    skew = ((mean_RK - mean_R1) * (offset2 + 3 * variance)).mean(-1, keepdim=True) / std_R1**3
    fourth = (offset2 * (offset2 + 6 * variance) + 3 * variance.square()).mean(-1, keepdim=True)
    kurtosis = fourth / std_R1**4 - 3
    p = probit_Q
    w = p + (p**2 - 1) * skew / 6 + (p**3 - 3 * p) * kurtosis / 24 - (2 * p**3 - 5 * p) * skew**2 / 36
    return mean_R1 + std_R1 * w
