"""Reads mutated input, and counts what comes of it: success, a mistake of the user in one line, or a finding."""

import contextlib
import faulthandler
import re
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gampen_ray.errors import UserError
from gampen_ray.messages import printable
from tests.processes import peak_memory_gb

__all__ = ["Fuzzer", "generator", "run"]

Fuzzer = Callable[[np.random.Generator, int, Path], tuple[str, Callable[[], Any]]]
"""Writes a mutated input into an empty folder, drawn by a generator and a number; returns its name and what reads it."""
_HANG_SECONDS, _END_SECONDS = 2.0, 30
"""Processor time that is a finding, and time that ends it: the machine may be busy."""


def generator(seed: int, number: int) -> np.random.Generator:
    """Return what a mutation is drawn from."""
    return np.random.default_rng((seed, number))


def run(fuzzer: Fuzzer, count: int, seed: int, *, start: int = 0) -> dict[str, Any]:
    """Return the numbers of outcomes, the slowest, the largest memory and all findings, each by the number of the mutation."""
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as folder:
        # What the first one takes to import and prepare.
        _outcome(fuzzer(generator(seed, start), start, Path(folder))[1])
    outcomes: Counter[str] = Counter()
    slowest, findings = (0.0, -1, ""), []
    at_start, growth = peak_memory_gb(), (0.0, -1, "")
    for number in range(start, start + count):
        with tempfile.TemporaryDirectory() as folder:
            name, read = fuzzer(generator(seed, number), number, Path(folder))
            before, begun = peak_memory_gb(), time.process_time()
            reason, fault = _outcome(read)
        seconds = time.process_time() - begun
        slowest = max(slowest, (round(seconds, 2), number, name))
        growth = max(growth, (round(peak_memory_gb() - before, 2), number, name))
        if not fault and seconds > _HANG_SECONDS:
            fault = f"took {seconds:.1f} s: {reason}"
        if fault:
            findings.append((number, name, fault))
        outcomes[reason] += 1
    return {
        "count": count,
        "seed": seed,
        "read": outcomes["read"],
        "findings": len(findings),
        "slowest_s": slowest,
        "peak_memory_gb": round(peak_memory_gb(), 2),
        "memory_at_start_gb": round(at_start, 2),
        "largest_growth_gb": growth,
        "outcomes": dict(outcomes.most_common(30)),
        "found": findings,
    }


def _outcome(read: Callable[[], Any]) -> tuple[str, str]:
    """Return the kind of outcome, and what is wrong with it."""
    try:
        with _ended(_END_SECONDS):
            read()
        return "read", ""
    except UserError as error:
        text = printable(str(error))
        fault = "" if text and "\n" not in text else f"no line: {text!r}"
        return " ".join(re.sub(r"'[^']*'|/\S+|[^a-zA-Z ]+", "#", text).split()[:8]), fault
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "gampen_ray/" in f.filename]
        places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-3:]))
        return f"{type(error).__name__} at {places}", f"{type(error).__name__}: {str(error)[:200]} ({places})"


@contextlib.contextmanager
def _ended(seconds: int) -> Iterator[None]:
    def end(*_: object) -> None:
        raise TimeoutError(f"not finished after {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
