"""A survey's tiles in one job: a million sources of 400 tiles, and the job's rate over that of a bare loop; prints JSON.

    python benchmarks/footprint.py WORK [SECTION ...]

WORK is a folder for tiles and outputs, 2 GB. Sections, by default all:

million     cutouts of 32 x 32 pixels, eight passes: memory, rate, and whether each source is there once
pipeline    galaxies/s of a job over those of a loop that reads tiles, cuts and predicts, with the same numbers of processes and
            threads: of the compact network and of GaMPEN's
"""

import concurrent.futures
import functools
import json
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from astropy.io import fits
from astropy.wcs import WCS
from inference import LOOP_SECONDS, NUM_PASSES, PIPELINES, peak_memory, run
from parts import DEVICE, SMALL, blobs, model, save
from tiles import cards, indexed

import gampen_ray
from gampen_ray.data.tiles.cutting import Tile
from gampen_ray.inference.bundle import load_bundle
from gampen_ray.inference.predictor import Predictor

TILES, SIDE, SOURCES = 400, 1024, 2500
"""Number of tiles; their side, pixels; sources of each."""
_EDGE, _SCALE_ARCSEC, _ZERO_POINT = 80, 0.2, 22.5
_TABLE = "sources.parquet"


def main(work: str, *sections: str) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    write_survey(Path(work))
    known = {"million": million, "pipeline": pipeline}
    json.dump({name: known[name](Path(work)) for name in sections or known}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def million(work: Path) -> dict[str, Any]:
    """Predict all sources in one job."""
    save(model(SMALL, 32), work / "model")
    with peak_memory() as peak:
        manifest = run(work, "million", data="footprint", catalog=str(work / _TABLE), passes=8)
    newest = max(work.glob("million-*"))
    ids_N = pq.read_table(newest / "catalog", columns=["object_id"])["object_id"].to_numpy()
    return {
        "num_galaxies": manifest["num_galaxies"],
        "num_quarantined": manifest["num_quarantined"],
        "each_once": bool(np.array_equal(np.sort(ids_N), np.arange(TILES * SOURCES))),
        **manifest["rates"],
        "peak_mib": dict(peak),
    }


def pipeline(work: Path) -> dict[str, Any]:
    """Compare a job with the bare loop, measured before and after, for the networks of `benchmarks.inference`."""
    result = {}
    for name, (config, size, count, per_tile) in PIPELINES.items():
        folder = work / name
        save(model(config, size), folder / "model")
        rows_N = np.arange(TILES * SOURCES).reshape(TILES, SOURCES)[: count // per_tile, :per_tile].ravel()
        pq.write_table(pq.read_table(work / _TABLE).take(rows_N), folder / _TABLE)
        before = bare_loop(work, folder / "model", size, per_tile)
        rates = run(folder, "output", data="../footprint", catalog=str(folder / _TABLE))["rates"]
        loop = (before + bare_loop(work, folder / "model", size, per_tile)) / 2
        result[name] = {
            "ratio": rates["galaxies_per_second"] / loop,
            "pipeline_galaxies_per_second": rates["galaxies_per_second"],
            "bare_loop_galaxies_per_second": loop,
            **{key: rates[key] for key in ("seconds", "startup_seconds", "device_utilisation")},
        }
    return result


def write_survey(work: Path) -> None:
    """Write tiles on a square grid, as frames of SDSS, their footprint and the sources of a survey, unless they are there."""
    if (work / _TABLE).exists():
        return
    (work / "tiles").mkdir(parents=True, exist_ok=True)
    rng, tables = np.random.default_rng(0), []
    side = SIDE // 16
    pixels_HW = blobs(256, side).reshape(16, 16, side, side).swapaxes(1, 2).reshape(SIDE, SIDE)
    for index in range(TILES):
        header = cards(SIDE, _SCALE_ARCSEC)
        header["CRVAL1"], header["CRVAL2"] = 150.0, 0.0
        for axis, step in enumerate(divmod(index, 20), start=1):
            header[f"CRPIX{axis}"] = (SIDE + 1) / 2 + (step - 10) * SIDE
        fits.writeto(work / "tiles" / f"frame-r-000001-1-{index:04d}.fits", pixels_HW, header, overwrite=True)
        ra_N, dec_N = WCS(header).all_pix2world(*rng.uniform(_EDGE, SIDE - _EDGE, (2, SOURCES)), 0)
        tables.append(pa.table({"object_id": index * SOURCES + np.arange(SOURCES), "ra": ra_N, "dec": dec_N}))
    gampen_ray.footprint(survey="sdss", tiles=str(work / "tiles"), output=str(work / "footprint"))
    pq.write_table(pa.concat_tables(tables), work / _TABLE)


def bare_loop(work: Path, bundle: Path, size: int, per_tile: int) -> float:
    """Return galaxies/s of reading tiles, cutting and predicting: a process for each GPU, or for each core of the CPU."""
    count = torch.cuda.device_count() or os.cpu_count() or 1
    loop = functools.partial(_loop, str(work / "tiles"), str(bundle), size, per_tile)
    with concurrent.futures.ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(loop, range(count)))


def _loop(tiles: str, bundle: str, size: int, per_tile: int, index: int) -> float:
    torch.set_num_threads(1)
    device = f"cuda:{index}" if DEVICE == "cuda" else "cpu"
    predict = Predictor(load_bundle(bundle), num_passes=NUM_PASSES, seed=0, device=device)
    file = indexed(Path(tiles), "sdss")[index]
    x_N, y_N = np.random.default_rng(index).uniform(_EDGE, SIDE - _EDGE, (2, per_tile))
    predict(blobs(predict.batch_size, size))
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < LOOP_SECONDS:
        with Tile([file], tiles, _ZERO_POINT) as tile:
            for cuts in tile.cut(x_N, y_N, size):
                predict(cuts.image_NCHW)
                done += len(cuts.rows_N)
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
