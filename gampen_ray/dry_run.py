"""Runs that are only looked at: they end where they would claim their output folder."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ["DryRun", "dry_run", "is_dry"]

_dry: ContextVar[bool] = ContextVar("dry", default=False)


class DryRun(Exception):
    """What a run would do, in lines, raised in its place."""


def dry_run(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a verb's function that ends in a `DryRun` before its output folder is written, and before Ray starts."""

    def dry(config: Any) -> Any:
        token = _dry.set(True)
        try:
            return function(config)
        finally:
            _dry.reset(token)

    return dry


def is_dry() -> bool:
    """Return whether a `dry_run` is under way."""
    return _dry.get()
