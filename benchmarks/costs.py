"""What surveys cost: `infer --estimate` measured here, and its formula for other sizes and devices; prints JSON and a table.

    python benchmarks/costs.py WORK

WORK is a folder for the inputs. Measured on this machine: galaxies/s of a worker, bytes read and written a galaxy. Assumed,
where there is no GPU: how many operations a second one sustains.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from parts import DEVICE, cutouts, model, save

from gampen_ray.config import InferConfig, NetworkConfig, ResourcesConfig, gampen_vgg16
from gampen_ray.engine.estimate import extrapolate
from gampen_ray.engine.infer import infer
from gampen_ray.model.flops import inference_flops

NETWORKS = {"compact": (NetworkConfig(), 64, 40_000, 4096), "vgg16": (gampen_vgg16(), 143, 64, 16)}
"""Network, side of the cutouts (pixels), galaxies, and galaxies per shard."""
SUSTAINED = {"compact": 0.1, "vgg16": 0.3}
"""Share of a GPU's arithmetic that a network is assumed to sustain where there is none to measure it."""
L4_FLOP_PER_SECOND = 121e12
"""Dense bfloat16 operations per second of the GPU of cluster/aws.yaml and gcp.yaml, by its maker's data sheet."""
START_SECONDS = 300.0
"""Assumed from asking for a node to its first galaxy."""
SURVEYS = {10**6: 1, 10**8: 8, 10**9: 32}
"""Cutouts, and GPUs of one node each."""


def main(work: str) -> None:
    """Measure, extrapolate and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    result = {name: network(name, Path(work) / name) for name in NETWORKS}
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n\n" + table(result))


def network(name: str, work: Path) -> dict[str, Any]:
    """Measure a network, and return what surveys cost with it."""
    config, size, count, per_shard = NETWORKS[name]
    save(model(config, size), work / "model")
    cutouts(work / "data", size, count, per_shard)
    job = InferConfig(
        bundle=str(work / "model"),
        dataset=str(work / "data"),
        output=str(work / "output"),
        posterior="mixture",
        estimate=True,
        # On CPUs one worker has all cores.
        resources=ResourcesConfig(num_workers=0 if DEVICE == "cuda" else 1),
    )
    measured = infer(job)["measured"]
    flops = inference_flops(config, channels=1, size=size, num_targets=3, num_passes=job.num_passes)
    gpu = measured | {"startup_seconds": START_SECONDS}
    if DEVICE != "cuda":
        rate = SUSTAINED[name] * L4_FLOP_PER_SECOND / flops
        gpu |= {"galaxies_per_second": rate, "workers": 1, "gpus_per_worker": 1}
    surveys = {f"{galaxies:.0e}": extrapolate(gpu, galaxies, nodes) for galaxies, nodes in SURVEYS.items()}
    return {"size": size, "measured": measured, "gflop_per_galaxy": flops / 1e9, "on_gpus": gpu, "surveys": surveys}


def table(result: dict[str, Any]) -> str:
    """Return the surveys of all networks in Markdown."""
    lines = ["| cutouts | network | GPUs | GPU-hours | hours | input | catalogue |", "|---|---|---|---|---|---|---|"]
    for name, costs in result.items():
        for galaxies, row in costs["surveys"].items():
            lines.append(
                f"| {galaxies} | {name}, {costs['size']} pixels | {row['workers']} | {row['gpu_hours']:.3g} "
                f"| {row['hours']:.3g} | {row['input_bytes'] / 1e9:.3g} GB | {row['output_bytes'] / 1e9:.3g} GB |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
