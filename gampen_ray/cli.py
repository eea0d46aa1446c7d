"""The `gampen-ray` command: one verb per job, its fields from a TOML file and from flags of the same names."""

import argparse
import dataclasses
import difflib
import importlib
import logging
import sys
import textwrap
import tomllib
import traceback
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from pydantic_core import PydanticUndefined

from gampen_ray import __version__, config, storage
from gampen_ray.commands.crop import CropConfig
from gampen_ray.commands.infer import InferConfig
from gampen_ray.commands.ingest import IngestConfig
from gampen_ray.commands.simulate import SimulateConfig
from gampen_ray.config.base import build, fields, load_toml
from gampen_ray.errors import StorageError, UserError


@dataclasses.dataclass(frozen=True)
class Verb:
    """A job: its config class, and the module and function that run it, imported when needed.

    An argument without a flag is a TOML file, or where it does not end in .toml the value of the field ``positional``.
    """

    config: type
    module: str
    function: str
    positional: str = ""


VERBS = {
    "demo": Verb(config.DemoConfig, "gampen_ray.commands.demo", "demo"),
    "simulate": Verb(SimulateConfig, "gampen_ray.commands.simulate", "simulate"),
    "ingest": Verb(IngestConfig, "gampen_ray.commands.ingest", "ingest"),
    "split": Verb(config.SplitTablesConfig, "gampen_ray.commands.split", "split"),
    "train": Verb(config.TrainConfig, "gampen_ray.commands.train", "train"),
    "tune": Verb(config.TuneConfig, "gampen_ray.commands.tune", "tune"),
    "infer": Verb(InferConfig, "gampen_ray.commands.infer", "infer"),
    "evaluate": Verb(config.EvaluateConfig, "gampen_ray.report.evaluate", "evaluate"),
    "import-gampen": Verb(config.ImportGampenConfig, "gampen_ray.gampen.import_network", "import_gampen", "model"),
    "crop": Verb(CropConfig, "gampen_ray.commands.crop", "crop"),
    "report": Verb(config.ReportConfig, "gampen_ray.report.build", "report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns
    -------
    int
        0; 2 for a mistake of the user's, such as storage that cannot be reached, and 1 for storage that fails later, each told
        in one line on standard error; 1 for any other failure.
    """
    _log_to_stderr()
    try:
        verb, job = parse(sys.argv[1:] if arguments is None else arguments)
        _check_storage(job)
        run = getattr(importlib.import_module(verb.module), verb.function)
        run(job)
    except UserError as error:
        sys.stderr.write(f"gampen-ray: error: {error}\n")
        return 2
    except StorageError as error:
        sys.stderr.write(f"gampen-ray: error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("gampen-ray: interrupted; the same command goes on where this one stopped\n")
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def parse(arguments: Sequence[str]) -> tuple[Verb, Any]:
    """Return the verb and its config.

    Raises
    ------
    UserError
        For an unknown verb or flag, or a value out of its domain.
    SystemExit
        After ``--help`` and ``--version``.
    """
    parsed, unknown = _parser().parse_known_args(list(arguments))
    namespace = vars(parsed)
    name = namespace.pop("verb")
    verb = VERBS[name]
    if unknown:
        raise UserError(_unknown_flag(unknown[0], name, verb))
    path = namespace.pop("config")
    if path and verb.positional and not path.endswith(".toml"):
        if namespace[verb.positional] is not None:
            raise UserError(f"{verb.positional}: given twice, {path} and {namespace[verb.positional]}; give one")
        namespace[verb.positional], path = path, None
    values = load_toml(storage.read_bytes(path), path) if path else {}
    annotations = {name: annotation for name, annotation, _, _ in _leaves(verb.config)}
    for name, text in namespace.items():
        if text is not None:
            _set(values, name.split("."), _value(text, annotations[name]))
    return verb, build(verb.config, values)


def _check_storage(job: Any) -> None:
    """Raise a `UserError` that names the field if an object storage cannot be reached."""
    for name, _, value, _ in _leaves(type(job), instance=job):
        if isinstance(value, str) and not storage.is_local(value):
            try:
                storage.exists(value)
            except (UserError, StorageError) as error:
                raise UserError(f"{name}: {error}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gampen-ray", description="Bayesian posteriors of galaxy structural parameters, at any scale.")
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        text = verb.config.__doc__ or ""
        sub = verbs.add_parser(
            name,
            help=text.splitlines()[0],
            description=textwrap.fill(text, 100) + "\n\nFlags override the fields of the TOML file.",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=112),
            allow_abbrev=False,
        )
        metavar, meaning = "CONFIG.toml", "TOML file with the fields below"
        if verb.positional:
            metavar, meaning = f"{verb.positional.upper()} | {metavar}", f"the field {verb.positional}, or a {meaning}"
        sub.add_argument("config", nargs="?", metavar=metavar, help=meaning)
        for field, annotation, default, description in _leaves(verb.config):
            spellings = dict.fromkeys([f"--{field.replace('_', '-')}", f"--{field}"])
            shown = "required" if default is PydanticUndefined else f"default: {_shown(default)}"
            help_text = f"{description} [{shown}]".replace("\n", " ").replace("%", "%%")
            # A switch is on where its value is left out.
            optional: dict[str, Any] = {"nargs": "?", "const": "true"} if annotation is bool else {}
            sub.add_argument(*spellings, dest=field, metavar=_kind(annotation), help=help_text, **optional)
    return parser


def _leaves(cls: type, prefix: str = "", instance: Any = None) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield dotted name, annotation, default and documentation of every field, those of nested sections included."""
    for name, field in fields(cls).items():
        default = field.get_default(call_default_factory=True) if instance is None else getattr(instance, name)
        if dataclasses.is_dataclass(field.annotation):
            yield from _leaves(typing.cast(type, field.annotation), f"{prefix}{name}.", default)
        else:
            yield prefix + name, field.annotation, default, field.description or ""


def _unknown_flag(flag: str, name: str, verb: Verb) -> str:
    valid = [f"--{field.replace('_', '-')}" for field, *_ in _leaves(verb.config)]
    close = difflib.get_close_matches(flag.partition("=")[0].replace("_", "-"), valid, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{flag}: unknown flag; {hint}`gampen-ray {name} --help` lists the valid ones"


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise UserError(f"{'.'.join(path)}: {part} is a table in the TOML file's schema, but the file gives {values!r}")
    values[path[-1]] = value


def _value(text: str, annotation: Any) -> Any:
    """Return a flag's value: text where the field takes text, else a TOML value, or a list of words between commas."""
    if annotation is str or typing.get_origin(annotation) is typing.Literal:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.split(",") if typing.get_origin(annotation) is tuple else text


def _kind(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "{" + ",".join(str(choice) or "''" for choice in typing.get_args(annotation)) + "}"
    if origin is types.UnionType:
        return next(_kind(arg) for arg in typing.get_args(annotation) if arg is not type(None))
    if origin is tuple:
        return "LIST"
    return "TABLE" if origin is dict else getattr(annotation, "__name__", "VALUE").upper()


def _shown(default: Any) -> str:
    if isinstance(default, dict):
        return ", ".join(default) or "none"
    if isinstance(default, tuple):
        return str([list(x) if isinstance(x, tuple) else x for x in default]).replace("'", '"')
    if default is None or default == "":
        return "left out" if default is None else "empty"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("gampen_ray")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
