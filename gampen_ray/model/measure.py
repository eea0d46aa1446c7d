"""What arithmetic knows of a cutout: its local sky and noise, and the galaxy's light in Gaussian windows of many widths.

A window of width sigma has the moments sum(I w z^m), z = (x + iy) / sigma, w = exp(-|z|^2 / 2): m = 0 is a soft aperture flux,
m = 2 and 4 are the elongation at that radius. Over widths they are a curve of growth and a profile of ellipticity, and the
parameters of a galaxy are smooth functions of them (cf. shapelets, Refregier 2003, MNRAS 338, 35).
Shape legend: N galaxies, C bands, H x W pixels, S window widths, M numbers.
"""

import math

import torch

__all__ = ["local_sky", "measure", "number_names", "window_widths"]

_SMALLEST_WINDOW, _LARGEST_WINDOW = 1.0, 0.2
"""Widths (sigma) of the smallest window, pixels, and of the largest, sides of the image."""
_STEP = math.sqrt(2.0)
_CENTRING_WINDOW, _CENTRING_STEPS, _FARTHEST = 2.0, 4, 4.0
"""Width of the window of the centroid, its iterations, and how far from the middle of the image it may lie, pixels."""
_FAINT = 3.0
"""Signal to noise below which a ratio is drawn towards zero."""
_BORDER = 0.08
"""Width of the border in which sky and noise are measured, sides of the image."""
_CLIP, _CLIP_STEPS = 3.0, 4
_BRIGHTEST = 1e14
"""Signal to noise at which pixels saturate: their squares are finite in float32."""


def local_sky(images_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sky level and noise of a pixel in the border of each image, both N x C, flux units.

    The median and 1.4826 MAD of the border's pixels, then mean and standard deviation of those within 3 sigma, four times. An
    image without noise has a noise of zero.
    """
    height, width = images_NCHW.shape[-2:]
    b = max(2, round(_BORDER * min(height, width)))
    parts = (
        images_NCHW[..., :b, :],
        images_NCHW[..., -b:, :],
        images_NCHW[..., b:-b, :b],
        images_NCHW[..., b:-b, -b:],
    )
    border_NCB = torch.cat([part.flatten(2) for part in parts], dim=2)
    sky_NC1 = border_NCB.median(dim=2, keepdim=True).values
    noise_NC1 = 1.4826 * (border_NCB - sky_NC1).abs().median(dim=2, keepdim=True).values
    for _ in range(_CLIP_STEPS):
        kept_NCB = (border_NCB - sky_NC1).abs() <= _CLIP * noise_NC1
        count_NC1 = kept_NCB.sum(2, keepdim=True)
        sky_NC1 = border_NCB.where(kept_NCB, 0).sum(2, keepdim=True) / count_NC1
        # Not by a product: the square of what is clipped may be infinite.
        deviation_NCB = (border_NCB - sky_NC1).where(kept_NCB, 0)
        noise_NC1 = ((deviation_NCB**2).sum(2, keepdim=True) / count_NC1).sqrt()
    # A Gaussian cut at 3 sigma has 0.9866 of its standard deviation.
    return sky_NC1[..., 0], noise_NC1[..., 0] / 0.9866


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
        names += [f"sky_{band}", f"noise_{band}"]
        names += [f"{kind}_{band}_{s}" for kind in ("flux", "elongation", "twist", "fourth") for s in widths]
    return names


def measure(images_NCHW: torch.Tensor, sky_NC: torch.Tensor, noise_NC: torch.Tensor, *, unit: float = 1.0) -> torch.Tensor:
    """Measure the galaxies at the centres of images, and return N x M numbers in the order of `number_names`.

    Parameters
    ----------
    images_NCHW
        Flux units, finite, without the sky.
    sky_NC, noise_NC
        What was subtracted, and the noise of a pixel: `local_sky` of the whole cutouts.
    unit
        A flux, about the noise of a pixel, relative to which the noise is given.
    """
    images_NCHW = images_NCHW.float()
    height, width = images_NCHW.shape[-2:]
    noise_NC = noise_NC.clamp(min=1e-6 * unit)
    signal_NCHW = (images_NCHW / noise_NC[..., None, None]).clamp(-_BRIGHTEST, _BRIGHTEST)
    centre_N2 = _centroid(signal_NCHW.sum(1) / math.sqrt(signal_NCHW.shape[1]))
    widths_S = torch.tensor(window_widths(min(height, width)), device=images_NCHW.device)
    x_NSW = (torch.arange(width, device=images_NCHW.device) - centre_N2[:, 0, None, None]) / widths_S[:, None]
    y_NSH = (torch.arange(height, device=images_NCHW.device) - centre_N2[:, 1, None, None]) / widths_S[:, None]
    # Powers of the coordinates times the window, K = 0 to 4: the moments are products along x and y.
    x_NSKW, y_NSKH = (torch.stack([u**k for k in range(5)], dim=2) * torch.exp(-(u**2) / 2)[:, :, None] for u in (x_NSW, y_NSH))
    lines_NCHSK = torch.einsum("nchw,nskw->nchsk", signal_NCHW, x_NSKW)

    def moment(j: int, k: int) -> torch.Tensor:
        """Sum of I x^j y^k w over the noise that it has where pixels are independent, N x C x S."""
        return torch.einsum("nchs,nsh->ncs", lines_NCHSK[..., j], y_NSKH[:, :, k]) / (math.sqrt(math.pi) * widths_S)

    flux_NCS = moment(0, 0)
    second_NCS = torch.complex(moment(2, 0) - moment(0, 2), 2 * moment(1, 1))
    fourth_NCS = torch.complex(moment(4, 0) - 6 * moment(2, 2) + moment(0, 4), 4 * (moment(3, 1) - moment(1, 3)))
    size_NCS = torch.sqrt(flux_NCS**2 + _FAINT**2)
    # Position angles are relative to that of all windows together: numbers do not change when the image is turned or mirrored.
    phase_NC1 = torch.exp(-1j * torch.angle((second_NCS / size_NCS).sum(-1, keepdim=True)))
    second_NCS, fourth_NCS = second_NCS * phase_NC1 / size_NCS, fourth_NCS * phase_NC1**2 / size_NCS
    log_noise_NC = torch.log(noise_NC / unit)
    numbers = [
        torch.asinh(sky_NC / noise_NC)[..., None],
        log_noise_NC[..., None],
        torch.asinh(flux_NCS / 2),
        second_NCS.real,
        second_NCS.imag.abs(),
        fourth_NCS.real,
    ]
    radius_N = _half_light_radius(flux_NCS.sum(1), widths_S)
    return torch.cat([torch.log(radius_N / min(height, width))[:, None], torch.cat(numbers, dim=2).flatten(1)], dim=1)


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


def _half_light_radius(flux_NS: torch.Tensor, widths_S: torch.Tensor) -> torch.Tensor:
    """Return where the curve of growth of soft apertures reaches half of its end, pixels, N.

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
    return 1.1774 * torch.exp(log_S[low_N] + share_N * (log_S[high_N] - log_S[low_N]))
