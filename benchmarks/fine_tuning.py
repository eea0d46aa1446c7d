"""Fine-tuning a bundle to a new target, against training from scratch on the same 2,000 galaxies.

    python benchmarks/fine_tuning.py DEMO/run WORK

DEMO is the folder of `gampen-ray demo`; WORK is a folder to create, or one of an interrupted benchmark. New galaxies are
simulated for each seed. Both use the same number of epochs, and the best of three learning rates on the first seed. Prints
JSON; the validation loss is the negative log-likelihood in standardised target space, which is the same for both.
"""

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

from parts import trained_metrics

from gampen_ray import storage
from gampen_ray.config import FineTuneConfig, OptimizerConfig, SplitConfig, TargetConfig, TrainConfig
from gampen_ray.data import shards
from gampen_ray.simulation.dataset import dataset_info
from gampen_ray.simulation.scene import simulate
from gampen_ray.simulation.surveys import SURVEYS
from gampen_ray.training.history import HISTORY

TARGET = {"concentration": TargetConfig()}
NUM_ROWS = {"train": 2_000, "val": 1_000}
SEEDS = (1, 2, 3)
OPTIMIZER = OptimizerConfig(epochs=80, batch_size=64)
LEARNING_RATES = (1e-3, 2e-3, 4e-3)

logger = logging.getLogger(__name__)


def main(bundle: str, work: str) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    starts = {
        "from_scratch": FineTuneConfig(),
        "fine_tuned": FineTuneConfig(bundle=bundle, head="replace", learning_rate_decay=0.8),
    }
    result: dict[str, Any] = {"target": "concentration", "galaxies": NUM_ROWS, "epochs": OPTIMIZER.epochs}
    for name, start in starts.items():
        tried = {rate: measured(work, name, start, rate, SEEDS[0]) for rate in LEARNING_RATES}
        best = min(tried, key=lambda rate: tried[rate]["val_loss"])
        seeds = {seed: measured(work, name, start, best, seed) for seed in SEEDS}
        result[name] = {
            "settings": dataclasses.asdict(start) | {"batch_size": OPTIMIZER.batch_size, "learning_rate": best},
            "val_loss_by_learning_rate": {f"{rate:g}": row["val_loss"] for rate, row in tried.items()},
            "mean_val_loss": sum(row["val_loss"] for row in seeds.values()) / len(SEEDS),
            "seeds": seeds,
        }
    result["gain"] = result["from_scratch"]["mean_val_loss"] - result["fine_tuned"]["mean_val_loss"]
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def measured(work: str, name: str, start: FineTuneConfig, learning_rate: float, seed: int) -> dict[str, Any]:
    """Train, unless that is done, and return validation loss, its epoch, and coverage."""
    config = TrainConfig(
        dataset=dataset(f"{work}/dataset-{seed}", seed),
        output=f"{work}/{name}-{learning_rate:g}-{seed}",
        targets=TARGET,
        optimizer=dataclasses.replace(OPTIMIZER, learning_rate=learning_rate),
        fine_tune=start,
        seed=seed,
    )
    metrics = trained_metrics(config)
    history = storage.read_json(f"{config.output}/{HISTORY}")
    logger.info("%s, learning rate %g, seed %d: validation loss %.4f", name, learning_rate, seed, metrics["val_loss"])
    return {
        "val_loss": metrics["val_loss"],
        "best_epoch": min(history, key=lambda row: row["val_loss"])["epoch"],
        "coverage": {
            kind: {f"{row['level']:g}": row["coverage"] for row in rows} for kind, rows in metrics["coverage"].items()
        },
    }


def dataset(root: str, seed: int) -> str:
    """Simulate exactly ``NUM_ROWS`` galaxies, unless that is done, and return the dataset's folder."""
    if not Path(root, shards.DATASET_JSON).exists():
        survey, scene = SURVEYS["kids-r"], dict[str, Any](cutout_size=64, seed=seed)
        info = dataset_info(survey, SplitConfig(), {"num_galaxies": sum(NUM_ROWS.values()), **scene})
        info = dataclasses.replace(info, num_rows=NUM_ROWS)
        start = 0
        for split, count in NUM_ROWS.items():
            shards.write_shard(
                shards.part_uri(root, split, 0), simulate(survey, **scene, start=start, stop=start + count), info
            )
            start += count
        shards.write_dataset_info(root, info)
    return root


if __name__ == "__main__":
    main(*sys.argv[1:])
