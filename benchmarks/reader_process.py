"""What it costs to read good files in a process of their own: processor time over that of reading in the process itself.

Both ways go through `gampen_ray.data.image_reading.Images`, in turn; prints JSON, with the median of the ratios of all turns.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data import image_reading, reader_process, readers
from gampen_ray.data.cutouts import Cutout

_FILES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=40)
    turns = parser.parse_args().turns
    rng, result = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory() as folder:
        for side in (64, 256):
            for compression in ("", "RICE_1"):
                uris = [str(Path(folder, f"{side}{compression}{number}.fits")) for number in range(_FILES)]
                for uri in uris:
                    _write(uri, rng.normal(0, 1, (side, side)).astype(np.float32), compression)
                rows = pa.table({image_reading.SOURCE: uris})
                _seconds(rows)
                pairs = []
                for _ in range(turns):
                    with mock.patch.object(image_reading, "read_files", _read_here):
                        here = _seconds(rows)
                    pairs.append((here, _seconds(rows)))
                ratio = statistics.median(apart / here for here, apart in pairs)
                best = [min(column) / _FILES * 1e3 for column in zip(*pairs, strict=True)]
                times = {"ms_here": best[0], "ms_apart": best[1], "median_ratio": ratio}
                result[f"{side} x {side} {compression or 'plain'}"] = times
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _write(uri: str, pixels_HW: np.ndarray, compression: str) -> None:
    side = len(pixels_HW)
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.1, "CRVAL2": 2.2, "CRPIX1": side / 2, "CRPIX2": side / 2}
    cards |= {"CD1_1": -5e-5, "CD2_2": 5e-5, "MAGZERO": 25.0, "FILTER": "r", "BUNIT": "adu"}
    header = fits.Header(cards)
    if compression:
        hdus = [fits.PrimaryHDU(), fits.CompImageHDU(pixels_HW, header, compression_type=compression)]
    else:
        hdus = [fits.PrimaryHDU(pixels_HW, header)]
    fits.HDUList(hdus).writeto(uri, overwrite=True)


def _read_here(files: Iterable[reader_process.File], *, headers: bool) -> list[Cutout]:
    return [readers.read_cutout(image_reading.raised(content), name, config) for content, name, config in files]


def _seconds(rows: pa.Table) -> float:
    """Return the processor time of reading all rows, here and in the child."""
    start = time.process_time() + _child_seconds()
    with image_reading.Images(rows, ReaderConfig()) as images:
        for found, _ in images.read(range(len(rows))):
            image_reading.raised(found)
    return time.process_time() + _child_seconds() - start


def _child_seconds() -> float:
    child = reader_process._READER._child
    return int(Path(f"/proc/{child.pid}/schedstat").read_text().split()[0]) / 1e9 if child else 0.0


if __name__ == "__main__":
    main()
