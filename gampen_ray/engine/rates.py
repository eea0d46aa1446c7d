"""How fast an inference runs: what its units tell, added up."""

import time
from typing import Any

from gampen_ray.engine.prediction import UnitResult
from gampen_ray.engine.resources import Workers


class Rates:
    """Sums over the units of one run; start-up, before the first actor took its first unit, is kept apart.

    Parameters
    ----------
    began
        When the run began, seconds of the epoch.
    num_passes
        Monte Carlo passes a galaxy.
    workers
        Actors that predict.
    """

    def __init__(self, began: float, num_passes: int, workers: Workers) -> None:
        self._began, self._num_passes, self._workers = began, num_passes, workers
        self._start = self._stop = 0.0
        self._galaxies, self._bytes_read, self._bytes_written, self._device_seconds = 0, 0, 0, 0.0

    def add(self, result: UnitResult) -> None:
        """Count a unit that was just finished."""
        self._start = min(self._start or result.start, result.start)
        self._stop = time.time()
        self._galaxies += result.num_rows
        self._bytes_read += result.bytes_read
        self._bytes_written += result.bytes_written
        self._device_seconds += result.device_seconds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest; rates per second exclude the start-up."""
        seconds = max(self._stop - self._start, 1e-9)
        return {
            "galaxies": self._galaxies,
            "startup_seconds": round(self._start - self._began, 3),
            "seconds": round(seconds, 3),
            "galaxies_per_second": self._galaxies / seconds,
            "passes_per_second": self._galaxies * self._num_passes / seconds,
            "bytes_read": self._bytes_read,
            "bytes_written": self._bytes_written,
            "workers": self._workers.count,
            "gpus_per_worker": self._workers.gpus,
            "device_utilisation": self._device_seconds / (seconds * self._workers.count),
        }

    def text(self) -> str:
        """Return the rates beside that of galaxies for a log line."""
        rates = self.to_dict()
        megabytes = rates["bytes_read"] / rates["seconds"] / 1e6
        return (
            f"{rates['passes_per_second']:,.0f} passes/s, {megabytes:,.2g} MB/s read, "
            f"devices {rates['device_utilisation']:.0%} busy"
        )
