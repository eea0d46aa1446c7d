"""What arithmetic knows of a cutout: the galaxy's light in Gaussian windows of many widths, beside what its border says.

A window of width sigma has the moments sum(I w z^m), z = (x + iy) / sigma, w = exp(-|z|^2 / 2): m = 0 is a soft aperture flux,
m = 2 and 4 are the elongation at that radius. Over widths they are a curve of growth and a profile of ellipticity, and the
parameters of a galaxy are smooth functions of them (cf. shapelets, Refregier 2003, MNRAS 338, 35). Light of a neighbour, which
has no counterpart on the other side of the galaxy, is replaced by that side's first.
Shape legend: N galaxies, C bands, H x W pixels, B pixels of the core, S window widths, M numbers, Q plain numbers.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gampen_ray.data.cutouts import CORE, overlap
from gampen_ray.model.border import BorderNoise, local_sky, noise_correlation, over_noise, stray_light

__all__ = [
    "PLAIN_NUMBERS",
    "Light",
    "blend_share",
    "centre_offset",
    "flat_core",
    "measure",
    "number_names",
    "number_noise",
    "plain_numbers",
    "window_light",
    "window_widths",
]

_SMALLEST_WINDOW, _LARGEST_WINDOW = 1.0, 0.2
"""Widths (sigma) of the smallest window, pixels, and of the largest, sides of the image."""
_STEP = math.sqrt(2.0)
_CENTRING_WINDOW, _CENTRING_STEPS, _FARTHEST = 2.0, 16, 4.0
"""Width of the window of the centroid, its iterations, and how far from the middle of the image it may lie, pixels."""
_FAINT = 3.0
"""Signal to noise below which a ratio is drawn towards zero."""
_BLEND_RADII, _BLEND_SIGMA = 1.5, 3.0
_EXCESS_SIGMA, _EXCESS_SHARE, _CORE, _WINGS = 3.5, 0.2, 3.0, 3
"""Light is a neighbour's where it exceeds that at the opposite point by so many sigma and so large a share, both averaged over
3 x 3 pixels, at more than so many pixels from the centre; and so many pixels around, where it exceeds it at all."""
_LEAST = 1e-6
"""Least noise of a pixel and least flux, in units of `measure`'s ``unit``."""
_PEAK_WINDOW, _PEAK_SIGMA, _PEAK_SHARE, _NO_PEAK_SIGMA = 2.0, 10.0, 0.7, 3.0
"""Width (sigma, pixels) over which images are averaged to find the source at the centre; a peak elsewhere counts above so many
sigma and where the centre has less than this share of it; and below so many sigma nothing is at the centre."""
_FLAT_PIXELS, _FLAT_SHARE, _FLAT_SIGMA = 5, 0.003, 20.0
"""So many pixels of a core that are fainter than its brightest by at most this share, where that is above so many sigma, are a
plateau. None of 6,000 simulated galaxies of KiDS and HSC has one; all do if clipped at 0.5 to 0.9 of the peak, above 25 sigma.
Four pixels around the middle of a round galaxy may be equal."""
PLAIN_NUMBERS = ("sky", "noise", "brightness", "size", "constant", "correlation", "stray_light", "zeros")
"""Names of `plain_numbers`, in order."""


def window_widths(size: int) -> list[float]:
    """Return the widths (sigma, pixels) of the windows for images of a side."""
    largest = max(_LARGEST_WINDOW * size, 2 * _SMALLEST_WINDOW)
    count = 1 + max(2, math.ceil(math.log(largest / _SMALLEST_WINDOW) / math.log(_STEP)))
    # Without torch: networks are built where tensors have shapes alone.
    return [_SMALLEST_WINDOW * (largest / _SMALLEST_WINDOW) ** (i / (count - 1)) for i in range(count)]


def number_names(bands: tuple[str, ...], size: int) -> list[str]:
    """Return the names of the numbers of `measure`, M."""
    widths = range(len(window_widths(size)))
    names = ["log_radius"]
    for band in bands:
        names += [f"noise_{band}", f"noise_correlation_{band}", f"stray_light_{band}"]
        names += [
            f"{kind}_{band}_{s}" for kind in ("blended_flux", "flux", "dipole", "elongation", "twist", "fourth") for s in widths
        ]
    return names


class Light(NamedTuple):
    """What `measure` and `plain_numbers` both begin with.

    Images without the sky over the noise of a pixel; that noise, flux units; centroids, x and y in pixels; all light in the
    windows about these, over its noise; `gampen_ray.model.border.stray_light`.
    """

    signal_NCHW: torch.Tensor
    sigma_NC: torch.Tensor
    centre_N2: torch.Tensor
    flux_NCS: torch.Tensor
    stray_NC: torch.Tensor


def window_light(images_NCHW: torch.Tensor, sigma_NC: torch.Tensor, *, unit: float = 1.0) -> Light:
    """Return the light in the windows about the centres of images; arguments as for `measure`, of the noise that of a pixel."""
    sigma_NC = sigma_NC.clamp(min=_LEAST * unit)
    signal_NCHW = over_noise(images_NCHW.float(), sigma_NC)
    centre_N2 = _centroid(signal_NCHW.sum(1) / math.sqrt(signal_NCHW.shape[1]))
    widths_S = torch.tensor(window_widths(min(images_NCHW.shape[-2:])), device=images_NCHW.device)
    windows = [
        torch.exp(-(((torch.arange(side, device=images_NCHW.device) - c_N[:, None])[:, None] / widths_S[:, None]) ** 2) / 2)
        for side, c_N in zip(signal_NCHW.shape[:1:-1], centre_N2.T, strict=True)
    ]
    lines_NCHS = torch.einsum("nchw,nsw->nchs", signal_NCHW, windows[0])
    flux_NCS = torch.einsum("nchs,nsh->ncs", lines_NCHS, windows[1]) / (math.sqrt(math.pi) * widths_S)
    return Light(signal_NCHW, sigma_NC, centre_N2, flux_NCS, stray_light(signal_NCHW))


def measure(
    images_NCHW: torch.Tensor, noise: BorderNoise | torch.Tensor, *, unit: float = 1.0, light: Light | None = None
) -> torch.Tensor:
    """Measure the galaxies at the centres of images, and return N x M numbers in the order of `number_names`.

    Parameters
    ----------
    images_NCHW
        Flux units, finite, without the sky.
    noise
        Of a pixel (N x C): that of `local_sky` of the whole cutouts, or that before they were resampled, with its correlation.
        The sky is no number: an answer does not depend on it.
    unit
        A flux, about the noise of a pixel, relative to which the noise is given.
    light
        `window_light` of the images if it is known.
    """
    height, width = images_NCHW.shape[-2:]
    sigma_NC, correlation_NC = noise[:2] if isinstance(noise, BorderNoise) else (noise, None)
    signal_NCHW, sigma_NC, centre_N2, blended_NCS, stray_NC = light or window_light(images_NCHW, sigma_NC, unit=unit)
    correlation_NC = noise_correlation(signal_NCHW) if correlation_NC is None else correlation_NC
    widths_S = torch.tensor(window_widths(min(height, width)), device=images_NCHW.device)
    x_NSW = (torch.arange(width, device=images_NCHW.device) - centre_N2[:, 0, None, None]) / widths_S[:, None]
    y_NSH = (torch.arange(height, device=images_NCHW.device) - centre_N2[:, 1, None, None]) / widths_S[:, None]
    # Powers of the coordinates times the window, K = 0 to 4: the moments are products along x and y.
    x_NSKW, y_NSKH = (torch.stack([u**k for k in range(5)], dim=2) * torch.exp(-(u**2) / 2)[:, :, None] for u in (x_NSW, y_NSH))
    lines_NCHSK = torch.einsum("nchw,nskw->nchsk", _without_neighbours(signal_NCHW, centre_N2), x_NSKW)

    def moment(j: int, k: int) -> torch.Tensor:
        """Sum of I x^j y^k w over the noise that it has where pixels are independent, N x C x S."""
        return torch.einsum("nchs,nsh->ncs", lines_NCHSK[..., j], y_NSKH[:, :, k]) / (math.sqrt(math.pi) * widths_S)

    flux_NCS = moment(0, 0)
    first_NCS = torch.complex(moment(1, 0), moment(0, 1))
    second_NCS = torch.complex(moment(2, 0) - moment(0, 2), 2 * moment(1, 1))
    fourth_NCS = torch.complex(moment(4, 0) - 6 * moment(2, 2) + moment(0, 4), 4 * (moment(3, 1) - moment(1, 3)))
    size_NCS = torch.sqrt(flux_NCS**2 + _FAINT**2)
    # Position angles are relative to that of all windows together: numbers do not change when the image is turned or mirrored.
    phase_NC1 = torch.exp(-1j * torch.angle((second_NCS / size_NCS).sum(-1, keepdim=True)))
    second_NCS, fourth_NCS = second_NCS * phase_NC1 / size_NCS, fourth_NCS * phase_NC1**2 / size_NCS
    log_noise_NC = torch.log(sigma_NC / unit)
    numbers = [
        log_noise_NC[..., None],
        correlation_NC[..., None],
        stray_NC[..., None],
        torch.asinh(blended_NCS / 2),
        torch.asinh(flux_NCS / 2),
        first_NCS.abs() / size_NCS,
        second_NCS.real,
        second_NCS.imag.abs(),
        fourth_NCS.real,
    ]
    radius_N, _ = _half_light_radius(flux_NCS.sum(1), widths_S)
    return torch.cat([torch.log(radius_N / min(height, width))[:, None], torch.cat(numbers, dim=2).flatten(1)], dim=1)


def number_noise(number_NM: torch.Tensor, num_bands: int, size: int) -> torch.Tensor:
    """Return the standard deviation of each number of `measure`, N x M, for independent pixels and to a factor of four.

    Fluxes are in units of their noise, and the moments are relative to fluxes; a radius is as certain as the best flux. Numbers
    of the border get no more noise than these.
    """
    count = len(window_widths(size))
    bands_NCK = number_NM[:, 1:].unflatten(1, (num_bands, 3 + 6 * count))
    # The derivative of asinh(x / 2).
    sigma_NCS = (4 + (2 * torch.sinh(bands_NCK[..., 3 + count : 3 + 2 * count])) ** 2).rsqrt()
    least_NC1 = sigma_NCS.amin(2, keepdim=True)
    sigma_NCK = torch.cat([least_NC1.expand(-1, -1, 3), sigma_NCS.repeat(1, 1, 6)], dim=2)
    return torch.cat([least_NC1.amin(1), sigma_NCK.flatten(1)], dim=1)


def blend_share(number_NM: torch.Tensor, num_bands: int, size: int) -> torch.Tensor:
    """Return the light beside each galaxy over its own, N, in the window nearest to 1.5 measured half-light radii.

    Beside it is light without a counterpart opposite its centre. Of several bands it is the largest; a galaxy's own light
    counts as three times its noise at least.

    Parameters
    ----------
    number_NM
        Numbers of `measure`.
    num_bands, size
        Number of bands and side of the images, pixels.
    """
    widths = torch.tensor(window_widths(size)).to(number_NM)
    count = len(widths)
    bands_NCK = number_NM[:, 1:].unflatten(1, (num_bands, 3 + 6 * count))
    both_NCS, own_NCS = (2 * torch.sinh(bands_NCK[..., 3 + i * count : 3 + (i + 1) * count]) for i in (0, 1))
    wanted_N1 = number_NM[:, :1] + math.log(_BLEND_RADII * size)
    window_N = (widths.log() - wanted_N1).abs().argmin(1)
    both_NC, own_NC = (
        flux_NCS.gather(2, window_N[:, None, None].expand(-1, num_bands, 1))[..., 0] for flux_NCS in (both_NCS, own_NCS)
    )
    return ((both_NC - own_NC) / own_NC.clamp(min=_BLEND_SIGMA)).amax(1)


def _without_neighbours(signal_NCHW: torch.Tensor, centre_N2: torch.Tensor) -> torch.Tensor:
    """Return images in units of their noise, light without a counterpart opposite the centre replaced by what is there."""
    height, width = signal_NCHW.shape[-2:]
    x_W, y_H = torch.arange(width, device=signal_NCHW.device), torch.arange(height, device=signal_NCHW.device)
    # Between two pixels the point opposite lies as far from both for all pixels of a line.
    x_NW, y_NH = (2 * centre_N2[:, i, None] - u for i, u in ((0, x_W), (1, y_H)))
    inside_NHW = ((y_NH >= 0) & (y_NH <= height - 1))[:, :, None] & ((x_NW >= 0) & (x_NW <= width - 1))[:, None, :]

    def opposite(image_NCHW: torch.Tensor) -> torch.Tensor:
        for axis, at in ((3, x_NW), (2, y_NH)):
            low = at.floor()
            share, index = (at - low), low.long()
            shape = [len(at), 1, *((1, at.shape[1]) if axis == 3 else (at.shape[1], 1))]
            size = list(image_NCHW.shape)
            both = [image_NCHW.gather(axis, (index + i).clamp(0, size[axis] - 1).view(shape).expand(size)) for i in (0, 1)]
            image_NCHW = torch.lerp(both[0], both[1], share.view(shape))
        return image_NCHW

    smooth_NCHW = F.avg_pool2d(signal_NCHW, 3, stride=1, padding=1, count_include_pad=False)
    there_NCHW = opposite(smooth_NCHW)
    limit_NCHW = _EXCESS_SIGMA * math.sqrt(2) / 3 + _EXCESS_SHARE * there_NCHW.clamp(min=0)
    far_NHW = (x_W - centre_N2[:, :1])[:, None, :] ** 2 + (y_H - centre_N2[:, 1:])[:, :, None] ** 2 > _CORE**2
    excess_NCHW, usable = smooth_NCHW - there_NCHW, (inside_NHW & far_NHW)[:, None]
    near_NCHW = _dilated((excess_NCHW > limit_NCHW) & usable, _WINGS)
    return torch.where(near_NCHW & (excess_NCHW > 0) & usable, opposite(signal_NCHW), signal_NCHW)


def _dilated(mask_NCHW: torch.Tensor, reach: int) -> torch.Tensor:
    """Return where a mask has a pixel in the square of so many pixels on each side; maximum pooling takes 40 times as long."""
    mask_NCHW = F.pad(mask_NCHW, (reach,) * 4)
    for axis in (3, 2):
        width = 1
        while (step := min(width, 2 * reach + 1 - width)) > 0:
            kept = mask_NCHW.shape[axis] - step
            mask_NCHW = mask_NCHW.narrow(axis, 0, kept) | mask_NCHW.narrow(axis, step, kept)
            width += step
    return mask_NCHW


def plain_numbers(
    images_NCHW: torch.Tensor,
    unit: float = 1.0,
    noise: BorderNoise | None = None,
    sky: tuple[torch.Tensor, torch.Tensor] | None = None,
    light: Light | None = None,
) -> torch.Tensor:
    """Return what a person would look at to see whether images are like others, N x Q x C in the order of `PLAIN_NUMBERS`.

    * ``sky``: level of the border over the noise of a pixel, asinh; ``noise``: that noise, log
    * ``brightness``: flux in the largest window with light of the galaxy, log
    * ``size``: half-light radius over the image's side, log, of all bands together
    * ``constant``: share of pixels exactly equal to their right neighbour, or upper one if that is more
    * ``correlation``: of the noise of neighbouring pixels of the border, where no source is
    * ``stray_light``: sum x of the border's squares of 4 x 4 pixels above 3 sigma, over the noise of that sum, log(1 + x)
    * ``zeros``: share of pixels that are exactly zero

    Parameters
    ----------
    images_NCHW
        Flux units, finite, with their sky.
    unit
        As for `measure`.
    noise
        That before the images were resampled; None: they were not.
    sky, light
        `local_sky` of the images, and `window_light` without it, if they are known.
    """
    images_NCHW = images_NCHW.float()
    sky_NC, sigma_NC = sky or local_sky(images_NCHW)
    light = light or window_light(images_NCHW - sky_NC[..., None, None], noise.sigma_NC if noise else sigma_NC, unit=unit)
    signal_NCHW, noise_NC, _, flux_NCS, stray_NC = light
    widths_S = torch.tensor(window_widths(min(images_NCHW.shape[-2:])), device=images_NCHW.device)
    radius_N, last_N = _half_light_radius(flux_NCS.sum(1), widths_S)
    light_NC = (flux_NCS * widths_S).gather(2, last_N[:, None, None].expand(-1, flux_NCS.shape[1], 1))[..., 0]
    light_NC = math.sqrt(math.pi) * noise_NC * light_NC
    same = [images_NCHW[..., 1:] == images_NCHW[..., :-1], images_NCHW[..., 1:, :] == images_NCHW[..., :-1, :]]
    numbers = [
        torch.asinh(sky_NC / noise_NC),
        torch.log(noise_NC / unit),
        torch.log((light_NC / unit).clamp(min=_LEAST)),
        torch.log(radius_N / min(images_NCHW.shape[-2:]))[:, None].expand_as(sky_NC),
        torch.stack([equal.float().mean((2, 3)) for equal in same]).amax(0),
        noise.blank_correlation_NC if noise else noise_correlation(signal_NCHW, blank=True),
        stray_NC,
        (images_NCHW == 0).float().mean((2, 3)),
    ]
    return torch.stack(numbers, dim=1)


def centre_offset(images_NCHW: torch.Tensor, sky: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
    """Return how far from its middle each image has the peak of the source there, pixels, N; 0 where that is in the middle.

    The image, averaged over a Gaussian, is climbed from its middle: a galaxy there has its own peak, however bright its
    neighbours. A noise peak near the middle is no offset: what counts stands out by 10 sigma, and above the middle itself.
    Where nothing is in the middle, the brightest source counts.

    Parameters
    ----------
    images_NCHW
        Flux units, finite, with their sky.
    sky
        `local_sky` of the images if it is known.
    """
    images_NCHW = images_NCHW.float()
    sky_NC, noise_NC = sky or local_sky(images_NCHW)
    noise_NC = noise_NC.clamp(min=torch.finfo(torch.float32).tiny)
    signal_NHW = over_noise(images_NCHW - sky_NC[..., None, None], noise_NC).sum(1) / math.sqrt(images_NCHW.shape[1])
    # Blocks of 2 x 2 pixels, whose white noise has a standard deviation of one again; a window keeps it.
    signal_N1HW = 2 * F.avg_pool2d(signal_NHW[:, None], 2)
    height, width = signal_N1HW.shape[-2:]
    reach = math.ceil(3 * _PEAK_WINDOW / 2)
    window = torch.exp(-((2 * torch.arange(-reach, reach + 1, device=images_NCHW.device) / _PEAK_WINDOW) ** 2) / 2)
    window /= (window**2).sum().sqrt()
    signal_N1HW = F.conv2d(signal_N1HW, window[None, None, :, None] * window, padding=reach)
    uphill_NX = F.max_pool2d(signal_N1HW, 3, 1, 1, return_indices=True)[1].flatten(1)
    for _ in range(math.ceil(math.log2(height + width))):
        uphill_NX = uphill_NX.gather(1, uphill_NX)
    # One block or the highest of two or four.
    index_HW = torch.arange(height * width, device=images_NCHW.device).view(height, width)
    middle_M = index_HW[(height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1].flatten()
    signal_NX = signal_N1HW.flatten(1)
    around_N, start_N = signal_NX[:, middle_M].max(1)
    peak_N1 = uphill_NX.gather(1, middle_M[start_N][:, None])
    peak_N1 = torch.where(signal_NX.gather(1, peak_N1) < _NO_PEAK_SIGMA, signal_NX.argmax(1, keepdim=True), peak_N1)
    height_N = signal_NX.gather(1, peak_N1)[:, 0]
    place_2N = torch.stack([peak_N1[:, 0] % width, peak_N1[:, 0] // width])
    offset_2N = 2 * place_2N + 0.5 - torch.tensor(images_NCHW.shape[:1:-1], device=images_NCHW.device)[:, None] / 2 + 0.5
    return torch.hypot(*offset_2N).where((height_N > _PEAK_SIGMA) & (around_N < _PEAK_SHARE * height_N), 0.0)


def flat_core(images_NCHW: torch.Tensor) -> torch.Tensor:
    """Return whether the brightest pixels of a galaxy's core are a plateau, as those of a saturated or clipped one are, N bool.

    Parameters
    ----------
    images_NCHW
        Finite pixels with their sky, which were not resampled.
    """
    height, width = images_NCHW.shape[-2:]
    core_NCB = images_NCHW[..., overlap(height, CORE)[0], overlap(width, CORE)[0]].flatten(2).float()
    top_NC1 = core_NCB.amax(2, keepdim=True)

    def plateau(core_NCB: torch.Tensor, top_NC1: torch.Tensor, sky_NC1: torch.Tensor) -> torch.Tensor:
        return (core_NCB >= top_NC1 - _FLAT_SHARE * (top_NC1 - sky_NC1)).sum(2) >= _FLAT_PIXELS

    # The sky, which takes longer, is no fainter than the faintest pixel.
    flat_N = plateau(core_NCB, top_NC1, images_NCHW.float().amin((2, 3))[..., None]).any(1)
    chosen_M = flat_N.nonzero()[:, 0]
    if len(chosen_M):
        sky_MC, noise_MC = local_sky(images_NCHW[chosen_M].float())
        top_MC1 = top_NC1[chosen_M]
        bright_MC = top_MC1[..., 0] - sky_MC > _FLAT_SIGMA * noise_MC
        flat_N[chosen_M] = (plateau(core_NCB[chosen_M], top_MC1, sky_MC[..., None]) & bright_MC).any(1)
    return flat_N


def _centroid(signal_NHW: torch.Tensor) -> torch.Tensor:
    """Return the centroid in a Gaussian window that follows it, x and y in pixels, N x 2; the middle for an empty image."""
    height, width = signal_NHW.shape[-2:]
    middle_2 = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=signal_NHW.device)
    x_W = torch.arange(width, device=signal_NHW.device)
    y_H = torch.arange(height, device=signal_NHW.device)
    centre_N2 = middle_2.expand(len(signal_NHW), 2)
    # Noise of the light in the window.
    noise = math.sqrt(math.pi) * _CENTRING_WINDOW
    for _ in range(_CENTRING_STEPS):
        x_NW, y_NH = x_W - centre_N2[:, :1], y_H - centre_N2[:, 1:]
        window_NW, window_NH = (torch.exp(-((u / _CENTRING_WINDOW) ** 2) / 2) for u in (x_NW, y_NH))
        rows_NH2 = torch.einsum("nhw,nkw->nhk", signal_NHW, torch.stack([window_NW, window_NW * x_NW], 1))
        light_N = (rows_NH2[..., 0] * window_NH).sum(1)
        first_N2 = torch.stack([(rows_NH2[..., 1] * window_NH).sum(1), (rows_NH2[..., 0] * window_NH * y_NH).sum(1)], 1)
        # Twice the mean offset in the window is the offset of a Gaussian as wide as the window.
        step_N2 = 2 * first_N2 / torch.sqrt(light_N**2 + (_FAINT * noise) ** 2)[:, None]
        centre_N2 = middle_2 + (centre_N2 + step_N2.clamp(-1, 1) - middle_2).clamp(-_FARTHEST, _FARTHEST)
    return centre_N2


def _half_light_radius(flux_NS: torch.Tensor, widths_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the curve of growth of soft apertures reaches half of its end, pixels, and the end's window; both N.

    The end is the growth in the window of three times the width that has the most signal to noise.
    """
    growth_NS = flux_NS * widths_S
    best_N = flux_NS.argmax(1)
    last_N = torch.minimum(
        best_N + round(math.log(3) / math.log(float(widths_S[1] / widths_S[0]))), torch.tensor(len(widths_S) - 1)
    )
    half_N1 = growth_NS.gather(1, last_N[:, None]) / 2
    # The first width from which on the growth stays above the half, up to the end.
    index_S = torch.arange(len(widths_S), device=flux_NS.device)
    below = (growth_NS < half_N1) & (index_S < last_N[:, None])
    high_N = (below * (index_S + 1)).amax(1).clamp(1, len(widths_S) - 1)
    low_N = high_N - 1
    low, high = (growth_NS.gather(1, i[:, None])[:, 0] for i in (low_N, high_N))
    share_N = ((half_N1[:, 0] - low) / (high - low).where(high > low, torch.ones_like(high))).clamp(0, 1)
    log_S = widths_S.log()
    # A Gaussian profile has its half-light radius at 1.18 times the width of the window that holds half of it.
    return 1.1774 * torch.exp(log_S[low_N] + share_N * (log_S[high_N] - log_S[low_N])), last_N
