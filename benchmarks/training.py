"""Cost of training, as ratios measured in one run; prints JSON.

    python benchmarks/training.py WORK [SECTION ...]

WORK is a folder for inputs and outputs. Sections, by default both:

pipeline    galaxies/s of Ray Train fed by Ray Data over those of a hand-written loop on tensors in memory, with the same
            network, batch, optimiser and threads; epochs after the first
workers     two workers of one thread each over one worker of one thread, on Ray and without it, and the same for independent
            bare loops
"""

import dataclasses
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parts import DEVICE, blobs
from torch import nn

from gampen_ray import storage
from gampen_ray.config import (
    CalibrationConfig,
    ImagesConfig,
    NetworkConfig,
    OptimizerConfig,
    TargetConfig,
    TrainConfig,
    gampen_vgg16,
)
from gampen_ray.data import shards
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.session import ray_session
from gampen_ray.engine.train_processes import run_processes
from gampen_ray.engine.train_workers import run_workers
from gampen_ray.model.flops import inference_flops
from gampen_ray.model.symmetries import AUGMENTATIONS
from gampen_ray.training.history import HISTORY
from gampen_ray.training.loop import make_optimizer
from gampen_ray.training.reading import read_unit
from gampen_ray.training.run import Run, build_network, prepare
from gampen_ray.training.worker import Plan

GPU = DEVICE == "cuda"
TARGETS = {"flux": TargetConfig(transform="log"), "width": TargetConfig(transform="log")}
EPOCHS = 4
# Network, side of the cutouts (pixels), galaxies of an epoch, galaxies of a batch.
COMPACT, VGG16 = (
    (NetworkConfig(), 64, 60_000 if GPU else 12_000, 128),
    (gampen_vgg16(), 96, 8_192 if GPU else 64, 64 if GPU else 16),
)
CASES = {"compact_64px": COMPACT, "vgg16_96px": VGG16}
LOOP_SECONDS = 15.0


def main(work: str, *sections: str) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    known = {"pipeline": pipeline, "workers": workers}
    result: dict[str, Any] = {"device": torch.cuda.get_device_name() if GPU else f"{os.cpu_count()} CPU cores"}
    with ray_session():
        for name in sections or known:
            result[name] = known[name](Path(work))
            logging.info("%s: %s", name, result[name])
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def pipeline(work: Path) -> dict[str, Any]:
    """Compare Ray with a loop, which is measured before and after."""
    result = {}
    for case in CASES:
        for threads in (1,) if GPU else (1, os.cpu_count() or 1):
            run = prepared(work, case, f"pipeline-{threads}")
            before = bare_loop(run, threads)
            rates, waited = trained(run, count=1, threads=threads)
            loop = (before + bare_loop(run, threads)) / 2
            result[f"{case}, {threads} threads"] = {
                "ratio": float(np.mean(rates)) / loop,
                "ratio_by_epoch": [rate / loop for rate in rates],
                "galaxies_per_second": float(np.mean(rates)),
                "bare_loop_galaxies_per_second": loop,
                "bare_loop_after_over_before": (2 * loop - before) / before,
                "data_wait_fraction": float(np.mean(waited)),
                "tflop_per_second": 3 * forward_flops(run) * float(np.mean(rates)) / 1e12,
            }
    return result


def workers(work: Path) -> dict[str, Any]:
    """Compare two workers with one, and two independent bare loops with one, which is the limit for workers."""
    rates: dict[str, dict[int, float]] = {"ray": {}, "local": {}, "loops": {}}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for count in (1, 2):
            run = prepared(work, "compact_64px", f"workers-{count}")
            rates["loops"][count] = sum(pool.map(bare_loop, [run] * count, [1] * count))
            rates["ray"][count] = float(np.mean(trained(run, count=count, threads=1)[0]))
            run = prepared(work, "compact_64px", f"local-{count}")
            rates["local"][count] = float(np.mean(trained(run, count=count, threads=1, train=run_processes)[0]))
    return {
        **{f"two_over_one_{name}": rate[2] / rate[1] for name, rate in rates.items()},
        "ray_over_local": rates["ray"][2] / rates["local"][2],
        "galaxies_per_second": rates,
    }


def prepared(work: Path, case: str, name: str) -> Run:
    """Return a run with a new output on a dataset, which is written unless it exists."""
    network, size, count, batch_size = CASES[case]
    folder = work / case
    if not (folder / "data" / shards.DATASET_JSON).exists():
        write(folder / "data", size, {"train": count, "val": max(batch_size, count // 50)})
    compact = case == "compact_64px"
    optimizer = OptimizerConfig(epochs=EPOCHS, batch_size=batch_size, **({} if compact else SGD))
    config = TrainConfig(
        dataset=str(folder / "data"),
        output=str(folder / f"{name}-{time.time_ns()}"),
        targets=TARGETS,
        images=ImagesConfig(channels=1) if compact else ImagesConfig(channels=1, sky="none", measure=False),
        network=dataclasses.replace(network, backbone=dataclasses.replace(network.backbone, dropout_rate=2e-4)),
        optimizer=optimizer,
        calibration=CalibrationConfig(num_passes=1),
    )
    return prepare(config)


def write(folder: Path, size: int, num_rows: dict[str, int]) -> None:
    """Write a dataset of blobs."""
    info = shards.DatasetInfo(
        bands=("r",), cutout_size=size, num_rows=num_rows, target_units=dict.fromkeys(TARGETS, ""), fingerprint=str(size)
    )
    rng = np.random.default_rng(0)
    for split, count in num_rows.items():
        for part, start in enumerate(range(0, count, 1000)):
            rows = min(1000, count - start)
            columns = {"object_id": start + np.arange(rows), "image": blobs(rows, size)}
            columns |= {name: rng.lognormal(size=rows) for name in TARGETS}
            shards.write_shard(shards.part_uri(str(folder), split, part), columns, info)
    shards.write_dataset_info(str(folder), info)


def trained(
    run: Run, *, count: int, threads: int, train: Callable[[Run, Workers], None] = run_workers
) -> tuple[list[float], list[float]]:
    """Train, and return galaxies/s and the share of time waiting for data of each epoch after the first."""
    train(run, Workers(count=count, room=count, cpus=0.45, gpus=int(GPU), threads=threads))
    history = [row for row in storage.read_json(storage.join(run.config.output, HISTORY)) if row["epoch"] > 1]
    return [row["galaxies_per_s"] for row in history], [row["data_wait_fraction"] for row in history]


def bare_loop(run: Run, threads: int) -> float:
    """Return galaxies/s of a loop over batches in memory."""
    torch.set_num_threads(threads)
    config = run.config.optimizer
    rows = [read_unit(run.columns, unit) for unit in run.splits["train"][:8]]
    x_NCHW = torch.from_numpy(np.concatenate([part.cutout_NCHW for part in rows])).to(DEVICE)
    y_ND = torch.from_numpy(np.concatenate([part.target_ND for part in rows])).to(DEVICE)
    network = build_network(run).to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(Plan(network=network, inputs=run.network_inputs, optimizer=config, seed=0))
    order = torch.Generator().manual_seed(0)
    count, start = 0, 0.0
    for step in range(10**9):
        if step == 2:
            # Earlier steps are warm-up.
            wait()
            count, start = 0, time.perf_counter()
        rows_N = torch.randint(len(y_ND), (config.batch_size,), generator=order)
        inputs = run.images.inputs(x_NCHW[rows_N])
        x = AUGMENTATIONS[config.augment](inputs.image_NCHW, torch.rand(3, len(rows_N)).to(DEVICE))
        with torch.autocast(DEVICE, torch.bfloat16, enabled=GPU):
            outputs = network(x, inputs.number_NM)
        loss = network.likelihood.loss(outputs, y_ND[rows_N]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
        optimizer.step()
        count += len(x)
        if step > 2 and time.perf_counter() - start > LOOP_SECONDS:
            wait()
            return count / (time.perf_counter() - start)
    raise AssertionError


def wait() -> None:
    """Wait until the device is idle."""
    if GPU:
        torch.cuda.synchronize()


def forward_flops(run: Run) -> float:
    """Return the operations of a forward pass; a step has about three times as many."""
    images = run.images
    return inference_flops(
        run.network,
        channels=images.channels,
        size=images.size,
        num_targets=len(run.targets),
        num_passes=1,
        numbers=len(images.number_names),
    )


SGD = {"name": "sgd", "momentum": 0.9, "learning_rate": 1e-5}

if __name__ == "__main__":
    main(*sys.argv[1:])
