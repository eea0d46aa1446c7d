"""Posteriors of a catalogue under another prior: mixtures of as many Gaussians as before, from weighted draws.

Shape legend: N galaxies, S draws a galaxy, K mixture components, D targets.
"""

import functools
import math

import numpy as np
import torch
from scipy.special import ndtri

from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.reweight import Density, reweight

__all__ = ["exchange_prior"]

_DRAWS = 2048
"""Draws a galaxy, at least; each component has equally many."""
# Not a half: draws of equal weight would be ties, which rounding decides.
_OFFSET = 0.4817


def exchange_prior(mixture: Mixture, new: Density, training: Density) -> tuple[Mixture, np.ndarray]:
    """Return posteriors under another prior than that of the training, and the effective share of their draws.

    The draws are at fixed points of the components, and get the ratio of the priors as weights, as in
    `gampen_ray.posterior.reweight.reweight`. K of them, taken at equal steps of the summed weights, become the components of
    the result: Gaussians of K**(-1 / (D + 4)) times the width of those that they were drawn from, moved towards these so that
    equal priors change nothing (smoothing with shrinkage: West 1993, J. R. Stat. Soc. B 55, 409). A linear map then gives the
    result the mean and covariance of all weighted draws in the network's space, so that it is exact for Gaussian priors.
    Of the prior, structure finer than a component is smoothed. A galaxy's result depends on its posterior and the priors alone.

    Parameters
    ----------
    mixture
        Posteriors of N galaxies.
    new, training
        The new prior, and that of the training; see `gampen_ray.posterior.reweight.reweight`.

    Returns
    -------
    tuple
        The mixtures, and the effective number of draws over their number, N. Where it is 0, the new prior excludes the
        posterior or the draws lie outside the training: the mixture is the old one.

    Raises
    ------
    UserError
        As `gampen_ray.posterior.reweight.reweight`.
    """
    mean_NKD, tril_NKDD = mixture.mean_NKD.cpu().numpy().copy(), mixture.scale_tril_NKDD.cpu().numpy().copy()
    (_, num_passes, dims), share_N = mean_NKD.shape, np.zeros(len(mixture))
    offset_SD = _points(max(1, math.ceil(_DRAWS / num_passes)) * num_passes, dims)
    pass_S = np.repeat(np.arange(num_passes), len(offset_SD) // num_passes)
    width = num_passes ** (-1 / (dims + 4))
    # One by one: to the last bit, sums may depend on the shape of an array.
    for n, (mean_KD, tril_KDD) in enumerate(zip(mean_NKD, tril_NKDD, strict=True)):
        step_SD = np.einsum("sde,se->sd", tril_KDD[pass_S], offset_SD)
        z_SD = mean_KD[pass_S] + step_SD
        weighted = reweight(mixture.targets.physical(z_SD)[None], new, training)
        weight_S, size = weighted.weight_NS[0], weighted.effective_size_N[0]
        share_N[n] = size / len(weight_S)
        if not size:
            continue
        target_D, target_DD = _moments(z_SD, weight_S)
        # A covariance of few draws is too small by as much (Bessel), and may be singular.
        _, own_DD = _moments(z_SD, np.full(len(z_SD), 1 / len(z_SD)))
        target_DD += own_DD / size
        step_K = (np.arange(num_passes) + _OFFSET) / num_passes
        chosen_K = np.searchsorted(np.cumsum(weight_S), step_K * weight_S.sum())
        of_K = pass_S[chosen_K]
        centre_KD, narrow_KDD = mean_KD[of_K] + math.sqrt(1 - width**2) * step_SD[chosen_K], width * tril_KDD[of_K]
        centre_D, between_DD = _moments(centre_KD, np.full(num_passes, 1 / num_passes))
        within_DD = np.einsum("kde,kfe->df", narrow_KDD, narrow_KDD) / num_passes
        # Lower triangular, as the factors are.
        map_DD = np.linalg.cholesky(target_DD) @ np.linalg.inv(np.linalg.cholesky(between_DD + within_DD))
        mean_NKD[n] = target_D + (centre_KD - centre_D) @ map_DD.T
        tril_NKDD[n] = map_DD @ narrow_KDD
    return Mixture(torch.from_numpy(mean_NKD), torch.from_numpy(tril_NKDD), mixture.targets), share_N


@functools.lru_cache(1)
def _points(count: int, dims: int) -> np.ndarray:
    """Return evenly spread standard normal values, count x dims, of which every n-th ones are evenly spread too.

    A Kronecker sequence with powers of the root of x**(dims + 1) = x + 1, a generalised golden ratio (Roberts 2018, "The
    unreasonable effectiveness of quasirandom sequences").
    """
    root = 2.0
    for _ in range(50):
        root = (1 + root) ** (1 / (dims + 1))
    step_D = root ** -np.arange(1.0, dims + 1)
    return ndtri((0.5 + np.arange(1, count + 1)[:, None] * step_D) % 1)


def _moments(z_SD: np.ndarray, weight_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean_D = weight_S @ z_SD
    offset_SD = z_SD - mean_D
    return mean_D, (weight_S[:, None] * offset_SD).T @ offset_SD
