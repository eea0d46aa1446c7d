"""From stored cutouts to network inputs.

Shape legend: N galaxies, C bands or channels, H x W pixels, J conditions, M numbers.
"""

import dataclasses
import functools
import math
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic
import torch

from gampen_ray.config import ImagesConfig
from gampen_ray.config.parts import MOST_CHANNELS, MOST_PIXELS
from gampen_ray.data.cutouts import side_at_scale
from gampen_ray.errors import UserError
from gampen_ray.model.border import BorderNoise, border_noise, local_sky
from gampen_ray.model.measure import Light, measure, number_names, number_noise, plain_numbers, window_light
from gampen_ray.model.pixel_grids import crop, resample, resampled_noise, resize

# Relative difference of pixel scales below which a cutout is not resampled.
_SAME_PIXEL_SCALE = 0.005
# Noise below this part of the softening, which no image has, would not be finite in the network's input.
_LEAST_NOISE = 1e-6
# The PSF's half-light radius over a condition, which comes first where there are several; a Gaussian's is half of its FWHM.
_PSF_RADII = {"psf_r50_arcsec": 1.0, "psf_fwhm_arcsec": 0.5}
_Positive = Annotated[float, pydantic.Field(gt=0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """A number that the network is given for each galaxy beside its image, such as the width of the PSF.

    Parameters
    ----------
    name
        Of the dataset's column.
    low, high, mean
        Of the training galaxies.
    """

    name: str
    low: float
    high: float
    mean: float

    @classmethod
    def fit(cls, name: str, value_N: np.ndarray) -> "Condition":
        """Return the condition of training values.

        Raises
        ------
        UserError
            If a value is not finite.
        """
        cls.check(name, value_N)
        return cls(name=name, low=float(value_N.min()), high=float(value_N.max()), mean=float(value_N.mean()))

    @staticmethod
    def check(name: str, value_N: np.ndarray) -> None:
        """Raise a UserError if a value is no finite number of float32."""
        if not (np.issubdtype(value_N.dtype, np.number) or value_N.dtype == bool):
            raise UserError(f"conditions: the column {name} holds no numbers; give a column of numbers")
        with np.errstate(over="ignore"):
            bad_N = ~np.isfinite(value_N.astype(np.float32))
        if bad_N.any():
            raise UserError(f"conditions: {name} is not finite for {bad_N.sum()} galaxies; fill or remove them")


@dataclasses.dataclass(frozen=True, eq=False)
class Matched:
    """Cutouts in the flux units and pixel scale of the training cutouts.

    Parameters
    ----------
    image_NCHW
        Flux units.
    noise
        Of the pixels before they were resampled, scaled to the pixels of the training: a sum over many pixels has this noise
        still, while that of the resampled pixels is smoothed. None: they were not resampled.
    sigma_NCHW
        Standard deviation of each pixel, likewise; None: the network takes none.
    unit
        A flux, as for `gampen_ray.model.measure.measure`.
    """

    image_NCHW: torch.Tensor
    noise: BorderNoise | None = None
    sigma_NCHW: torch.Tensor | None = None
    unit: float = dataclasses.field(default=1.0, kw_only=True)

    @functools.cached_property
    def sky(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Level of the sky and noise of a pixel (`local_sky`)."""
        return local_sky(self.image_NCHW.float())

    @functools.cached_property
    def light(self) -> Light:
        """Light of the galaxies in windows (`window_light`)."""
        sky_NC, sigma_NC = self.sky
        images_NCHW = self.image_NCHW.float() - sky_NC[..., None, None]
        return window_light(images_NCHW, self.noise.sigma_NC if self.noise else sigma_NC, unit=self.unit)


class Inputs(NamedTuple):
    """What the network is given of N galaxies.

    Parameters
    ----------
    image_NCHW
        Preprocessed images.
    number_NM
        Numbers, measured in the image or given; None for a network of images alone.
    """

    image_NCHW: torch.Tensor
    number_NM: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """Local sky, centre crop or zero-pad, asinh stretch, repeat of a single band over channels; the numbers beside the image.

    It is stored in the bundle. With noise planes, cutouts are N x 2C x H x W: behind the bands the standard deviation of each
    pixel, flux units; it is unknown where that is not positive and finite. The network is given asinh(softening / standard
    deviation) of each band behind all bands, and zero, as of infinite noise, where it is unknown or beyond the edge.

    Parameters
    ----------
    bands
        Bands of the training cutouts, in order.
    size
        Side of the network's input, pixels.
    softening
        Scale of the stretch, flux units: x -> asinh(x / softening) (Lupton et al. 2004, up to a constant).
    channels
        Input channels of the network: one a band, twice as many with noise planes, or more where a single band is repeated.
    zero_point_mag, pixel_scale_arcsec
        Of the training cutouts: AB magnitude of one unit of flux, and side of a pixel; None: unknown.
    sky
        Whether the level of the border is subtracted (``border``) or not (``none``).
    measure
        Whether the numbers of `gampen_ray.model.measure` are given to the network.
    conditions
        Further numbers, from columns of the dataset.
    noise_planes
        Whether the network is given the noise of each pixel.
    """

    bands: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    size: Annotated[int, pydantic.Field(ge=1, le=MOST_PIXELS)]
    softening: _Positive
    channels: Annotated[int, pydantic.Field(ge=1, le=MOST_CHANNELS)]
    zero_point_mag: float | None = None
    pixel_scale_arcsec: _Positive | None = None
    sky: Literal["none", "border"] = "none"
    measure: bool = False
    conditions: tuple[Condition, ...] = ()
    noise_planes: bool = False

    def __post_init__(self) -> None:
        if self.repeats_a_band and (len(self.bands) != 1 or self.noise_planes):
            noise = " and their noise planes" if self.noise_planes else ""
            raise UserError(
                f"images.channels: {self.channels} channels cannot be filled from the {len(self.bands)} bands "
                f"{', '.join(self.bands)}{noise}; only a single band is repeated: leave images.channels out"
            )
        if len(set(self.condition_names)) < len(self.conditions):
            raise UserError(f"conditions: {', '.join(self.condition_names)}: each needs a name of its own")

    @classmethod
    def fit(
        cls,
        config: ImagesConfig,
        bands: tuple[str, ...],
        images_NCHW: np.ndarray,
        *,
        zero_point_mag: float | None = None,
        pixel_scale_arcsec: float | None = None,
        conditions: tuple[Condition, ...] = (),
    ) -> "ImagePreprocessing":
        """Settle what the config leaves open from a sample of the training images.

        Raises
        ------
        UserError
            If several bands are asked to fill another number of channels, or the images have no noise to scale by.
        """
        softening = config.softening or sky_sigma(images_NCHW)
        if not softening > 0:
            raise UserError("images.softening: 0 (automatic) but the training images have no noise; give a positive value")
        return cls(
            bands=bands,
            size=config.size or images_NCHW.shape[-1],
            softening=softening,
            channels=config.channels or len(bands) * (1 + config.noise_planes),
            zero_point_mag=zero_point_mag,
            pixel_scale_arcsec=pixel_scale_arcsec,
            sky=config.sky,
            measure=config.measure,
            conditions=conditions,
            noise_planes=config.noise_planes,
        )

    @property
    def number_names(self) -> list[str]:
        """Names of the numbers that the network is given, in order."""
        measured = number_names(self.bands, self.size) if self.measure else []
        return [*measured, *self.condition_names]

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Names of the conditions, in order."""
        return tuple(condition.name for condition in self.conditions)

    @property
    def psf_radius(self) -> tuple[int, float] | None:
        """Which of the numbers is the PSF's half-light radius, and in how many sides of the network's input; None: none is."""
        for name, share in _PSF_RADII.items():
            if name in self.condition_names and self.pixel_scale_arcsec:
                return self.number_names.index(name), share / (self.pixel_scale_arcsec * self.size)
        return None

    @property
    def repeats_a_band(self) -> bool:
        """Whether all channels of the network's input hold the same band."""
        return self.channels != self.num_planes

    @property
    def num_planes(self) -> int:
        """Planes of a cutout: the bands and their noise planes."""
        return len(self.bands) * (1 + self.noise_planes)

    def __call__(self, cutouts: "Matched | torch.Tensor") -> torch.Tensor:
        """Return network inputs, N x channels x size x size float32, from cutouts in flux units; see `stretched`."""
        x = self.stretched(cutouts)
        return x.expand(-1, self.channels, -1, -1).contiguous(memory_format=torch.channels_last)

    def stretched(self, cutouts: "Matched | torch.Tensor") -> torch.Tensor:
        """Return network inputs before a band is repeated, N x C (or 2C) x size x size float32, from cutouts as for `numbers`.

        Raises
        ------
        UserError
            If the images have another number of bands.
        """
        matched = self._matched(cutouts)
        self.check(tuple(matched.image_NCHW.shape), len(self.bands))
        images_NCHW = matched.image_NCHW.float()
        if self.sky == "border":
            images_NCHW = images_NCHW - matched.sky[0][..., None, None]
        x = asinh(resize(images_NCHW, self.size) / self.softening)
        if matched.sigma_NCHW is not None:
            x = torch.cat([x, self._scaled_noise(resize(matched.sigma_NCHW.float(), self.size))], dim=1)
        return x.contiguous(memory_format=torch.channels_last)

    def _scaled_noise(self, sigma_NCHW: torch.Tensor) -> torch.Tensor:
        noise_NCHW = torch.asinh(self.softening / sigma_NCHW.clamp(min=_LEAST_NOISE * self.softening))
        return torch.where(sigma_NCHW > 0, noise_NCHW, 0.0)

    def _matched(self, cutouts: "Matched | torch.Tensor") -> Matched:
        """Return cutouts without what lies beyond the network's input: sky and noise are those of its border."""
        matched = cutouts if isinstance(cutouts, Matched) else self._planes(cutouts)
        if max(matched.image_NCHW.shape[-2:]) <= self.size:
            return matched
        sigma_NCHW = None if matched.sigma_NCHW is None else crop(matched.sigma_NCHW, self.size)
        return Matched(crop(matched.image_NCHW, self.size), matched.noise, sigma_NCHW, unit=self.softening)

    def _planes(self, cutouts: torch.Tensor) -> Matched:
        self.check(tuple(cutouts.shape))
        if not self.noise_planes:
            return Matched(cutouts, unit=self.softening)
        image_NCHW, sigma_NCHW = cutouts.split(len(self.bands), dim=1)
        known_NCHW = torch.isfinite(sigma_NCHW) & (sigma_NCHW > 0)
        return Matched(image_NCHW, sigma_NCHW=torch.where(known_NCHW, sigma_NCHW, 0.0), unit=self.softening)

    def numbers(self, cutouts: "Matched | torch.Tensor", condition_NJ: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return the numbers of cutouts in flux units, N x M in the order of `number_names`; None: the network takes none.

        Parameters
        ----------
        cutouts
            As `match` gives them, or images (N x C x H x W, N x 2C x H x W with noise planes) that need no match.
        condition_NJ
            Values of the conditions; left out where there are none.
        """
        matched, parts = self._matched(cutouts), []
        if self.measure:
            sky_NC, sigma_NC = matched.sky
            images_NCHW = resize(matched.image_NCHW.float() - sky_NC[..., None, None], self.size)
            # Of a padded image, light and noise are others.
            light = matched.light if matched.image_NCHW.shape == images_NCHW.shape else None
            parts.append(measure(images_NCHW, matched.noise or sigma_NC, unit=self.softening, light=light))
        if self.conditions:
            assert condition_NJ is not None
            parts.append(condition_NJ.float().to(matched.image_NCHW.device))
        return torch.cat(parts, dim=1) if parts else None

    def number_noise(self, number_NM: torch.Tensor) -> torch.Tensor:
        """Return the standard deviation of each number, N x M (`gampen_ray.model.measure.number_noise`); zero of conditions."""
        noise_NM = torch.zeros_like(number_NM)
        if self.measure:
            measured = number_NM.shape[1] - len(self.conditions)
            noise_NM[:, :measured] = number_noise(number_NM[:, :measured], len(self.bands), self.size)
        return noise_NM

    def plain_numbers(self, cutouts: "Matched | torch.Tensor") -> torch.Tensor:
        """Return `plain_numbers` (N x Q x C) of what the network sees of cutouts, as for `numbers`, without padding."""
        matched = self._matched(cutouts)
        height, width = matched.image_NCHW.shape[-2:]
        if height != width:
            matched = Matched(resize(matched.image_NCHW, min(height, width)), matched.noise, unit=self.softening)
        return plain_numbers(matched.image_NCHW, self.softening, matched.noise, matched.sky, matched.light)

    def inputs(self, cutouts: "Matched | torch.Tensor", condition_NJ: torch.Tensor | None = None) -> Inputs:
        """Return what the network is given of cutouts, as for `numbers`."""
        cutouts = self._matched(cutouts)
        return Inputs(self(cutouts), self.numbers(cutouts, condition_NJ))

    def check(self, shape: tuple[int, ...], num_planes: int = 0) -> None:
        """Raise a UserError if cutouts of this shape are not N x planes x H x W, or there are none; 0: also noise planes."""
        num_planes = num_planes or self.num_planes
        if len(shape) != 4 or shape[1] != num_planes or shape[0] == 0:
            noise = " and their noise planes" if num_planes > len(self.bands) else ""
            raise UserError(
                f"images: shape {shape} does not fit; give (galaxies, {num_planes}, height, width) with the bands "
                f"{', '.join(self.bands)}{noise}"
            )

    def match(self, images_NCHW: torch.Tensor, *, zero_point_mag: float | None, pixel_scale_arcsec: float | None) -> Matched:
        """Return cutouts of another survey in the flux units and pixel scale of the training cutouts.

        Fluxes are multiplied and pixels resampled (`resample`, flux conserved); what is unknown on either side stays. Noise
        planes become those of independent pixels of the new size. What lies beyond the network's input is left out.
        """
        zoom, factor = self.zoom(pixel_scale_arcsec), 1.0
        side = self.size if zoom == 1 else side_at_scale(self.size, self.pixel_scale_arcsec, pixel_scale_arcsec)
        planes = self._planes(crop(images_NCHW, side))
        images_NCHW, sigma_NCHW = planes.image_NCHW, planes.sigma_NCHW
        if self.zero_point_mag is not None and zero_point_mag is not None:
            factor = 10 ** (0.4 * (self.zero_point_mag - zero_point_mag))
        if sigma_NCHW is not None:
            sigma_NCHW = sigma_NCHW * factor
        if zoom == 1.0:
            image_NCHW = images_NCHW if factor == 1.0 else images_NCHW * factor
            return Matched(image_NCHW, sigma_NCHW=sigma_NCHW, unit=self.softening)
        if sigma_NCHW is not None:
            sigma_NCHW = resampled_noise(sigma_NCHW, zoom) / zoom
        images_NCHW = factor * images_NCHW.float()
        # The light of a pixel falls with its area, its independent noise with its side.
        noise = border_noise(images_NCHW)
        noise = noise._replace(sigma_NC=noise.sigma_NC / zoom)
        return self._matched(Matched(resample(images_NCHW, zoom) / zoom**2, noise, sigma_NCHW, unit=self.softening))

    def zoom(self, pixel_scale_arcsec: float | None) -> float:
        """Return by what factor the sides of cutouts of a pixel scale are resampled, in pixels; 1: not at all."""
        if self.pixel_scale_arcsec is None or pixel_scale_arcsec is None:
            return 1.0
        zoom = pixel_scale_arcsec / self.pixel_scale_arcsec
        return zoom if abs(zoom - 1) > _SAME_PIXEL_SCALE else 1.0

    def conversions(self, *, zero_point_mag: float | None, pixel_scale_arcsec: float | None) -> list[str]:
        """Return what `match` does to cutouts of this zero point and pixel scale, or takes for granted, a line each."""
        lines = []
        for name, given in (("zero_point_mag", zero_point_mag), ("pixel_scale_arcsec", pixel_scale_arcsec)):
            trained = getattr(self, name)
            if trained is not None and given is None:
                lines.append(f"{name} of the cutouts is unknown; taken to be {trained:g}, as in training")
            elif trained is not None and given is not None and not math.isclose(given, trained, rel_tol=1e-6):
                lines.append(f"cutouts are converted from {name} {given:g} to {trained:g}, as in training")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        conditions = [dataclasses.asdict(condition) for condition in self.conditions]
        return dataclasses.asdict(self) | {"bands": list(self.bands), "conditions": conditions}


def sky_sigma(images_NCHW: np.ndarray) -> float:
    """Return the sky noise, flux units: the median over images of 1.4826 MAD of the pixels of the top and bottom border."""
    border = np.concatenate([images_NCHW[..., :2, :], images_NCHW[..., -2:, :]], axis=-2).reshape(len(images_NCHW), -1)
    deviation = np.abs(border - np.median(border, axis=1, keepdims=True))
    return float(1.4826 * np.median(np.median(deviation, axis=1)))


def asinh(x: torch.Tensor) -> torch.Tensor:
    """Return the inverse hyperbolic sine to the precision of `torch.asinh`, which takes four times as long on CPUs."""
    y = x.abs()
    # |x| + x^2 / (1 + sqrt(1 + x^2)), without squares that overflow.
    return torch.hypot(y, y.new_ones(())).add_(1).reciprocal_().mul_(y).mul_(y).add_(y).log1p_().copysign_(x)
