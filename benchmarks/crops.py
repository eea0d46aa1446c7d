"""What the learned crop is worth: validation losses of networks of one cost with a learned crop, fixed crops and none.

    python benchmarks/crops.py WORK --dataset DATASET [--seeds 0 1 2] [--epochs 6] [--numbers]

Trains a network a crop and seed; WORK holds them, and the same command resumes. Crops of all networks are resampled to as many
pixels, so that the convolutions cost the same; a fixed crop of 1 is the whole cutout. The networks are given the image alone,
as GaMPEN's, or with ``--numbers`` also what is measured in it. Prints JSON; a table goes to standard error.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

import gampen_ray
from gampen_ray import storage
from gampen_ray.config import OptimizerConfig, SpatialTransformerConfig
from gampen_ray.inference.bundle import load_bundle

FIXED = (0.3, 0.42, 0.6, 0.75, 1.0)
"""Sides of the fixed crops over that of the cutout."""
# Weights that an optimiser cannot change.
_STILL = 1e-12

logger = logging.getLogger(__name__)


def crops() -> dict[str, tuple[SpatialTransformerConfig, OptimizerConfig]]:
    """Return transformer and optimiser by name of the crop."""
    made = {"learned": (SpatialTransformerConfig(), OptimizerConfig())}
    for side in FIXED:
        transformer = SpatialTransformerConfig(scale="linear", initial_scale=side)
        made["none" if side == 1 else f"fixed {side:g}"] = (transformer, OptimizerConfig(crop_factor=_STILL))
    return made


def best_loss(output: Path, arguments: argparse.Namespace, name: str, seed: int) -> float:
    """Train with a crop and return the least validation loss."""
    transformer, optimizer = crops()[name]
    gampen_ray.train(
        dataset=arguments.dataset,
        output=str(output),
        seed=seed,
        images={"measure": arguments.numbers},
        network={"spatial_transformer": {"scale": transformer.scale, "initial_scale": transformer.initial_scale}},
        optimizer={"epochs": arguments.epochs, "crop_factor": optimizer.crop_factor},
        calibration={"num_passes": 17},
    )
    return min(row["val_loss"] for row in json.loads((output / "history.json").read_bytes()) if row["epoch"])


def main(arguments: argparse.Namespace) -> None:
    """Train, compare and print."""
    losses: dict[str, list[float]] = {name: [] for name in crops()}
    cost: dict[str, int] = {}
    # Seed by seed: an unfinished comparison has all crops.
    for seed in arguments.seeds:
        for name, found in losses.items():
            output = Path(arguments.work, f"{name.replace(' ', '-')}-{seed}")
            found.append(best_loss(output, arguments, name, seed))
            cost[name] = load_bundle(str(output)).flops(num_passes=1)
            logger.info("%s, seed %d: %.3f", name, seed, found[-1])
    rows: dict[str, dict[str, Any]] = {}
    for name, found in losses.items():
        # Networks of one seed see the same galaxies in the same order.
        behind = np.subtract(found, losses["learned"])
        rows[name] = {
            "mflop": cost[name] / 1e6,
            "val_loss": found,
            "behind_learned": float(behind.mean()),
            "standard_error": float(behind.std(ddof=1) / np.sqrt(len(behind))) if len(behind) > 1 else None,
        }
        logger.info("%-12s %6.1f MFLOP  loss %s", name, rows[name]["mflop"], " ".join(f"{loss:.3f}" for loss in found))
    json.dump({"epochs": arguments.epochs, "numbers": arguments.numbers, "crops": rows}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def parsed() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", help="folder of all trainings; an interrupted comparison is resumed", type=storage.absolute)
    parser.add_argument("--dataset", required=True, help="dataset with train and val splits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings")
    parser.add_argument("--epochs", type=int, default=6, help="epochs on images")
    parser.add_argument("--numbers", action="store_true", help="also give the networks what is measured in the images")
    return parser.parse_args()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    main(parsed())
