"""The search space of `tune`, from which Optuna draws."""

import dataclasses
import difflib
import functools
import graphlib
import json
import types
import typing
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import optuna
import pydantic
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from gampen_ray.config import SearchRange, TrainConfig, TrainResources, TuneConfig, default_search
from gampen_ray.config.base import build, fields, narrowed, remedy, to_dict, upgraded
from gampen_ray.errors import UserError
from gampen_ray.model.backbones import BLOCKS
from gampen_ray.model.likelihoods import LIKELIHOODS

_SECTIONS = ("images", "network", "fine_tune", "optimizer")
# Fields that would make trials incomparable: other starting points, or other numbers of steps between ASHA's decisions.
_NOT_SEARCHED = ("fine_tune.bundle", "fine_tune.head", "optimizer.epochs")


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """A search space as a function of an Optuna trial (define-by-run), of plain values that can be pickled.

    Parameters
    ----------
    base
        Config whose fields are replaced by the drawn values.
    ranges
        Ranges by dotted name of the field, each after those on which it depends.
    """

    base: TrainConfig
    ranges: dict[str, SearchRange]

    @classmethod
    def of(cls, config: TuneConfig) -> "SearchSpace":
        """Return the space that a config describes, checked as far as it can be without data.

        Raises
        ------
        UserError
            For an unknown field or one that cannot be searched, a range that does not suit its field, or a circular condition.
        """
        # A trial requests no resources itself.
        base = narrowed(config, TrainConfig, resources=TrainResources())
        ranges = config.search or default_search(config)
        for name, range_ in ranges.items():
            _check(name, range_, base)
        return cls(base, _in_order(ranges))

    def __call__(self, trial: Any) -> None:
        """Draw the fields of a trial (`optuna.Trial`, or Ray's stand-in for one) into its ``params``."""
        drawn: dict[str, Any] = {}
        for name, range_ in self.ranges.items():
            if all(self._value(other, drawn) in _options(allowed) for other, allowed in range_.when.items()):
                drawn[name] = self._decoded(name, _suggest(trial, name, self.distributions[name]))

    @functools.cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each field."""
        return {name: _distribution(name, range_) for name, range_ in self.ranges.items()}

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise a ValueError for values that no trial can have drawn."""
        if unknown := values.keys() - self.distributions.keys():
            raise ValueError(f"{min(unknown)} is not searched")
        distributions = {name: self.distributions[name] for name in values}
        try:
            optuna.trial.create_trial(value=0.0, params=dict(values), distributions=distributions)
        except (TypeError, OverflowError) as error:
            raise ValueError(str(error)) from None

    @property
    def start(self) -> dict[str, Any] | None:
        """The base's own values as Optuna's, None if one of them is outside its range."""
        trial = FixedTrial({name: _category(self._value(name, {})) for name in self.ranges})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                self(trial)
            except (UserWarning, TypeError, ValueError):
                return None
        return trial.params

    def train_config(self, values: Mapping[str, Any], output: str) -> TrainConfig:
        """Return the config of a trial.

        Parameters
        ----------
        values
            Drawn values by field, as in Optuna's ``params``.
        output
            Run folder of the trial.

        Raises
        ------
        UserError
            If the fields are incompatible.
        """
        config = to_dict(self.base) | {"output": output}
        for name, value in values.items():
            section, _, field = name.rpartition(".")
            _get(config, section)[field] = self._decoded(name, value)
        return build(TrainConfig, config, recorded=True)

    @staticmethod
    def blames(error: UserError) -> bool:
        """Return whether a mistake lies in fields that a trial may draw, so that it concerns this trial alone."""
        return str(error).split(".")[0] in (*_SECTIONS, "calibration")

    def _value(self, name: str, drawn: Mapping[str, Any]) -> Any:
        return drawn[name] if name in drawn else _get(to_dict(self.base), name)

    def _decoded(self, name: str, value: Any) -> Any:
        """Return a field's value from Optuna's."""
        return {_category(choice): choice for choice in self.ranges[name].choices}.get(value, value)


def _get(table: dict[str, Any], name: str) -> Any:
    """Return a value by its dotted name; None for one that is left out."""
    *sections, field = name.split(".")
    for section in sections:
        table = table[section]
    return table.get(field)


def _in_order(ranges: Mapping[str, SearchRange]) -> dict[str, SearchRange]:
    """Return the ranges, each after those on which it depends."""
    graph = {name: [other for other in range_.when if other in ranges] for name, range_ in ranges.items()}
    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        name, *others = error.args[1]
        raise UserError(f"search.{name}.when: depends on itself by {', '.join(others)}; leave one condition out") from None
    return {name: ranges[name] for name in order}


def _check(name: str, range_: SearchRange, base: TrainConfig) -> None:
    field = _field(name, f"search.{name}")
    section = name.split(".")[0]
    if section not in _SECTIONS or name in _NOT_SEARCHED:
        raise UserError(
            f"search.{name}: this field must be the same in all trials, or they cannot be compared; "
            f"search fields of {', '.join(_SECTIONS)}, other than {', '.join(_NOT_SEARCHED)}"
        )
    if base.fine_tune.bundle and section in ("images", "network"):
        raise UserError(f"search.{name}: the bundle in fine_tune.bundle brings {section}; leave one of them out")
    if section == "fine_tune" and not base.fine_tune.bundle:
        raise UserError(f"search.{name}: there is no bundle to start from; give fine_tune.bundle")
    if range_.choices:
        for choice in range_.choices:
            _check_value(field, choice, f"search.{name}.choices")
            _check_registered(name, choice)
    else:
        kind = _number(field)
        if kind is None:
            raise UserError(f"search.{name}: low and high are given, but the field takes no numbers; give choices")
        for end in ("low", "high", "step"):
            value = getattr(range_, end)
            if kind is int and value is not None and value != int(value):
                raise UserError(f"search.{name}.{end}: {value:g}, but the field takes whole numbers; give one")
        for end in ("low", "high"):
            _check_value(field, kind(getattr(range_, end)), f"search.{name}.{end}")
    for other, allowed in range_.when.items():
        where = f"search.{name}.when.{other}"
        condition = _field(other, where)
        if not _options(allowed):
            raise UserError(f"{where}: no value given; give at least one")
        for value in _options(allowed):
            _check_value(condition, value, where)


def _field(name: str, where: str) -> pydantic.fields.FieldInfo:
    """Return the description of a field of `TrainConfig` by its dotted name."""
    cls: Any = TrainConfig
    parts = name.split(".")
    for i, part in enumerate(parts):
        valid = fields(typing.cast(type, cls)) if dataclasses.is_dataclass(cls) else {}
        if part not in valid:
            if not valid:
                raise UserError(f"{where}: {'.'.join(parts[:i])} has no fields of its own; search it itself")
            upgraded(typing.cast(type, cls), {part: None}, refuse=True, prefix=f"{where.rpartition('.')[0]}.")
            close = difflib.get_close_matches(part, valid, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            section = ".".join(parts[:i])
            raise UserError(f"{where}: unknown field; {hint}valid {f'in {section}' if section else 'here'}: {', '.join(valid)}")
        field, cls = valid[part], valid[part].annotation
    if dataclasses.is_dataclass(cls):
        raise UserError(f"{where}: a section, of which single fields are searched: {', '.join(fields(typing.cast(type, cls)))}")
    return field


def _check_registered(name: str, choice: Any) -> None:
    for registry in (LIKELIHOODS, BLOCKS):
        try:
            if registry.kind == name:
                registry[choice]
        except UserError as error:
            raise UserError(f"search.{error}") from None


def _check_value(field: pydantic.fields.FieldInfo, value: Any, where: str) -> None:
    annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    adapter = pydantic.TypeAdapter(annotation, config=pydantic.ConfigDict(strict=True, allow_inf_nan=False))
    try:
        adapter.validate_json(json.dumps(value))
    except pydantic.ValidationError as error:
        raise UserError(f"{where}: {value!r} is not allowed: {remedy(error.errors()[0])}") from None


def _number(field: pydantic.fields.FieldInfo) -> type[int] | type[float] | None:
    """Return the type of the numbers that a field takes, None if it takes none."""
    annotation = field.annotation
    kinds = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((kind for kind in (int, float) if kind in kinds), None)


def _options(allowed: Any) -> list[Any]:
    return list(allowed) if isinstance(allowed, list | tuple) else [allowed]


def _category(choice: Any) -> Any:
    """Return a choice as Optuna takes it: a list as JSON text."""
    return json.dumps(choice) if isinstance(choice, list | tuple) else choice


def _distribution(name: str, range_: SearchRange) -> BaseDistribution:
    if range_.choices:
        return CategoricalDistribution([_category(choice) for choice in range_.choices])
    low, high = typing.cast(float, range_.low), typing.cast(float, range_.high)
    if _number(_field(name, name)) is int:
        return IntDistribution(int(low), int(high), log=range_.log, step=int(range_.step or 1))
    return FloatDistribution(low, high, log=range_.log, step=range_.step)


def _suggest(trial: Any, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    suggest = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
    return suggest(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
