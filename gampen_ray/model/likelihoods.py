"""Likelihoods of standardised targets, from raw network outputs: Gaussians, a mixture of them, and those that a user registers.

Shape legend: N galaxies, K passes, D targets, P outputs, Q nodes; ``...`` is any batch shape.
"""

import abc
import math

import numpy as np
import torch

from gampen_ray.plugins import Registry

__all__ = ["LIKELIHOODS", "FullGaussian", "Likelihood", "ScaleMixture", "register_likelihood"]

LIKELIHOODS: Registry[type["Likelihood"]] = Registry("network.likelihood")
"""Classes by the value of ``network.likelihood``."""
register_likelihood = LIKELIHOODS.register
"""Class decorator: ``@register_likelihood("name")``."""
_NODE_Q, _WEIGHT_Q = np.polynomial.hermite_e.hermegauss(21)
"""Gauss-Hermite quadrature over a logarithm of scale."""
_LARGEST_SPREAD = 1.0
"""Largest standard deviation of a logarithm of scale; the kurtosis of a target is then 161."""


class Likelihood(abc.ABC):
    """What the outputs of a network mean.

    A posterior is an equal-weight mixture of one Gaussian a dropout pass (`gampen_ray.posterior.mixture.Mixture`). A likelihood
    with another shape gives the Gaussians of different passes different factors (`ScaleMixture`).

    Parameters
    ----------
    num_targets
        Number of targets D.
    """

    def __init__(self, num_targets: int) -> None:
        self.num_targets = num_targets

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """Number P of network outputs."""

    @abc.abstractmethod
    def loss(
        self, outputs_NP: torch.Tensor, targets_ND: torch.Tensor, *, beta: float = 0.0, mean_only: bool = False
    ) -> torch.Tensor:
        """Return each galaxy's loss (N): the negative log-likelihood up to a constant, or a variant that training asks for.

        Parameters
        ----------
        outputs_NP, targets_ND
            Raw network outputs and standardised targets.
        beta
            Exponent of beta-NLL's weights (Seitzer et al. 2022), 0 to 1; 0: the likelihood itself.
        mean_only
            Half the squared error of the means, all other gradients zero (not None).
        """

    @abc.abstractmethod
    def components(self, outputs_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean (... x K x D) and lower Cholesky factor of the covariance (... x K x D x D) of outputs (... x K x P).

        The equal-weight mixture of the Gaussians of all passes is the posterior.
        """


@register_likelihood("full")
class FullGaussian(Likelihood):
    """A Gaussian of full covariance L diag(exp(d)) L^T (Ghosh et al. 2022, eq. 8).

    Outputs in order: mean (D), log-diagonal d of the LDL^T factor (D), strict lower triangle of unit L, row by row (D(D-1)/2).
    """

    @property
    def num_outputs(self) -> int:
        """(3 D + D^2) / 2."""
        return (3 * self.num_targets + self.num_targets**2) // 2

    def split(self, outputs_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return mean (... x D), log-diagonal (... x D) and unit lower-triangular L (... x D x D) of raw outputs (... x P).

        What is not among the outputs is zero: the triangle, or the log-diagonal too. Outputs beyond these are left out.
        """
        d = self.num_targets
        mean, rest = outputs_P[..., :d], outputs_P[..., d:]
        log_diagonal = rest[..., :d] if rest.shape[-1] else torch.zeros_like(mean)
        lower = torch.eye(d, dtype=outputs_P.dtype, device=outputs_P.device).expand(*outputs_P.shape[:-1], d, d)
        if rest.shape[-1] > d:
            row, column = torch.tril_indices(d, d, offset=-1, device=outputs_P.device)
            lower = lower.clone()
            lower[..., row, column] = rest[..., d : d + len(row)]
        return mean, log_diagonal, lower

    def loss(
        self, outputs_NP: torch.Tensor, targets_ND: torch.Tensor, *, beta: float = 0.0, mean_only: bool = False
    ) -> torch.Tensor:
        """Return 1/2 r^T Sigma^-1 r + 1/2 log det Sigma of each galaxy (N), or a variant of the same minimum.

        With w = L^-1 r (r = target - mean), by triangular solve, the loss is sum_i exp(beta d_i) / 2 (w_i^2 exp(-d_i) + d_i),
        where exp(beta d_i) is a weight through which no gradient flows: beta-NLL (Seitzer et al. 2022, eq. 5) for each whitened
        component. It equals theirs where L = 1. The gradient in the means is -L^-T diag(exp((beta - 1) d)) w: that of the
        likelihood at 0; at 1 it no longer shrinks with the predicted variance, and for a diagonal covariance is that of half
        the squared error. The gradient in d_i, exp(beta d_i) / 2 (1 - w_i^2 exp(-d_i)), and that in L vanish in the mean where
        mean and covariance are the true ones, whatever beta. The weights of a unit variance are 1.
        """
        mean, log_diagonal, lower = self.split(outputs_NP[:, : self.num_targets] if mean_only else outputs_NP)
        residual = (targets_ND - mean).unsqueeze(-1)
        whitened = torch.linalg.solve_triangular(lower, residual, upper=False, unitriangular=True).squeeze(-1)
        weight = torch.exp(beta * log_diagonal.detach())
        return 0.5 * (weight * (whitened.square() * torch.exp(-log_diagonal) + log_diagonal)).sum(-1)

    def components(self, outputs_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and factor, L diag(exp(d / 2))."""
        mean, log_diagonal, lower = self.split(outputs_P)
        return mean, lower * torch.exp(0.5 * log_diagonal).unsqueeze(-2)


@register_likelihood("diagonal")
class DiagonalGaussian(FullGaussian):
    """A Gaussian without correlations: the outputs of `FullGaussian` but for the triangle."""

    @property
    def num_outputs(self) -> int:
        """2 D."""
        return 2 * self.num_targets


@register_likelihood("unit_variance")
class UnitGaussian(FullGaussian):
    """A Gaussian of unit covariance: the means alone."""

    @property
    def num_outputs(self) -> int:
        """D."""
        return self.num_targets


@register_likelihood("scale_mixture")
class ScaleMixture(FullGaussian):
    """Gaussians of one mean and shape and of log-normal scale (Andrews & Mallows 1974): `FullGaussian` with heavier tails.

    A neighbour or a knot spoils few galaxies, each in all targets, and a Gaussian that is wide enough for those is too wide for
    the others. The covariance is s^2 Sigma with ln s normal about 0; the last output gives its standard deviation, which is the
    galaxy's own as Sigma is. Outputs before it are those of `FullGaussian`.
    """

    @property
    def num_outputs(self) -> int:
        """(3 D + D^2) / 2 + 1."""
        return super().num_outputs + 1

    def loss(
        self, outputs_NP: torch.Tensor, targets_ND: torch.Tensor, *, beta: float = 0.0, mean_only: bool = False
    ) -> torch.Tensor:
        """Return the negative logarithm of the mixture, up to a constant, of each galaxy (N); see `FullGaussian.loss`.

        The integral over ln s is a Gauss-Hermite quadrature. With w and d as there, beta is the exponent of the geometric mean
        of the variances exp(d_i), a weight of the galaxy.
        """
        if mean_only:
            return super().loss(outputs_NP, targets_ND, mean_only=True)
        mean, log_diagonal, lower = self.split(outputs_NP)
        residual = (targets_ND - mean).unsqueeze(-1)
        whitened = torch.linalg.solve_triangular(lower, residual, upper=False, unitriangular=True).squeeze(-1)
        squared_N = (whitened.square() * torch.exp(-log_diagonal)).sum(-1)
        log_s_NQ = self._spread(outputs_NP).unsqueeze(-1) * outputs_NP.new_tensor(_NODE_Q)
        log_weight_Q = outputs_NP.new_tensor(np.log(_WEIGHT_Q / math.sqrt(2 * math.pi)))
        log_mixture_N = torch.logsumexp(
            log_weight_Q - self.num_targets * log_s_NQ - 0.5 * squared_N.unsqueeze(-1) * torch.exp(-2 * log_s_NQ), dim=-1
        )
        weight_N = torch.exp(beta * log_diagonal.detach().mean(-1))
        return weight_N * (0.5 * log_diagonal.sum(-1) - log_mixture_N)

    def components(self, outputs_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and factors; the scale of pass k of K is the quantile (k + 1/2) / K."""
        mean, scale_tril = super().components(outputs_P)
        passes = outputs_P.shape[-2]
        share_K = (torch.arange(passes, dtype=outputs_P.dtype, device=outputs_P.device) + 0.5) / passes
        scale_K = torch.exp(self._spread(outputs_P) * torch.special.ndtri(share_K))
        return mean, scale_K[..., None, None] * scale_tril

    def _spread(self, outputs_P: torch.Tensor) -> torch.Tensor:
        # A quarter of the largest at first: a Gaussian's tails from afar.
        return _LARGEST_SPREAD * torch.sigmoid(outputs_P[..., -1] - 1.0)
