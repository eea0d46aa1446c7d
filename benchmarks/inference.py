"""Cost of inference, as ratios measured in one run; prints JSON.

    python benchmarks/inference.py WORK [SECTION ...]

WORK is a folder for inputs and outputs. Sections, by default all:

pipeline    galaxies/s of `infer` over those of a bare loop on batches in memory, with the same numbers of processes and
            threads; two minutes or more, start-up reported separately
passes      cost of K = 32 passes over that of one, by placement of the dropout; cost of the masks
actors      galaxies/s against the number of actors
memory      peak memory of driver and workers for 20,000 galaxies and for ten times as many
units       actor starts and driver memory for 2,000 and for 20,000 units of 8 galaxies; then the latter killed half-way with
            SIGKILL and resumed, with a check of the ids in the catalogue
million     one million cutouts of 32 x 32 pixels in one job
precision   time to a posterior summary as precise as that of 1,000 passes with one draw each
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from mc_precision import equal_precision
from parts import DEVICE, SMALL, blobs, cutouts, model, save

from gampen_ray.commands.infer import InferConfig, infer
from gampen_ray.config import ActorResources, NetworkConfig, gampen_vgg16
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.mc_dropout import ThinnedNetworks
from gampen_ray.inference.predictor import Predictor

NUM_PASSES = 32
LOOP_SECONDS = 20.0
PIPELINES = {"compact_64px": (NetworkConfig(), 64, 120_000, 2_500), "vgg16_143px": (gampen_vgg16(), 143, 56, 4)}
"""Network, side of the cutouts (pixels), galaxies, and galaxies per shard."""


def main(work: str, *sections: str) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    known = {
        "pipeline": pipeline,
        "passes": passes,
        "actors": actors,
        "memory": memory,
        "units": units,
        "million": million,
        "precision": precision,
    }
    result: dict[str, Any] = {"device": torch.cuda.get_device_name() if DEVICE == "cuda" else f"{os.cpu_count()} CPU cores"}
    for name in sections or known:
        result[name] = known[name](Path(work) / name)
        logging.info("%s: %s", name, result[name])
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def pipeline(work: Path) -> dict[str, Any]:
    """Compare the job with the model alone."""
    result = {}
    for name, (config, size, count, per_shard) in PIPELINES.items():
        save(model(config, size), work / name / "model")
        rows = cutouts(work / name / "data", size, count, per_shard)
        before = bare_loop(work / name / "model", rows)
        rates = run(work / name, "output")["rates"]
        loop = (before + bare_loop(work / name / "model", rows)) / 2
        result[name] = {
            "ratio": rates["galaxies_per_second"] / loop,
            "pipeline_galaxies_per_second": rates["galaxies_per_second"],
            "bare_loop_galaxies_per_second": loop,
            **{key: rates[key] for key in ("seconds", "startup_seconds", "device_utilisation")},
            "tflop_per_second": rates["galaxies_per_second"] * load_bundle(str(work / name / "model")).flops(NUM_PASSES) / 1e12,
        }
    return result


def passes(work: Path) -> dict[str, Any]:
    """Compare K passes with one, and masks with none, in turns."""
    del work
    result = {}
    for name, (base, size, _, _) in PIPELINES.items():
        count = 4 if size > 100 else 256
        for placement in ("every_conv", "last_block", "classifier"):
            backbone = dataclasses.replace(base.backbone, dropout_placement=placement)
            config = dataclasses.replace(base, backbone=backbone)
            no_masks = dataclasses.replace(base, backbone=dataclasses.replace(backbone, dropout_rate=1e-12))
            x_NCHW = torch.from_numpy(blobs(count, size)).to(DEVICE)
            seconds = shortest(
                {
                    "one": thinned(model(config, size), 1),
                    "all": thinned(model(config, size), NUM_PASSES),
                    "bare": thinned(model(no_masks, size), NUM_PASSES),
                },
                x_NCHW,
            )
            result[f"{name}, {placement}"] = {
                "cost_of_32_over_one": seconds["all"] / seconds["one"],
                "masks_share_of_forward": 1 - seconds["bare"] / seconds["all"],
                "ms_per_galaxy": 1e3 * seconds["all"] / count,
            }
    return result


def actors(work: Path) -> dict[str, Any]:
    """Run the same job with one actor and with two."""
    config, size, _, per_shard = PIPELINES["compact_64px"]
    save(model(config, size), work / "model")
    cutouts(work / "data", size, 40_000, per_shard)
    rates = {count: run(work, f"output-{count}", actors=count)["rates"]["galaxies_per_second"] for count in (1, 2)}
    return {"galaxies_per_second": rates, "two_over_one": rates[2] / rates[1]}


def memory(work: Path) -> dict[str, Any]:
    """Compare the memory of two jobs, the second with ten times the rows."""
    save(model(SMALL, 32), work / "model")
    peaks = {}
    for count in (20_000, 200_000):
        cutouts(work / f"data-{count}", 32, count, 2_000)
        with peak_memory() as peak:
            # By default, a small input gets smaller units; these are equal.
            run(work, f"output-{count}", data=f"data-{count}", passes=4, galaxies_per_file=256)
        peaks[count] = dict(peak)
    growth = {who: peaks[200_000][who] / peaks[20_000][who] - 1 for who in peaks[20_000]}
    return {"peak_mib": peaks, "growth": growth}


def units(work: Path) -> dict[str, Any]:
    """Run many small units, and kill the driver half-way."""
    save(model(SMALL, 32), work / "model")
    seen = {}
    for count in (2_000, 20_000):
        cutouts(work / f"data-{count}", 32, 8 * count, 8)
        seen[count] = watched(work, count, f"output-{count}")
    killed = watched(work, 20_000, "killed", kill_at=10_000)
    seen["killed"], seen["continued"] = killed, watched(work, 20_000, "killed")
    ids = pq.read_table(work / "killed" / "catalog", columns=["object_id"])["object_id"].to_numpy()
    return {
        "seen": seen,
        "driver_memory_growth": seen[20_000]["driver_peak_mib"] / seen[2_000]["driver_peak_mib"] - 1,
        "ids_exact": bool(np.array_equal(np.sort(ids), np.arange(160_000))),
    }


def million(work: Path) -> dict[str, Any]:
    """Predict a million cutouts in one job."""
    save(model(SMALL, 32), work / "model")
    cutouts(work / "data", 32, 1_000_000, 10_000)
    with peak_memory() as peak:
        manifest = run(work, "output", passes=8)
    return {"num_galaxies": manifest["num_galaxies"], "passes": 8, **manifest["rates"], "peak_mib": dict(peak)}


def precision(work: Path) -> dict[str, Any]:
    """Compare K Gaussians with 1,000 draws, one from each pass of a plain loop, at equal scatter of the 68 % bounds."""
    del work
    return equal_precision((0.1, 0.3))


def run(
    work: Path, output: str, *, data: str = "data", actors: int = 0, passes: int = NUM_PASSES, **fields: Any
) -> dict[str, Any]:
    """Run `infer` into a new folder and return its manifest."""
    return infer(
        InferConfig(
            bundle=str(work / "model"),
            dataset=str(work / data),
            output=str(work / f"{output}-{time.time_ns()}"),
            num_passes=passes,
            resources=ActorResources(num_workers=actors, engine="ray"),
            **fields,
        )
    )


def bare_loop(bundle: Path, image_NCHW: np.ndarray) -> float:
    """Return galaxies/s of the model alone on images in memory: a process for each GPU, or for each core of the CPU."""
    count = torch.cuda.device_count() or os.cpu_count() or 1
    with concurrent.futures.ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(_loop, [str(bundle)] * count, [image_NCHW] * count, range(count)))


def _loop(bundle: str, image_NCHW: np.ndarray, index: int) -> float:
    torch.set_num_threads(1)
    device = f"cuda:{index}" if DEVICE == "cuda" else "cpu"
    predict = Predictor(load_bundle(bundle), num_passes=NUM_PASSES, seed=0, device=device)
    predict(image_NCHW[: predict.batch_size])
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < LOOP_SECONDS:
        predict(image_NCHW)
        done += len(image_NCHW)
    return done / (time.perf_counter() - began)


def thinned(bundle: Bundle, num_passes: int) -> ThinnedNetworks:
    """Return the networks of a predictor on this device."""
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    device, band = torch.device(DEVICE), bundle.images.repeats_a_band
    return ThinnedNetworks(bundle.network, num_passes, 0, device=device, dtype=dtype, repeated_band=band)


def shortest(networks: dict[str, ThinnedNetworks], x_NCHW: torch.Tensor) -> dict[str, float]:
    """Return the shortest of several times of each, measured in turns, seconds."""
    times: dict[str, list[float]] = {name: [] for name in networks}
    rounds = 3 if x_NCHW.shape[-1] > 100 else 9
    for _ in range(rounds):
        for name, network in networks.items():
            began = time.perf_counter()
            network(x_NCHW).outputs_NKP.cpu()
            times[name].append(time.perf_counter() - began)
    return {name: min(values[1:]) for name, values in times.items()}


def watched(work: Path, count: int, output: str, *, kill_at: int = 0) -> dict[str, Any]:
    """Run the command `infer` on ``count`` units, and kill it at ``kill_at`` files (0: never)."""
    fields = {"bundle": work / "model", "dataset": work / f"data-{count}", "output": work / output, "num-passes": 1}
    flags = [f"--{name}={value}" for name, value in (fields | {"resources.num-workers": 1}).items()]
    began, peak, actors, catalog = time.perf_counter(), 0.0, set(), work / output / "catalog"
    driver = subprocess.Popen([sys.executable, "-m", "gampen_ray", "infer", *flags])
    while driver.poll() is None:
        time.sleep(0.2)
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{driver.pid}/status").read_text().splitlines()
            peak = max(peak, next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024)
        actors |= {pid for pid in processes("ray::MapWorker") if driver.pid in ancestors(pid)}
        if kill_at and len(list(catalog.glob("*.parquet"))) >= kill_at:
            driver.kill()
            driver.wait()
    if driver.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"infer ended with {driver.returncode}")
    return {
        "actor_starts": len(actors),
        "driver_peak_mib": peak,
        "files": len(list(catalog.glob("*.parquet"))),
        "seconds": time.perf_counter() - began,
    }


def processes(name: str) -> list[int]:
    """Return the identifiers of the processes of this machine whose command begins with ``name``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(name.encode()):
                found.append(int(folder.name))
    return found


def ancestors(pid: int) -> list[int]:
    """Return the identifiers of a process's parent, its parent's, and so on."""
    found = []
    with contextlib.suppress(OSError):
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(pid)
    return found


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Yield the peak memory (proportional set size, MiB) of this process, its largest actor and its largest writer."""
    peak, stop = {"driver": 0.0, "largest_actor": 0.0, "largest_writer": 0.0}, threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    name = (folder / "cmdline").read_bytes()
                    who = "driver" if folder.name == str(os.getpid()) else ""
                    if name.startswith(b"ray::"):
                        who = "largest_actor" if b"MapWorker" in name else "largest_writer"
                    if who:
                        lines = (folder / "smaps_rollup").read_text().splitlines()
                        mib = next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1024
                        peak[who] = max(peak[who], mib)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
