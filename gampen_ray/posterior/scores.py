"""Proper scores of posteriors at the truths, each beside what it would be on average if the posterior were right.

All are in standardised space, where a posterior is a mixture of Gaussians. Lower is better.
Shape legend: N galaxies, K passes, D targets, S draws.
"""

import dataclasses
import math

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from gampen_ray.posterior.mixture import Mixture

__all__ = ["Score", "crps", "energy_score"]

# Numbers in a temporary that stays in cache.
_CACHED = 1 << 19


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """A score of N galaxies (of each target: N x D)."""

    value: np.ndarray
    """At the truth."""
    expected: np.ndarray
    """Its mean for truths drawn from the posterior."""
    scale: np.ndarray | None = None
    """What it is proportional to, such as the width of the posterior; None: widths only shift it."""

    def summary(self) -> dict[str, np.ndarray]:
        """Return the means over galaxies, ``value`` and ``expected``, the standard ``error`` of their difference, and ``p``.

        Under calibration, the mean difference over its error is normal for many galaxies: a test of the score itself (Held,
        Rufibach & Balabdaoui 2010, Biometrics 66, 1295). As that mean is then zero, the error is the root mean square of the
        differences over sqrt(N). ``p`` is that of the differences over ``scale``, so that few wide posteriors do not outweigh
        the others. A score above its expectation means posteriors that are too narrow or biased, one below means too wide ones.
        """
        difference = self.value - self.expected
        relative = difference if self.scale is None else difference / self.scale
        p = 2 * ndtr(-np.abs(relative.mean(axis=0)) / _error(relative))
        return {
            "value": self.value.mean(axis=0),
            "expected": self.expected.mean(axis=0),
            "error": _error(difference),
            "p": p,
        }


def crps(mixture: Mixture, z_ND: np.ndarray) -> Score:
    """Return the continuous ranked probability score of each target, N x D, in closed form.

    E|X - z| - E|X - X'| / 2, X and X' drawn from the posterior (Gneiting & Raftery 2007, JASA 102, 359, eq. 21), for a mixture
    of Gaussians (Grimit et al. 2006, Q. J. R. Meteorol. Soc. 132, 2925, eq. 5). The expected score is E|X - X'| / 2.

    Parameters
    ----------
    mixture
        Posteriors.
    z_ND
        Truths in standardised space.
    """
    size = max(1, _CACHED // (mixture.num_passes**2 * z_ND.shape[1]))
    parts = []
    for piece, z in zip(mixture.chunks(size), torch.from_numpy(z_ND).split(size), strict=True):
        mean, tril = piece.mean_NKD.cpu(), piece.scale_tril_NKDD.cpu()
        variance = tril.square().sum(-1)
        # N x K x K x D
        pairs = _mean_absolute(mean[:, :, None] - mean[:, None], (variance[:, :, None] + variance[:, None]).sqrt()).mean((1, 2))
        to_truth = _mean_absolute(mean - z[:, None], variance.sqrt()).mean(1)
        parts.append((to_truth - 0.5 * pairs, 0.5 * pairs))
    value, expected = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return Score(value, expected, scale=expected)


def energy_score(mixture: Mixture, z_ND: np.ndarray, seed: int, num_draws: int = 256) -> Score:
    """Return the energy score of all targets together, N, from draws.

    E|X - z| - E|X - X'| / 2 with Euclidean norms (Gneiting & Raftery 2007, eq. 22), both without bias: neighbours in a cycle
    of independent draws are pairs. Its expectation is E|X - X'| / 2.

    Parameters
    ----------
    mixture
        Posteriors.
    z_ND
        Truths in standardised space.
    seed
        Of the draws.
    num_draws
        Draws a galaxy.
    """
    generator = np.random.default_rng(seed)
    size = max(1, _CACHED // (num_draws * mixture.num_passes))
    to_truth, half = [], []
    for start, piece in zip(range(0, max(len(z_ND), 1), size), mixture.chunks(size), strict=True):
        draw_NSD = piece.standardised_sample(num_draws, generator)
        half.append(0.5 * np.linalg.norm(draw_NSD - np.roll(draw_NSD, 1, axis=1), axis=2).mean(axis=1))
        to_truth.append(np.linalg.norm(draw_NSD - z_ND[start : start + size, None], axis=2).mean(axis=1))
    expected = np.concatenate(half)
    # Half a mean distance of few draws is noisy, and a ratio to it biased.
    scale = np.linalg.norm(mixture.standardised_std(), axis=1)
    return Score(np.concatenate(to_truth) - expected, expected, scale)


def _error(difference: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(difference).mean(axis=0) / len(difference))


def _mean_absolute(mean: Tensor, sigma: Tensor) -> Tensor:
    """Return E|X| of a Gaussian."""
    u = mean / (math.sqrt(2) * sigma)
    return mean * torch.erf(u) + math.sqrt(2 / math.pi) * sigma * torch.exp(-u * u)
