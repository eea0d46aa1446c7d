"""The verbs by name, from which the command line, `jobs/` and the Python API are made.

A verb is a function of one config, registered under its name where it is defined::

    @verb("count")
    def count(config: CountConfig) -> int: ...

A plugin may register verbs too: see `gampen_ray.plugins`. ``gampen-ray --help`` imports the module of every verb: import numpy,
torch, Ray and the like inside the function.
"""

import dataclasses
import importlib
import inspect
import shlex
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import PydanticUndefined

from gampen_ray.config.base import build, fields, load_toml, plain, shown
from gampen_ray.config.leaves import Leaf, sections
from gampen_ray.errors import StorageError, UserError
from gampen_ray.plugins import Registry, load_plugins

# In the order of `--help`; each is in the module of its name.
_BUILT_IN = ("demo", "simulate", "inspect", "ingest", "split", "train", "tune", "scan-dropout", "infer", "evaluate", "report")
_BUILT_IN += ("view", "status", "footprint", "measure-psf", "describe", "crop", "import-gampen")
_EXTENDS = "extends"
# Fields of files and folders that a verb reads, with a remedy where there is none.
_INPUTS: dict[str, str] = dict.fromkeys(("bundle", "fine_tune.bundle"), "give the folder that `train` wrote, or builtin:NAME")
_INPUTS |= {"dataset": "make it with `gampen-ray ingest` or `gampen-ray simulate`, or give a folder of cutouts"}
_INPUTS |= {"evaluation": "give the folder that `evaluate` wrote", "run": "give the output folder of a verb"}
_INPUTS |= dict.fromkeys(
    ("require_signature", "images", "psfs", "catalog", "model", "tiles", "scaling", "truth", "prior"), "give one that does"
)


@dataclasses.dataclass(frozen=True)
class Verb:
    """A function of one config.

    Parameters
    ----------
    config
        Class of its config.
    function
        Runs it.
    positional
        Field that the positional argument sets, unless it is a TOML file; empty: none.
    then
        Returns the command that usually comes next, from the values of the config's fields and of what was made; empty: none.
    """

    config: type
    function: Callable[[Any], Any]
    positional: str = ""
    then: "Then" = lambda _: ""

    @property
    def __wrapped__(self) -> Callable[[Any], Any]:
        """The registered function, for `gampen_ray.plugins`."""
        return self.function

    @property
    def leaves(self) -> dict[str, Leaf]:
        """All fields by dotted name."""
        return {leaf.name: leaf for _, _, leaves in sections(self.config) for leaf in leaves}

    @property
    def has_dry_run(self) -> bool:
        """Whether it is a job that claims its output folder, see `gampen_ray.run_folder`."""
        return {"output", "resources"} <= {*self.config.__dataclass_fields__}

    def configured(self, values: Mapping[str, Any], file: str = "") -> Any:
        """Return a config from nested values, which override those of a TOML file.

        Raises
        ------
        UserError
            For an invalid value.
        """
        return build(self.config, self.merged(values, file))

    def merged(self, values: Mapping[str, Any], file: str = "") -> dict[str, Any]:
        """Return the values of a TOML file with others in their place, unchecked."""
        return _merged(self.config, _read(self.config, file) if file else {}, plain(values))

    def following(self, values: Mapping[str, Any], made: Any = None) -> str:
        """Return the command that usually comes next, from some values of a config and of the dictionary, such as a manifest,
        that the verb returned or wrote, if it did; empty: none."""
        known = {**made, **values} if isinstance(made, Mapping) else values
        command = self.then(_Placeholders({name: shlex.quote(str(value)) for name, value in known.items()}))
        return f"gampen-ray {command}" if command else ""

    def run(self, config: Any) -> Any:
        """Run the verb; a `UserError` names the field whose file does not exist or whose object storage cannot be reached."""
        from gampen_ray import storage

        for leaf in (leaf for _, _, leaves in sections(self.config, instance=config) for leaf in leaves):
            if not isinstance(leaf.default, str):
                continue
            if storage.is_local(leaf.default) and (leaf.name not in _INPUTS or not leaf.default):
                continue
            try:
                # Before torch and the like are imported.
                there = storage.exists(leaf.default)
            except (UserError, StorageError) as error:
                raise UserError(f"{leaf.name}: {error}") from None
            if storage.is_local(leaf.default) and not there:
                raise UserError(f"{leaf.name}: {storage.absolute(leaf.default)} does not exist; {_INPUTS[leaf.name]}")
        return self.function(config)


class _Placeholders(dict[str, str]):
    """Values by name; that of an unknown name is the name in capital letters."""

    def __missing__(self, name: str) -> str:
        return name.upper()


Then = Callable[[_Placeholders], str]


def then_infer(run: _Placeholders) -> str:
    """Return the command that follows the training of a bundle."""
    return f"infer --bundle {run['output']} --dataset {run['dataset']} --split test --output CATALOG --posterior mixture"


VERBS: Registry[Verb] = Registry("verb")
F = typing.TypeVar("F", bound=Callable[[Any], Any])


def verb(name: str, *, positional: str = "", then: Then = lambda _: "") -> Callable[[F], F]:
    """Return a decorator that registers a function whose first parameter is annotated with its config class.

    Parameters
    ----------
    name
        Of the verb on the command line.
    positional
        Field that the positional argument sets.
    then
        Returns the command that usually comes next, without the program's name, from the config's values, as the command line
        takes them: ``lambda run: f"evaluate --catalog {run['output']} --output EVALUATION"``. A verb that returns a dictionary,
        and writes the same as the file that marks it complete, is given its values too.
    """

    def register(function: F) -> F:
        config = next(iter(inspect.signature(function).parameters.values())).annotation
        if not dataclasses.is_dataclass(config):
            raise TypeError(f"verb {name}: annotate the parameter of {function.__qualname__} with a config class")
        VERBS.register(name)(Verb(typing.cast(type, config), function, positional, then))
        return function

    return register


def load_verbs() -> dict[str, Verb]:
    """Return all verbs, with those of plugins last."""
    for name in _BUILT_IN:
        importlib.import_module(f"gampen_ray.commands.{name.replace('-', '_')}")
    load_plugins()
    return {name: VERBS[name] for name in (*_BUILT_IN, *VERBS)}


def python_function(name: str) -> Callable[..., Any]:
    """Return a verb as a function of its config's fields, with their signature and documentation."""
    found = load_verbs()[name]

    def function(file: str = "", /, **fields: Any) -> Any:
        return found.run(found.configured(fields, file))

    kinds = inspect.Parameter
    parameters = [kinds("file", kinds.POSITIONAL_ONLY, default="", annotation=str)]
    for field, info in fields(found.config).items():
        default, annotation = info.get_default(call_default_factory=True), info.annotation
        if dataclasses.is_dataclass(annotation):
            default, annotation = _Text(f"{type(default).__name__}()"), annotation | dict
        elif isinstance(default, dict):
            default = _Text("{...}" if default else "{}")
        default = kinds.empty if default is PydanticUndefined else default
        parameters.append(kinds(field, kinds.KEYWORD_ONLY, default=default, annotation=annotation))
    function.__name__ = function.__qualname__ = name.replace("-", "_")
    function.__module__ = "gampen_ray"
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__doc__ = _documentation(name, found)
    return function


class _Text(str):
    """A short text in place of a long default in a signature."""

    __repr__ = str.__str__


def kind(annotation: Any) -> str:
    """Return the metavar of a field."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "{" + ",".join(str(choice) or "''" for choice in typing.get_args(annotation)) + "}"
    if origin is types.UnionType:
        return next(kind(arg) for arg in typing.get_args(annotation) if arg is not type(None))
    if origin is tuple:
        return "LIST"
    return "TABLE" if origin is dict else getattr(annotation, "__name__", "VALUE").upper()


def _documentation(name: str, found: Verb) -> str:
    lines = [
        found.config.__doc__ or "",
        "",
        f"The same as `gampen-ray {name}`. Fields are keywords; a section is a dictionary of its fields, or its config:",
        f"``{name.replace('-', '_')}(..., resources={{'num_workers': 2}})``.",
        "",
        "Parameters",
        "----------",
        "file",
        "    TOML file with fields, which keywords override.",
    ]
    for section, text, leaves in sections(found.config):
        paragraph = text.partition("\n\n")[0]
        lines += ["", f"{section}: {paragraph}", ""] if section else []
        for leaf in leaves:
            default = "required" if leaf.default is PydanticUndefined else f"default {shown(leaf.default)}"
            lines += [f"{leaf.name} : {kind(leaf.annotation)}, {default}", f"    {leaf.description}".replace("\n", "\n    ")]
    return "\n".join([*lines, "", "Raises", "------", "UserError", "    For an invalid field, input or output."])


def _read(config: type, path: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values of a TOML file, which override those of the file that it extends."""
    from gampen_ray import storage

    if path in seen:
        raise UserError(f"{path}: {_EXTENDS} itself through {seen[-1]}; remove one {_EXTENDS}")
    values = load_toml(storage.read_bytes(path), path)
    base = values.pop(_EXTENDS, None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: {_EXTENDS}: {base!r} is not allowed; give the name of another TOML file")
    folder = path.rpartition("/")[0] or "."
    uri = base if base.startswith("/") or not storage.is_local(base) else storage.join(folder, base)
    return _merged(config, _read(config, uri, (*seen, path)), values)


def _merged(config: type, under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values in which those of ``over`` replace those of ``under``, field by field."""
    result = dict(under)
    for name, value in over.items():
        section = fields(config)[name].annotation if name in fields(config) else None
        if dataclasses.is_dataclass(section) and isinstance(value, dict) and isinstance(under.get(name), dict):
            result[name] = _merged(typing.cast(type, section), under[name], value)
        else:
            result[name] = value
    return result
