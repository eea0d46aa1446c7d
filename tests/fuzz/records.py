"""Mutated records that a run reads again: of its epochs, its trials, its units, its catalogue, its evaluation."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from astropy.io import fits

from gampen_ray import lock, storage
from gampen_ray.catalog.manifest import MANIFEST, read_manifest
from gampen_ray.data.tiles import planning
from gampen_ray.data.tiles.footprint import FOOTPRINT_JSON, BandFile, Footprint, Place, finish, write_part
from gampen_ray.data.tiles.grid import Grid
from gampen_ray.data.tiles.surveys import TILE_SURVEYS
from gampen_ray.inference.rates import UnitReceipt
from gampen_ray.inference.verdicts import coverage_verdict
from gampen_ray.posterior.diagnostics import evaluate, format_table, measure
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.receipts import RECEIPTS, verified_receipts, write_receipt
from gampen_ray.reports.evaluated import EVALUATION, read_evaluation
from gampen_ray.training.history import HISTORY, read_history
from gampen_ray.tuning.dropout_scan import SCAN, ScannedRate, read_scan, shortlisted
from gampen_ray.tuning.ledger import Ledger
from gampen_ray.tuning.trials import heard
from tests.fuzz.mutations import document
from tests.fuzz.poison_files import WCS
from tests.networks import bundle
from tests.tuning.test_trials import SPACE, trial

_TRIAL, _VALUES, _RECEIPT = "trials/0003/trial.json", "trials/0003/values.json", f"{RECEIPTS}/unit.json"


def files(rng: np.random.Generator, number: int, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Mutate one record."""
    name = list(_READ)[number % len(_READ)]
    if name == FOOTPRINT_JSON:
        _footprint(folder)
    elif name == _RECEIPT:
        (folder / "a.txt").write_text("a")
        write_receipt(str(folder), "unit", [str(folder / "a.txt")], dataclasses.asdict(_UNIT))
    else:
        storage.write_json(str(folder / name), _values()[name])
    path = folder / name
    path.write_bytes(document(json.loads(path.read_bytes()), rng))
    return name, functools.partial(_READ[name], str(folder))


_UNIT = UnitReceipt(num_rows=3, num_quarantined=1, id_sum=2**63, bytes_read=9, bytes_written=9, seconds=1.5, device_seconds=1.0)


@functools.cache
def _values() -> dict[str, Any]:
    epochs = [
        {"epoch": float(i), "train_loss": None, "val_loss": -0.5, "learning_rate": 0.1, "galaxies_per_s": 9.5} for i in (1, 2)
    ]
    rng, targets = np.random.default_rng(0), bundle().targets
    mixture = Mixture(torch.from_numpy(rng.normal(size=(30, 2, 2))), torch.eye(2).double().expand(30, 2, 2, 2), targets)
    found = measure([mixture], bundle().calibration, targets.physical(rng.normal(size=(30, 2))))
    judged = evaluate(found, bundle().calibration)
    coverage = judged["coverage"]["calibrated"]
    scanned = [ScannedRate(rate=rate, coverage=coverage, calibration_error=0.1, val_nll=-1.0) for rate in (0.1, 0.2)]
    inference = {"bundle": "b", "dataset": "d", "split": "test", "num_passes": 4, "seed": 0, "precision": "float32"}
    manifest = {"num_galaxies": 3, "num_quarantined": 1, "config": inference, "inputs": {"bundle": "f", "dataset": "f"}}
    manifest |= {"rates": {"galaxies_per_second": 9.5, "workers": 2}, "provenance": {"git_revision": None, "date": "today"}}
    return {
        HISTORY: epochs,
        _TRIAL: dataclasses.asdict(trial(3, -0.5)) | {"losses": [0.5, -0.5]},
        _VALUES: dict(trial(3, -0.5).values),
        SCAN: [dataclasses.asdict(row) for row in scanned],
        MANIFEST: manifest,
        EVALUATION: judged | {"catalog": "c", "verdicts": {"coverage": {"verdict": "holds", "text": "well"}}},
        planning.PLAN_JSON: {"num_sources": 3, "num_quarantined": 1, "integer_ids": True},
        lock.LOCK_FILE: {"host": "h", "pid": 1, "namespace": "n", "process_start": "1", "since": "today", "beats": 1},
    }


def _footprint(folder: Path) -> None:
    wcs = "\n".join(str(card) for card in fits.Header(WCS).cards)
    grid = Grid(wcs, height=10, width=10)
    row = BandFile(tile="t", band="r", image=Place(path="t.fits"), zero_point_mag=27.0, pixel_scale_arcsec=0.2, grid=grid)
    write_part(str(folder), 0, [row], [])
    finish(str(folder), TILE_SURVEYS["hsc"], "tiles", 0)


def _history(folder: str) -> None:
    rows = read_history(f"{folder}/{HISTORY}")
    assert int(rows[-1]["epoch"]) >= 0
    assert sum(1 / row["galaxies_per_s"] for row in rows) > 0
    np.array([[row[name] for name in ("train_loss", "val_loss", "learning_rate")] for row in rows], np.float64)


def _trial(folder: str) -> None:
    for one in Ledger(folder, SPACE).ended():
        heard(one.trial, SPACE, ["val_loss"])
        assert sum(one.losses) + one.trial.seconds is not None


def _scan(folder: str) -> None:
    rows = read_scan(f"{folder}/{SCAN}")
    shortlisted(rows, 1)
    for row in rows:
        assert all(isinstance(one["target"], str) and one["level"] + one["coverage"] is not None for one in row.coverage)


def _manifest(folder: str) -> None:
    manifest = read_manifest(folder)
    config, rates = manifest["config"], manifest["rates"]
    assert config["bundle"] + config["dataset"] + config["split"] + config["precision"] is not None
    assert config["num_passes"] > 0 <= config["seed"]
    if rates:
        assert f"{rates['galaxies_per_second']:,.3g} {rates['workers']}"
    assert f"{manifest['num_galaxies']:,} {manifest['num_quarantined']:,} {manifest['inputs']['dataset']}"


def _evaluation(folder: str) -> None:
    found = read_evaluation(f"{folder}/{EVALUATION}")
    format_table(found)
    coverage_verdict(found["coverage"]["calibrated"])
    for row in found.get("verdicts", {}).values():
        assert f"{row['verdict']}: {row['text']}"


def _lock(folder: str) -> None:
    holder = lock._parsed(storage.read_bytes(f"{folder}/{lock.LOCK_FILE}"))
    assert lock._named(holder)
    lock._is_alive(holder)


_READ: dict[str, Callable[[str], Any]] = {
    HISTORY: _history,
    _TRIAL: _trial,
    _VALUES: lambda folder: Ledger(folder, SPACE).begun(),
    SCAN: _scan,
    MANIFEST: _manifest,
    EVALUATION: _evaluation,
    planning.PLAN_JSON: lambda folder: planning.read_summary(folder)["num_sources"] + 1,
    FOOTPRINT_JSON: lambda folder: Footprint(folder).select(("r",)),
    _RECEIPT: lambda folder: sum(one.id_sum for one in verified_receipts(folder, UnitReceipt).values()),
    lock.LOCK_FILE: _lock,
}
