"""What the border of a cutout says: the level of the sky, the noise of a pixel and its correlation, and stray light.

Shape legend: N galaxies, C bands, H x W pixels, B pixels of the border.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["BorderNoise", "border_noise", "local_sky", "noise_correlation", "over_noise", "stray_light"]

_BORDER = 0.08
"""Width of the border in which sky and noise are measured, sides of the image."""
_CLIP, _CLIP_STEPS = 3.0, 4
_FAR, _SQUARE = 4, 4
"""Pixels so far apart have independent noise; side of the squares of pixels in which stray light is measured."""
_BRIGHTEST = 1e14
"""Signal to noise at which pixels saturate: their squares are finite in float32."""
_LEAST_VARIANCE = 1e-6
# Side of the windows whose means show sources, pixels.
_WINDOW = 5


def local_sky(images_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sky level and noise of a pixel in the border of each image, both N x C, flux units.

    The median and 1.4826 MAD of the border's pixels, then mean and standard deviation of those within 3 sigma, four times. An
    image without noise has a noise of zero.
    """
    border_NCB = _joined(_border(images_NCHW))
    sky_NC1 = _median(border_NCB)
    noise_NC1 = 1.4826 * _median((border_NCB - sky_NC1).abs())
    for _ in range(_CLIP_STEPS):
        kept_NCB = (border_NCB - sky_NC1).abs() <= _CLIP * noise_NC1
        count_NC1 = kept_NCB.sum(2, keepdim=True)
        sky_NC1 = border_NCB.where(kept_NCB, 0).sum(2, keepdim=True) / count_NC1
        # Not by a product: the square of what is clipped may be infinite.
        deviation_NCB = (border_NCB - sky_NC1).where(kept_NCB, 0)
        noise_NC1 = ((deviation_NCB**2).sum(2, keepdim=True) / count_NC1).sqrt()
    # A Gaussian cut at 3 sigma has 0.9866 of its standard deviation.
    return sky_NC1[..., 0], noise_NC1[..., 0] / 0.9866


def _median(values_NCB: torch.Tensor) -> torch.Tensor:
    """Return the median of finite values, of an even number the lower one, N x C x 1; on CPUs NumPy is twice as fast."""
    if values_NCB.device.type != "cpu":
        return values_NCB.median(dim=2, keepdim=True).values
    middle = (values_NCB.shape[2] - 1) // 2
    return torch.from_numpy(np.partition(values_NCB.numpy(), middle, axis=2)[..., middle : middle + 1])


class BorderNoise(NamedTuple):
    """Noise of the pixels of images, N x C: standard deviation, flux units, and correlation of neighbours.

    The correlation is that of all pixels, which networks are given, and that of blank ones, which flags look at.
    """

    sigma_NC: torch.Tensor
    correlation_NC: torch.Tensor
    blank_correlation_NC: torch.Tensor


def border_noise(images_NCHW: torch.Tensor) -> BorderNoise:
    """Return the noise in the border of images in flux units with their sky."""
    sky_NC, sigma_NC = local_sky(images_NCHW)
    tiny = torch.finfo(torch.float32).tiny
    signal_NCHW = over_noise(images_NCHW - sky_NC[..., None, None], sigma_NC.clamp(min=tiny))
    return BorderNoise(sigma_NC, noise_correlation(signal_NCHW), noise_correlation(signal_NCHW, blank=True))


def _border(images_NCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the strips of the border: top, bottom, and between them left and right."""
    b = _border_width(images_NCHW)
    return images_NCHW[..., :b, :], images_NCHW[..., -b:, :], images_NCHW[..., b:-b, :b], images_NCHW[..., b:-b, -b:]


def _joined(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the pixels of parts of images, N x C x B."""
    return torch.cat([part.flatten(2) for part in parts], dim=2)


def over_noise(images_NCHW: torch.Tensor, noise_NC: torch.Tensor) -> torch.Tensor:
    """Return images in units of their noise, N x C x H x W, bounded so that squares are finite."""
    return (images_NCHW / noise_NC[..., None, None]).clamp(-_BRIGHTEST, _BRIGHTEST)


def _border_width(images_NCHW: torch.Tensor) -> int:
    return max(2, round(_BORDER * min(images_NCHW.shape[-2:])))


def stray_light(signal_NCHW: torch.Tensor) -> torch.Tensor:
    """Return log(1 + x) of the light x in the border, over its noise, N x C: of squares of 4 x 4 pixels above 3 sigma.

    The noise of such squares, unlike that of pixels, is the same after images have been resampled.
    """
    side = min(_SQUARE, *signal_NCHW.shape[-2:])
    squares_NCHW = side * F.avg_pool2d(signal_NCHW, side)
    depth = max(1, round(_border_width(signal_NCHW) / side))
    inside_HW = torch.ones_like(squares_NCHW[0, 0])
    inside_HW[depth:-depth, depth:-depth] = 0
    border_NCB = squares_NCHW[..., inside_HW > 0]
    return torch.log1p((border_NCB * (border_NCB > _CLIP)).sum(2) / math.sqrt(border_NCB.shape[2]))


def noise_correlation(signal_NCHW: torch.Tensor, *, blank: bool = False) -> torch.Tensor:
    """Return the correlation of horizontally and vertically neighbouring pixels of the border, N x C; 0 without noise.

    It is one minus the ratio of the variances of differences between neighbours and between pixels four apart: light that
    varies slowly has no part in it. Differences beyond 3 sigma are left out.

    Parameters
    ----------
    signal_NCHW
        From `over_noise`, without the sky.
    blank
        Whether pixels with light of sources are left out too, whose slopes pass for correlated noise.
    """
    b, far = _border_width(signal_NCHW), min(_FAR, min(signal_NCHW.shape[-2:]) - 1)
    strips = _strips(signal_NCHW, b)
    usable = _without_sources(signal_NCHW, b) if blank else None

    def pairs(
        strips: tuple[torch.Tensor, ...], lag: int, join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        parts = [join(strip[..., lag:], strip[..., :-lag]) for strip in strips[:2]]
        return _joined((*parts, *(join(strip[..., lag:, :], strip[..., :-lag, :]) for strip in strips[2:])))

    def variance(lag: int) -> torch.Tensor:
        square_NCB = pairs(strips, lag, torch.sub) ** 2
        usable_NCB = True if usable is None else pairs(usable, lag, torch.logical_and)
        # That of independent pixels, whose noise is one.
        variance_NC1 = torch.full_like(square_NCB[..., :1], 2.0)
        for _ in range(_CLIP_STEPS):
            kept_NCB = (square_NCB <= _CLIP**2 * variance_NC1) & usable_NCB
            variance_NC1 = (square_NCB * kept_NCB).sum(2, keepdim=True) / kept_NCB.sum(2, keepdim=True).clamp(min=1)
        return variance_NC1[..., 0]

    return 1 - (variance(1) + _LEAST_VARIANCE) / (variance(far) + _LEAST_VARIANCE)


def _strips(values_NCHW: torch.Tensor, width: int) -> tuple[torch.Tensor, ...]:
    # Top, bottom, left and right, all with their corners: the same pairs of pixels for a turned image.
    return values_NCHW[..., :width, :], values_NCHW[..., -width:, :], values_NCHW[..., :width], values_NCHW[..., -width:]


def _without_sources(signal_NCHW: torch.Tensor, b: int) -> tuple[torch.Tensor, ...]:
    # In the strips, where the mean over a window does not stand out among those of the border, whose scatter says how noise is
    # correlated.
    half, means = _WINDOW // 2, []
    for strip, window in zip(
        _strips(signal_NCHW, b + half), (np.s_[..., :b, :], np.s_[..., -b:, :], np.s_[..., :b], np.s_[..., -b:]), strict=True
    ):
        for kernel, padding in (((_WINDOW, 1), (half, 0)), ((1, _WINDOW), (0, half))):
            strip = F.avg_pool2d(strip, kernel, 1, padding, count_include_pad=False)
        means.append(strip[window])
    top, bottom, left, right = means
    border_NCB = _joined((top, bottom, left[..., b:-b, :], right[..., b:-b, :]))
    middle_NC1 = _median(border_NCB)
    scatter_NC1 = 1.4826 * _median((border_NCB - middle_NC1).abs())
    return tuple(mean <= (middle_NC1 + _CLIP * scatter_NC1)[..., None] for mean in means)
