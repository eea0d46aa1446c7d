"""Moments, in physical units, of targets whose standardised values are an equal-weight mixture of K Gaussians.

Identity and log targets have closed forms. Logit targets are integrated by the trapezoidal rule in each component's
standard normal variate, which for such integrands converges geometrically and needs fewer nodes than Gauss-Hermite
quadrature (Trefethen & Weideman 2014, SIAM Review 56, 385). Within a component, the covariance of g(t_i) and h(t_j) with
correlation rho is sum_n rho^n g_n h_n over n >= 1, with g_n the coefficients of g in normalised Hermite polynomials (Mehler
1866); for an identity target only n = 1 is left (Stein's lemma), for two log targets the sum is exp(S_ij) - 1.

Shape legend: N galaxies, K components, D targets, J quadrature nodes, O Hermite orders 1, 2, ....
"""

import dataclasses
import functools
import math

import numpy as np
import torch
from torch import Tensor

from gampen_ray.model.targets import TargetSchema

# Good to 1e-7 for sigma up to 3, beyond which the poles of the logistic function come too near.
_NODE_STEP = 0.35
_NODE_LIMIT = 8.05
NUM_NODES = 2 * round(_NODE_LIMIT / _NODE_STEP) + 1
# Correlations are good to 1e-6 for sigma up to 2 and to 1e-5 for sigma of 3.
_ORDERS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moments:
    """Moments of each galaxy's posterior in physical units; skewness and excess kurtosis are dimensionless.

    Skewness, kurtosis and correlations are NaN where the variance underflows to zero or a moment overflows.
    """

    mean_ND: np.ndarray
    std_ND: np.ndarray
    skew_ND: np.ndarray
    kurtosis_ND: np.ndarray
    aleatoric_std_ND: np.ndarray
    epistemic_std_ND: np.ndarray
    covariance_NDD: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Components:
    """One target: y = unit_N (origin_N + x), with x's mean and central moments in each component."""

    transform: str
    unit_N: Tensor
    origin_N: Tensor
    mean_NK: Tensor
    second_NK: Tensor
    third_NK: Tensor
    fourth_NK: Tensor
    sigma_NK: Tensor
    hermite_ONK: Tensor | None = None


def physical_moments(mean_NKD: Tensor, covariance_NKDD: Tensor, targets: TargetSchema) -> Moments:
    """Return the moments of the mixture with these means and covariances in standardised space."""
    scale_D = mean_NKD.new_tensor([target.scale for target in targets])
    t_NKD = mean_NKD * scale_D + mean_NKD.new_tensor([target.location for target in targets])
    t_covariance_NKDD = covariance_NKDD * scale_D * scale_D[:, None]
    sigma_NKD = torch.diagonal(t_covariance_NKDD, dim1=-2, dim2=-1).sqrt()
    parts = [_MOMENTS[t.transform](t_NKD[:, :, d], sigma_NKD[:, :, d]) for d, t in enumerate(targets.targets)]

    offsets = [part.mean_NK - part.mean_NK.mean(1, keepdim=True) for part in parts]
    second, third, fourth = (torch.stack(column, -1) for column in zip(*map(_mixed, parts, offsets), strict=True))
    aleatoric = torch.stack([part.second_NK.mean(1) for part in parts], -1)
    epistemic = torch.stack([offset.square().mean(1) for offset in offsets], -1)
    unit_ND = torch.stack([part.unit_N for part in parts], -1)
    origin_ND = torch.stack([part.origin_N + part.mean_NK.mean(1) for part in parts], -1)

    covariance_NDD = torch.diag_embed(second)
    for i in range(len(parts)):
        for j in range(i):
            within = _component_covariance(parts[i], parts[j], t_covariance_NKDD[:, :, i, j])
            covariance_NDD[:, i, j] = covariance_NDD[:, j, i] = (within + offsets[i] * offsets[j]).mean(1)
    return Moments(
        mean_ND=_numpy(unit_ND * origin_ND),
        std_ND=_numpy(unit_ND * second.sqrt()),
        skew_ND=_numpy(third / second**1.5),
        kurtosis_ND=_numpy(fourth / second.square() - 3),
        aleatoric_std_ND=_numpy(unit_ND * aleatoric.sqrt()),
        epistemic_std_ND=_numpy(unit_ND * epistemic.sqrt()),
        covariance_NDD=_numpy(covariance_NDD * unit_ND[:, :, None] * unit_ND[:, None, :]),
    )


def correlation_from_covariance(covariance_NDD: np.ndarray) -> np.ndarray:
    """Return correlations of covariances; NaN where a variance is zero."""
    std_ND = np.sqrt(np.diagonal(covariance_NDD, axis1=1, axis2=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance_NDD / std_ND[:, :, None] / std_ND[:, None, :]


def _mixed(part: _Components, offset_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Second to fourth central moments of the mixture, each N, from the components' own."""
    second, third = part.second_NK, part.third_NK
    offset2 = offset_NK.square()
    mixed2 = (second + offset2).mean(1)
    mixed3 = (third + offset_NK * (3 * second + offset2)).mean(1)
    mixed4 = (part.fourth_NK + 4 * offset_NK * third + offset2 * (6 * second + offset2)).mean(1)
    return mixed2, mixed3, mixed4


def _identity_moments(t_NK: Tensor, sigma_NK: Tensor) -> _Components:
    origin = t_NK.mean(1)
    variance = sigma_NK.square()
    return _Components(
        transform="identity",
        unit_N=torch.ones_like(origin),
        origin_N=origin,
        mean_NK=t_NK - origin[:, None],
        second_NK=variance,
        third_NK=torch.zeros_like(variance),
        fourth_NK=3 * variance.square(),
        sigma_NK=sigma_NK,
    )


def _log_moments(t_NK: Tensor, sigma_NK: Tensor) -> _Components:
    """Log-normal moments in units of exp(mean of t), so neither bright fluxes overflow nor narrow components cancel."""
    centre = t_NK.mean(1)
    variance = sigma_NK.square()
    above_one = torch.expm1(t_NK - centre[:, None] + 0.5 * variance)
    mean, w, w1 = 1 + above_one, torch.exp(variance), torch.expm1(variance)
    second = mean.square() * w1
    return _Components(
        transform="log",
        unit_N=torch.exp(centre),
        origin_N=torch.ones_like(centre),
        mean_NK=above_one,
        second_NK=second,
        third_NK=second * mean * w1 * (w + 2),
        fourth_NK=second.square() * (w**4 + 2 * w**3 + 3 * w**2 - 3),
        sigma_NK=sigma_NK,
    )


def _logit_moments(t_NK: Tensor, sigma_NK: Tensor) -> _Components:
    nodes_J, weights_J, hermite_OJ = (torch.from_numpy(a).to(t_NK.device) for a in _quadrature())
    origin = torch.sigmoid(t_NK.mean(1))
    centre = torch.sigmoid(t_NK)
    # J x NK, so that each Hermite order comes out contiguous. Differences from the component's centre keep narrow ones exact.
    x = torch.addcmul(t_NK.reshape(1, -1), nodes_J[:, None], sigma_NK.reshape(1, -1)).sigmoid_().sub_(centre.reshape(1, -1))
    coefficients = hermite_OJ @ x
    x2 = x * x
    raw2, raw3, raw4 = (weights_J @ power for power in (x2, x2 * x, x2 * x2))
    raw1 = weights_J @ x
    second = raw2 - raw1**2
    third = raw3 - 3 * raw1 * raw2 + 2 * raw1**3
    fourth = raw4 - 4 * raw1 * raw3 + 6 * raw1**2 * raw2 - 3 * raw1**4
    shape = t_NK.shape
    return _Components(
        transform="logit",
        unit_N=torch.ones_like(origin),
        origin_N=origin,
        mean_NK=centre - origin[:, None] + raw1.reshape(shape),
        second_NK=second.reshape(shape),
        third_NK=third.reshape(shape),
        fourth_NK=fourth.reshape(shape),
        sigma_NK=sigma_NK,
        hermite_ONK=coefficients.reshape(_ORDERS, *shape),
    )


_MOMENTS = {"identity": _identity_moments, "log": _log_moments, "logit": _logit_moments}
# A pair is treated in this order.
_RANK = {"identity": 0, "log": 1, "logit": 2}


def _component_covariance(a: _Components, b: _Components, covariance_NK: Tensor) -> Tensor:
    """Covariance of two targets within each component, in their units, from that of their transformed values."""
    if _RANK[a.transform] > _RANK[b.transform]:
        a, b = b, a
    if b.transform == "identity":
        return covariance_NK
    if b.transform == "log":
        ratio = covariance_NK if a.transform == "identity" else (1 + a.mean_NK) * torch.expm1(covariance_NK)
        return ratio * (1 + b.mean_NK)
    assert b.hermite_ONK is not None
    projection = covariance_NK / b.sigma_NK
    if a.transform == "identity":
        return projection * b.hermite_ONK[0]
    if a.transform == "log":
        # The coefficients of exp(sigma x) are its mean times sigma^n / sqrt(n!).
        terms = [h / math.sqrt(math.factorial(n)) for n, h in enumerate(b.hermite_ONK, start=1)]
        return (1 + a.mean_NK) * _power_series(projection, terms)
    assert a.hermite_ONK is not None
    return _power_series(projection / a.sigma_NK, list(a.hermite_ONK * b.hermite_ONK))


def _power_series(x: Tensor, coefficients: list[Tensor]) -> Tensor:
    """Return sum_n c_n x^n over n = 1, 2, ... by Horner's scheme."""
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * x
    return total


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights for a standard normal variate, and weighted normalised Hermite polynomials."""
    nodes_J = _NODE_STEP * (np.arange(NUM_NODES) - NUM_NODES // 2)
    weights_J = np.exp(-0.5 * nodes_J**2)
    weights_J /= weights_J.sum()
    polynomials = [np.ones_like(nodes_J), nodes_J]
    for n in range(1, _ORDERS):
        polynomials.append((nodes_J * polynomials[n] - np.sqrt(n) * polynomials[n - 1]) / np.sqrt(n + 1))
    return nodes_J, weights_J, weights_J * np.stack(polynomials[1:])


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
