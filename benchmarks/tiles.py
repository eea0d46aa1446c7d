"""Cutouts from coadd tiles: rate from bricks as the Legacy Surveys write them, and memory with a tile as large as Euclid's.

Run as ``python benchmarks/tiles.py [FOLDER]``; the tiles are written to a temporary folder. Shape legend: H x W pixels.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from gampen_ray.data.tiles.cutting import Tile
from gampen_ray.data.tiles.describing import describe
from gampen_ray.data.tiles.footprint import BandFile
from gampen_ray.data.tiles.listing import listed
from gampen_ray.data.tiles.surveys import TILE_SURVEYS

_BRICK, _SOURCES, _BANDS = 3600, 5000, ("g", "r", "z")
_LARGE, _LARGE_SOURCES = 19_200, 20_000
# Cutana's 2,264 cutouts a second of 150 pixels on four workers (Gómez et al. 2025, arXiv:2511.04429).
_ANCHOR = 2264 / 4


def cards(side: int, scale_arcsec: float) -> fits.Header:
    """Return the WCS of a tile."""
    scale, centre = scale_arcsec / 3600, (side + 1) / 2
    pairs = {"CTYPE": ("RA---TAN", "DEC--TAN"), "CRVAL": (59.1, -30.5), "CRPIX": (centre, centre), "CDELT": (-scale, scale)}
    return fits.Header({f"{name}{axis + 1}": value for name, values in pairs.items() for axis, value in enumerate(values)})


def indexed(folder: Path, survey: str) -> list[BandFile]:
    """Return the rows of the index of the only tile in a folder."""
    preset = TILE_SURVEYS[survey]
    paths = [str(path.relative_to(folder)) for path in folder.rglob("*.fits*")]
    return [describe(entry, preset, str(folder)) for entry in listed(paths, preset)]


def write_brick(folder: Path) -> None:
    """Write a brick in three bands: image and inverse variance quantised by RICE, mask and PSF sizes losslessly."""
    rng = np.random.default_rng(0)
    header = cards(_BRICK, 0.262)
    stem = "legacysurvey-0591m305"

    def save(name: str, pixels_HW: np.ndarray, **how: Any) -> None:
        hdus = fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels_HW, header, **how)])
        hdus.writeto(folder / f"{stem}-{name}.fits.fz")

    for band in _BANDS:
        image_HW = rng.normal(0, 0.01, (_BRICK, _BRICK)).astype(np.float32)
        rice: dict[str, Any] = {"compression_type": "RICE_1", "quantize_level": 16}
        save(f"image-{band}", image_HW, **rice)
        save(f"invvar-{band}", rng.uniform(9e3, 1.1e4, image_HW.shape).astype(np.float32), **rice)
        save(f"psfsize-{band}", np.full_like(image_HW, 1.3), **rice)
    save("maskbits", np.zeros((_BRICK, _BRICK), np.int16), compression_type="GZIP_1")


def rate(folder: Path, size: int) -> dict[str, float]:
    """Measure the cutouts per second of processor time of reading and cutting a brick, and decompression's share of it."""
    files, rng = indexed(folder, "legacy"), np.random.default_rng(1)
    x_N, y_N = rng.uniform(100, _BRICK - 100, (2, _SOURCES))
    began = time.process_time()
    with Tile(files, str(folder), 22.5) as tile:
        count = sum(len(cuts.rows_N) for cuts in tile.cut(x_N, y_N, size))
    seconds = time.process_time() - began
    assert count == _SOURCES
    began = time.process_time()
    with Tile(files, str(folder), 22.5) as tile:
        tile.read_all()
    reading = time.process_time() - began
    return {
        "cutouts_per_s": count / seconds,
        "over_anchor": count / seconds / _ANCHOR,
        "share_of_decompression": reading / seconds,
    }


def write_large(folder: Path, bands: tuple[str, ...]) -> None:
    """Write a tile as large as Euclid's in some bands, uncompressed."""
    header = cards(_LARGE, 0.1)
    for band in bands:
        for name, dtype in ((f"BGSUB-MOSAIC-{band}", ">f4"), (f"MOSAIC-{band}-RMS", ">f4"), (f"MOSAIC-{band}-FLAG", ">i4")):
            path = folder / f"EUC_MER_{name}_TILE102018211-66AFEC_20241018T214045.2Z_00.00.fits"
            bits = -32 if dtype == ">f4" else 32
            first = {"SIMPLE": True, "BITPIX": bits, "NAXIS": 2, "NAXIS1": _LARGE, "NAXIS2": _LARGE, "MAGZERO": 23.9}
            rows_hW = np.arange(64 * _LARGE).reshape(64, _LARGE) % 97 + 1
            with path.open("wb") as file:
                file.write(fits.Header(first | dict(header)).tostring().encode())
                if dtype == ">i4":
                    file.truncate(file.tell() + 4 * _LARGE**2)
                    continue
                for _ in range(_LARGE // 64):
                    file.write(rows_hW.astype(dtype).tobytes())


def _cut_large(folder: str, size: int, result: Any) -> None:
    files, rng = indexed(Path(folder), "euclid"), np.random.default_rng(1)
    x_N, y_N = rng.uniform(size, _LARGE - size, (2, _LARGE_SOURCES))
    before, began = _peak_gb(), time.process_time()
    with Tile(files, folder, 23.9) as tile:
        count = sum(len(cuts.rows_N) for cuts in tile.cut(x_N, y_N, size))
    seconds = time.process_time() - began
    result.put({"bands": len(files), "cutouts_per_s": count / seconds, "before_gb": before, "peak_gb": _peak_gb()})


def _peak_gb() -> float:
    # The peak of `getrusage` would be that of the parent too.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def memory(folder: Path, size: int) -> dict[str, float]:
    """Measure the peak memory of a fresh process that cuts from a tile as large as Euclid's."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_cut_large, args=(str(folder), size, result))
    process.start()
    found = result.get()
    process.join()
    return found


def main() -> None:
    """Measure, and print the figures as JSON."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        bricks = Path(folder) / "bricks"
        bricks.mkdir()
        write_brick(bricks)
        for size in (64, 152):
            results[f"3 bands, {size} pixels, one core"] = rate(bricks, size)
        large = Path(folder) / "large"
        large.mkdir()
        write_large(large, ("VIS", "NIR-J"))
        results[f"{_LARGE} x {_LARGE}, 152 pixels"] = memory(large, 152)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
