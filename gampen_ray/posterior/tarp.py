"""Tests of accuracy with random points (TARP): coverage of balls about reference points that depend on the image.

Shape legend: N galaxies, D targets, F terms, S draws.
"""

import numpy as np

from gampen_ray.posterior.mixture import Mixture

__all__ = ["references", "tarp"]

# Galaxies per chunk, which bounds memory.
_CHUNK = 128


def references(z_ND: np.ndarray, term_NF: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a reference point of each galaxy in standardised space, N x D, a random function of its features alone.

    The truths of one random half of the galaxies are regressed on the features; the other half's reference points are the
    predictions plus residuals of galaxies drawn from the half that was fitted, and the reverse. So they are spread like
    the truths of galaxies with such features, and a galaxy's own truth has no part in its reference point.

    Parameters
    ----------
    z_ND
        Truths in standardised space.
    term_NF
        Functions of features, as `gampen_ray.posterior.local.terms` returns; known without the truth.
    generator
        Makes the halves and draws the residuals.
    """
    reference_ND = np.empty_like(z_ND)
    halves = np.array_split(generator.permutation(len(z_ND)), 2)
    for fitted, other in (halves, halves[::-1]):
        if not len(fitted):
            fitted = other
        weight_FD = np.linalg.lstsq(term_NF[fitted], z_ND[fitted], rcond=None)[0]
        residual_ND = z_ND[fitted] - term_NF[fitted] @ weight_FD
        reference_ND[other] = term_NF[other] @ weight_FD + residual_ND[generator.integers(len(fitted), size=len(other))]
    return reference_ND


def tarp(mixture: Mixture, z_ND: np.ndarray, reference_ND: np.ndarray, seed: int, num_draws: int = 256) -> np.ndarray:
    """Return the ranks of the truths' distances from their reference points among those of draws, N.

    Uniform on [0, 1] under calibration; their distribution function is the expected coverage of TARP (Lemos et al. 2023, ICML,
    arXiv 2302.03026). With reference points that do not depend on the image, a posterior equal to the prior
    passes, as they remark, hence `references`. Distances are Euclidean in units of each target's typical posterior width.

    Parameters
    ----------
    mixture
        Posteriors.
    z_ND, reference_ND
        Truths and reference points in standardised space.
    seed
        Of the draws.
    num_draws
        Draws a galaxy.
    """
    generator = np.random.default_rng(seed)
    unit_D = np.median(mixture.standardised_std(), axis=0)
    nearer = []
    for start, piece in zip(range(0, max(len(z_ND), 1), _CHUNK), mixture.chunks(_CHUNK), strict=True):
        rows = slice(start, start + _CHUNK)
        point_NSD = np.concatenate([z_ND[rows, None], piece.standardised_sample(num_draws, generator)], axis=1)
        distance_NS = np.linalg.norm((point_NSD - reference_ND[rows, None]) / unit_D, axis=2)
        nearer.append((distance_NS[:, 1:] < distance_NS[:, :1]).sum(axis=1))
    return (np.concatenate(nearer) + generator.random(len(z_ND))) / (num_draws + 1)
