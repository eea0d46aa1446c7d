"""Least-squares fits of a galaxy's pixels, independent of any network."""

import dataclasses
import math
import typing
from typing import Any

import numpy as np
from real_cutouts import Cutout
from scipy import optimize

from gampen_ray.simulation.galaxies import Galaxy
from gampen_ray.simulation.render import render

TARGETS: tuple[str, ...] = ("flux", "effective_radius_arcsec", "bulge_to_total")
_MAX_CALLS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A least-squares fit: values and standard errors of `TARGETS`; a single Sersic profile has no B/T."""

    model: str
    chi2_per_pixel: float
    value: dict[str, float | None]
    error: dict[str, float | None]


def fitted(cutout: Cutout, *, single: bool) -> Fit:
    """Return a least-squares fit: bulge and disk, or if wanted and better a single Sersic profile."""
    fits_ = [fit_model(cutout, start, single=False) for start in (0.2, 0.7)]
    if single:
        fits_ += [fit_model(cutout, 0.0, single=True)]
    return min(fits_, key=lambda fit: fit.chi2_per_pixel)


def fit_model(cutout: Cutout, start: float, *, single: bool) -> Fit:
    """Fit ln flux, sky, centre and the shapes, by least squares from a share of the bulge.

    The derivatives at the minimum give the errors; those of B/T and radius follow by propagation.
    """
    image, scale = cutout.image, cutout.pixel_scale_arcsec
    size = max(image.shape)
    height, width = image.shape
    used = np.isfinite(cutout.sigma)
    top, left = (size - height) // 2, (size - width) // 2
    # The renderer's centre is that of its square.
    y0, x0 = (size - 1) / 2 - top - (height - 1) / 2, (size - 1) / 2 - left - (width - 1) / 2
    border = np.concatenate([image[:3][used[:3]], image[-3:][used[-3:]]])
    sky = float(np.median(border)) if border.size else 0.0
    light = np.where(used, image - sky, 0.0)
    centre = light[height // 2 - 12 : height // 2 + 13, width // 2 - 12 : width // 2 + 13]
    flux = max(float(light.sum()), float(centre.sum()), float(cutout.sigma[used].min()))

    def galaxy(p: np.ndarray) -> Galaxy:
        # Ellipticities of the disk by two components, so that a round one has no angle.
        shear = min(math.hypot(p[4], p[5]), 0.8)
        q, angle = (1 - shear) / (1 + shear), math.degrees(math.atan2(p[5], p[4])) / 2
        return Galaxy(
            flux=math.exp(p[0]),
            bulge_to_total=0.0 if single else float(np.clip(p[6], 0, 1)),
            bulge_radius_arcsec=math.exp(p[1] if single else p[7]),
            disk_radius_arcsec=math.exp(p[1]),
            bulge_axis_ratio=q if single else float(p[8]),
            disk_axis_ratio=q,
            bulge_position_angle_deg=angle,
            disk_position_angle_deg=angle,
            x_offset_arcsec=p[2] - x0 * scale,
            y_offset_arcsec=p[3] - y0 * scale,
            # In steps, as each index has a table of its transform.
            disk_sersic_index=round(float(p[6]), 2) if single else 1.0,
        )

    def residual(p: np.ndarray) -> np.ndarray:
        model = render([galaxy(p)], psf=cutout.psf, pixel_scale_arcsec=scale, size=size)
        model = model[top : top + height, left : left + width] + p[-1] * sky_unit
        return ((model - image) / cutout.sigma)[used]

    sky_unit = float(np.median(cutout.sigma[used]))
    radius = math.log(1.5)
    begin = [math.log(flux), radius, 0.0, 0.0, 0.0, 0.0]
    low, high = [begin[0] - 3, math.log(0.03), -1.5, -1.5, -0.7, -0.7], [begin[0] + 3, math.log(20), 1.5, 1.5, 0.7, 0.7]
    if single:
        begin, low, high = [*begin, 1.5], [*low, 0.5], [*high, 6.0]
    else:
        begin, low, high = (
            [*begin, start, radius - 1, 0.8],
            [*low, 0.0, math.log(0.03), 0.3],
            [*high, 1.0, math.log(10), 1.0],
        )
    # A step that moves the index to another table.
    step = np.full(len(begin) + 1, 1e-4)
    step[6] = 0.02 if single else 1e-3
    found: Any = optimize.least_squares(
        residual,
        [*begin, sky / sky_unit],
        bounds=([*low, -5], [*high, 5]),
        x_scale=np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, *([0.5] if single else [0.1, 0.3, 0.2]), 0.1]),
        jac=typing.cast(Any, lambda p: jacobian(residual, p, step, np.array([*high, 5]))),
        max_nfev=_MAX_CALLS,
    )
    # What changes nothing, as the radius of a bulge without light, has no error.
    covariance = np.linalg.pinv(found.jac.T @ found.jac)

    def numbers(p: np.ndarray) -> np.ndarray:
        one = galaxy(p)
        return np.array([one.flux, one.effective_radius_arcsec, one.bulge_to_total][: 2 if single else 3])

    value = numbers(found.x)
    slope = jacobian(numbers, found.x, step, np.array([*high, 5]))
    error = np.sqrt(np.einsum("dp,pq,dq->d", slope, covariance, slope))
    return Fit(
        model="sersic" if single else "bulge + disk",
        chi2_per_pixel=2 * float(found.cost) / int(used.sum()),
        value=dict.fromkeys(TARGETS) | dict(zip(TARGETS, value.tolist(), strict=False)),
        error=dict.fromkeys(TARGETS) | dict(zip(TARGETS, error.tolist(), strict=False)),
    )


def jacobian(function: Any, p: np.ndarray, step: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return derivatives by one-sided differences, with a fixed step for each parameter, that stay below the bounds."""
    here = function(p)
    columns = []
    for i, h in enumerate(np.where(p + step < high, step, -step)):
        moved = p.copy()
        moved[i] += h
        columns.append((function(moved) - here) / h)
    return np.stack(columns, axis=1)
