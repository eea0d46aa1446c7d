"""Conversion of configs from and to plain values and strict TOML, with one-line error messages.

A config records which fields were given, so that "left out" differs from "equal to the default": see `given` and `Needs`.
"""

import dataclasses
import difflib
import functools
import json
import tomllib
import types
import typing
from collections.abc import Container, Iterator, Mapping
from typing import Any, TypeVar, dataclass_transform

import pydantic
import tomli_w

from gampen_ray.config.toml_text import inline
from gampen_ray.errors import MissingError, UserError
from gampen_ray.messages import brief, redacted

T = TypeVar("T")
_PYDANTIC = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
_Path = tuple[str, ...]

# Former fields by class: the present name, or a sentence with the remedy.
_STAGE = "the dropout scan is the verb scan-dropout; leave {0} out of `tune`"
_RENAMED = {
    "OptimizerConfig": {"clip_norm": "max_grad_norm", "accumulate": "gradient_accumulation_steps"},
    "SimulateConfig": {
        "neighbour_fraction": "neighbours come by number counts, scene.neighbours.galaxies and .stars; leave it out"
    },
    "TuneConfig": dict.fromkeys(("stage", "bundle", "num_rates", "shortlist"), _STAGE),
}
# What to give instead, by pydantic's kind of error.
_ALLOWED = {
    **dict.fromkeys(("int_type", "int_from_float"), "a whole number"),
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": 'a list, such as ["a", "b"]',
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
}
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
_RENAMED_VALUES = {
    ("NetworkConfig", "likelihood"): {"mse": "unit_variance"},
    ("InferConfig", "missing_conditions"): {"mean": "marginalise"},
}


class Needs:
    """Annotation of a field that has an effect only for certain values of another field, and is refused otherwise.

    Parameters
    ----------
    field
        The other field: one of the same class, or a dotted name in the verb's config.
    *values
        Values of the other field with which this one has an effect; none: all but ``unless``.
    unless
        Value with which it has none.
    refused
        False: a given value without effect is checked by the verb.
    """

    def __init__(self, field: str, *values: Any, unless: Any = None, refused: bool = True) -> None:
        self.field, self.values, self.unless, self.refused = field, values, unless, refused

    def met_by(self, value: Any) -> bool:
        """Return whether the other field's value lets this one have an effect."""
        return value in self.values if self.values else value != self.unless

    def remedy(self, name: str, value: Any) -> str:
        """Return the reason why a field has no effect, and a remedy, from the other field's name and value."""
        if self.values == ("",):
            return f"with {name} {shown(value)}; leave one of them out"
        if not self.values:
            with_, remedy = (f"with {name} {shown(value)}", f"another {name}") if value else (f"without {name}", name)
        else:
            with_, remedy = f"with {name} {shown(value)}", f"{name} {' or '.join(map(shown, self.values))}"
        return f"{with_}; leave it out, or give {remedy}"


class Advanced:
    """Annotation of a field that few users need: ``--help`` shows it after all others."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field))
def config_class(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass that checks its values; field docstrings become help texts."""
    decorate: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=_PYDANTIC)
    decorated = decorate(cls)
    # pydantic does not read the docstrings of inherited fields.
    for base in cls.__mro__[1:-1]:
        for name, field in base.__pydantic_fields__.items():  # type: ignore[attr-defined]
            inherited = decorated.__pydantic_fields__[name]
            inherited.description = inherited.description or field.description
    checked = decorated.__init__

    @functools.wraps(checked)
    def init(self: Any, **values: Any) -> None:
        checked(self, **values)
        _remember(self, values)

    decorated.__init__ = init
    return decorated


def default(cls: type[T]) -> T:
    """Return a field whose default is the config ``cls`` with its own defaults."""
    return dataclasses.field(default_factory=cls)


def build(cls: type[T], values: Mapping[str, Any], *, recorded: bool = False) -> T:
    """Build a config from nested values.

    Parameters
    ----------
    cls
        A config class.
    values
        Nested dictionary, as from TOML or JSON; a section may also be a config, whose given fields count.
    recorded
        Whether this or an earlier version of the program wrote the values: former names are accepted, and values without effect
        do not count as given.

    Raises
    ------
    UserError
        For an unknown key, an invalid value or one without effect, naming field, value and remedy; for a URI with credentials,
        as every config is recorded. A `MissingError` if nothing is wrong but that a required field is missing.
    """
    table = upgraded(cls, plain(values), refuse=not recorded)
    if recorded:
        table = json.loads(redacted(json.dumps(table)))
    _check_texts(table)
    config = _validated(cls, table)
    names = given(config)
    for path, (need, other, value) in _without_effect(config).items():
        name = ".".join(path)
        if recorded:
            part = _at(config, path[:-1])
            _remember(part, _own(part) - {path[-1]})
        elif need.refused and (name in names or any(one.startswith(f"{name}.") for one in names)):
            own = f" {shown(_at(config, path))}" if name in names else ""
            raise UserError(f"{name}:{own} has no effect {need.remedy(other, value)}")
    return config


def _check_texts(value: Any, name: str = "") -> None:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_texts(inner, f"{name}.{key}".removeprefix("."))
    elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UserError(f"{name}: {brief(value)} is not in UTF-8; rename it")
    elif isinstance(value, str) and (public := redacted(value)) != value:
        raise UserError(
            f"{name}: {public} holds credentials, which would be recorded; leave them out of it, and give them by environment "
            "variables, such as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )


def upgraded(cls: type, values: dict[str, Any], *, refuse: bool = False, prefix: str = "") -> dict[str, Any]:
    """Return plain values of a config class under the fields' present names.

    Raises
    ------
    UserError
        If ``refuse`` is set and a name is a former one.
    """
    result: dict[str, Any] = {}
    renamed = {old: new for base in cls.__mro__ for old, new in _RENAMED.get(base.__name__, {}).items()}
    for name, value in values.items():
        new = renamed.get(name, name)
        if refuse and new != name:
            text = new.format(name) if " " in new else f"renamed to {prefix}{new}"
            raise UserError(f"{prefix}{name}: {text}")
        field = fields(cls).get(new)
        if field and isinstance(value, dict):
            if dataclasses.is_dataclass(field.annotation):
                value = upgraded(typing.cast(type, field.annotation), value, refuse=refuse, prefix=f"{prefix}{new}.")
        elif field and (table := _RENAMED_VALUES.get((cls.__name__, new))) and isinstance(value, str) and value in table:
            if refuse:
                raise UserError(f"{prefix}{name}: {value!r} is renamed to {table[value]!r}")
            value = table[value]
        result[new] = value
    return result


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values as JSON values; a config becomes its given fields, and any other object its text."""

    def default(value: Any) -> Any:
        if _is_config(value):
            return {name: getattr(value, name) for name in _own(value)}
        return value.tolist() if hasattr(value, "tolist") else str(value)

    return json.loads(json.dumps(values, default=default))


def given(config: Any) -> frozenset[str]:
    """Return the dotted names of the fields that a config was given, whatever their values."""
    names: set[str] = set()
    for name in _own(config):
        value = getattr(config, name)
        table = isinstance(value, dict)
        for key, inner in value.items() if table else [("", value)]:
            section = f"{name}.{key}" if table else name
            names |= {f"{section}.{one}" for one in given(inner)} if _is_config(inner) else {name}
        names |= {name} if table else set()
    return frozenset(names)


def replace(config: T, **changes: Any) -> T:
    """Return a config with other values of some fields, which count as given; other omitted fields stay omitted.

    The names may be dotted: ``replace(config, **{"fine_tune.bundle": uri})``.
    """
    return narrowed(config, type(config), **changes)


def narrowed(config: Any, cls: type[T], **changes: Any) -> T:
    """Return a config of the class ``cls`` with the values of ``config``, and some changes; see `replace`."""
    sections: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    for name, value in changes.items():
        section, _, field = name.partition(".")
        (sections.setdefault(section, {}) if field else values)[field or section] = value
    values |= {name: replace(getattr(config, name), **inner) for name, inner in sections.items()}
    made = cls(**({name: getattr(config, name) for name in fields(cls)} | values))
    _remember(made, (_own(config) | values.keys()) & fields(cls).keys())
    return made


def to_dict(config: Any) -> dict[str, Any]:
    """Return the nested plain values of a config; ``None`` fields are left out, as TOML has no null."""
    return pydantic.TypeAdapter(type(config)).dump_python(config, mode="json", exclude_none=True)


def load_toml(text: bytes, source: str) -> dict[str, Any]:
    """Parse TOML (UTF-8); a syntax error is a UserError that names ``source``."""
    try:
        return tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        # Not of TOML alone: also of texts and numbers in it.
        raise UserError(f"{source}: not valid TOML: {error}") from None


def to_toml(config: Any) -> str:
    """Return a config as TOML text that `load_toml` and `build` turn into an equal one; values without effect are left out."""
    return tomli_w.dumps(without(to_dict(config), _without_effect(config)))


def fields(cls: type) -> dict[str, Any]:
    """Return pydantic's description of each field: annotation, default, documentation."""
    return cls.__pydantic_fields__  # type: ignore[attr-defined]


def shown(value: Any) -> str:
    """Return a value as help and messages show it."""
    if isinstance(value, dict):
        return ", ".join(value) or "none"
    if isinstance(value, tuple):
        return str([list(x) if isinstance(x, tuple) else x for x in value]).replace("'", '"')
    if value is None or value == "":
        return "left out" if value is None else "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_config(value: Any) -> bool:
    return hasattr(type(value), "__pydantic_fields__") and dataclasses.is_dataclass(value)


def _remember(config: Any, names: Any) -> None:
    object.__setattr__(config, "_given", frozenset(names))


def _own(config: Any) -> frozenset[str]:
    return vars(config).get("_given", frozenset())


def _parts(config: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Yield a config and all configs inside it, including those in tables, each with its path."""
    yield path, config
    for name in fields(type(config)):
        value = getattr(config, name)
        for key, inner in value.items() if isinstance(value, dict) else [(None, value)]:
            if _is_config(inner):
                yield from _parts(inner, (*path, name) if key is None else (*path, name, key))


def _at(config: Any, path: _Path) -> Any:
    return functools.reduce(lambda part, key: part[key] if isinstance(part, dict) else getattr(part, key), path, config)


def _validated(cls: type[T], table: dict[str, Any]) -> T:
    try:
        config = pydantic.TypeAdapter(cls).validate_json(json.dumps(table))
    except pydantic.ValidationError as error:
        # A field that is missing may have been misspelt.
        first = min(error.errors(), key=lambda one: (one["type"] in _MISSING) - (one["type"] in _UNKNOWN))
        raise (MissingError if first["type"] in _MISSING else UserError)(_explain(cls, first)) from None
    for path, part in _parts(config):
        values: Any = table
        for key in path:
            values = values.get(key, {})
        _remember(part, values)
    return config


def _without_effect(config: Any) -> dict[_Path, tuple[Needs, str, Any]]:
    """Return the fields without effect in a config, each with the other field that decides, and its value."""
    found: dict[_Path, tuple[Needs, str, Any]] = {}
    # Fields that a search varies have other values in its trials.
    varied = getattr(config, "varied", ())
    for path, part in _parts(config):
        for name, field in fields(type(part)).items():
            for need in (one for one in field.metadata if isinstance(one, Needs)):
                head = need.field.partition(".")[0]
                here = head in fields(type(part))
                if not here and head not in fields(type(config)):
                    continue
                other = ".".join((*path, need.field)) if here else need.field
                value = functools.reduce(getattr, need.field.split("."), part if here else config)
                unknown = any(other.startswith(".".join(idle) + ".") for idle in found)
                if not need.met_by(value) and other not in varied and not unknown:
                    found[*path, name] = need, other, value
    return found


def without(table: dict[str, Any], paths: Container[_Path], here: _Path = ()) -> dict[str, Any]:
    """Return nested values without those at some paths; ``here`` is the path of the table itself."""
    return {
        key: without(value, paths, (*here, key)) if isinstance(value, dict) else value
        for key, value in table.items()
        if (*here, key) not in paths
    }


def _explain(cls: type, error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    name, value = ".".join(where), brief(error["input"])
    if error["type"] == "json_invalid":
        return f"the values are nested too deeply, or no values: {error['ctx']['error']}; correct the TOML file"
    if error["type"] in _UNKNOWN:
        valid = sorted(fields(_descend(cls, where[:-1])))
        close = difflib.get_close_matches(where[-1], valid, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{name}: unknown field; {hint}valid here: {', '.join(valid)}"
    if error["type"] in _MISSING:
        return f"{name}: required; set it in the TOML file or give --{name}"
    if error["type"] == "value_error":
        return f"{name}: {error['ctx']['error']}".removeprefix(": ")
    if where[-1] in ("int", "constrained-int") or where[-1].startswith("literal"):
        # pydantic's error is about one type of a union: name the others too.
        name = ".".join(where[:-1])
        return f'{name}: {value} is not allowed: give a positive whole number or "M"'
    table = error["type"] in ("dict_type", "dataclass_type")
    return f"{name}: {value} is not allowed: {_table(cls, where, error['input']) if table else remedy(error)}"


def _table(cls: type, where: list[str], value: Any) -> str:
    """Return which table to give instead of a value, with the names in it if they are all that it has."""
    kind = _descend(cls, where)
    if dataclasses.is_dataclass(kind):
        names = [*fields(typing.cast(type, kind))]
        return f"give a table of its fields, {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    # As of the default, or of its last entry.
    usual = plain(fields(_descend(cls, where[:-1]))[where[-1]].get_default(call_default_factory=True))
    other = next(reversed(usual.values()), {})
    names = value.split(",") if isinstance(value, str) else value
    if not (isinstance(names, list) and all(isinstance(one, str) and one.strip() for one in names)):
        names = ["name"]
    tables = {one.strip(): usual.get(one.strip(), other) for one in names}
    return f"give a table, such as '{inline(tables)}'"


def remedy(error: Any) -> str:
    """Return what to give instead of a value that pydantic refuses, from the details of its error."""
    allowed = _ALLOWED.get(error["type"], "")
    return f"give {allowed.format(**error.get('ctx', {}))}" if allowed else error["msg"]


def _descend(cls: type, path: list[str]) -> type:
    for part in path:
        cls = typing.get_args(cls)[1] if typing.get_origin(cls) is dict else fields(cls)[part].annotation
        if isinstance(cls, types.UnionType):
            cls = next(arg for arg in typing.get_args(cls) if arg is not type(None))
    return cls
