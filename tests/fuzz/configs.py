"""Mutated TOML files and flags of every verb, parsed as the command line does."""

import functools
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from gampen_ray.cli import parse
from gampen_ray.commands.registry import load_verbs
from gampen_ray.config.base import to_dict
from tests.fuzz.mutations import damaged, edited_text, mutated_value

_WORDS = b"nan inf -inf -1 0 1e999 1979-05-27 07:32:00 [] {} [[]] [1,'a'] true 'x' \"\\u0000\" 0x10 = [[a]] #".split(b" ")
_WORDS += [
    b"9" * 30,
    b"9" * 5000,
    b"[" * 5000,
    b"\xff",
    b"\x00",
    b"{a=" * 500,
    b"extends = 'config.toml'",
    b"s3://",
    b"builtin:x",
]
_WORDS += [b"a.b.c = 1"]
_TEXTS = [word.decode("latin-1") for word in _WORDS] + [
    "",
    " ",
    ",",
    "a,b",
    "-",
    "--",
    "é",
    "\ud800",
    "\n",
    "x" * 300,
    "../..",
    "~x/y",
    "%s %(x)d",
]


def files(rng: np.random.Generator, number: int, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Mutate the TOML file of a verb, by its structure or its text."""
    verb, values = _intact(number)
    mutated: Any = values
    for _ in range(rng.integers(1, 4)):
        mutated = mutated_value(mutated, rng)
    try:
        text = tomli_w.dumps(mutated).encode("utf-8", "replace")
    except (TypeError, AttributeError, ValueError, RecursionError):
        text = tomli_w.dumps(values).encode()
        text = edited_text(text, rng, _WORDS)
    if rng.random() < 0.3:
        text = damaged(text, rng)
    path = folder / "config.toml"
    path.write_bytes(text)
    return f"{verb} TOML", lambda: parse([verb, str(path)])


def flags(rng: np.random.Generator, number: int, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Mutate the flags of a verb."""
    verb, values = _intact(number)
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(values))
    arguments = [verb, str(path)]
    leaves = list(load_verbs()[verb].leaves)
    for _ in range(rng.integers(1, 5)):
        flag = f"--{rng.choice(leaves)}"
        if rng.random() < 0.5:
            flag = flag.replace("_", "-")
        if rng.random() < 0.15:
            flag = damaged(flag.encode(), rng).decode("latin-1")[:500]
        value = _TEXTS[int(rng.integers(len(_TEXTS)))]
        arguments += [[flag, value], [f"{flag}={value}"], [flag], [value]][int(rng.choice(4, p=[0.4, 0.4, 0.1, 0.1]))]
    if rng.random() < 0.05:
        arguments[0] = _TEXTS[int(rng.integers(len(_TEXTS)))]

    def read() -> None:
        try:
            parse(arguments)
        except SystemExit as end:
            # --help.
            assert end.code in (0, None)

    return f"{verb} flags", read


@functools.cache
def _configs() -> list[tuple[str, dict[str, Any]]]:
    """Return the values of each verb's config, with all its defaults."""
    result = []
    for name, verb in load_verbs().items():
        required = {leaf: "x" for leaf, found in verb.leaves.items() if "Undefined" in repr(found.default)}
        result.append((name, to_dict(verb.configured(required))))
    for path in sorted((Path(__file__).parents[2] / "jobs").rglob("*.toml")):
        verb = path.stem.split("_")[0].replace("_", "-")
        if verb in load_verbs():
            result.append((verb, tomllib.loads(path.read_text())))
    return result


def _intact(number: int) -> tuple[str, dict[str, Any]]:
    verb, values = _configs()[number % len(_configs())]
    return verb, json.loads(json.dumps(values))
