"""Targets: names, units and the invertible map from physical values to standardised network space.

Shape legend: N galaxies, D targets.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pydantic
from scipy.special import expit, logit

from gampen_ray.config import TargetConfig, Transform
from gampen_ray.data.gampen_labels import logit_limits
from gampen_ray.data.units import shown_unit
from gampen_ray.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One target: z = (transform(y) - location) / scale.

    Parameters
    ----------
    name
        Column name.
    unit
        Physical unit in astropy's notation, empty for dimensionless.
    transform
        ``identity``, ``log`` or ``logit``.
    clip_low, clip_high
        Logit only: y is clipped to [clip_low, clip_high] first.
    location, scale
        Mean and standard deviation of the transformed training values.
    low, high
        Range of the physical training values.
    """

    name: Annotated[str, pydantic.Field(min_length=1)]
    unit: str
    transform: Transform
    clip_low: float
    clip_high: float
    location: float
    scale: Annotated[float, pydantic.Field(gt=0)]
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.transform == "logit" and not 0 <= self.clip_low < self.clip_high <= 1:
            raise ValueError(f"{self.name} is clipped to [{self.clip_low:g}, {self.clip_high:g}], which is no range in [0, 1]")
        if self.low > self.high:
            raise ValueError(f"{self.name} has training values from {self.low:g} to {self.high:g}, the wrong way round")

    def standardise(self, y: np.ndarray) -> np.ndarray:
        """Return standardised values (float64) of physical values ``y``.

        Raises
        ------
        UserError
            If a value is not finite or lies outside the transform's domain.
        """
        clip = self.clip_low, self.clip_high
        return (_transformed(self.name, self.transform, clip, y) - self.location) / self.scale

    def physical(self, z: np.ndarray) -> np.ndarray:
        """Return the physical values of standardised values ``z``; the inverse of `standardise` up to the clip."""
        t = self.location + self.scale * np.asarray(z, dtype=np.float64)
        if self.transform == "log":
            return np.exp(t)
        return expit(t) if self.transform == "logit" else t

    def times(self, factor: float, unit: str) -> "Target":
        """Return the target in another unit, in which values are larger by a factor, with the same standardised ones."""
        ends = {"unit": unit, "low": factor * self.low, "high": factor * self.high}
        if self.transform == "log":
            return dataclasses.replace(self, **ends, location=self.location + math.log(factor))
        return dataclasses.replace(self, **ends, location=factor * self.location, scale=factor * self.scale)


@dataclasses.dataclass(frozen=True)
class TargetSchema:
    """The targets of a network, in the order of its outputs."""

    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self) or not self.targets:
            raise ValueError(f"targets are {', '.join(self.names) or 'none'}; each needs a name of its own")

    @classmethod
    def fit(cls, configs: Mapping[str, TargetConfig], values_ND: np.ndarray, units: Mapping[str, str]) -> "TargetSchema":
        """Learn location and scale from training values.

        Parameters
        ----------
        configs
            Target configs by name, in the order of the columns of ``values_ND``.
        values_ND
            Physical values of the training split.
        units
            Units by target name, used where the config gives none.

        Raises
        ------
        UserError
            If a value lies outside its transform's domain, or a target is constant.
        """
        targets = []
        for (name, config), y in zip(configs.items(), np.asarray(values_ND, dtype=np.float64).T, strict=True):
            clip = _clip(name, config, y)
            t = _transformed(name, config.transform, clip, y)
            if not t.std() > 0:
                raise UserError(f"targets.{name}: all training values are {y[0]:g}; a target must vary, remove it")
            targets.append(
                Target(
                    name=name,
                    unit=config.unit or units.get(name, ""),
                    transform=config.transform,
                    clip_low=clip[0],
                    clip_high=clip[1],
                    location=float(t.mean()),
                    scale=float(t.std()),
                    low=float(y.min()),
                    high=float(y.max()),
                )
            )
        return cls(tuple(targets))

    @property
    def names(self) -> tuple[str, ...]:
        """Target names in order."""
        return tuple(target.name for target in self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self):
        return iter(self.targets)

    def standardise(self, values_ND: np.ndarray) -> np.ndarray:
        """Return standardised values, N x D float64; see `Target.standardise`."""
        return np.stack([t.standardise(values_ND[..., d]) for d, t in enumerate(self.targets)], axis=-1)

    def physical(self, z_ND: np.ndarray) -> np.ndarray:
        """Return physical values, ... x D float64; see `Target.physical`."""
        return np.stack([t.physical(z_ND[..., d]) for d, t in enumerate(self.targets)], axis=-1)

    def shown(self) -> tuple["TargetSchema", np.ndarray]:
        """Return the targets in units that people read (`gampen_ray.data.units.shown_unit`), and the factors to these, D."""
        found = [shown_unit(target.unit) for target in self]
        targets = (t if unit == t.unit else t.times(factor, unit) for t, (factor, unit) in zip(self, found, strict=True))
        return TargetSchema(tuple(targets)), np.array([factor for factor, _ in found])

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the schema as plain values for JSON."""
        return [dataclasses.asdict(target) for target in self.targets]


def _clip(name: str, config: TargetConfig, y: np.ndarray) -> tuple[float, float]:
    if config.transform != "logit" or config.clip:
        return config.clip, 1 - config.clip
    try:
        return logit_limits(y)
    except UserError as error:
        raise UserError(f"targets.{name}.clip: {error}") from None


def _transformed(name: str, transform: Transform, clip: tuple[float, float], y: np.ndarray) -> np.ndarray:
    y = np.asarray(y, dtype=np.float64)
    inside = np.isfinite(y)
    domain = "finite values"
    if transform == "log":
        inside &= y > 0
        domain = "values above 0"
    elif transform == "logit":
        inside &= (y >= 0) & (y <= 1)
        domain = "values in [0, 1]"
    if not inside.all():
        bad = y[~inside]
        raise UserError(
            f"targets.{name}: {bad.size} of {y.size} values lie outside the domain of transform {transform!r}, the first is "
            f"{bad.flat[0]:g}; it takes {domain}: mend these rows or choose another transform"
        )
    if transform == "log":
        return np.log(y)
    return logit(np.clip(y, *clip)) if transform == "logit" else y
