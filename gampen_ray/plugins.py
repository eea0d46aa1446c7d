"""Registries for extensions by users, and the import of these extensions in every process.

A plugin is a module that registers objects when it is imported. Name it in the environment variable ``GAMPEN_RAY_PLUGINS``
(comma-separated), or publish it under the entry point group ``gampen_ray.plugins``. The command line imports plugins at its
start; any other process, such as a worker on another node, imports them when it meets an unknown name.
"""

import difflib
import functools
import importlib
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from gampen_ray.errors import UserError

__all__ = ["VARIABLE", "Registry", "child_environment", "load_plugins", "plugin_modules"]

T = TypeVar("T")
Item = TypeVar("Item")
VARIABLE = "GAMPEN_RAY_PLUGINS"
"""Environment variable with the names of plugin modules."""
_registering: set[str] = set()


class Registry(dict[str, T]):
    """Objects by name; a name that neither the package nor a plugin registers is a `UserError`.

    Parameters
    ----------
    kind
        Config field that takes the name, such as ``network.likelihood``, for messages.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Item], Item]:
        """Return a decorator that registers a class or function under a name.

        Raises
        ------
        UserError
            If the name is taken.
        """

        def add(item: Item) -> Item:
            # A notebook cell that runs again replaces what it registered before.
            if name in self and _origin(self[name]) != _origin(item):
                raise UserError(f"{self.kind}: {name!r} is registered already, by {self[name]!r}; choose another name")
            # So that a class keeps its own type under the decorator.
            self[name] = cast(T, item)
            if not (module := _code(item).__module__).startswith("gampen_ray."):
                _registering.add(module)
            return item

        return add

    def __missing__(self, name: str) -> T:
        load_plugins()
        if name in self:
            return self[name]
        close = difflib.get_close_matches(name, self, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(
            f"{self.kind}: {name!r} is unknown; {hint}give one of {', '.join(self)}, or name the module that registers it in "
            f"{VARIABLE}"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All names, including those of plugins."""
        load_plugins()
        return tuple(self)


@functools.cache
def load_plugins() -> None:
    """Import the plugins that ``GAMPEN_RAY_PLUGINS`` and the entry points ``gampen_ray.plugins`` name, once per process.

    Raises
    ------
    UserError
        If one cannot be imported.
    """
    for name in _named():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"{VARIABLE}: {name} cannot be imported ({error}); install it, or add its folder to PYTHONPATH"
            ) from None
    for entry in importlib.metadata.entry_points(group="gampen_ray.plugins"):
        entry.load()


def plugin_modules() -> str:
    """Return ``GAMPEN_RAY_PLUGINS`` for workers: the modules that it names, and those that registered an object here."""
    return ",".join(sorted({*_named(), *_registering} - {"__main__"}))


def child_environment(**more: str) -> dict[str, str]:
    """Return the variables of a process of ours that finds the same code and plugins, with some more.

    Those of Ray are left out, by which a local Ray finds what it ends.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PYTHONPATH": os.pathsep.join(sys.path), VARIABLE: plugin_modules()} | more


def _named() -> Iterator[str]:
    return filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(",")))


def _code(item: Any) -> Any:
    """Return the user's function or class, which a wrapper holds as ``__wrapped__``."""
    return inspect.unwrap(item)


def _origin(item: Any) -> object:
    code = _code(item)
    return (code.__module__, code.__qualname__) if hasattr(code, "__qualname__") else code
