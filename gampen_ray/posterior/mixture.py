"""The posterior of many galaxies: for each, an equal-weight mixture of full-covariance Gaussians in standardised target space.

Shape legend: N galaxies, K passes (mixture components), D targets, Q quantile levels, G points.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike
from scipy.special import logit
from torch import Tensor
from torch.nn.functional import softplus

from gampen_ray.model.targets import Target, TargetSchema
from gampen_ray.posterior.modes import mixture_mode
from gampen_ray.posterior.moments import NUM_NODES, Moments, correlation_from_covariance, physical_moments
from gampen_ray.posterior.quantiles import mixture_cdf, mixture_quantile
from gampen_ray.posterior.reweight import Density, Reweighted, reweight
from gampen_ray.posterior.summary import summary_table

# Numbers in a temporary that stays in cache.
_CACHED = 1 << 18


def proper(mean_NKD: Tensor, scale_tril_NKDD: Tensor) -> Tensor:
    """Return for each galaxy whether all its components are finite and positive definite, N."""
    diagonal_NKD = torch.diagonal(scale_tril_NKDD, dim1=-2, dim2=-1)
    finite_N = mean_NKD.isfinite().flatten(1).all(1) & scale_tril_NKDD.isfinite().flatten(1).all(1)
    return finite_N & (diagonal_NKD > 0).flatten(1).all(1)


class Mixture:
    """Posteriors of N galaxies: z ~ (1/K) sum_k N(mean_k, L_k L_k^T) per galaxy, z the standardised targets.

    Immutable. Results are NumPy float64 arrays in physical units with galaxies first, unless a name says ``standardised``.

    Parameters
    ----------
    mean_NKD
        Component means in standardised space; kept on their device as float64.
    scale_tril_NKDD
        Lower Cholesky factors of the component covariances, with positive diagonals.
    targets
        Names, units and transforms of the D targets.

    Raises
    ------
    ValueError
        If shapes disagree, a value is not finite or a diagonal element is not positive.
    """

    def __init__(self, mean_NKD: Tensor, scale_tril_NKDD: Tensor, targets: TargetSchema):
        dims = len(targets)
        if mean_NKD.ndim != 3 or mean_NKD.shape[2] != dims or mean_NKD.shape[1] == 0:
            raise ValueError(f"mean_NKD has shape {tuple(mean_NKD.shape)}; it must be N x K x {dims} with K > 0")
        if scale_tril_NKDD.shape != (*mean_NKD.shape, dims):
            raise ValueError(f"scale_tril_NKDD has shape {tuple(scale_tril_NKDD.shape)}, not {(*mean_NKD.shape, dims)}")
        self.targets = targets
        self.mean_NKD = mean_NKD.detach().to(torch.float64)
        self.scale_tril_NKDD = scale_tril_NKDD.detach().to(torch.float64).tril()
        good = proper(self.mean_NKD, self.scale_tril_NKDD)
        if not bool(good.all()):
            bad = (~good).nonzero()[:, 0]
            raise ValueError(
                f"{len(bad)} of {len(good)} galaxies have a mean or covariance that is not finite or not positive definite, "
                f"the first is number {int(bad[0])}; leave these rows out"
            )

    def __len__(self) -> int:
        return len(self.mean_NKD)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> "Mixture":
        """Return the posteriors of some galaxies; an integer gives a Mixture of one."""
        if isinstance(index, int | np.integer):
            index = [int(index)]
        if isinstance(index, np.ndarray):
            index = torch.from_numpy(index).to(self.mean_NKD.device)  # type: ignore[assignment]
        return self.derived(self.mean_NKD[index], self.scale_tril_NKDD[index])

    def derived(self, mean_NKD: Tensor, scale_tril_NKDD: Tensor, targets: TargetSchema | None = None) -> "Mixture":
        """Return posteriors with components made from these: not checked again, which would take a tenth of a calibration.

        Parameters
        ----------
        mean_NKD, scale_tril_NKDD
            Finite float64, lower triangular with positive diagonals.
        targets
            Left out: those of these posteriors.
        """
        made = Mixture.__new__(Mixture)
        made.mean_NKD, made.scale_tril_NKDD, made.targets = mean_NKD, scale_tril_NKDD, targets or self.targets
        return made

    def shown(self) -> tuple["Mixture", np.ndarray]:
        """Return the posteriors in units that people read, and the factors to these; see `TargetSchema.shown`."""
        targets, factor_D = self.targets.shown()
        return self.derived(self.mean_NKD, self.scale_tril_NKDD, targets), factor_D

    @staticmethod
    def concatenate(mixtures: Sequence["Mixture"]) -> "Mixture":
        """Return the posteriors of all galaxies of one or more mixtures with the same targets and K."""
        if any(mixture.targets != mixtures[0].targets for mixture in mixtures):
            raise ValueError("mixtures to concatenate have different target schemas")
        means, trils = [m.mean_NKD for m in mixtures], [m.scale_tril_NKDD for m in mixtures]
        return mixtures[0].derived(torch.cat(means), torch.cat(trils))

    @property
    def num_passes(self) -> int:
        """Number K of components."""
        return self.mean_NKD.shape[1]

    def scaled(self, factor: np.ndarray) -> "Mixture":
        """Return the posteriors stretched about the mixture mean in standardised space: z' = m + s (z - m) for each target.

        Parameters
        ----------
        factor
            The factors s of the targets, D, or of each galaxy's targets, N x D.
        """
        values = np.asarray(factor, dtype=np.float64)
        if (
            values.shape not in ((len(self.targets),), (len(self), len(self.targets)))
            or not ((values > 0) & (values < np.inf)).all()
        ):
            raise ValueError(
                f"factor has shape {values.shape}; it must hold {len(self.targets)} positive numbers, or as many each"
            )
        s_N1D = torch.as_tensor(values, device=self.mean_NKD.device).expand(len(self), -1)[:, None]
        centre = self.mean_NKD.mean(1, keepdim=True)
        return self.derived(centre + s_N1D * (self.mean_NKD - centre), s_N1D[..., None] * self.scale_tril_NKDD)

    def mean(self) -> np.ndarray:
        """Return posterior means, N x D."""
        return self._moments.mean_ND

    def std(self) -> np.ndarray:
        """Return posterior standard deviations, N x D."""
        return self._moments.std_ND

    def skew(self) -> np.ndarray:
        """Return skewnesses (third standardised central moment), N x D."""
        return self._moments.skew_ND

    def kurtosis(self) -> np.ndarray:
        """Return excess kurtoses (zero for a Gaussian), N x D."""
        return self._moments.kurtosis_ND

    def covariance(self) -> np.ndarray:
        """Return the covariance between targets, N x D x D."""
        return self._moments.covariance_NDD

    def correlation(self) -> np.ndarray:
        """Return Pearson's correlation between targets, N x D x D."""
        return correlation_from_covariance(self._moments.covariance_NDD)

    def aleatoric_std(self) -> np.ndarray:
        """Return the square root of the mean variance of the passes, N x D."""
        return self._moments.aleatoric_std_ND

    def epistemic_std(self) -> np.ndarray:
        """Return the standard deviation of the passes' means, N x D; in quadrature with the aleatoric part it gives `std`."""
        return self._moments.epistemic_std_ND

    @functools.cached_property
    def _moments(self) -> Moments:
        parts = []
        for piece in self._pieces(NUM_NODES):
            covariance = piece.scale_tril_NKDD @ piece.scale_tril_NKDD.mT
            parts.append(physical_moments(piece.mean_NKD, covariance, self.targets))
        return Moments(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})

    def quantile(self, q: float | Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the marginal quantiles, N x D for one level and N x Q x D for several; levels lie in (0, 1)."""
        z_NQD = self.standardised_quantile(np.atleast_1d(q))
        y_NQD = self.targets.physical(z_NQD)
        return y_NQD[:, 0] if np.ndim(q) == 0 else y_NQD

    def credible_interval(self, level: float) -> np.ndarray:
        """Return the ends of the equal-tailed interval of probability ``level``, N x 2 x D."""
        if not 0 < level < 1:
            raise ValueError(f"level is {level:g}; give a probability between 0 and 1, such as 0.68")
        return self.quantile([0.5 * (1 - level), 0.5 * (1 + level)])

    def mode(self) -> np.ndarray:
        """Return the modes of the marginal densities in physical space, N x D."""
        return np.concatenate([piece._mode() for piece in self._pieces(len(self.targets))])

    def cdf(self, y_ND: np.ndarray) -> np.ndarray:
        """Return the marginal probabilities below ``y_ND``, N x D; y is clipped and checked as in training."""
        z_ND = torch.from_numpy(self._standardised(y_ND)).to(self.mean_NKD.device)
        pieces = self._pieces(len(self.targets))
        parts = zip(z_ND.split(len(pieces[0]) or 1), pieces, strict=True)
        return np.concatenate([mixture_cdf(z.reshape(-1, 1), *p._rows()).reshape(z.shape).cpu().numpy() for z, p in parts])

    def probability(self, low_ND: ArrayLike, high_ND: ArrayLike) -> np.ndarray:
        """Return the marginal probabilities between two values, N x D (or one for all); zero outside a transform's domain."""
        try:
            # N x D x 2
            ends = np.stack([np.broadcast_to(end, (len(self), len(self.targets))) for end in (low_ND, high_ND)], axis=-1)
        except ValueError:
            raise ValueError(
                f"low_ND and high_ND have the shapes {np.shape(low_ND)} and {np.shape(high_ND)}; give a number a galaxy and "
                f"target, {(len(self), len(self.targets))}, a number a target, or one"
            ) from None
        if (ends[..., 0] > ends[..., 1]).any():
            raise ValueError("low_ND is above high_ND; give the lower value first")
        z_ND2 = torch.from_numpy(np.stack([_unclipped(t, ends[:, d]) for d, t in enumerate(self.targets)], axis=1))
        pieces = self._pieces(2 * len(self.targets))
        parts = zip(z_ND2.to(self.mean_NKD.device).split(len(pieces[0]) or 1), pieces, strict=True)
        cdf_ND2 = torch.cat([mixture_cdf(z.reshape(-1, 2), *p._rows()).reshape(z.shape) for z, p in parts])
        return (cdf_ND2[..., 1] - cdf_ND2[..., 0]).cpu().numpy()

    def marginal_density(self, d: int, y_G: np.ndarray) -> np.ndarray:
        """Return target number ``d``'s density at ``y_G``, N x G, per physical unit; zero outside the transform's domain."""
        inside, z, log_slope = _standard(self.targets.targets[d], y_G, self.mean_NKD.device)
        density_NG, done = np.zeros((len(self), len(y_G))), 0
        for piece in self._pieces(len(y_G)):
            mean, sigma = piece.mean_NKD[:, :, d, None], piece._sigma_NKD[:, :, d, None]
            # N x K x G
            log_density = -0.5 * ((z - mean) / sigma).square() - torch.log(math.sqrt(2 * math.pi) * sigma)
            total = torch.logsumexp(log_density, 1) - math.log(self.num_passes) + log_slope
            density_NG[done : done + len(piece), inside] = torch.exp(total).cpu().numpy()
            done += len(piece)
        return density_NG

    def joint_density(self, d: int, e: int, y_G: np.ndarray, y_H: np.ndarray) -> np.ndarray:
        """Return the joint density of targets ``d`` and ``e`` at ``y_G`` and ``y_H``, N x G x H; see `marginal_density`."""
        device = self.mean_NKD.device
        inside_G, z_G, slope_G = _standard(self.targets.targets[d], y_G, device)
        inside_H, z_H, slope_H = _standard(self.targets.targets[e], y_H, device)
        density_NGH = np.zeros((len(self), len(y_G), len(y_H)))
        for i, piece in enumerate(self.chunks(1)):
            both = torch.tensor([d, e], device=device)
            tril_K2D = piece.scale_tril_NKDD[0, :, both]
            covariance_K22 = tril_K2D @ tril_K2D.mT
            mean_K2 = piece.mean_NKD[0, :, both]
            variance_K, cross_K = covariance_K22[:, 0, 0, None, None], covariance_K22[:, 0, 1, None, None]
            # The first target, and the second given the first.
            u_KG1 = z_G[None, :, None] - mean_K2[:, 0, None, None]
            left_K = covariance_K22[:, 1, 1, None, None] - cross_K.square() / variance_K
            v_KGH = z_H - mean_K2[:, 1, None, None] - cross_K / variance_K * u_KG1
            log_KGH = -0.5 * (u_KG1.square() / variance_K + v_KGH.square() / left_K + torch.log(variance_K * left_K))
            total_GH = torch.logsumexp(log_KGH, 0) - math.log(2 * math.pi * self.num_passes) + slope_G[:, None] + slope_H
            density_NGH[i][np.ix_(inside_G, inside_H)] = torch.exp(total_GH).cpu().numpy()
        return density_NGH

    def sample(self, n: int, seed: int | np.random.Generator) -> np.ndarray:
        """Return ``n`` joint draws per galaxy, N x n x D."""
        return self.targets.physical(self.standardised_sample(n, seed))

    def log_prob(self, y_ND: np.ndarray) -> np.ndarray:
        """Return the log of the joint density at ``y_ND`` in physical units, N; y is clipped and checked as in training."""
        z_ND = self._standardised(y_ND)
        return self.standardised_log_prob(z_ND[:, None, :])[:, 0] + log_slope(self.targets, z_ND)

    def standardised_quantile(self, q_Q: np.ndarray) -> np.ndarray:
        """Return marginal quantiles in standardised space, N x Q x D."""
        q_Q = np.asarray(q_Q, dtype=np.float64)
        if not ((q_Q > 0) & (q_Q < 1)).all():
            raise ValueError(f"quantile levels are {q_Q.tolist()}; they must lie strictly between 0 and 1")
        p_Q = torch.from_numpy(q_Q).to(self.mean_NKD.device)
        z_RQ = torch.cat([mixture_quantile(p_Q, *piece._rows()) for piece in self._pieces(len(p_Q) * len(self.targets))])
        return z_RQ.reshape(len(self), len(self.targets), len(q_Q)).transpose(1, 2).cpu().numpy()

    def standardised_mean(self) -> np.ndarray:
        """Return the mixture means in standardised space, N x D."""
        return self.mean_NKD.mean(1).cpu().numpy()

    def standardised_std(self) -> np.ndarray:
        """Return the mixture standard deviations in standardised space, N x D, by the law of total variance."""
        return (self._sigma_NKD.square().mean(1) + self.mean_NKD.var(1, correction=0)).sqrt().cpu().numpy()

    def standardised_sample(self, n: int, seed: int | np.random.Generator) -> np.ndarray:
        """Return ``n`` joint draws per galaxy in standardised space, N x n x D."""
        if n < 0:
            raise ValueError(f"n is {n}; give a number of draws")
        generator = np.random.default_rng(seed)
        pass_Nn = torch.from_numpy(generator.integers(self.num_passes, size=(len(self), n)))
        noise = torch.from_numpy(generator.standard_normal((len(self), n, len(self.targets), 1)))
        galaxy = torch.arange(len(self))[:, None]
        mean, tril = self.mean_NKD.cpu()[galaxy, pass_Nn], self.scale_tril_NKDD.cpu()[galaxy, pass_Nn]
        return (mean + (tril @ noise)[..., 0]).numpy()

    def standardised_log_prob(self, z_NGD: np.ndarray, dtype: torch.dtype = torch.float64) -> np.ndarray:
        """Return the log of the joint density in standardised space at G points per galaxy, N x G.

        In float32 it takes 0.6 times as long.
        """
        z = torch.from_numpy(np.ascontiguousarray(z_NGD)).to(self.mean_NKD.device)
        whiten_NKDD, log_norm_NK1 = self._whitening
        # About the galaxy's own mean: a posterior may be narrower than the digits of float32.
        origin_N1D = self.mean_NKD.mean(1, keepdim=True)
        centre_NKD1 = whiten_NKDD @ (self.mean_NKD - origin_N1D)[..., None]
        size = max(1, _CACHED // math.prod((*self.mean_NKD.shape[1:], max(1, z.shape[1]))))
        parts = (part.to(dtype) for part in (centre_NKD1, whiten_NKDD, log_norm_NK1, z - origin_N1D))
        pieces = []
        for centre, whiten, log_norm, points in zip(*(part.split(size) for part in parts), strict=True):
            # N x (K D) x G -> N x K x G
            residual = torch.baddbmm(centre.flatten(1, 2), whiten.flatten(1, 2), points.mT, beta=-1).square_()
            exponent = residual.unflatten(1, centre.shape[1:3]).sum(2).mul_(-0.5).add_(log_norm)
            pieces.append(torch.logsumexp(exponent, 1).double() - math.log(self.num_passes))
        return torch.cat(pieces).cpu().numpy()

    def reweight(
        self, new: Density, training: Density, *, num_draws: int = 1000, seed: int | np.random.Generator = 0
    ) -> Reweighted:
        """Return the posteriors under another prior than that of the training; see `gampen_ray.posterior.reweight`."""
        return reweight(self.sample(num_draws, seed), new, training)

    def to_table(self) -> pa.Table:
        """Return the summary columns of the catalogue as a table; see `gampen_ray.posterior.summary`."""
        return summary_table(self)

    def chunks(self, size: int) -> list["Mixture"]:
        """Return the mixture in pieces of at most ``size`` galaxies; an empty mixture is one piece."""
        return [self[start : start + size] for start in range(0, max(len(self), 1), size)]

    def _pieces(self, numbers: int) -> list["Mixture"]:
        """Return pieces whose temporaries of so many numbers a component stay in cache; they do not change results."""
        return self.chunks(max(1, _CACHED // (self.num_passes * max(1, numbers))))

    def _standardised(self, y_ND: np.ndarray) -> np.ndarray:
        y_ND = np.asarray(y_ND, np.float64)
        if y_ND.shape != (shape := (len(self), len(self.targets))):
            raise ValueError(f"y_ND has the shape {y_ND.shape}, not {shape}: a row a galaxy, {', '.join(self.targets.names)}")
        return self.targets.standardise(y_ND)

    @functools.cached_property
    def _sigma_NKD(self) -> Tensor:
        return torch.linalg.vector_norm(self.scale_tril_NKDD, dim=-1)

    @functools.cached_property
    def _whitening(self) -> tuple[Tensor, Tensor]:
        identity = torch.eye(len(self.targets), dtype=torch.float64, device=self.mean_NKD.device)
        whiten = torch.linalg.solve_triangular(self.scale_tril_NKDD, identity, upper=False)
        log_det = torch.log(torch.diagonal(whiten, dim1=-2, dim2=-1)).sum(-1, keepdim=True)
        return whiten, log_det - 0.5 * len(self.targets) * math.log(2 * math.pi)

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Standardised means and standard deviations as (N D) x K."""
        return tuple(x.transpose(1, 2).reshape(-1, self.num_passes) for x in (self.mean_NKD, self._sigma_NKD))  # type: ignore

    def _mode(self) -> np.ndarray:
        mean_RK, sigma_RK = self._rows()
        scale, location = (
            mean_RK.new_tensor([getattr(target, name) for target in self.targets]).repeat(len(self))[:, None]
            for name in ("scale", "location")
        )
        transforms = [target.transform for target in self.targets] * len(self)
        t_R1 = mixture_mode(transforms, location + scale * mean_RK, scale * sigma_RK)[:, None]
        return self.targets.physical(((t_R1 - location) / scale).reshape(len(self), len(self.targets)).cpu().numpy())


def log_slope(targets: TargetSchema, z_ND: np.ndarray) -> np.ndarray:
    """Return the log of the standardised volume per physical one at standardised values, N."""
    t = [target.location + target.scale * torch.from_numpy(z_ND[:, d]) for d, target in enumerate(targets)]
    return torch.stack([_log_slope(target, t_N) for target, t_N in zip(targets, t, strict=True)], -1).sum(-1).numpy()


def _unclipped(target: Target, y: np.ndarray) -> np.ndarray:
    """Standardise any physical values; those outside the transform's domain become infinite."""
    if target.transform == "log":
        with np.errstate(divide="ignore"):
            y = np.log(np.maximum(y, 0.0))
    elif target.transform == "logit":
        y = logit(np.clip(y, 0.0, 1.0))
    return (y - target.location) / target.scale


def _in_domain(target: Target, y: np.ndarray) -> np.ndarray:
    inside = np.isfinite(y)
    if target.transform != "identity":
        inside &= y > 0
    return inside & (y < 1) if target.transform == "logit" else inside


def _standard(target: Target, values: np.ndarray, device: torch.device) -> tuple[np.ndarray, Tensor, Tensor]:
    """Return which physical values lie in the domain, those standardised, and log |dz/dy| there."""
    y = np.asarray(values, dtype=np.float64)
    inside = _in_domain(target, y)
    t = torch.from_numpy(y[inside]).to(device)
    t = {"identity": torch.clone, "log": torch.log, "logit": torch.logit}[target.transform](t)
    return inside, (t - target.location) / target.scale, _log_slope(target, t)


def _log_slope(target: Target, t: Tensor) -> Tensor:
    """Return log |dz/dy| at transformed value t."""
    slope = torch.full_like(t, -math.log(target.scale))
    if target.transform == "log":
        return slope - t
    return slope + softplus(t) + softplus(-t) if target.transform == "logit" else slope
