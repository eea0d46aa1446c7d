"""GaMPEN's output files from gampen_ray's posteriors: ``inf_1.csv`` to ``inf_K.csv``, one draw per pass, and the summary.

Columns are those of GaMPEN's inference and result aggregator: ``preds_<label>`` in the space of the label (``custom_logit_bt``,
``ln_R_e_asec``, ...), and in physical units ``preds_<quantity>_<statistic>`` with the statistics mean, median, std, skew,
kurtosis, mode, sig_ci, twosig_ci and threesig_ci.
Shape legend: N galaxies, K passes, D targets.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import torch

from gampen_ray import storage
from gampen_ray.catalog.parquet import catalog_parts, mixture_from_catalog
from gampen_ray.data.gampen_labels import GAMPEN_ZERO_POINT_MAG, label_of, magnitude, snap
from gampen_ray.model.targets import Target, TargetSchema
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.summary import LEVELS, summarise

__all__ = ["gampen_summary", "write_files", "write_part"]

FOLDER, SUMMARY = "gampen", "summary.csv"
"""Folder of these files in the output of `infer`, and name of the summary."""
PARTS = f"{FOLDER}/parts"
"""Folder of the parts of the summary, until they are joined."""

pc: Any = pyarrow.compute
_FORMULA, _NUMBER = r"^[=+\-@\t\r]", r"^[+-]?[0-9.]+([eE][+-]?[0-9]+)?$"
# Files open at a time: the whole catalogue is read once for each such group of passes.
_OPEN_FILES = 64
_INTERVALS = {"sig_ci": "68", "twosig_ci": "95", "threesig_ci": "997"}
_MOMENTS = ("mean", "median", "std", "skew", "kurtosis", "mode")
_NOT_SNAPPED = ("mean", "std", "skew", "kurtosis")


def gampen_summary(
    objects: pa.Table, mixture: Mixture, *, zero_point_mag: float | None, gampen_magnitudes: bool = False
) -> pd.DataFrame:
    """Return the summary table of N galaxies under GaMPEN's names.

    Statistics are those of the whole mixture, not of draws. If the training values of a logit target include 0 (or 1), medians,
    modes and ends of intervals at or beyond the value that stands for 0 (or 1) are set to 0 (or 1), as in GaMPEN.

    Parameters
    ----------
    objects
        ``object_id`` and, if known, ``ra`` and ``dec``; N rows.
    mixture
        Posteriors of these galaxies.
    zero_point_mag
        For ``preds_total_mag``, if flux is a target with the log transform. None: no magnitudes.
    gampen_magnitudes
        Magnitudes as GaMPEN defines them; see `gampen_ray.data.gampen_labels.magnitude`.
    """
    table = _objects(objects)
    for part in (mixture, *_magnitudes(mixture, zero_point_mag, gampen_magnitudes)):
        columns = summarise(part, mode_centred=True)
        for target in part.targets:
            label = label_of(target.name, target.transform)
            values = {name: columns[f"{target.name}_{name}"] for name in _MOMENTS}
            values |= {f"{end}{s}": columns[f"{target.name}_mode_{end}{s}"] for s in LEVELS for end in ("lo", "hi")}
            if target.transform == "logit":
                values = {name: v if name in _NOT_SNAPPED else _snapped(target, v) for name, v in values.items()}
            prefix = f"preds_{label.quantity}"
            table |= {f"{prefix}_{name}": values[name] for name in _MOMENTS}
            for name, suffix in _INTERVALS.items():
                ends = zip(values[f"lo{suffix}"].tolist(), values[f"hi{suffix}"].tolist(), strict=True)
                table[f"{prefix}_{name}"] = [f"({low!r}, {high!r})" for low, high in ends]
    return pd.DataFrame(table)


def write_part(
    name: str, objects: pa.Table, mixture: Mixture, *, output: str, zero_point_mag: float | None, gampen_magnitudes: bool
) -> str:
    """Write the `gampen_summary` of the galaxies in the catalogue file of this name, and return its URI."""
    summary = gampen_summary(objects, mixture, zero_point_mag=zero_point_mag, gampen_magnitudes=gampen_magnitudes)
    uri = storage.join(output, PARTS, name.removesuffix(".parquet") + ".csv")
    storage.write_bytes_atomic(uri, summary.to_csv(index=False).encode())
    return uri


def write_files(output: str, targets: TargetSchema, num_passes: int, seed: int) -> None:
    """Write GaMPEN's files from a finished catalogue with mixtures and the parts of the summary."""
    folder = storage.join(output, FOLDER)
    join_summaries(storage.list_files(storage.join(output, PARTS), ".csv"), storage.join(folder, SUMMARY))
    write_draws(lambda: catalog_parts(output), targets, folder, num_passes, seed)


def join_summaries(parts: list[str], output: str) -> None:
    """Join the CSV parts of a summary, in order, into one CSV; each part begins with the same header."""
    with storage.open_output(output) as stream:
        for index, uri in enumerate(parts):
            header, newline, rows = storage.read_bytes(uri).partition(b"\n")
            stream.write(rows if index else header + newline + rows)


def write_draws(
    parts: Callable[[], Iterator[pa.Table]], targets: TargetSchema, output: str, num_passes: int, seed: int
) -> None:
    """Write ``inf_1.csv`` to ``inf_K.csv``: one joint draw of every galaxy from each dropout pass.

    Parameters
    ----------
    parts
        Returns the parts of a catalogue with mixtures, in the same order at each call.
    targets
        Targets of the mixtures.
    output
        Folder of the files.
    num_passes, seed
        Number K of passes of the mixtures, and the seed of the draws.
    """
    for start in range(0, num_passes, _OPEN_FILES):
        group = range(start, min(start + _OPEN_FILES, num_passes))
        generators = {k: np.random.default_rng([seed, k]) for k in group}
        with contextlib.ExitStack() as stack:
            files = {k: stack.enter_context(storage.open_output(storage.join(output, f"inf_{k + 1}.csv"))) for k in group}
            for index, part in enumerate(parts()):
                mixture = mixture_from_catalog(part, targets)
                for k, file in files.items():
                    rows = _draws(part, mixture, k, generators[k])
                    file.write(rows.to_csv(index=False, header=index == 0).encode())


def _draws(part: pa.Table, mixture: Mixture, k: int, generator: np.random.Generator) -> pd.DataFrame:
    noise_ND1 = generator.standard_normal((len(mixture), len(mixture.targets), 1))
    z_ND = mixture.mean_NKD[:, k].numpy() + (mixture.scale_tril_NKDD[:, k].numpy() @ noise_ND1)[..., 0]
    table = _objects(part)
    for d, target in enumerate(mixture.targets):
        table[f"preds_{label_of(target.name, target.transform).column}"] = target.location + target.scale * z_ND[:, d]
    return pd.DataFrame(table)


def _objects(rows: pa.Table) -> dict[str, Any]:
    """Return the columns that name the galaxies; spreadsheets would compute some texts, which get an apostrophe in front."""
    ids = rows["object_id"]
    if not pa.types.is_integer(ids.type):
        formula = pc.and_(pc.match_substring_regex(ids, _FORMULA), pc.invert(pc.match_substring_regex(ids, _NUMBER)))
        ids = pc.if_else(formula, pc.binary_join_element_wise("'", ids, ""), ids)
    return {"object_id": ids.to_pandas()} | {
        name: rows[name].to_pandas() for name in ("ra", "dec") if name in rows.column_names
    }


def _magnitudes(mixture: Mixture, zero_point_mag: float | None, gampen: bool) -> list[Mixture]:
    """Return the posterior of the magnitude, a Gaussian mixture like that of log flux; empty without flux or zero point."""
    if gampen:
        zero_point_mag = GAMPEN_ZERO_POINT_MAG
    fluxes = [d for d, target in enumerate(mixture.targets) if (target.name, target.transform) == ("flux", "log")]
    if not fluxes or zero_point_mag is None:
        return []
    d, flux = fluxes[0], mixture.targets.targets[fluxes[0]]
    faintest, brightest = (float(magnitude(np.array(y), zero_point_mag, gampen=gampen)) for y in (flux.low, flux.high))
    # Magnitude is linear in ln(flux): m = m(1) + slope ln(flux), slope < 0, so that z changes its sign.
    slope = float(magnitude(np.array(math.e), zero_point_mag, gampen=gampen)) - zero_point_mag
    target = Target(
        name="total_mag",
        unit="mag",
        transform="identity",
        clip_low=0.0,
        clip_high=1.0,
        location=zero_point_mag + slope * flux.location,
        scale=-slope * flux.scale,
        low=brightest,
        high=faintest,
    )
    sigma_NK = torch.linalg.vector_norm(mixture.scale_tril_NKDD[:, :, d], dim=-1)
    return [Mixture(-mixture.mean_NKD[:, :, d, None], sigma_NK[..., None, None], TargetSchema((target,)))]


def _snapped(target: Target, y: np.ndarray) -> np.ndarray:
    low = target.clip_low if target.low == 0 else -math.inf
    return snap(y, low, target.clip_high if target.high == 1 else math.inf)
