"""Values as text of TOML."""

import re
from collections.abc import Mapping
from typing import Any

import tomli_w

__all__ = ["inline"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def inline(value: Any) -> str:
    """Return a plain value as TOML on one line."""
    if isinstance(value, Mapping):
        pairs = (f"{key if _BARE_KEY.fullmatch(key) else inline(key)} = {inline(inner)}" for key, inner in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(inline, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()
