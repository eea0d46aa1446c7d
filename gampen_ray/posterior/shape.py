"""Posteriors with lighter or heavier tails and weaker or stronger correlations, for `gampen_ray.posterior.calibration`.

Shape legend: N galaxies, K passes, D targets.
"""

import torch
from torch import Tensor

from gampen_ray.posterior.mixture import Mixture

__all__ = ["thinned", "with_correlation", "with_tails", "without_correlation"]

_ITERATIONS = 40
"""Each a contraction, by a third or more for exponents between 0.7 and 1.4."""


def with_tails(mixture: Mixture, factor: float) -> Mixture:
    """Return posteriors with the logarithms of their components' scales spread by a factor about their means.

    A component's scale is the geometric mean of the diagonal of its Cholesky factor. Below 1 tails are lighter, at 0 all
    components are as wide.
    """
    log_scale_NK = mixture.scale_tril_NKDD.diagonal(dim1=-2, dim2=-1).log().mean(-1)
    change_NK = torch.exp((factor - 1) * (log_scale_NK - log_scale_NK.mean(1, keepdim=True)))
    return mixture.derived(mixture.mean_NKD, change_NK[..., None, None] * mixture.scale_tril_NKDD)


def with_correlation(mixture: Mixture, exponent: float) -> Mixture:
    """Return posteriors with a power of the correlation matrix in standardised space, and the standard deviations kept.

    The power is scaled to a unit diagonal. Of two targets, it multiplies Fisher's z of their correlation.
    """
    correlation_NDD = _correlation(mixture)
    norm_ND = _power(correlation_NDD, exponent).diagonal(dim1=-2, dim2=-1).rsqrt()
    return _mapped(mixture, norm_ND[:, :, None] * _power(correlation_NDD, (exponent - 1) / 2))


def without_correlation(mixture: Mixture, exponent: float) -> Mixture:
    """Return the posteriors that `with_correlation` made these from."""
    correlation_NDD, norm_ND = _correlation(mixture), torch.ones_like(mixture.mean_NKD[:, 0])
    given_NDD = correlation_NDD
    # The scaling with which the root has a unit diagonal.
    for _ in range(_ITERATIONS):
        given_NDD = _power(norm_ND[:, :, None] * correlation_NDD * norm_ND[:, None, :], 1 / exponent)
        norm_ND = norm_ND * given_NDD.diagonal(dim1=-2, dim2=-1) ** (-exponent / 2)
    return _mapped(mixture, _power(given_NDD, (1 - exponent) / 2) * norm_ND[:, None, :])


def thinned(mixture: Mixture, num_passes: int) -> Mixture:
    """Return posteriors with evenly spaced ones of their components, so many or up to twice that."""
    step = max(1, mixture.num_passes // num_passes)
    kept = slice(step // 2, None, step)
    return mixture.derived(mixture.mean_NKD[:, kept], mixture.scale_tril_NKDD[:, kept])


def _correlation(mixture: Mixture) -> Tensor:
    """Return the correlation matrices of mixtures in standardised space, N x D x D."""
    offset_NKD, tril_NKDD = mixture.mean_NKD - mixture.mean_NKD.mean(1, keepdim=True), mixture.scale_tril_NKDD
    covariance_NDD = torch.einsum("nkde,nkfe->ndf", tril_NKDD, tril_NKDD)
    covariance_NDD = covariance_NDD + torch.einsum("nkd,nkf->ndf", offset_NKD, offset_NKD)
    std_ND = covariance_NDD.diagonal(dim1=-2, dim2=-1).sqrt()
    return covariance_NDD / (std_ND[:, :, None] * std_ND[:, None, :])


def _mapped(mixture: Mixture, map_NDD: Tensor) -> Mixture:
    """Return posteriors after linear maps, about their means, of targets in units of their standard deviations."""
    std_ND = torch.from_numpy(mixture.standardised_std()).to(mixture.mean_NKD)
    map_NDD = std_ND[:, :, None] * map_NDD / std_ND[:, None, :]
    centre_N1D, mapped_NKDD = mixture.mean_NKD.mean(1, keepdim=True), map_NDD[:, None] @ mixture.scale_tril_NKDD
    mean_NKD = centre_N1D + torch.einsum("nde,nke->nkd", map_NDD, mixture.mean_NKD - centre_N1D)
    tril_NKDD, failed_NK = torch.linalg.cholesky_ex(mapped_NKDD @ mapped_NKDD.mT)
    if (failed := failed_NK > 0).any():
        # Too narrow for a square's digits; slower.
        root = torch.linalg.qr(mapped_NKDD[failed].mT).R.mT
        tril_NKDD[failed] = root * root.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    return mixture.derived(mean_NKD, tril_NKDD)


def _power(matrix_NDD: Tensor, exponent: float) -> Tensor:
    """Return powers of symmetric positive definite matrices."""
    value_ND, vector_NDD = torch.linalg.eigh(matrix_NDD)
    value_ND = value_ND.clamp(min=torch.finfo(torch.float64).eps)
    return (vector_NDD * value_ND[:, None] ** exponent) @ vector_NDD.mT
