"""How a network's learned crop behaves over many galaxies.

Shape legend: N galaxies, U hidden units of the localisation network.
"""

import dataclasses
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from gampen_ray.model.network import Network
from gampen_ray.model.spatial_transformer import crop_scale

__all__ = ["CropMonitor", "CropSample", "CropStatistics"]

_MAX_SCALES = 10_000
_DEAD = 1e-6
_AT_BOUND = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropStatistics:
    """Spread of the crops of a sample, and whether the localisation network is alive."""

    num_galaxies: int
    """Galaxies of the sample."""
    scale_p05: float
    """Quantiles of the crop's side over that of the network's input: 5 %."""
    scale_p16: float
    """16 %."""
    scale_p50: float
    """50 %."""
    scale_p84: float
    """84 %."""
    scale_p95: float
    """95 %."""
    at_bound: float
    """Share of galaxies whose crop has the smallest or largest scale of the sample, within 0.1 %."""
    dead_fraction: float | None = None
    """Share of the hidden units that give the same value for all galaxies; None: unknown."""
    rank_correlation: float | None = None
    """Spearman's correlation of scale and effective radius; None: no such truth, or a constant crop."""
    from_radius: float | None = None
    """Standard deviation of ln(scale / measured radius), without crops at a bound; None: no radius is measured."""

    @classmethod
    def of(
        cls,
        scale_N: np.ndarray,
        *,
        dead_fraction: float | None = None,
        radius_N: np.ndarray | None = None,
        log_radius_N: np.ndarray | None = None,
    ) -> "CropStatistics":
        """Return the statistics of one crop or more.

        Parameters
        ----------
        scale_N
            Side of the crop over that of the network's input.
        dead_fraction
            See `CropStatistics`.
        radius_N
            True effective radii.
        log_radius_N
            Logarithms of measured radii, in sides of the network's input.
        """
        scale_N = np.asarray(scale_N, np.float64)
        bound_N = (scale_N <= scale_N.min() * (1 + _AT_BOUND)) | (scale_N >= scale_N.max() * (1 - _AT_BOUND))
        correlation = None
        if radius_N is not None and np.ptp(scale_N) > 0 and np.ptp(radius_N) > 0:
            correlation = float(np.corrcoef(pd.Series(scale_N).rank(), pd.Series(radius_N).rank())[0, 1])
        from_radius = None
        if log_radius_N is not None and not bound_N.all():
            from_radius = float(np.std((np.log(scale_N) - log_radius_N)[~bound_N]))
        quantiles = {f"scale_p{q:02d}": float(np.percentile(scale_N, q)) for q in (5, 16, 50, 84, 95)}
        return cls(
            num_galaxies=len(scale_N),
            **quantiles,
            at_bound=float(bound_N.mean()),
            dead_fraction=dead_fraction,
            rank_correlation=correlation,
            from_radius=from_radius,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


class CropSample(NamedTuple):
    """What a `CropMonitor` saw."""

    scale_N: np.ndarray
    log_radius_N: np.ndarray | None
    low_U: np.ndarray
    high_U: np.ndarray

    @staticmethod
    def joined(samples: "list[CropSample]") -> "CropSample":
        """Return the sample of all workers."""
        scales, radii, lows, highs = zip(*samples, strict=True)
        radius_N = None if any(radius_N is None for radius_N in radii) else np.concatenate(radii)
        return CropSample(np.concatenate(scales), radius_N, np.min(lows, axis=0), np.max(highs, axis=0))

    def statistics(self, radius_N: np.ndarray | None = None) -> CropStatistics:
        """Return the statistics; ``radius_N``: true effective radii. Without a second galaxy no unit is known to be dead."""
        dead_U = self.high_U - self.low_U <= _DEAD * np.maximum(abs(self.low_U), abs(self.high_U))
        return CropStatistics.of(
            self.scale_N,
            dead_fraction=float(dead_U.mean()) if len(self.scale_N) > 1 else None,
            radius_N=radius_N,
            log_radius_N=self.log_radius_N,
        )


class CropMonitor:
    """Watches the spatial transformer of a network while a context lasts.

    Parameters
    ----------
    network
        Network with a spatial transformer.
    """

    def __init__(self, network: Network) -> None:
        assert network.transformer is not None
        self._transformer = network.transformer
        self._scales: list[np.ndarray] = []
        self._radii: list[np.ndarray | None] = []
        # Before the first galaxy, of any number of units.
        self._low_U, self._high_U = np.array(np.inf), np.array(-np.inf)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "CropMonitor":
        self._hooks = [
            self._transformer.register_forward_hook(self._crops),
            # Behind the activation of the hidden layer.
            self._transformer.parameters_head[1].register_forward_hook(self._hidden),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def sample(self) -> CropSample:
        """What was seen: the first ten thousand scales, and the ranges of the hidden units over all galaxies."""
        scale_N = np.concatenate([np.zeros(0), *self._scales])
        radii = [radius_N for radius_N in self._radii if radius_N is not None]
        radius_N = np.concatenate([np.zeros(0), *radii]) if len(radii) == len(self._radii) else None
        return CropSample(scale_N, radius_N, self._low_U, self._high_U)

    def _crops(self, layer: torch.nn.Module, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        if sum(map(len, self._scales)) < _MAX_SCALES:
            self._scales.append(crop_scale(output[1].detach()).cpu().numpy())
            log_radius_N = inputs[2] if len(inputs) > 2 else None
            self._radii.append(None if log_radius_N is None else log_radius_N.detach().double().cpu().numpy())

    def _hidden(self, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        low_U, high_U = (end.float().cpu().numpy() for end in torch.aminmax(output.detach(), dim=0))
        self._low_U, self._high_U = np.minimum(self._low_U, low_U), np.maximum(self._high_U, high_U)
