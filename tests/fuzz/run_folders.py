"""Mutated ``run.json`` files, locks and receipts, read as a resumed job reads them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gampen_ray.receipts import RECEIPTS, verified_receipts, write_receipt
from gampen_ray.run_folder import RUN_FILE, RunFolder
from tests.fuzz.mutations import document
from tests.networks import train_config


def files(rng: np.random.Generator, number: int, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Mutate one of the two."""
    config, inputs = train_config("d", str(folder)), {"dataset": "f", "dataset shard": {"a": "1"}}
    with RunFolder.open(str(folder), "train", config, inputs, complete="bundle"):
        pass
    # A mutation is the same at every time.
    record = json.loads((folder / RUN_FILE).read_bytes())
    (folder / RUN_FILE).write_text(json.dumps(record | {"provenance": {}}))
    (folder / "a.txt").write_text("a")
    write_receipt(str(folder), "unit", [str(folder / "a.txt")], {"num_rows": 1})
    name = (RUN_FILE, os.path.join(RECEIPTS, "unit.json"))[number % 2]  # noqa: PTH118
    path = folder / name
    path.write_bytes(document(json.loads(path.read_bytes()), rng))

    def read() -> None:
        verified_receipts(str(folder), dict[str, int])
        RunFolder.check(str(folder), "train", config, inputs, complete="bundle")

    return name, read
