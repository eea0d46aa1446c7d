"""Speed of an inference: totals over its units, and their extrapolation to other inputs and clusters."""

import dataclasses
import time
from typing import Any, ClassVar

from gampen_ray import documents


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitReceipt:
    """Counts and times of a finished unit.

    Parameters
    ----------
    num_rows, num_quarantined
        All rows, and those in quarantine.
    id_sum
        `gampen_ray.catalog.completeness.id_sum` of all rows.
    bytes_read, bytes_written
        Stored size of the input, and size of the catalogue file.
    seconds, device_seconds
        Time from the first read to the last write, and on the device.
    """

    __pydantic_config__: ClassVar = documents.STRICT

    num_rows: int
    num_quarantined: int
    id_sum: int
    bytes_read: int
    bytes_written: int
    seconds: float
    device_seconds: float


class Rates:
    """Totals over the units of one run, without the start-up before the first unit.

    Parameters
    ----------
    num_passes
        Monte Carlo passes per galaxy.
    began
        Start of the run by the monotonic clock of this process, s: the time of day may be set while it runs.
    """

    def __init__(self, num_passes: int, began: float) -> None:
        self._num_passes = num_passes
        self._began = began
        self._start = self._stop = 0.0
        self._galaxies, self._bytes_read, self._bytes_written, self._device_seconds = 0, 0, 0, 0.0
        self._workers, self._gpus_per_worker = 1, 0.0

    def add(self, receipt: UnitReceipt, *, workers: int, gpus_per_worker: float) -> None:
        """Count a finished unit of a pool of ``workers`` workers."""
        self._workers, self._gpus_per_worker = workers, gpus_per_worker
        self._stop = time.monotonic()
        start = max(self._stop - receipt.seconds, self._began)
        self._start = min(self._start or start, start)
        self._galaxies += receipt.num_rows
        self._bytes_read += receipt.bytes_read
        self._bytes_written += receipt.bytes_written
        self._device_seconds += receipt.device_seconds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest, empty if nothing was predicted; rates exclude the start-up."""
        if not self._galaxies:
            return {}
        # Receipts may arrive together; no device works for longer than the job.
        seconds = max(self._stop - self._start, self._device_seconds / self._workers, 1e-9)
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
        """Return the rates other than galaxies/s for a log line."""
        rates = self.to_dict()
        megabytes = rates["bytes_read"] / rates["seconds"] / 1e6
        return (
            f"{rates['passes_per_second']:,.0f} passes/s, {megabytes:,.2g} MB/s read, "
            f"devices {rates['device_utilisation']:.0%} busy"
        )


def extrapolate(measured: dict[str, Any], galaxies: int, workers: int) -> dict[str, Any]:
    """Estimate time and storage for ``galaxies`` on a number of workers like those measured.

    Workers share only the storage, so their rates add up; all start at the same time, once.

    Parameters
    ----------
    measured
        From `Rates.to_dict`.
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
