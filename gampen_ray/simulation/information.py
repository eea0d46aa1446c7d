"""How well the pixels of a simulated galaxy can know its parameters: the Bayesian Cramer-Rao bound.

For a galaxy with parameters theta, noiseless image m and noise variance v per pixel, the posterior covariance of any estimator
is, on average over galaxies, at least the inverse of

    sum over pixels of dm/dtheta dm/dtheta^T / v + (prior covariance)^-1

(van Trees 1968, Detection, Estimation and Modulation Theory I, sec. 2.4; Gill & Levit 1995, Bernoulli 1, 59). Here each galaxy
has its own Fisher matrix, at its true parameters, and the prior is a Gaussian of the population's covariance: the posterior
width of a perfect Gaussian (Laplace) approximation. What it means, and does not:

* *Median over many galaxies.* A single posterior may be narrower: where B/T is near 0 or 1, where an axis ratio is near 1, or
  where a uniform prior ends, the edge cuts off a part of the Gaussian, and the bound does not include that. There, and where a
  galaxy is so faint that its likelihood is no Gaussian, the bound is a scale and not a limit. Hence medians in bins.
* *Gaussian noise.* The variance of a pixel is sky_noise^2 + m / electrons_per_flux. Noise is white, or, with a column
  ``noise_correlation``, correlated between adjacent pixels as `fisher_matrix` says. Masked pixels count as good ones.
* *The galaxy alone.* Neighbours count as known: neither their blending nor their photons are in it, nor is a gradient of the
  sky. What the photon noise's own strength would add is left out.

Shape legend: N galaxies, P parameters, V parameters that vary, D targets, H x W pixels.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
import scipy.special

from gampen_ray.simulation.profiles import PARAMETERS, image_and_derivatives, parameters
from gampen_ray.simulation.psf import MoffatPsf, PsfSizes
from gampen_ray.simulation.surveys import Survey

__all__ = ["LIMIT_TARGETS", "PSF_PARAMETERS", "Limit", "fisher_matrix", "psf_at", "psf_size_derivatives"]

LIMIT_TARGETS = ("bulge_to_total", "ln_effective_radius", "ln_flux")
"""What the bound is given for."""
PSF_PARAMETERS = tuple(name for name in PARAMETERS if name.startswith("psf"))
_BULGE, _DISK, _RATIO = PARAMETERS.index("ln_bulge_radius"), PARAMETERS.index("ln_disk_radius"), 1
_INDEX_STEP = 0.01
_TOLD_SIGMA = 1e-4
"""Of the logarithm of what an estimator is told exactly."""


def fisher_matrix(
    theta_P: np.ndarray,
    *,
    sky_noise: float,
    electrons_per_flux: float,
    pixel_scale_arcsec: float,
    size: int,
    noise_correlation: float = 0.0,
) -> np.ndarray:
    """Return the Fisher information (P x P) of the image of one galaxy on `PARAMETERS`.

    Parameters
    ----------
    theta_P
        In the order of `PARAMETERS`.
    sky_noise
        Standard deviation of the sky noise per pixel, flux units.
    electrons_per_flux
        Sets the photon noise of the source.
    pixel_scale_arcsec
        Side of a pixel.
    size
        Side of the cutout in pixels.
    noise_correlation
        Correlation rho of the noise of adjacent pixels, below 0.5: over its standard deviation, the noise is stationary, of
        power spectrum (1 + 2 rho cos kx) (1 + 2 rho cos ky), and periodic.
    """
    image_HW, derivative_PHW = image_and_derivatives(theta_P, pixel_scale_arcsec, size)
    variance_HW = sky_noise**2 + np.maximum(image_HW - theta_P[-1], 0) / electrons_per_flux
    white_PHW = derivative_PHW / np.sqrt(variance_HW)
    if noise_correlation:
        power_H = 1 + 2 * noise_correlation * np.cos(2 * np.pi * np.fft.fftfreq(size))
        power_HL = power_H[:, None] * power_H[: size // 2 + 1]
        white_PHW = np.fft.irfft2(np.fft.rfft2(white_PHW) / np.sqrt(power_HL), s=(size, size))
    white_PX = white_PHW.reshape(len(PARAMETERS), -1)
    return white_PX @ white_PX.T


def psf_at(theta_P: np.ndarray) -> MoffatPsf:
    """Return the PSF of a galaxy's parameters."""
    at = dict(zip(PARAMETERS, theta_P.tolist(), strict=True))
    return MoffatPsf(
        fwhm_arcsec=at["psf_fwhm"],
        beta=at["psf_beta"],
        e1=at["psf_e1"],
        e2=at["psf_e2"],
        wing_fraction=at["psf_wing_fraction"],
        wing_fwhm_arcsec=at["psf_wing_fwhm"],
    )


def psf_size_derivatives(theta_NP: np.ndarray, pixel_scale_arcsec: float) -> np.ndarray:
    """Return the derivatives (N x S x P) of the logarithms of a PSF's `PsfSizes`, in their order, by `PARAMETERS`."""
    # Small beside each parameter and large beside the rounding of sizes; a share may be zero.
    steps = {"psf_fwhm": 0.01, "psf_beta": 0.02, "psf_wing_fraction": 0.01, "psf_wing_fwhm": 0.02}
    result_NSP = np.zeros((len(theta_NP), len(dataclasses.fields(PsfSizes)), len(PARAMETERS)))
    for theta_P, result_SP in zip(theta_NP, result_NSP, strict=True):
        for name, step in steps.items():
            place = PARAMETERS.index(name)
            step_P = np.zeros_like(theta_P)
            step_P[place] = step if name == "psf_wing_fraction" else step * theta_P[place]
            high, low = (psf_at(end_P).sizes(pixel_scale_arcsec) for end_P in (theta_P + step_P, theta_P - step_P))
            log_S = np.log(dataclasses.astuple(high)) - np.log(dataclasses.astuple(low))
            result_SP[:, place] = log_S / (2 * step_P[place])
    return result_NSP


@dataclasses.dataclass(frozen=True)
class Limit:
    """The bound for galaxies of one population, whose spread is the prior.

    The prior is the covariance of the sample that `of` is given, in the coordinates in which priors are drawn: logarithms of
    flux and effective radius, B/T, logarithm of the bulge's over the disk's radius, the angle between both, and the rest as it
    is. A parameter that does not vary in the sample is known.

    Parameters
    ----------
    theta_NP
        Parameters of the galaxies, in the order of `PARAMETERS`.
    jacobian_NPP
        Derivatives of the prior's coordinates, which have the effective radius in place of the disk's, by these parameters.
    fisher_NPP
        Information of the images.
    prior_variance_PP
        In the prior's coordinates.
    sky_noise_N
        Standard deviation of the sky noise per pixel, flux units.
    """

    theta_NP: np.ndarray
    jacobian_NPP: np.ndarray
    fisher_NPP: np.ndarray
    prior_variance_PP: np.ndarray
    sky_noise_N: np.ndarray

    @classmethod
    def of(
        cls,
        columns: Mapping[str, np.ndarray],
        survey: Survey,
        size: int,
        *,
        population: Mapping[str, np.ndarray] | None = None,
    ) -> "Limit":
        """Return the bound for simulated galaxies.

        Parameters
        ----------
        columns
            Of `gampen_ray.simulation.galaxies.simulate`; images are not used.
        survey
            Pixel scale and photon noise.
        size
            Side of the cutouts in pixels.
        population
            Galaxies whose spread is the prior, hundreds or more; None: ``columns``.
        """
        scale = survey.pixel_scale_arcsec
        theta_NP = parameters(columns, scale)
        sample = columns if population is None else population
        correlation_N = columns.get("noise_correlation", np.zeros(len(theta_NP)))
        fisher = [
            fisher_matrix(
                theta_P,
                sky_noise=float(sky),
                electrons_per_flux=survey.electrons_per_flux,
                pixel_scale_arcsec=scale,
                size=size,
                noise_correlation=float(correlation),
            )
            for theta_P, sky, correlation in zip(theta_NP, columns["sky_noise"], correlation_N, strict=True)
        ]
        return cls(
            theta_NP=theta_NP,
            jacobian_NPP=_prior_jacobian(theta_NP, np.asarray(columns["effective_radius_arcsec"])),
            fisher_NPP=np.stack(fisher),
            prior_variance_PP=_prior_variance(parameters(sample, scale), np.asarray(sample["effective_radius_arcsec"])),
            sky_noise_N=np.asarray(columns["sky_noise"]),
        )

    def std(self, *, known: Collection[str] = (), told_NSP: np.ndarray | None = None, sky_sigma: float = 0.0) -> np.ndarray:
        """Return the smallest posterior standard deviations (N x D) of `LIMIT_TARGETS`.

        Parameters
        ----------
        known
            Of `PARAMETERS`: those that the estimator is told, such as `PSF_PARAMETERS`.
        told_NSP
            Derivatives of logarithms of what else it is told, such as `psf_size_derivatives`; left out: nothing.
        sky_sigma
            Prior standard deviation of a constant sky level, in units of a pixel's sky noise; 0: the sky is known.
        """
        varies = np.diag(self.prior_variance_PP) > 0
        free = varies & ~np.isin(PARAMETERS, list(known))
        free[-1] = sky_sigma > 0
        # The inverse comes before the choice of what is free: who knows the PSF has the prior for that PSF.
        precision_PP = np.zeros_like(self.prior_variance_PP)
        precision_PP[np.ix_(varies, varies)] = np.linalg.inv(self.prior_variance_PP[np.ix_(varies, varies)])
        precision_NPP = np.swapaxes(self.jacobian_NPP, 1, 2) @ precision_PP @ self.jacobian_NPP + self.fisher_NPP
        if told_NSP is not None:
            precision_NPP = precision_NPP + np.swapaxes(told_NSP, 1, 2) @ told_NSP / _TOLD_SIGMA**2
        if sky_sigma > 0:
            precision_NPP[:, -1, -1] += (sky_sigma * self.sky_noise_N) ** -2.0
        precision_NVV = precision_NPP[:, free][:, :, free]
        # Logarithms, ratios and radians differ by orders of magnitude in information: scale to a unit diagonal first.
        scale_NV = np.sqrt(np.diagonal(precision_NVV, axis1=1, axis2=2))
        covariance_NVV = np.linalg.inv(precision_NVV / scale_NV[:, :, None] / scale_NV[:, None, :])
        covariance_NVV /= scale_NV[:, :, None] * scale_NV[:, None, :]
        # The prior's coordinates hold the targets: B/T, effective radius in place of the disk's, flux.
        rows_ND = self.jacobian_NPP[:, [_RATIO, _DISK, 0]][:, :, free]
        return np.sqrt(np.einsum("ndv,nvw,ndw->nd", rows_ND, covariance_NVV, rows_ND))


# --- the prior's coordinates ---------------------------------------------------------------------------------------------


def _prior_variance(theta_NP: np.ndarray, effective_radius_N: np.ndarray) -> np.ndarray:
    """Return the covariance (P x P) of a sample in the prior's coordinates; zero in rows of what does not vary."""
    value_NP = theta_NP.copy()
    value_NP[:, _BULGE] -= theta_NP[:, _DISK]
    value_NP[:, _DISK] = np.log(effective_radius_N)
    bulge, disk = PARAMETERS.index("bulge_position_angle"), PARAMETERS.index("disk_position_angle")
    value_NP[:, bulge] = (theta_NP[:, bulge] - theta_NP[:, disk] + np.pi / 2) % np.pi - np.pi / 2
    variance_PP = np.cov(value_NP, rowvar=False)
    fixed = np.ptp(value_NP, axis=0) < 1e-12
    variance_PP[fixed] = variance_PP[:, fixed] = 0.0
    return variance_PP


def _prior_jacobian(theta_NP: np.ndarray, effective_radius_N: np.ndarray) -> np.ndarray:
    """Return the derivatives (N x P x P) of the prior's coordinates by `PARAMETERS`.

    The effective radius is where the components' curves of growth sum to a half
    (`gampen_ray.simulation.galaxies.Galaxy.light_radius`); its derivatives follow from that by implicit differentiation.
    """
    at = dict(zip(PARAMETERS, theta_NP.T, strict=True))
    jacobian_NPP = np.tile(np.eye(len(PARAMETERS)), (len(theta_NP), 1, 1))
    jacobian_NPP[:, _BULGE, _DISK] = -1.0
    jacobian_NPP[:, PARAMETERS.index("bulge_position_angle"), PARAMETERS.index("disk_position_angle")] = -1.0
    ln_radius_N = np.log(effective_radius_N)
    weight, growth, slope, by_index = {"bulge": at["bulge_to_total"], "disk": 1 - at["bulge_to_total"]}, {}, {}, {}
    for part in weight:
        x_N, index_N = np.exp(ln_radius_N - at[f"ln_{part}_radius"]), at[f"{part}_sersic_index"]
        growth[part], slope[part] = _growth(x_N, index_N)
        step = [_growth(x_N, index_N + sign * _INDEX_STEP)[0] for sign in (1, -1)]
        by_index[part] = (step[0] - step[1]) / (2 * _INDEX_STEP)
    total_N = sum(weight[part] * slope[part] for part in weight)
    jacobian_NPP[:, _DISK] = 0.0
    jacobian_NPP[:, _DISK, _RATIO] = -(growth["bulge"] - growth["disk"]) / total_N
    for part in weight:
        jacobian_NPP[:, _DISK, PARAMETERS.index(f"ln_{part}_radius")] = weight[part] * slope[part] / total_N
        jacobian_NPP[:, _DISK, PARAMETERS.index(f"{part}_sersic_index")] = -weight[part] * by_index[part] / total_N
    return jacobian_NPP


def _growth(x_N: np.ndarray, index_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of a Sersic profile's flux within x half-light radii, and its derivative by ln(x)."""
    t_N = scipy.special.gammaincinv(2 * index_N, 0.5) * x_N ** (1 / index_N)
    slope_N = np.exp(2 * index_N * np.log(t_N) - t_N - scipy.special.gammaln(2 * index_N)) / index_N
    return scipy.special.gammainc(2 * index_N, t_N), slope_N
