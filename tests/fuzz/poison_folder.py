"""Predict a folder of cutouts with some poison among them, and the same folder without; prints JSON.

``python -m tests.fuzz.poison_folder --count 2000``: of each kind of `tests.fuzz.poison_files` one file, and three whose
coordinates alone are poison. The former belong in quarantine by name, all others in the catalogue.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from astropy.io import fits

from tests.fuzz.poison_files import POISON, WCS
from tests.networks import bundle, galaxies

COORDINATES = {"WCSAXES": 65536, "CRVAL1": "NaN", "A_ORDER": 30000}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bundle().save(str(root / "model"))
        seconds = {}
        for name, poisoned in (("clean", False), ("poisoned", True)):
            write(root / name, count, poisoned=poisoned)
            began = time.monotonic()
            command = [sys.executable, "-m", "gampen_ray", "infer", f"--bundle={root}/model", f"--dataset={root / name}"]
            subprocess.run([*command, f"--output={root}/{name}-out"], check=True, stdout=sys.stderr, env=os.environ)
            seconds[name] = round(time.monotonic() - began, 1)
        rows, quarantine = outcome(root / "poisoned-out")
        ratio = round(seconds["poisoned"] / seconds["clean"], 2)
    sys.stdout.write(
        json.dumps({"rows": len(rows), "quarantine": quarantine, "seconds": seconds, "ratio": ratio}, indent=1) + "\n"
    )


def write(folder: Path, count: int, *, poisoned: bool) -> None:
    """Write cutouts, with a poison file in place of some of them."""
    folder.mkdir()
    contents = [make() for make, _ in POISON.values()] if poisoned else []
    names = list(POISON)
    cards = list(COORDINATES.items()) if poisoned else []
    places = np.linspace(0, count, len(contents) + len(cards), endpoint=False).astype(int).tolist()
    image_NHW = galaxies(count)["image"][:, 0]
    for place in range(count):
        if place not in places:
            fits.PrimaryHDU(image_NHW[place]).writeto(folder / f"g{place:06d}.fits")
        elif (number := places.index(place)) < len(contents):
            (folder / f"poison-{names[number]}.fits").write_bytes(contents[number])
        else:
            name, value = cards[number - len(contents)]
            header = fits.Header(WCS | {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", name: value})
            fits.PrimaryHDU(image_NHW[place], header).writeto(folder / f"coordinates-{name}.fits")


def outcome(output: Path) -> tuple[list[str], dict[str, str]]:
    """Return the ids of the catalogue, and the reasons in quarantine by file name without its ending."""
    rows = pq.read_table(output / "catalog", columns=["object_id"])["object_id"].to_pylist()
    quarantine = pq.read_table(output / "quarantine").to_pylist()
    return rows, {Path(row["source"]).stem: row["reason"] for row in quarantine}


if __name__ == "__main__":
    main()
