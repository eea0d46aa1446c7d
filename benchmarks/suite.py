"""Runs benchmarks of cost, and keeps their ratios by commit.

    python benchmarks/suite.py [--full] [--only NAME ...] [--history FILE]

Quick ones by default, some minutes; ``--full`` takes an hour. Prints JSON with the facts of the machine, and a table of the
ratios beside the last ones of a machine like it. Ratios, shares and growths are measured within one run each, so that they
compare between machines where rates do not: numbers whose name holds one of `RATIOS`. ``--history`` appends them as a line of
JSON.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gampen_ray.errors import UserError
from gampen_ray.provenance import provenance

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
HISTORY = FOLDER / "history.jsonl"
RATIOS = ("ratio", "_over_", "share", "growth")


class Benchmark(NamedTuple):
    """A script of this folder; ``{work}`` among its arguments is a folder for its files."""

    script: str
    arguments: tuple[str, ...]
    is_quick: bool


BENCHMARKS = {
    "summaries": Benchmark("posterior.py", (), is_quick=True),
    "reader": Benchmark("reader_process.py", ("--turns", "20"), is_quick=True),
    "passes": Benchmark("inference.py", ("{work}", "passes"), is_quick=True),
    "tiles": Benchmark("tiles.py", ("{work}",), is_quick=False),
    "inference": Benchmark("inference.py", ("{work}", "pipeline"), is_quick=False),
    "actors": Benchmark("inference.py", ("{work}", "actors"), is_quick=False),
    "memory": Benchmark("inference.py", ("{work}", "memory"), is_quick=False),
    "training": Benchmark("training.py", ("{work}",), is_quick=False),
}


def main(arguments: argparse.Namespace) -> None:
    """Run, print and keep."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if unknown := set(arguments.only) - set(BENCHMARKS):
        raise UserError(f"only: {', '.join(sorted(unknown))} is unknown; there are {', '.join(BENCHMARKS)}")
    chosen = arguments.only or [name for name, one in BENCHMARKS.items() if arguments.full or one.is_quick]
    before = last(HISTORY)
    result: dict[str, Any] = machine() | {"load_before": os.getloadavg()[0], "results": {}}
    for name in chosen:
        logger.info("%s: %s", name, " ".join((BENCHMARKS[name].script, *BENCHMARKS[name].arguments)))
        began = time.monotonic()
        result["results"][name] = run(BENCHMARKS[name])
        logger.info("%s: %.0f s", name, time.monotonic() - began)
    found = dict(ratios(result["results"]))
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")
    for name, value in found.items():
        logger.info("%-70s %8.3f%s", name, value, f"   before {before[name]:.3f}" if name in before else "")
    if arguments.history:
        del result["results"]
        line = result | {"ratios": {name: round(value, 4) for name, value in found.items()}}
        with arguments.history.open("a") as file:
            file.write(json.dumps(line) + "\n")


def machine() -> dict[str, Any]:
    """Return what a figure depends on: code, libraries and hardware."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return provenance() | {"device": device, "cores": os.cpu_count()}


def run(benchmark: Benchmark) -> Any:
    """Return what a benchmark prints."""
    with tempfile.TemporaryDirectory() as work:
        arguments = [argument.format(work=work) for argument in benchmark.arguments]
        command = [sys.executable, str(FOLDER / benchmark.script), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{benchmark.script} ended with status {done.returncode}; its error is above")
    return json.loads(done.stdout)


def ratios(value: Any, name: str = "", *, within: bool = False) -> Iterator[tuple[str, float]]:
    """Yield numbers that compare between machines, by their path; a list by its median."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from ratios(part, f"{name}.{key}".lstrip("."), within=within or any(word in key for word in RATIOS))
    elif within and isinstance(value, list):
        yield name, statistics.median(value)
    elif within and isinstance(value, int | float):
        yield name, value


def last(history: Path) -> dict[str, float]:
    """Return the last ratios that a machine of the same device and number of cores has measured."""
    if not history.exists():
        return {}
    here, found = machine(), {}
    for line in map(json.loads, history.read_text().splitlines()):
        if all(line[name] == here[name] for name in ("device", "cores")):
            found |= line["ratios"]
    return found


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all benchmarks, an hour on two cores")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}")
    parser.add_argument("--history", type=Path, help=f"file to append the ratios to, such as {HISTORY.name}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main(parsed())
    except UserError as error:
        sys.exit(str(error))
