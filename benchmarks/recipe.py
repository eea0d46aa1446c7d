"""GaMPEN's published training recipe against ours: same galaxies, network and number of images; prints JSON.

    python benchmarks/recipe.py DATASET WORK

DATASET has 10,000 or more training galaxies, as made by `gampen-ray simulate` or `gampen-ray demo`; WORK is a folder to create,
or one of an interrupted benchmark. The published recipe is SGD with momentum 0.99, learning rate 5e-7 and batches of 16 (Ghosh
et al. 2022, 2023). That rate is meant for a pretrained VGG-16, so the recipe is also run at rates that suit a small network
with random weights.
"""

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from parts import trained_metrics

from gampen_ray.config import OptimizerConfig, TrainConfig

EPOCHS = 12
PUBLISHED = OptimizerConfig(
    name="sgd",
    momentum=0.99,
    learning_rate=5e-7,
    weight_decay=1e-4,
    schedule="constant",
    warmup_fraction=0.0,
    max_grad_norm=0.0,
    batch_size=16,
    epochs=EPOCHS,
    augment="rotations",
)
OTHER_RATES = (5e-5, 5e-4, 2e-3)

logger = logging.getLogger(__name__)


def main(dataset: str, work: str) -> None:
    """Train with each recipe and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(os.cpu_count() or 1)
    recipes = {"ours": OptimizerConfig(epochs=EPOCHS), "published": PUBLISHED}
    recipes |= {
        f"published, learning rate {rate:g}": dataclasses.replace(PUBLISHED, learning_rate=rate) for rate in OTHER_RATES
    }
    result = {}
    for name, optimizer in recipes.items():
        config = TrainConfig(
            dataset=dataset, output=str(Path(work) / name.replace(", learning rate ", "-")), optimizer=optimizer
        )
        try:
            result[name] = measured(config)
        except ValueError as error:
            result[name] = {"failed": str(error)}
        logger.info("%s: %s", name, result[name])
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def measured(config: TrainConfig) -> dict[str, Any]:
    """Train, unless that is done, and return validation loss and coverage (mean over targets by level)."""
    metrics = trained_metrics(config)
    coverage = {
        kind: {
            f"{level:g}": sum(row["coverage"] for row in rows if row["level"] == level) / sum(r["level"] == level for r in rows)
            for level in sorted({row["level"] for row in rows})
        }
        for kind, rows in metrics["coverage"].items()
    }
    return {"val_loss": metrics["val_loss"], "coverage": coverage}


if __name__ == "__main__":
    main(*sys.argv[1:])
