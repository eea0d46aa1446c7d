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

NETWORKS = {"compact, 64 pixels": (NetworkConfig(), 64, 40_000, 2_500), "VGG-16, 143 pixels": (gampen_vgg16(), 143, 64, 16)}
"""Network, side of the cutouts (pixels), galaxies, and galaxies per shard."""
SUSTAINED = {"compact, 64 pixels": 0.1, "VGG-16, 143 pixels": 0.3}
"""Share of an L4's arithmetic that a network is assumed to sustain."""
L4_FLOP_PER_SECOND = 121e12
"""Dense bfloat16 operations per second of the GPU of cluster/aws.yaml and gcp.yaml, by its maker's data sheet."""
START_SECONDS = 300.0
"""From asking for a node to its first galaxy."""
SURVEYS = {10**6: 1, 10**8: 8, 10**9: 32}
"""Cutouts, and GPUs of one node each."""


def main(work: str) -> None:
    """Measure, extrapolate and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    result = {}
    for name, (config, size, count, per_shard) in NETWORKS.items():
        folder = Path(work) / name.partition(",")[0]
        save(model(config, size), folder / "model")
        cutouts(folder / "data", size, count, per_shard)
        measured = infer(
            InferConfig(
                bundle=str(folder / "model"),
                dataset=str(folder / "data"),
                output=str(folder / "output"),
                posterior="mixture",
                galaxies_per_file=min(per_shard, 4096),
                estimate=True,
                resources=ResourcesConfig(num_workers=0 if DEVICE == "cuda" else 1),
            )
        )["measured"]
        flops = inference_flops(config, channels=1, size=size, num_targets=3, num_passes=32)
        gpu = measured
        if DEVICE != "cuda":
            rate = SUSTAINED[name] * L4_FLOP_PER_SECOND / flops
            gpu = measured | {"galaxies_per_second": rate, "workers": 1, "gpus_per_worker": 1, "startup_seconds": START_SECONDS}
        result[name] = {"measured": measured, "flops_per_galaxy": flops, "gpu_galaxies_per_second": gpu["galaxies_per_second"]}
        result[name] |= {f"{galaxies:.0e}": extrapolate(gpu, galaxies, nodes) for galaxies, nodes in SURVEYS.items()}
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n\n" + table(result))


def table(result: dict[str, Any]) -> str:
    """Return the rows of the README."""
    lines = [
        "| cutouts | network | GPUs, a node each | GPU-hours | hours | input | catalogue |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in result.items():
        for galaxies in SURVEYS:
            row = rows[f"{galaxies:.0e}"]
            lines.append(
                f"| {galaxies:.0e} | {name} | {row['workers']} | {row['gpu_hours']:.3g} | {row['hours']:.3g} "
                f"| {row['input_bytes'] / 1e9:,.3g} GB | {row['output_bytes'] / 1e9:,.3g} GB |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
