"""Noiseless bulge + disk galaxies with exact derivatives, from the Fourier transforms of their profiles.

An independent, fast twin of `gampen_ray.simulation.galaxies.render`: the image of a galaxy is one inverse FFT of

    flux [B/T S_bulge(k) + (1 - B/T) S_disk(k)] M(k) sinc(kx) sinc(ky) exp(-i k x0)

with Sersic profiles S (Sersic 1963), a PSF M of Moffat (1969) profiles, whose light within 20 pixels is one, and a square
pixel. Each profile is a table of its radial transform, read at the wavenumber that its ellipse stretches; so every derivative
is a table or closed form too.

Shape legend: P parameters, H x W pixels, K x L wavenumbers (y, and x without its negative half).
"""

import functools
import typing
from collections.abc import Callable, Mapping

import numpy as np
import scipy.fft
import scipy.special

from gampen_ray.simulation.surveys import PSF_BETA

__all__ = ["PARAMETERS", "image_and_derivatives", "parameters"]

PARAMETERS: tuple[str, ...] = (
    "ln_flux",
    "bulge_to_total",
    "ln_bulge_radius",
    "ln_disk_radius",
    "bulge_sersic_index",
    "disk_sersic_index",
    "bulge_axis_ratio",
    "disk_axis_ratio",
    "bulge_position_angle",
    "disk_position_angle",
    "x_offset",
    "y_offset",
    "psf_fwhm",
    "psf_beta",
    "psf_e1",
    "psf_e2",
    "psf_wing_fraction",
    "psf_wing_fwhm",
    "sky",
)
"""What an image depends on: natural logarithms of flux (flux units) and radii (arcsec), angles in radians, offsets and PSF
width in arcsec, ellipticity (1 - q) / (1 + q) of the PSF along x and along the diagonal, share and width of its aureole, and a
constant sky level (flux per pixel)."""
WING_BETA = 2.0
"""Moffat index of the aureole."""
UNIT_PIXELS = 20.0
"""Radius within which the light of the PSF is one, pixels."""

_DEFAULTS = {
    "bulge_sersic_index": 4.0,
    "disk_sersic_index": 1.0,
    "psf_beta": PSF_BETA,
    "psf_e1": 0.0,
    "psf_e2": 0.0,
    "psf_wing_fraction": 0.0,
}
_LN_U = np.arange(-9.0, 9.0, 0.005)  # of wavenumber times radius; linear interpolation is exact to 1e-5
_LN_R, _STEP = np.linspace(-20, 20, 4096, retstep=True)
_SHAPE_STEP = 0.01  # of Sersic and Moffat indices, for their central differences


def parameters(columns: Mapping[str, np.ndarray], pixel_scale_arcsec: float) -> np.ndarray:
    """Return the parameters (N x P) of simulated galaxies, in the order of `PARAMETERS`.

    Parameters
    ----------
    columns
        Of `gampen_ray.simulation.galaxies.simulate`. Where there is no column of the name, Sersic indices are 4 and 1, and the
        PSF is round, of index `gampen_ray.simulation.surveys.PSF_BETA`, without an aureole. The sky level is zero.
    pixel_scale_arcsec
        Side of a pixel.
    """
    flux_N = np.asarray(columns["flux"], dtype=np.float64)
    values = {name: columns.get(name, np.full_like(flux_N, value)) for name, value in _DEFAULTS.items()}
    values |= {name: columns[name] for name in ("bulge_to_total", "bulge_axis_ratio", "disk_axis_ratio")}
    values |= {
        "ln_flux": np.log(flux_N),
        "ln_bulge_radius": np.log(columns["bulge_radius_arcsec"]),
        "ln_disk_radius": np.log(columns["disk_radius_arcsec"]),
        "bulge_position_angle": np.radians(columns["bulge_position_angle_deg"]),
        "disk_position_angle": np.radians(columns["disk_position_angle_deg"]),
        "x_offset": pixel_scale_arcsec * np.asarray(columns["x_offset_pixel"]),
        "y_offset": pixel_scale_arcsec * np.asarray(columns["y_offset_pixel"]),
        "psf_fwhm": columns["psf_core_fwhm_arcsec" if "psf_core_fwhm_arcsec" in columns else "psf_fwhm_arcsec"],
        "psf_wing_fwhm": columns.get("psf_wing_fwhm_arcsec", np.ones_like(flux_N)),
        "sky": np.zeros_like(flux_N),
    }
    return np.stack([np.asarray(values[name], dtype=np.float64) for name in PARAMETERS], axis=1)


def image_and_derivatives(theta_P: np.ndarray, pixel_scale_arcsec: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the noiseless image (H x W, flux per pixel) of one galaxy and its derivatives (P x H x W).

    The FFT is twice as wide as the cutout, so that light beyond half a side of the cutout's edge returns on the other side.

    Parameters
    ----------
    theta_P
        In the order of `PARAMETERS`.
    pixel_scale_arcsec
        Side of a pixel.
    size
        Side of the cutout in pixels.
    """
    at = dict(zip(PARAMETERS, theta_P, strict=True))
    num = typing.cast(int, scipy.fft.next_fast_len(2 * size, real=True))
    kx_L = 2 * np.pi * scipy.fft.rfftfreq(num, pixel_scale_arcsec)
    ky_K1 = 2 * np.pi * scipy.fft.fftfreq(num, pixel_scale_arcsec)[:, None]
    k_KL = np.broadcast_to(kx_L, (num, len(kx_L))), np.broadcast_to(ky_K1, (num, len(kx_L)))

    psf_KL, psf_slopes = _psf(k_KL, at, UNIT_PIXELS * pixel_scale_arcsec)
    centre_arcsec = (size - 1) / 2 * pixel_scale_arcsec
    phase_KL = np.exp(-1j * ky_K1 * (centre_arcsec + at["y_offset"])) * np.exp(-1j * kx_L * (centre_arcsec + at["x_offset"]))
    pixel_KL = np.sinc(kx_L * pixel_scale_arcsec / 2 / np.pi) * np.sinc(ky_K1 * pixel_scale_arcsec / 2 / np.pi)
    beam_KL = np.exp(at["ln_flux"]) * pixel_KL * phase_KL
    bulge_KL, bulge_slopes = _sersic(k_KL, at, "bulge")
    disk_KL, disk_slopes = _sersic(k_KL, at, "disk")
    ratio = at["bulge_to_total"]
    light_KL = ratio * bulge_KL + (1 - ratio) * disk_KL
    whole_KL = light_KL * psf_KL * beam_KL
    through_KL = psf_KL * beam_KL

    derivatives: dict[str, np.ndarray] = {"ln_flux": whole_KL, "bulge_to_total": (bulge_KL - disk_KL) * through_KL}
    derivatives |= {name: ratio * slope * through_KL for name, slope in bulge_slopes.items()}
    derivatives |= {name: (1 - ratio) * slope * through_KL for name, slope in disk_slopes.items()}
    derivatives |= {"x_offset": -1j * kx_L * whole_KL, "y_offset": -1j * ky_K1 * whole_KL}
    derivatives |= {name: light_KL * slope * beam_KL for name, slope in psf_slopes.items()}
    spectra_PKL = np.stack([derivatives[name] for name in PARAMETERS[:-1]])
    jacobian_PHW = np.asarray(scipy.fft.irfft2(spectra_PKL, s=(num, num)))[:, :size, :size]
    jacobian_PHW = np.concatenate([jacobian_PHW, np.ones((1, size, size))])
    return jacobian_PHW[0] + at["sky"], jacobian_PHW


# --- elliptical profiles -------------------------------------------------------------------------------------------------


def _sersic(
    k_KL: tuple[np.ndarray, np.ndarray], at: Mapping[str, float], part: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the transform of a component of unit flux, and its derivatives by parameter."""
    q, angle = at[f"{part}_axis_ratio"], at[f"{part}_position_angle"]
    along_KL = k_KL[0] * np.cos(angle) + k_KL[1] * np.sin(angle)
    across_KL = k_KL[1] * np.cos(angle) - k_KL[0] * np.sin(angle)
    # The ellipse's semi-axes are r / sqrt(q) and r sqrt(q).
    square_KL = _without_zero(along_KL**2 / q + across_KL**2 * q)
    value_KL, slope_KL, shape_KL = _read(
        _sersic_table(at[f"{part}_sersic_index"]), at[f"ln_{part}_radius"] + 0.5 * np.log(square_KL)
    )
    return value_KL, {
        f"ln_{part}_radius": slope_KL,
        f"{part}_sersic_index": shape_KL,
        f"{part}_axis_ratio": slope_KL * (across_KL**2 - along_KL**2 / q**2) / square_KL / 2,
        f"{part}_position_angle": slope_KL * along_KL * across_KL * (1 / q - q) / square_KL,
    }


def _psf(
    k_KL: tuple[np.ndarray, np.ndarray], at: Mapping[str, float], unit_arcsec: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the transform of the PSF, whose light within a radius is one, and its derivatives by parameter."""
    whole_KL, slopes = _moffat(k_KL, at)
    share = at["psf_wing_fraction"]
    core, core_by_fwhm, core_by_beta = _light_within(unit_arcsec, at["psf_fwhm"], at["psf_beta"])
    wing, wing_by_fwhm, _ = _light_within(unit_arcsec, at["psf_wing_fwhm"], WING_BETA)
    light = (1 - share) * core + share * wing
    light_slopes = {
        "psf_fwhm": (1 - share) * core_by_fwhm,
        "psf_beta": (1 - share) * core_by_beta,
        "psf_wing_fraction": wing - core,
        "psf_wing_fwhm": share * wing_by_fwhm,
    }
    return whole_KL / light, {
        name: slope_KL / light - light_slopes.get(name, 0.0) / light**2 * whole_KL for name, slope_KL in slopes.items()
    }


def _light_within(radius: float, fwhm: float, beta: float) -> tuple[float, float, float]:
    """Return the share of a Moffat profile's light within a radius, and its derivatives by width and index."""

    def beyond(index: float) -> float:
        return (1 + 4 * (2 ** (1 / index) - 1) * (radius / fwhm) ** 2) ** (1 - index)

    square = 4 * (2 ** (1 / beta) - 1) * (radius / fwhm) ** 2
    by_fwhm = 2 * (1 - beta) * square * (1 + square) ** -beta / fwhm
    by_beta = (beyond(beta - _SHAPE_STEP) - beyond(beta + _SHAPE_STEP)) / (2 * _SHAPE_STEP)
    return 1 - beyond(beta), by_fwhm, by_beta


def _moffat(k_KL: tuple[np.ndarray, np.ndarray], at: Mapping[str, float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the transform of the PSF, a Moffat profile with an aureole, and its derivatives by parameter."""
    e1, e2 = at["psf_e1"], at["psf_e2"]
    round_KL, plus_KL, cross_KL = k_KL[0] ** 2 + k_KL[1] ** 2, k_KL[0] ** 2 - k_KL[1] ** 2, 2 * k_KL[0] * k_KL[1]
    area = 1 - e1**2 - e2**2
    # A shear that keeps the area stretches k by a symmetric matrix (Bernstein & Jarvis 2002, AJ 123, 583).
    square_KL = _without_zero((1 + e1**2 + e2**2) * round_KL + 2 * e1 * plus_KL + 2 * e2 * cross_KL)
    ln_k_KL = 0.5 * np.log(square_KL / area)
    share = at["psf_wing_fraction"]
    value_KL, slope_KL, shape_KL = _read(_moffat_table(at["psf_beta"]), np.log(at["psf_fwhm"]) + ln_k_KL)
    wing_KL, wing_slope_KL, _ = _read(_moffat_table(WING_BETA), np.log(at["psf_wing_fwhm"]) + ln_k_KL)
    both_KL = (1 - share) * slope_KL + share * wing_slope_KL
    return (1 - share) * value_KL + share * wing_KL, {
        "psf_fwhm": (1 - share) * slope_KL / at["psf_fwhm"],
        "psf_beta": (1 - share) * shape_KL,
        "psf_e1": both_KL * ((e1 * round_KL + plus_KL) / square_KL + e1 / area),
        "psf_e2": both_KL * ((e2 * round_KL + cross_KL) / square_KL + e2 / area),
        "psf_wing_fraction": wing_KL - value_KL,
        "psf_wing_fwhm": share * wing_slope_KL / at["psf_wing_fwhm"],
    }


def _without_zero(square_KL: np.ndarray) -> np.ndarray:
    """Return squared wavenumbers whose first, which is zero, is one that no profile resolves."""
    square_KL[0, 0] = 1e-12
    return square_KL


# --- tables of radial transforms -----------------------------------------------------------------------------------------


def _read(table_3U: np.ndarray, ln_u_KL: np.ndarray) -> tuple[np.ndarray, ...]:
    position_KL = np.clip((ln_u_KL - _LN_U[0]) / (_LN_U[1] - _LN_U[0]), 0, len(_LN_U) - 1.001)
    low_KL = position_KL.astype(np.intp)
    part_KL = position_KL - low_KL
    return tuple(row_U[low_KL] + part_KL * (row_U[low_KL + 1] - row_U[low_KL]) for row_U in table_3U)


def _table(transform_U: Callable[[float], np.ndarray], shape: float) -> np.ndarray:
    value_U = transform_U(shape)
    slope_U = np.gradient(value_U, _LN_U)
    slope_U[0] = 0.0
    shape_U = (transform_U(shape + _SHAPE_STEP) - transform_U(shape - _SHAPE_STEP)) / (2 * _SHAPE_STEP)
    return np.stack([value_U, slope_U, shape_U])


@functools.lru_cache(maxsize=64)
def _sersic_table(index: float) -> np.ndarray:
    """Return transform, slope by ln(u), derivative by index (3 x U) of a Sersic profile of unit half-light radius and flux."""
    return _table(_sersic_transform, index)


@functools.lru_cache(maxsize=64)
def _moffat_table(beta: float) -> np.ndarray:
    """Return the same of a Moffat profile of unit full width at half maximum."""
    return _table(_moffat_transform, beta)


def _sersic_transform(index: float) -> np.ndarray:
    """Return the Hankel transform, by FFTLog (Hamilton 2000, MNRAS 312, 257), at `_LN_U`."""
    b = scipy.special.gammaincinv(2 * index, 0.5)
    radius = np.exp(_LN_R)
    total = 2 * np.pi * index * b ** (-2 * index) * scipy.special.gamma(2 * index)
    offset = scipy.fft.fhtoffset(_STEP, mu=0)
    transform = scipy.fft.fht(radius * np.exp(-b * radius ** (1 / index)), _STEP, mu=0, offset=offset)
    ln_k = offset + _LN_R  # the radii are centred on one
    return np.interp(_LN_U, ln_k, 2 * np.pi / total * transform / np.exp(ln_k))


def _moffat_transform(beta: float) -> np.ndarray:
    """Return the transform in closed form: (u/2)^nu K_nu(u), u = k r_d, nu = beta - 1, at `_LN_U`."""
    u = np.exp(_LN_U) / (2 * np.sqrt(2 ** (1 / beta) - 1))
    return 2 / scipy.special.gamma(beta - 1) * (u / 2) ** (beta - 1) * scipy.special.kv(beta - 1, u)
