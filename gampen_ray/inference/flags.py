"""Flags of catalogue rows: what a user should know before trusting a posterior.

Shape legend: N galaxies, F features, J conditions, Q plain numbers, C bands.
"""

import dataclasses
import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from gampen_ray.inference.known_conditions import KnownConditions
from gampen_ray.inference.out_of_distribution import OutOfDistribution
from gampen_ray.inference.ranges import Ranges
from gampen_ray.model.images import Condition
from gampen_ray.model.measure import PLAIN_NUMBERS
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.summary import Statistics, summary_columns

__all__ = [
    "MOST_BLEND",
    "REMARKS",
    "Flag",
    "FlagCounts",
    "condition_flags",
    "crop_at_bound",
    "galaxy_flags",
    "image_flags",
    "posterior_flags",
    "prior_flags",
    "range_flags",
]


class Flag(enum.IntFlag):
    """Bits of the catalogue's ``flags``, each with its meaning.

    From SKY_OUT_OF_RANGE to STRAY_LIGHT_OUT_OF_RANGE, and PIXELS_ZERO: a number measured in the cutout lies outside the range
    of 99.8 % of held-out galaxies.
    """

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Return a bit that knows its meaning."""
        flag = int.__new__(cls, value)
        flag._value_, flag.meaning = value, meaning
        return flag

    INPUT_PADDED = 1, "the cutout is smaller than the network's input and was zero-padded"
    PIXELS_FILLED = 2, "non-finite pixels were filled when the cutout was read"
    CROP_AT_BOUND = (
        4,
        "the learned crop extends beyond the cutout, which those of the default transformer never do: the galaxy may be "
        "larger, or the transformer missed it",
    )
    NEAR_TRAINING_EDGE = (
        8,
        "a target's mean is within 1.3 standard deviations of an end of the training values (the 68 % interval of a fraction "
        "leaves them), or beyond: the network extrapolates there",
    )
    EPISTEMIC_DOMINATES = (
        16,
        "the epistemic part of a target's variance exceeds the aleatoric part: dropout passes disagree about the image",
    )
    UNUSUAL_IMAGE = (
        32,
        "the Mahalanobis distance of the image's features from the training images exceeds that of 99.9 % of held-out images",
    )
    COARSE_PIXELS = (
        64,
        "the cutout's pixels are more than 1.4 times as large as the training's: detail that was there in training is missing",
    )
    CONDITION_MISSING = 128, "a condition of the galaxy is unknown; the posterior is over its values in the training"
    CONDITION_OUT_OF_RANGE = (
        256,
        "a condition of the galaxy, such as the width of the PSF, lies outside the range of the training galaxies, or its "
        "conditions together are unlike those of any training galaxy",
    )
    SKY_OUT_OF_RANGE = 512, "sky level over noise, measured in the border"
    NOISE_OUT_OF_RANGE = 1024, "noise of a pixel: a deeper or shallower image"
    BRIGHTNESS_OUT_OF_RANGE = (
        2048,
        "flux in an aperture; it scatters, so galaxies just beyond the range have NEAR_TRAINING_EDGE instead",
    )
    SIZE_OUT_OF_RANGE = 4096, "half-light radius of the curve of growth"
    PIXELS_CONSTANT = 8192, "share of pixels that equal a neighbour exactly: masked, saturated or blank regions"
    NOISE_CORRELATION_OUT_OF_RANGE = (
        16384,
        "correlation of neighbouring pixels in the border: resampled images, or another survey's noise",
    )
    STRAY_LIGHT_OUT_OF_RANGE = 32768, "light in the border, from neighbours or from the galaxy itself"
    OFF_CENTRE = (
        65536,
        "the galaxy's peak is more than 4 pixels of the network's input from the middle (centre_offset), or nothing is there",
    )
    PIXELS_ZERO = 131072, "share of pixels that are exactly zero, as masked ones often are"
    CORE_SATURATED = (
        262144,
        "within 6 pixels of the middle, at least 5 pixels are within 0.3 % of the brightest, or pixels had no value and were "
        "filled: a saturated, clipped or masked core",
    )
    RESAMPLED = (
        524288,
        "bands of the cutout were resampled onto the pixels of the first (align), whose grid is another: their noise is "
        "correlated",
    )
    PRIOR_CONFLICT = (
        1048576,
        "less than 5 % of the posterior's draws count under the prior that was asked for (effective_share): the image speaks "
        "against it, or it is much narrower than the posterior",
    )
    BLENDED = (
        2097152,
        "light beside the galaxy, without a counterpart opposite its centre, is more than a fifth of its own within 1.5 "
        "half-light radii: a neighbour, or a very lopsided galaxy",
    )


_RANGE_FLAGS = dict(
    zip(
        PLAIN_NUMBERS,
        (
            Flag.SKY_OUT_OF_RANGE,
            Flag.NOISE_OUT_OF_RANGE,
            Flag.BRIGHTNESS_OUT_OF_RANGE,
            Flag.SIZE_OUT_OF_RANGE,
            Flag.PIXELS_CONSTANT,
            Flag.NOISE_CORRELATION_OUT_OF_RANGE,
            Flag.STRAY_LIGHT_OUT_OF_RANGE,
            Flag.PIXELS_ZERO,
        ),
        strict=True,
    )
)
REMARKS = Flag.INPUT_PADDED | Flag.PIXELS_FILLED | Flag.CROP_AT_BOUND | Flag.RESAMPLED | Flag.BLENDED
"""Flags of what was done to an image, or what is in it; all others warn that a posterior may be wrong."""
MOST_BLEND = 0.2
"""Light beside a galaxy over its own, above which it is BLENDED; see `gampen_ray.model.measure.blend_share`."""
_FARTHEST_PIXELS = 4.0
_COARSEST = 1.4
_EDGE_SIGMA = 1.3
_LEAST_SHARE = 0.05
# Columns of `posterior_flags`.
_JUDGED = ("_mean", "_std", "_lo68", "_hi68", "_std_aleatoric", "_std_epistemic")
# In the crop's units, in which the image is 2 wide: half a pixel of a cutout of 64.
_BEYOND = 1 / 64


def crop_at_bound(affine_N23: np.ndarray) -> np.ndarray:
    """Return for each map from crop to image coordinates whether a corner of the crop lies outside the image, N.

    Coordinates are in [-1, 1] inside; the tolerance is half a pixel of a cutout of 64 pixels.
    """
    # The corners are at (+-1, +-1): the farthest is the sum of absolute values away.
    return (np.abs(affine_N23).sum(axis=2) > 1 + _BEYOND).any(axis=1)


def image_flags(
    affine_N23: np.ndarray,
    features_NF: np.ndarray,
    novelty: OutOfDistribution | None,
    *,
    zoom: float,
    centre_offset_N: np.ndarray,
) -> np.ndarray:
    """Return the flags of the images, N int64.

    Parameters
    ----------
    affine_N23
        Maps from crop to image coordinates; see `gampen_ray.model.spatial_transformer`.
    features_NF
        `gampen_ray.inference.out_of_distribution.features` of the images; unused without ``novelty``.
    novelty
        Detector of the bundle; None: no image is unusual.
    zoom
        Side of the cutouts' pixels over that of the training's; see `gampen_ray.model.images.ImagePreprocessing.zoom`.
    centre_offset_N
        `gampen_ray.model.measure.centre_offset` of the images, pixels.
    """
    flags_N = np.where(crop_at_bound(affine_N23), Flag.CROP_AT_BOUND.value, 0)
    if novelty is not None:
        flags_N |= np.where(novelty.unusual(features_NF), Flag.UNUSUAL_IMAGE.value, 0)
    flags_N |= np.where(centre_offset_N > _FARTHEST_PIXELS, Flag.OFF_CENTRE.value, 0)
    return flags_N | (Flag.COARSE_PIXELS.value if zoom > _COARSEST else 0)


def condition_flags(condition_NJ: np.ndarray, conditions: Sequence[Condition], known: KnownConditions | None) -> np.ndarray:
    """Return the flags that the conditions decide, N int64; a value that is not finite is missing."""
    low_J, high_J = (np.array([getattr(condition, name) for condition in conditions]) for name in ("low", "high"))
    missing_N = ~np.isfinite(condition_NJ).all(axis=1)
    with np.errstate(invalid="ignore"):
        outside_N = ((condition_NJ < low_J) | (condition_NJ > high_J)).any(axis=1)
    if known:
        outside_N |= known.unlike(condition_NJ)
    return np.where(missing_N, Flag.CONDITION_MISSING.value, 0) | np.where(outside_N, Flag.CONDITION_OUT_OF_RANGE.value, 0)


def range_flags(numbers_NQC: np.ndarray, ranges: Ranges) -> np.ndarray:
    """Return the flags of plain numbers (`gampen_ray.model.measure.plain_numbers`) outside their ranges, N int64."""
    outside_NQ = ranges.outside(numbers_NQC)
    return outside_NQ @ np.array([flag.value for flag in _RANGE_FLAGS.values()][: outside_NQ.shape[1]])


def posterior_flags(summary: Mapping[str, np.ndarray], targets: TargetSchema) -> np.ndarray:
    """Return the flags of the posteriors, N int64.

    Parameters
    ----------
    summary
        Columns by name, from `gampen_ray.posterior.summary.summarise`.
    targets
        Targets of the model, with the range of their training values.
    """
    edge_N, epistemic_N = np.zeros((2, len(summary[f"{targets.names[0]}_mean"])), bool)
    for target in targets:
        name = target.name
        low_N, high_N = summary[f"{name}_lo68"], summary[f"{name}_hi68"]
        if target.transform != "logit":
            # Fractions are often near 0 or 1. By fluxes, this sees 98 % of galaxies up to 1.5 mag too faint.
            reach_N = _EDGE_SIGMA * summary[f"{name}_std"]
            low_N, high_N = summary[f"{name}_mean"] - reach_N, summary[f"{name}_mean"] + reach_N
        edge_N |= (low_N < target.low) | (high_N > target.high)
        epistemic_N |= summary[f"{name}_std_epistemic"] > summary[f"{name}_std_aleatoric"]
    return np.where(edge_N, Flag.NEAR_TRAINING_EDGE.value, 0) | np.where(epistemic_N, Flag.EPISTEMIC_DOMINATES.value, 0)


def galaxy_flags(image_flags_N: np.ndarray, judged: Statistics) -> np.ndarray:
    """Return all flags of galaxies, N int64, from those of their images and their posteriors under the training's prior."""
    columns = [column for column in summary_columns(judged.mixture.targets) if column.name.endswith(_JUDGED)]
    summary = {column.name: column.value(judged) for column in columns}
    image_N, posterior_N = np.asarray(image_flags_N, np.int64), posterior_flags(summary, judged.mixture.targets)
    # Passes with conditions of their own differ for that reason.
    missing_N = (image_N & Flag.CONDITION_MISSING.value) != 0
    return image_N | np.where(missing_N, posterior_N & ~Flag.EPISTEMIC_DOMINATES.value, posterior_N)


def prior_flags(effective_share_N: np.ndarray) -> np.ndarray:
    """Return the flags of posteriors under another prior (`gampen_ray.posterior.exchange.exchange_prior`), N int64."""
    return np.where(effective_share_N < _LEAST_SHARE, Flag.PRIOR_CONFLICT.value, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlagCounts:
    """How many galaxies have each flag.

    Parameters
    ----------
    num_galaxies, num_warned
        All galaxies, and those whose posterior may be wrong.
    flags
        Numbers of galaxies by the flags' names.
    """

    num_galaxies: int = 0
    num_warned: int = 0
    flags: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, flags_N: np.ndarray) -> "FlagCounts":
        """Count the flags of galaxies, N int64."""
        counts = {str(flag.name): int(((flags_N & flag.value) != 0).sum()) for flag in Flag}
        warned = int(((flags_N & ~REMARKS.value) != 0).sum())
        return cls(num_galaxies=len(flags_N), num_warned=warned, flags={name: n for name, n in counts.items() if n})

    def __add__(self, other: "FlagCounts") -> "FlagCounts":
        """Count the galaxies of both."""
        flags = Counter(self.flags) + Counter(other.flags)
        return FlagCounts(
            num_galaxies=self.num_galaxies + other.num_galaxies, num_warned=self.num_warned + other.num_warned, flags=flags
        )

    @property
    def warning(self) -> str:
        """A line for those who use the posteriors; empty if none may be wrong."""
        warnings = [str(flag.name) for flag in Flag if not flag & REMARKS]
        named = ", ".join(f"{name} ({self.flags[name]:,})" for name in warnings if name in self.flags)
        return f"{self.num_warned:,} of {self.num_galaxies:,} posteriors may be wrong: {named}" if self.num_warned else ""
