"""How fast an inference runs: the receipts of its units added up, and scaled to other inputs and clusters."""

import dataclasses
import time
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitReceipt:
    """What became of a unit.

    Parameters
    ----------
    num_rows, num_quarantined
        Rows predicted or quarantined, and those in quarantine.
    id_sum
        Sum over the identifiers of the rows, as `gampen_ray.catalog.completeness.id_sum` has it.
    bytes_read, bytes_written
        Of the input as stored, and of the catalogue file.
    start, stop
        When a worker took and ended it, seconds of the epoch.
    device_seconds
        How long the device worked on it.
    """

    num_rows: int
    num_quarantined: int
    id_sum: int
    bytes_read: int
    bytes_written: int
    start: float
    stop: float
    device_seconds: float


class Rates:
    """Sums over the units of one run; start-up, before the first worker took its first unit, is kept apart.

    Parameters
    ----------
    num_passes
        Monte Carlo passes a galaxy.
    began
        When the run began, seconds of the epoch.
    """

    def __init__(self, num_passes: int, began: float) -> None:
        self._num_passes, self._began = num_passes, began
        self._start = self._stop = 0.0
        self._galaxies, self._bytes_read, self._bytes_written, self._device_seconds = 0, 0, 0, 0.0
        self._workers, self._gpus_per_worker = 1, 0.0

    def add(self, receipt: UnitReceipt, *, workers: int, gpus_per_worker: float) -> None:
        """Count a unit that one of so many workers has just finished."""
        self._workers, self._gpus_per_worker = workers, gpus_per_worker
        self._start = min(self._start or receipt.start, receipt.start)
        self._stop = time.time()
        self._galaxies += receipt.num_rows
        self._bytes_read += receipt.bytes_read
        self._bytes_written += receipt.bytes_written
        self._device_seconds += receipt.device_seconds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest, none if nothing was predicted; rates per second exclude the start-up."""
        if not self._galaxies:
            return {}
        seconds = max(self._stop - self._start, 1e-9)
        return {
            "galaxies": self._galaxies,
            "startup_seconds": round(self._start - self._began, 3),
            "seconds": round(seconds, 3),
            "galaxies_per_second": self._galaxies / seconds,
            "passes_per_second": self._galaxies * self._num_passes / seconds,
            "bytes_read": self._bytes_read,
            "bytes_written": self._bytes_written,
            "workers": self._workers,
            "gpus_per_worker": self._gpus_per_worker,
            "device_utilisation": self._device_seconds / (seconds * self._workers),
        }

    def text(self) -> str:
        """Return the rates beside that of galaxies for a log line."""
        rates = self.to_dict()
        megabytes = rates["bytes_read"] / rates["seconds"] / 1e6
        return (
            f"{rates['passes_per_second']:,.0f} passes/s, {megabytes:,.2g} MB/s read, "
            f"devices {rates['device_utilisation']:.0%} busy"
        )


def extrapolate(measured: dict[str, Any], galaxies: int, workers: int) -> dict[str, Any]:
    """Return what ``galaxies`` take on a number of workers like those measured.

    Workers share nothing but the storage, so that their rates add up; all start at once and once.

    Parameters
    ----------
    measured
        As `Rates.to_dict` gives it.
    galaxies, workers
        Size of the input and of the cluster.
    """
    rate = measured["galaxies_per_second"] / measured["workers"] * workers
    hours = (galaxies / rate + measured["startup_seconds"]) / 3600
    return {
        "galaxies": galaxies,
        "workers": workers,
        "galaxies_per_second": rate,
        "hours": hours,
        "gpu_hours": hours * workers * measured["gpus_per_worker"],
        "output_bytes": round(galaxies * measured["bytes_written"] / measured["galaxies"]),
        "input_bytes": round(galaxies * measured["bytes_read"] / measured["galaxies"]),
    }
