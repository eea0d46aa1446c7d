"""Images on other pixels, by the windowed sinc function of Duchon (1979, J. Appl. Meteor. 18, 1016).

Shape legend: H x W pixels, S the side of the result, P its pixels, K those of the image that contribute to one, along an axis.
Pixel coordinates are (x, y), zero at the centre of the first pixel.
"""

import math

import numpy as np

__all__ = ["lanczos", "reach", "resampled"]

_ORDER = 3
# Weights below are rounding: where pixels coincide, one counts alone.
_NO_WEIGHT = 1e-9
_BLOCK = 1 << 20


def lanczos(distance: np.ndarray, order: int) -> np.ndarray:
    """Return the weights, not normalised, of pixels at distances in units of the larger pixel; zero from ``order`` on."""
    return np.sinc(distance) * np.sinc(distance / order) * (np.abs(distance) < order)


def reach(matrix_22: np.ndarray) -> float:
    """Return how far, along either axis, pixels contribute to one of the result of `resampled`, pixels."""
    return _ORDER * max(1.0, math.sqrt(abs(np.linalg.det(matrix_22))))


def resampled(image_HW: np.ndarray, matrix_22: np.ndarray, centre_2: np.ndarray, size: int) -> np.ndarray:
    """Return an image on the pixels of an affine map, with its flux: values are multiplied by the ratio of the pixels' areas.

    The kernel (Lanczos, order 3, widened where the new pixels are larger) keeps what both grids can hold: neither the PSF nor
    the noise of a sum over pixels changes, but that of neighbouring pixels becomes correlated.

    Parameters
    ----------
    image_HW
        Pixels; NaN: no value. It reaches at least `reach` beyond the centres of all pixels of the result.
    matrix_22, centre_2
        The pixel that is p' from the centre of the result lies at matrix p' + centre.
    size
        Side of the result, pixels.

    Returns
    -------
    np.ndarray
        Pixels (S x S), float32; NaN where a pixel without a value contributes.
    """
    offset_S = np.arange(size) - (size - 1) / 2
    width = reach(matrix_22) / _ORDER
    result_SS = np.empty((size, size), np.float32)
    taps = math.ceil(2 * _ORDER * width)
    step = max(1, _BLOCK // (size * taps**2))
    for start in range(0, size, step):
        y_P, x_P = (axis.ravel() for axis in np.meshgrid(offset_S[start : start + step], offset_S, indexing="ij"))
        (column_PK, x_PK), (row_PK, y_PK) = (
            _weights(centre + xx * x_P + xy * y_P, width, taps) for (xx, xy), centre in zip(matrix_22, centre_2, strict=True)
        )
        image_PKK = image_HW[row_PK[:, :, None], column_PK[:, None, :]]
        value_P = np.einsum("pij,pi,pj->p", np.nan_to_num(image_PKK), y_PK, x_PK, optimize=True)
        unknown_PKK = np.isnan(image_PKK)
        if unknown_PKK.any():
            value_P[(unknown_PKK & (y_PK != 0)[:, :, None] & (x_PK != 0)[:, None, :]).any(axis=(1, 2))] = np.nan
        result_SS[start : start + step] = value_P.reshape(-1, size)
    return result_SS * np.float32(abs(np.linalg.det(matrix_22)))


def _weights(place_P: np.ndarray, width: float, taps: int) -> tuple[np.ndarray, np.ndarray]:
    # Which pixels along an axis contribute to each place, and their weights, which add up to 1.
    index_PK = (np.floor(place_P - _ORDER * width).astype(np.int64) + 1)[:, None] + np.arange(taps)
    weight_PK = lanczos((place_P[:, None] - index_PK) / width, _ORDER)
    weight_PK[np.abs(weight_PK) < _NO_WEIGHT] = 0
    return index_PK, weight_PK / weight_PK.sum(axis=1, keepdims=True)
