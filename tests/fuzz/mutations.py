"""Mutations of files: of bytes, and of JSON documents by their structure. All are drawn from a generator."""

import json
import re
from typing import Any

import numpy as np

__all__ = ["damaged", "document", "edited_text", "mutated_value"]

_TEXTS = [
    "",
    " ",
    "x",
    "NaN",
    "-1",
    "a/b",
    "../..",
    "\x00",
    "\u2028\n",
    "\ud800",
    "é" * 5,
    "x" * 5000,
    "s3://",
    "builtin:none",
    "{0}",
]
_NUMBERS = [0, 1, -1, 2, 3, 7, 65536, 2**31 - 1, 2**53 + 1, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.5, 1e-300, 1e300, -1e300]
_NUMBERS += [float("nan"), float("inf"), float("-inf")]
_OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}]
_WORDS = [
    b"NaN",
    b"Infinity",
    b"-1",
    b"0",
    b"1e999",
    b"9" * 5000,
    b"null",
    b"[",
    b"{",
    b'"',
    b"\\",
    b"\xff\xfe",
    b"\xc3",
    b"\x00",
    b"\n",
]
_WORDS += [b"[" * 100_000, b'{"a":' * 2000, b",", b"\t", b"#"]


def document(value: Any, rng: np.random.Generator) -> bytes:
    """Return a JSON document with one to four mutations: of its structure, sometimes of its text."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        value = mutated_value(value, rng)
    if rng.random() < 0.02:
        value = _nested(value, int(rng.choice([10, 1000, 20_000])))
        return value.encode()
    text = json.dumps(value, indent=None if rng.random() < 0.5 else 1)
    if rng.random() < 0.05:
        # A key twice.
        text = re.sub(r'("\w+": )', r"\g<1>1, \g<1>", text, count=int(rng.integers(1, 4)))
    data = text.encode()
    return damaged(data, rng) if rng.random() < 0.2 else data


def mutated_value(value: Any, rng: np.random.Generator, among: Any = None) -> Any:
    """Return a nested value of dictionaries and lists in which one place is changed, drawn evenly from all places."""
    places = list(_places(value))
    path = places[int(rng.integers(len(places)))]
    return _changed(value, path, rng, among if among is not None else value)


def edited_text(text: bytes, rng: np.random.Generator, words: list[bytes]) -> bytes:
    """Return a text of which a word or a line is replaced, removed, repeated or put elsewhere."""
    kind = rng.choice(["word", "word", "remove", "repeat", "swap", "lines"])
    if kind in ("word", "remove"):
        found = list(re.finditer(rb"[^\s,;|=<>\"]+", text)) or [re.search(rb"", text)]
        match = found[int(rng.integers(len(found)))]
        assert match
        new = words[int(rng.integers(len(words)))] if kind == "word" else b""
        return text[: match.start()] + new + text[match.end() :]
    lines = text.splitlines(keepends=True) or [b""]
    first, second = (int(i) for i in rng.integers(len(lines), size=2))
    if kind == "repeat":
        lines[first:first] = [lines[second]] * int(rng.choice([1, 2, 500]))
    elif kind == "swap":
        lines[first], lines[second] = lines[second], lines[first]
    else:
        del lines[min(first, second) : max(first, second)]
    return b"".join(lines)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes of which some are flipped, cut off, removed, inserted, overwritten or repeated."""
    content = bytearray(data)
    place = int(rng.integers(len(content) + 1))
    size = int(rng.choice([1, 2, 4, 8, 100, 1000]))
    kind = rng.choice(
        ["flip", "flip", "cut", "remove", "insert", "word", "zero", "ones", "repeat", "empty"],
        p=[0.2] + [0.1] * 6 + [0.1, 0.08, 0.02],
    )
    if kind == "flip":
        for at in rng.integers(max(len(content), 1), size=rng.integers(1, 9)):
            if at < len(content):
                content[at] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del content[place:]
    elif kind == "remove":
        del content[place : place + size]
    elif kind == "insert":
        content[place:place] = rng.bytes(size)
    elif kind == "word":
        content[place:place] = _WORDS[int(rng.integers(len(_WORDS)))]
    elif kind in ("zero", "ones"):
        there = len(content[place : place + size])
        content[place : place + there] = (b"\x00" if kind == "zero" else b"\xff") * there
    elif kind == "repeat":
        content[place:place] = content[place : place + size] * int(rng.choice([1, 3, 50]))
    else:
        content.clear()
    return bytes(content)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*path, key))


def _changed(value: Any, path: tuple[Any, ...], rng: np.random.Generator, whole: Any) -> Any:
    if not path:
        return _other(value, rng, whole)
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    if not rest and (kind := rng.random()) < 0.35:
        if kind < 0.15:
            del copy[key]
        elif isinstance(copy, list):
            copy[key:key] = [copy[key]] * int(rng.choice([1, 2, 1000]))
        else:
            name = _TEXTS[int(rng.integers(len(_TEXTS)))] if kind < 0.25 else f"{key}x"
            copy[name] = copy[key] if kind < 0.3 else copy.pop(key)
        return copy
    copy[key] = _changed(value[key], tuple(rest), rng, whole)
    return copy


def _other(value: Any, rng: np.random.Generator, whole: Any) -> Any:
    kind = rng.random()
    if isinstance(value, int | float) and not isinstance(value, bool) and kind < 0.7:
        among: list[Any] = [*_NUMBERS, -value, value * 2, value + 1, value * 0.3 if abs(value) < 1e300 else 0.3, [value]]
    elif isinstance(value, str) and kind < 0.7:
        among = [*_TEXTS, value + "x", value.upper(), value[:-1], [value]]
    elif isinstance(value, list) and kind < 0.5:
        among = [value[:-1], value + value, value[::-1], [value], dict.fromkeys(map(str, value)), [None] * len(value)]
    elif kind < 0.8:
        # Something from elsewhere in the document.
        places = list(_places(whole))
        found = whole
        for key in places[int(rng.integers(len(places)))]:
            found = found[key]
        return found
    else:
        among = [*_OTHERS, *_NUMBERS, *_TEXTS]
    return among[int(rng.integers(len(among)))]


def _nested(value: Any, depth: int) -> str:
    return "[" * depth + json.dumps(value) + "]" * depth
