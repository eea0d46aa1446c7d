"""Cost of surveys: `infer --estimate` on this machine, and its formula for other sizes and devices; prints JSON and a table.

    python benchmarks/costs.py WORK

WORK is a folder for the inputs. Measured on this machine: galaxies/s of a worker, bytes read and written per galaxy. Assumed
if it has no GPU: the operations per second that a GPU sustains.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from parts import DEVICE, cutouts, model, save

from gampen_ray.commands.infer import InferConfig, infer
from gampen_ray.config import ActorResources, NetworkConfig, gampen_vgg16
from gampen_ray.config.parts import GALAXIES_PER_FILE
from gampen_ray.inference.rates import extrapolate
from gampen_ray.model.flops import inference_flops

NETWORKS = {"compact": (NetworkConfig(), 64, 20 * GALAXIES_PER_FILE, GALAXIES_PER_FILE), "vgg16": (gampen_vgg16(), 143, 64, 16)}
"""Network, side of the cutouts (pixels), galaxies, and galaxies per shard."""
SUSTAINED = {"compact": 0.1, "vgg16": 0.3}
"""Share of a GPU's peak arithmetic that a network is assumed to sustain, if there is no GPU to measure it."""
L4_FLOP_PER_SECOND = 121e12
"""Dense bfloat16 operations per second of the GPU of cluster/aws.yaml and gcp.yaml, from its data sheet."""
CPU_SECONDS = 0.25e-3
"""Core time to read a cutout of 64 pixels (20,000 per second) and summarise its posterior (0.2 ms), measured on CPUs."""
NODE_CPUS = 8
"""CPUs per GPU in cluster/aws.yaml and gcp.yaml."""
START_SECONDS = 300.0
"""Assumed time from the request for a node to its first galaxy."""
REQUESTS_PER_UNIT = 8 + 3
"""GET and HEAD, POST and PUT requests per unit of 2,048 cutouts, counted by a proxy in front of the tests' S3 server."""
SURVEYS = {10**6: 1, 10**8: 8, 10**9: 32}
"""Number of GPUs, on a node each, by number of cutouts."""


def main(work: str) -> None:
    """Measure, extrapolate and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    result: dict[str, Any] = {}
    for name in NETWORKS:
        result[name] = network(name, Path(work) / name, result.get("compact"))
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n\n" + table(result))


def network(name: str, work: Path, other: dict[str, Any] | None) -> dict[str, Any]:
    """Measure a network, and return what surveys cost with it.

    The catalogue's bytes per galaxy are those of the ``other`` network, if given, which predicted more galaxies: small files
    are mostly metadata.
    """
    config, size, count, per_shard = NETWORKS[name]
    save(model(config, size), work / "model")
    cutouts(work / "data", size, count, per_shard)
    job = InferConfig(
        bundle=str(work / "model"),
        dataset=str(work / "data"),
        output=str(work / "output"),
        posterior="mixture",
        estimate=True,
        # On CPUs, one worker uses all cores.
        resources=ActorResources(num_workers=0 if DEVICE == "cuda" else 1),
    )
    measured = infer(job)["measured"]
    flops = inference_flops(config, channels=1, size=size, num_targets=3, num_passes=job.num_passes)
    gpu = measured | {"startup_seconds": START_SECONDS}
    if other:
        many = other["measured"]
        gpu["bytes_written"] = measured["galaxies"] * many["bytes_written"] / many["galaxies"]
    if DEVICE != "cuda":
        rate = min(SUSTAINED[name] * L4_FLOP_PER_SECOND / flops, NODE_CPUS / CPU_SECONDS)
        gpu |= {"galaxies_per_second": rate, "workers": 1, "gpus_per_worker": 1}
    surveys = {
        f"{galaxies:.0e}": extrapolate(gpu, galaxies, nodes)
        | {"requests": round(galaxies / job.galaxies_per_file * REQUESTS_PER_UNIT)}
        for galaxies, nodes in SURVEYS.items()
    }
    return {"size": size, "measured": measured, "gflop_per_galaxy": flops / 1e9, "on_gpus": gpu, "surveys": surveys}


def table(result: dict[str, Any]) -> str:
    """Return the surveys of all networks in Markdown."""
    lines = [
        "| cutouts | network | GPUs | GPU-hours | hours | input | catalogue | requests |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, costs in result.items():
        for galaxies, row in costs["surveys"].items():
            read, written = (f"{row[key] / 1e9:,.3g} GB" for key in ("input_bytes", "output_bytes"))
            times = f"{row['gpu_hours']:,.3g} | {row['hours']:.3g}"
            cells = f"{row['workers']} | {times} | {read} | {written} | {row['requests']:,}"
            lines.append(f"| {galaxies} | {name}, {costs['size']} pixels | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
