"""Turning and flipping of images: the augmentation in training, and rotation by a given angle.

Shape legend: N galaxies, C channels, H x W pixels.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import ndimage

from gampen_ray.errors import UserError
from gampen_ray.model.spatial_transformer import crop_images

__all__ = ["AUGMENTATIONS", "random_rotation", "random_symmetry", "rotate"]


def random_symmetry(images_NCHW: torch.Tensor, draws_3N: torch.Tensor) -> torch.Tensor:
    """Apply to each image one of the eight flips and 90-degree rotations of the square, by draws from [0, 1)."""
    for draw_N, transform in zip(
        draws_3N < 0.5, (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)), strict=True
    ):
        images_NCHW = torch.where(draw_N[:, None, None, None], transform(images_NCHW), images_NCHW)
    return images_NCHW


def random_rotation(images_NCHW: torch.Tensor, draws_3N: torch.Tensor) -> torch.Tensor:
    """Flip each square image along either axis, both or none and turn it by any angle, by draws from [0, 1); corners become 0.

    Bilinear, as GaMPEN is trained: what is left of white noise is two thirds of its standard deviation.
    """
    flip_x_N, flip_y_N = 1 - 2 * (draws_3N[:2] < 0.5).to(images_NCHW)
    cos_N, sin_N = torch.cos(2 * math.pi * draws_3N[2]), torch.sin(2 * math.pi * draws_3N[2])
    zero_N = torch.zeros_like(cos_N)
    # From the turned image's coordinates to the image's.
    theta_N6 = [flip_x_N * cos_N, flip_x_N * sin_N, zero_N, -flip_y_N * sin_N, flip_y_N * cos_N, zero_N]
    return crop_images(images_NCHW, torch.stack(theta_N6, dim=1).view(-1, 2, 3))


AUGMENTATIONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "none": lambda images_NCHW, draws_3N: images_NCHW,
    "symmetries": random_symmetry,
    "rotations": random_rotation,
}
"""What `OptimizerConfig.augment` does to preprocessed images, by three uniform draws for each."""


def rotate(images_NCHW: np.ndarray, angle: float) -> np.ndarray:
    """Return images turned about their centres; flux is conserved, and multiples of 90 degrees only move pixels.

    Cubic splines interpolate: unlike bilinear interpolation they neither blur a galaxy nor take more than 13 % of the noise.
    The corners are filled with the image reflected at its edges.

    Parameters
    ----------
    images_NCHW
        Square images.
    angle
        Degrees, counter-clockwise where the first row is at the bottom, as FITS images are shown.

    Raises
    ------
    UserError
        If the images are not square.
    """
    height, width = images_NCHW.shape[-2:]
    if height != width:
        raise UserError(f"images: {height} x {width} pixels cannot be turned; crop the cutouts to squares")
    quarters = round(angle / 90)
    turned_NCHW = np.rot90(images_NCHW, quarters, axes=(-1, -2))
    rest = angle - 90 * quarters
    if rest == 0:
        return turned_NCHW
    # SciPy turns the other way.
    return ndimage.rotate(turned_NCHW, -rest, axes=(-2, -1), reshape=False, order=3, mode="reflect")
