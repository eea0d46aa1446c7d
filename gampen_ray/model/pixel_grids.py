"""Images on other pixels: cropped, zero-padded or resampled about their centres.

Shape legend: N images, C bands, H x W pixels.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from gampen_ray.data.resampling import lanczos

__all__ = ["crop", "resample", "resampled_noise", "resize"]


def resize(images_NCHW: torch.Tensor, size: int) -> torch.Tensor:
    """Crop or zero-pad to ``size`` about the centre; an odd difference leaves the extra pixel on the high side."""
    return _resized(images_NCHW, size, size)


def crop(images_NCHW: torch.Tensor, size: int) -> torch.Tensor:
    """Crop to ``size`` about the centre as `resize`; smaller images stay."""
    height, width = images_NCHW.shape[-2:]
    return _resized(images_NCHW, min(height, size), min(width, size))


def _resized(images_NCHW: torch.Tensor, to_height: int, to_width: int) -> torch.Tensor:
    height, width = images_NCHW.shape[-2:]
    if (height, width) == (to_height, to_width):
        return images_NCHW
    top, left = _low_pad(height, to_height), _low_pad(width, to_width)
    # negative padding crops
    return F.pad(images_NCHW, (left, to_width - width - left, top, to_height - height - top))


def resample(images_NCHW: torch.Tensor, zoom: float, order: int = 5) -> torch.Tensor:
    """Return images on pixels of 1 / ``zoom`` the size about the same centre, by a windowed sinc function; values stay.

    It keeps a band-limited image, whose PSF is sampled, and changes neither its PSF nor the noise of a sum over pixels (Lanczos
    kernel of order 5, widened to the larger of the two pixels; Duchon 1979, J. Appl. Meteor. 18, 1016). That of order 1 has no
    negative weights.
    """
    height, width = images_NCHW.shape[-2:]
    y_HH, x_WW = (_lanczos(side, zoom, order).to(images_NCHW) for side in (height, width))
    return y_HH @ images_NCHW @ x_WW.T


def resampled_noise(sigma_NCHW: torch.Tensor, zoom: float) -> torch.Tensor:
    """Return noise planes on other pixels: the variance is interpolated; unknown where it is in most of what contributes."""
    share_NCHW = resample((sigma_NCHW > 0).double(), zoom, order=1)
    variance_NCHW = resample(sigma_NCHW.double() ** 2, zoom, order=1) / share_NCHW
    return torch.where(share_NCHW > 0.5, variance_NCHW.sqrt(), 0.0).float()


@functools.lru_cache(maxsize=64)
def _lanczos(side: int, zoom: float, order: int) -> torch.Tensor:
    """Return the weights of the pixels of a line in each pixel of the resampled line, whose rows add up to 1."""
    count, step = max(1, round(side * zoom)), 1 / zoom
    place = (np.arange(count) - (count - 1) / 2) * step + (side - 1) / 2
    weight = lanczos((place[:, None] - np.arange(side)) / max(1.0, step), order)
    return torch.from_numpy(weight / weight.sum(axis=1, keepdims=True))


def _low_pad(have: int, want: int) -> int:
    return (want - have) // 2 if want >= have else -((have - want) // 2)
