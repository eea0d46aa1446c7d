"""Where the golden outputs of GaMPEN lie, and the recipe by which their weights are made."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "shared" / "parity"
needs_parity = pytest.mark.skipif(not FOLDER.is_dir(), reason="the golden outputs of GaMPEN (../shared/parity) are not here")


def golden(name: str) -> dict[str, Any]:
    """Return the arrays of one of the folder's npz files by name."""
    with np.load(FOLDER / name) as arrays:
        return dict(arrays)


def recipe() -> Any:
    """Return the module ``recipe.py``: deterministic weights and images."""
    spec = importlib.util.spec_from_file_location("parity_recipe", FOLDER / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_state(variant: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a variant with dropout, 9 outputs and cutouts of 64 pixels."""
    rows = json.loads((FOLDER / "state_dict_keys.json").read_text())[f"{variant}|dropout=True|cutout=64"]
    make = recipe().param
    return {row["key"]: torch.from_numpy(make(variant, row["index"], row["key"], row["shape"])) for row in rows}
