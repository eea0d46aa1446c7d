"""Mutated files of many galaxies, each of which must give images or reasons in time and memory; prints JSON.

``python -m tests.fuzz.container_files --count 1000 --seed 1`` makes so many of each format. Each is read in a process that may
be ended by it: what ends or hangs that is a finding, and reproduced by its format, seed and number (``mutated``).
"""

import argparse
import functools
import io
import json
import re
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data.containers import container_rows, open_container
from gampen_ray.data.containers.stacks import INDEX
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.errors import UserError
from tests.processes import peak_memory_gb

_SIDE, _COUNT = 12, 8
_SECONDS, _BYTES = 20, 6 << 30
_WORDS = (b"\xff" * 8, b"\x00" * 8, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x01\x00\x00\x00\x00\x00\x00\x00", b"\x7f" * 8)
_TEXTS = ("-1", "0", "1", "99999999999", "4294967297", "1e30", "null", '"x"', "[]", "{}", "true")


@functools.cache
def intact(kind: str) -> dict[str, bytes]:
    """Return the files of a container of a kind, by name."""
    rng = np.random.default_rng(0)
    images, ids = rng.normal(size=(_COUNT, _SIDE, _SIDE)).astype(np.float32), np.arange(_COUNT)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _WRITERS[kind](root, images, ids)
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def mutated(kind: str, seed: int, number: int) -> dict[str, bytes | None]:
    """Return the files of a container with some mutations, as the seed and the number have it; None: the file is removed."""
    rng = np.random.default_rng((seed, number))
    files: dict[str, bytes | None] = dict(intact(kind))
    for _ in range(rng.integers(1, 4)):
        name = str(rng.choice(sorted(files)))
        data = files[name]
        if data is None:
            continue
        if len(files) > 1 and rng.random() < 0.05:
            files[name] = None
            continue
        files[name] = _edited(bytearray(data), rng)
    return files


def run(kind: str, count: int, seed: int) -> dict[str, Any]:
    """Read mutated containers of a kind, and return the numbers of outcomes, findings and the slowest."""
    outcomes: Counter[str] = Counter()
    findings: list[tuple[int, str]] = []
    slowest, peak, number = (0.0, -1), 0.0, 0
    while number < count:
        command = [sys.executable, "-m", "tests.fuzz.container_files", "--child", kind, str(seed), str(number), str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout
            for line in child.stdout:
                outcome, seconds, grown_gb = json.loads(line)
                outcomes[outcome] += 1
                findings += [(number, outcome)] if re.match("FINDING|MemoryError", outcome) else []
                slowest, peak, number = max(slowest, (seconds, number)), max(peak, grown_gb), number + 1
        if number < count:
            took = child.returncode == -signal.SIGALRM
            findings.append((number, f"took {_SECONDS} s" if took else f"ended the process ({child.returncode})"))
            number += 1
    facts = {"kind": kind, "count": count, "seed": seed, "slowest_s": slowest, "memory_gb": peak, "findings": findings}
    return facts | {"outcomes": dict(outcomes.most_common(15))}


def _serve(kind: str, seed: int, first: int, stop: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, resource.RLIM_INFINITY))
    for number in range(first, stop):
        with tempfile.TemporaryDirectory() as folder:
            for name, data in mutated(kind, seed, number).items():
                if data is not None:
                    path = Path(folder, name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
            start, before = time.perf_counter(), peak_memory_gb()
            signal.alarm(_SECONDS)
            outcome = _outcome(str(Path(folder, _NAMES[kind])))
            signal.alarm(0)
            seconds, grown = time.perf_counter() - start, peak_memory_gb() - before
        outcome = " ".join(re.sub(rf"{re.escape(folder)}\S*|'[^']*'|[^a-zA-Z ]+", "#", outcome).split()[:12])
        sys.stdout.write(json.dumps([outcome, round(seconds, 2), round(grown, 2)]) + "\n")
        sys.stdout.flush()


def _outcome(uri: str) -> str:
    config = ReaderConfig()
    try:
        table = container_rows(uri, config)
        if len(table) > 10_000:
            return f"FINDING {len(table)} rows"
        index = table[INDEX].to_pylist() if INDEX in table.column_names else list(range(len(table)))
        with open_container(uri, config) as container:
            found = list(container.read(index))
    except UserError as error:
        return f"refused: {error}"
    except MemoryError:
        return "MemoryError"
    except Exception as error:
        return f"FINDING {type(error).__name__}: {error}"
    bad = [str(one) for one in found if isinstance(one, CutoutError)]
    if len(found) != len(index):
        return "FINDING another number of images"
    return f"row: {bad[0]}" if bad else "images"


def _edited(data: bytearray, rng: np.random.Generator) -> bytes:
    kind = rng.choice(["flips", "word", "number", "cut", "insert", "remove"], p=[0.35, 0.25, 0.25, 0.05, 0.05, 0.05])
    size = len(data)
    place = int(rng.integers(max(1, size)))
    # Headers and footers are short, and what is in them matters.
    if rng.random() < 0.6:
        place = int(rng.integers(max(1, min(size, 600)))) if rng.random() < 0.5 else max(0, size - 1 - int(rng.integers(600)))
    if kind == "flips":
        for at in (place + rng.integers(-8, 8, rng.integers(1, 6))).tolist():
            if 0 <= at < size:
                data[at] ^= 1 << int(rng.integers(8))
    elif kind == "word":
        word = _WORDS[int(rng.integers(len(_WORDS)))]
        data[place : place + len(word)] = word
    elif kind == "cut":
        del data[place:]
    elif kind == "insert":
        data[place:place] = rng.bytes(int(rng.choice([1, 4, 512])))
    elif kind == "remove":
        del data[place : place + int(rng.choice([1, 4, 512]))]
    elif numbers := list(re.finditer(rb"-?\d+", data)):
        match = numbers[int(rng.integers(len(numbers)))]
        text = str(rng.choice(_TEXTS)).encode()
        data[match.start() : match.end()] = text
    return bytes(data)


def _hdf5(root: Path, images: np.ndarray, ids: np.ndarray, **options: Any) -> None:
    import h5py

    with h5py.File(root / "a.h5", "w") as file:
        for name, values in (("images", images), ("object_id", ids), ("name", np.array([f"g{i}" for i in ids], "S4"))):
            file.create_dataset(name, data=values, chunks=True, compression="gzip", **options)
        file.create_dataset("label", data=np.array([f"x{i}" for i in ids], dtype=h5py.string_dtype()))
        file.create_group("inner").create_dataset("ra", data=ids * 1.0)


def _zarr(root: Path, images: np.ndarray, ids: np.ndarray) -> None:
    import zarr

    group = zarr.open_group(str(root / "a.zarr"), mode="w")
    group.create_array("images", data=images, chunks=(3, _SIDE, _SIDE))
    group.create_array("object_id", data=ids)


def _parquet(root: Path, images: np.ndarray, ids: np.ndarray) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    pq.write_table(pa.table({"object_id": ids, "name": [f"g{i}" for i in ids], "image": tensors}), root / "a.parquet")


def _nested(root: Path, images: np.ndarray, ids: np.ndarray) -> None:
    rows = [
        {"band": ["r"], "flux": [image.tolist()], "ivar": [np.ones_like(image).tolist()], "scale": [0.2]} for image in images
    ]
    pq.write_table(pa.table({"object_id": ids, "image": rows}), root / "a.parquet", compression="zstd")


def _tar(root: Path, images: np.ndarray, ids: np.ndarray) -> None:
    with tarfile.open(root / "a.tar", "w") as archive:
        for number, image in zip(ids, images, strict=True):
            buffer = io.BytesIO()
            fits.PrimaryHDU(image).writeto(buffer)
            for ending, data in (("fits", buffer.getvalue()), ("json", json.dumps({"ra": float(number)}).encode())):
                member = tarfile.TarInfo(f"g{number}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _npz(root: Path, images: np.ndarray, ids: np.ndarray) -> None:
    np.savez_compressed(root / "a.npz", images=images, object_id=ids, name=np.array([f"g{i}" for i in ids]))


def _npy(root: Path, images: np.ndarray, ids: np.ndarray) -> None:
    np.save(root / "a.npy", images)


_WRITERS = {"hdf5": _hdf5, "zarr": _zarr, "parquet": _parquet, "nested": _nested, "tar": _tar, "npz": _npz, "npy": _npy}
_NAMES = {"hdf5": "a.h5", "zarr": "a.zarr", "parquet": "a.parquet", "nested": "a.parquet", "tar": "a.tar", "npz": "a.npz"}
_NAMES["npy"] = "a.npy"


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        _serve(sys.argv[2], *map(int, sys.argv[3:]))
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=list(_WRITERS))
    given = parser.parse_args()
    for kind in given.kinds:
        sys.stdout.write(json.dumps(run(kind, given.count, given.seed), indent=1) + "\n")
        sys.stdout.flush()
