"""The learned crop: a localisation network predicts an affine map, and the image is resampled on its grid.

Jaderberg et al. (2015), restricted as in Ghosh et al. (2022), sec. 4.1. Shape legend: N galaxies, C channels, H x W pixels.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gampen_ray.config import SpatialTransformerConfig
from gampen_ray.errors import UserError

MOST_LEARNED = math.log(1.5)
"""Largest logarithm of a learned crop's side over its initial multiple of the measured radius."""
_LEAST_RADIUS = 0.2
"""Of a galaxy, in the PSF's."""
NUM_PARAMETERS = {"scale": 1, "scale_shift": 3, "affine": 6}


class SpatialTransformer(nn.Module):
    """Crop each image to the region a localisation network chooses.

    The predicted affine map takes output to input coordinates, both in [-1, 1] between the centres of the corner pixels: a
    scale of 0.5 crops to the central half. A linear scale (GaMPEN's) has no bound; an exponential one is the initial scale, or
    a multiple of the radius that arithmetic measures, times the exponential of what the localisation network adds (to a
    measured radius at most a factor of 1.5, so that crops follow the galaxy), and lies between the scale at which a crop's
    pixel is half of the image's and 1.

    Parameters
    ----------
    config
        Transform family and localisation network; any family but ``none``.
    channels, size
        Channels and side (pixels) of the input images.
    numbers
        Count M of whitened numbers that the localisation network is given beside the image.
    """

    def __init__(self, config: SpatialTransformerConfig, channels: int, size: int, numbers: int = 0) -> None:
        super().__init__()
        self.family, self.initial_radii, self.subtract_psf = config.family, config.initial_radii, config.subtract_psf
        # An affine map has no one scale.
        self.is_exponential = config.scale == "exponential" and config.family != "affine"
        self.downsample = config.downsample
        self.output_size = config.output_size or size
        self.log_bounds = math.log(min(1.0, self.output_size / (2 * size))), 0.0
        activation = nn.ReLU if config.scale == "linear" else nn.SiLU
        layers: list[nn.Module] = []
        side = size // config.downsample
        for width, kernel in config.convolutions:
            side = (side - kernel + 1 - 3) // 2 + 1
            if side < 1:
                raise UserError(
                    f"network.spatial_transformer.convolutions: {config.convolutions} need larger images than {size} pixels; "
                    "use smaller kernels or fewer convolutions"
                )
            layers += [nn.Conv2d(channels, width, kernel), nn.MaxPool2d(3, stride=2), activation(inplace=True)]
            channels = width
        self.localisation = nn.Sequential(*layers)
        self.parameters_head = nn.Sequential(
            nn.Linear(channels * side * side + numbers, config.hidden),
            activation(inplace=True),
            nn.Linear(config.hidden, NUM_PARAMETERS[config.family]),
        )
        s = math.log(config.initial_scale) if self.is_exponential else config.initial_scale
        identity = {"scale": [s], "scale_shift": [s, 0.0, 0.0], "affine": [s, 0.0, 0.0, 0.0, s, 0.0]}[config.family]
        self.initial_log_scale = math.log(config.initial_scale)
        last = self.parameters_head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        last.bias.data.copy_(torch.tensor(identity))

    def affine(
        self, x_NCHW: torch.Tensor, white_NM: torch.Tensor | None = None, log_radius_N: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the N x 2 x 3 maps from output to input coordinates; see `forward`."""
        if self.downsample > 1:
            x_NCHW = F.avg_pool2d(x_NCHW, self.downsample)
        features = self.localisation(x_NCHW).flatten(1)
        p = self.parameters_head(features if white_NM is None else torch.cat([features, white_NM], dim=1))
        if self.is_exponential:
            p = self._exponential(p, log_radius_N)
        if self.family == "affine":
            return p.view(-1, 2, 3)
        scale, zero = p[:, 0], torch.zeros_like(p[:, 0])
        shift_x, shift_y = (p[:, 1], p[:, 2]) if self.family == "scale_shift" else (zero, zero)
        return torch.stack([scale, zero, shift_x, zero, scale, shift_y], dim=1).view(-1, 2, 3)

    def _exponential(self, p: torch.Tensor, log_radius_N: torch.Tensor | None) -> torch.Tensor:
        """Return the parameters with the exponentials of their scales, which are multiples of the measured radius if given."""
        log_scale_N = p[:, 0]
        if log_radius_N is not None:
            # Beside numbers an image is of most use in the core: without a bound, crops of bright galaxies shrink to it.
            learned_N = MOST_LEARNED * torch.tanh((log_scale_N - self.initial_log_scale) / MOST_LEARNED)
            # The crop's side in sides of the image: so many radii on either side of the centre.
            log_scale_N = learned_N + log_radius_N + math.log(2 * self.initial_radii)
        scale_N = _Within.apply(log_scale_N, *self.log_bounds).exp()
        return torch.cat([scale_N[:, None], p[:, 1:]], dim=1)

    def forward(
        self, x_NCHW: torch.Tensor, white_NM: torch.Tensor | None = None, log_radius_N: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the resampled crops, N x C x output_size x output_size, and the N x 2 x 3 maps.

        Parameters
        ----------
        x_NCHW
            Preprocessed images.
        white_NM
            Whitened numbers, for a transformer that takes any.
        log_radius_N
            Logarithm of the galaxies' radii, in sides of the image; None: unknown.
        """
        theta_N23 = self.affine(x_NCHW, white_NM, log_radius_N)
        return crop_images(x_NCHW, theta_N23, self.output_size), theta_N23


def without_psf(log_radius_N: torch.Tensor, psf_N: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of half-light radii without the PSF's, subtracted in quadrature: a fifth of the PSF's at least."""
    radius2_N, psf2_N = (2 * log_radius_N).exp(), psf_N.square()
    return 0.5 * torch.maximum(radius2_N - psf2_N, _LEAST_RADIUS**2 * psf2_N).log()


class _Within(torch.autograd.Function):
    """Clamp to [low, high]; beyond, gradients pass that lead back, or a crop that begins at a bound would stay there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        # A step is along the negative gradient.
        outwards = ((x > high) & (gradient < 0)) | ((x < low) & (gradient > 0))
        return gradient.masked_fill(outwards, 0.0), None, None


def crop_images(images_NCHW: torch.Tensor, theta_N23: torch.Tensor, size: int = 0) -> torch.Tensor:
    """Return images resampled bilinearly on the grids of affine maps, zero outside; ``size`` 0 keeps their side."""
    size = size or images_NCHW.shape[-1]
    grid = F.affine_grid(theta_N23, [*images_NCHW.shape[:2], size, size], align_corners=True)
    return F.grid_sample(images_NCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def crop_scale(theta_N23: torch.Tensor) -> torch.Tensor:
    """Return the side of each crop over the side of the image: the root of the map's absolute determinant."""
    return torch.linalg.det(theta_N23[:, :, :2].double()).abs().sqrt()


def identity_map(count: int, device: torch.device) -> torch.Tensor:
    """Return ``count`` maps that leave the image as it is, N x 2 x 3."""
    return torch.eye(2, 3, device=device).expand(count, 2, 3)


def crop_corners(theta_23: torch.Tensor, size: int) -> torch.Tensor:
    """Return the crop's corners in pixel coordinates (x, y) of an image of ``size`` pixels a side, 4 x 2, in drawing order."""
    corners = torch.tensor([[-1.0, -1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]], dtype=theta_23.dtype)
    return (corners @ theta_23.cpu().T + 1) * (size - 1) / 2
