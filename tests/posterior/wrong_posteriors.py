"""Posteriors that are right, and wrong ones, with truths and features, for the tests of the diagnostics.

Shape legend: N galaxies, K passes, D targets.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from gampen_ray.posterior.bins import bins, in_bins
from gampen_ray.posterior.local import local_coverage, terms
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.ranks import joint_density, rosenblatt, uniformity
from gampen_ray.posterior.scores import crps, energy_score
from gampen_ray.posterior.tarp import references, tarp
from tests.posterior.posterior_cases import schema

CORRELATION = 0.6


@dataclasses.dataclass(frozen=True)
class Case:
    """Posteriors with truths in standardised space and features that are known without them."""

    mixture: Mixture
    z_ND: np.ndarray
    columns: dict[str, np.ndarray]

    def with_mixture(self, mean_NKD: torch.Tensor, tril_NKDD: torch.Tensor) -> "Case":
        return dataclasses.replace(self, mixture=Mixture(mean_NKD, tril_NKDD, self.mixture.targets))

    def __getitem__(self, rows: slice) -> "Case":
        return Case(self.mixture[rows], self.z_ND[rows], {name: value_N[rows] for name, value_N in self.columns.items()})


def right(num_galaxies: int, seed: int) -> Case:
    """Truths drawn from posteriors of two correlated components, whose means and widths depend on two of three features."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.random(num_galaxies) for name in ("psf", "noise", "offset")}
    centre_ND = np.stack([columns["psf"], columns["noise"], columns["psf"] * columns["noise"]], axis=1) - 0.5
    mean_NKD = (1 + rng.normal(size=(num_galaxies, 1, 3))) * centre_ND[:, None] + 0.1 * rng.normal(size=(num_galaxies, 2, 3))
    correlation_DD = np.full((3, 3), CORRELATION) + (1 - CORRELATION) * np.eye(3)
    width_NKD = (0.3 + 0.4 * columns["noise"])[:, None, None] * rng.uniform(0.8, 1.2, size=(num_galaxies, 2, 3))
    tril_NKDD = width_NKD[..., None] * np.linalg.cholesky(correlation_DD)
    mixture = Mixture(torch.from_numpy(mean_NKD), torch.from_numpy(tril_NKDD), schema(*["identity"] * 3))
    return Case(mixture, mixture.standardised_sample(1, rng)[:, 0], columns)


def _scaled(factor: float) -> Callable[[Case], Case]:
    return lambda case: dataclasses.replace(case, mixture=case.mixture.scaled(np.full(3, factor)))


def _shifted(case: Case) -> Case:
    sigma_ND = torch.from_numpy(case.mixture.standardised_std())
    return case.with_mixture(case.mixture.mean_NKD + 0.2 * sigma_ND[:, None], case.mixture.scale_tril_NKDD)


def _wrong_in_a_bin(case: Case) -> Case:
    """Too narrow in a fifth of the galaxies and too wide elsewhere, so that 68 % of all truths are within the 68 % interval."""
    factor_N = np.where((case.columns["psf"] > 0.4) & (case.columns["psf"] < 0.6), 0.6, 1.12)
    return dataclasses.replace(case, mixture=case.mixture.scaled(np.repeat(factor_N[:, None], 3, axis=1)))


def _wrong_correlation(case: Case) -> Case:
    tril_NKDD = case.mixture.scale_tril_NKDD
    return case.with_mixture(case.mixture.mean_NKD, torch.diag_embed(torch.linalg.vector_norm(tril_NKDD, dim=-1)))


WRONG = {
    "too wide": _scaled(1.3),
    "too narrow": _scaled(1 / 1.3),
    "shifted": _shifted,
    "wrong in one bin": _wrong_in_a_bin,
    "wrong correlation": _wrong_correlation,
}


def p_values(case: Case, num_draws: int, seed: int = 0) -> dict[str, float]:
    """Return the p value of every diagnostic."""
    mixture, z_ND, names = case.mixture, case.z_ND, case.mixture.targets.names
    rank_ND = mixture.cdf(mixture.targets.physical(z_ND))
    conditional_ND = rosenblatt(mixture, z_ND)
    columns = case.columns | dict(zip(names, mixture.standardised_mean().T, strict=True))
    term_names, term_NF = terms(columns)
    reference_ND = references(z_ND, term_NF, np.random.default_rng(seed))
    joint = joint_density(mixture, z_ND, seed, num_draws)
    return {
        "crps": float(crps(mixture, z_ND).summary()["p"][0]),
        "energy score": float(energy_score(mixture, z_ND, seed, num_draws).summary()["p"]),
        "log score": float(joint.score.summary()["p"]),
        "rank": uniformity(rank_ND[:, 0]).p,
        "conditional rank": uniformity(conditional_ND[:, -1]).p,
        "joint rank": uniformity(joint.rank_N).p,
        "tarp": uniformity(tarp(mixture, z_ND, reference_ND, seed, num_draws)).p,
        "bins": in_bins(names, rank_ND, bins(columns))["p"],
        "local coverage": local_coverage(names, conditional_ND, rank_ND, term_names, term_NF)["p"],
    }
