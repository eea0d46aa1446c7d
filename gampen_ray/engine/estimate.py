"""What an inference will take: a measurement of half a minute, scaled to the whole input and to another cluster."""

import dataclasses
import logging
import time
from typing import Any

from gampen_ray.config import InferConfig
from gampen_ray.data.sources import Source, Unit
from gampen_ray.engine.prediction import inference_workers, run_inference
from gampen_ray.engine.rates import Rates
from gampen_ray.engine.session import ray_session
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle

logger = logging.getLogger(__name__)

_SECONDS = 30.0
# More than the fastest device ends in that time.
_UNITS_PER_WORKER = 400


def estimate(config: InferConfig, bundle: Bundle, source: Source, units: list[Unit]) -> dict[str, Any]:
    """Predict for half a minute, write nothing, and return and log what the whole input will take.

    Raises
    ------
    UserError
        If there is nothing to predict.
    """
    began = time.time()
    with ray_session():
        workers = inference_workers(config, len(units))
        # Those that have to wait for nodes would be measured as idle.
        workers = dataclasses.replace(workers, count=workers.room)
        rates = Rates(began, config.num_passes, workers)
        some = units[: _UNITS_PER_WORKER * workers.count]
        for result in run_inference(config, bundle, source, some, workers, seconds=_SECONDS):
            # What comes when the time is over is empty.
            if result.num_rows:
                rates.add(result)
    total = sum(unit.num_rows for unit in units)
    measured = rates.to_dict()
    if not measured["galaxies"]:
        raise UserError(f"estimate: no galaxy of {config.dataset} was predicted in {_SECONDS:g} s; give smaller --num-passes")
    result = extrapolate(measured, total, config.estimate_workers or workers.count)
    speed = measured["galaxies_per_second"]
    logger.info("measured with %s workers: %.4g galaxies/s, %s", workers.count, speed, rates.text())
    logger.info(
        "estimate for %s galaxies and %s workers: %.3g galaxies/s, %.3g hours, %.3g GPU-hours, catalogue of %.3g GB",
        f"{total:,}",
        result["workers"],
        result["galaxies_per_second"],
        result["hours"],
        result["gpu_hours"],
        result["output_bytes"] / 1e9,
    )
    return {"measured": measured, "estimate": result}


def extrapolate(measured: dict[str, Any], galaxies: int, workers: int) -> dict[str, Any]:
    """Return what ``galaxies`` take on a number of workers like those measured.

    Workers share nothing but the storage, so that their rates add up; start-up counts once.

    Parameters
    ----------
    measured
        As `gampen_ray.engine.rates.Rates` has it.
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
