"""Exact distribution function and quantiles of one-dimensional, equal-weight Gaussian mixtures.

Shape legend: R rows (a galaxy and target each), K components, Q quantile levels, G points, M unsolved (row, level) pairs.
"""

import math

import torch
from torch import Tensor

_SQRT2 = math.sqrt(2)
_SQRT_2PI = math.sqrt(2 * math.pi)
# Newton's error after a step h is of the order of h^2 / sigma: a last step of 1e-6 sigma leaves 1e-12 sigma.
_LAST_STEP = 1e-6
_MAX_ITERATIONS = 300


def mixture_cdf(x_RG: Tensor, mean_RK: Tensor, sigma_RK: Tensor) -> Tensor:
    """Return P(X <= x) of each row's mixture, R x G."""
    # R x G x K
    v = (x_RG[:, :, None] - mean_RK[:, None, :]) / (_SQRT2 * sigma_RK[:, None, :])
    return 0.5 * torch.erfc(-v).mean(-1)


def mixture_quantile(p_Q: Tensor, mean_RK: Tensor, sigma_RK: Tensor) -> Tensor:
    """Return the quantiles of each row's mixture, R x Q.

    The root of the exact CDF F lies in [min_k q_k, max_k q_k], q_k the component quantiles. Newton steps on probit(F(x)) -
    probit(p), which is nearly linear in x, start from the Cornish-Fisher expansion and give way to bisection where they
    leave the bracket or stop halving (Press et al., Numerical Recipes, "rtsafe"). Each (row, level) stops on its own, so
    its result does not depend on the others. Where the mixture has no mass between two modes, any point there is a quantile
    and one of them is returned.

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
    result = _cornish_fisher(probit_Q, mean_RK, sigma_RK).reshape(-1).clamp(low, high)

    half_precision = 0.5 / sigma_RK.square()
    last_step = _LAST_STEP * sigma_RK.amin(-1)
    active = torch.arange(rows * levels, device=mean_RK.device)
    x, before = result, high - low
    previous = before
    for _ in range(_MAX_ITERATIONS):
        if active.numel() == 0:
            break
        row = active // levels
        cdf, pdf = _cdf_pdf(x, mean_RK[row], half_precision[row].sqrt())
        probit = torch.special.ndtri(cdf)
        excess = probit - probit_Q[active % levels]
        high = torch.where(excess >= 0, x, high)
        low = torch.where(excess < 0, x, low)
        step = -excess * torch.exp(-0.5 * probit * probit) / (_SQRT_2PI * pdf)
        # A comparison with NaN (no density at x) is false, so such a step is refused too.
        newton = (x + step >= low) & (x + step <= high) & (step.abs() <= 0.5 * before)
        step = torch.where(newton, step, 0.5 * (low + high) - x)
        x = x + step
        narrow = high - low <= 4 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())
        done = (newton & (step.abs() <= last_step[row])) | narrow
        result[active] = x
        going = ~done
        before, previous = previous[going], step.abs()[going]
        active, x, low, high = active[going], x[going], low[going], high[going]
    assert active.numel() == 0, "quantile search did not converge"
    return result.reshape(rows, levels)


def _cdf_pdf(x_M: Tensor, mean_MK: Tensor, slope_MK: Tensor) -> tuple[Tensor, Tensor]:
    """CDF and density at one point a mixture; ``slope_MK`` is 1 / (sqrt(2) sigma)."""
    v = (x_M[:, None] - mean_MK).mul_(slope_MK)
    density = (v * v).neg_().exp_().mul_(slope_MK).mean(-1).div_(math.sqrt(math.pi))
    return torch.erfc(v.neg_()).mean(-1).mul_(0.5), density


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
