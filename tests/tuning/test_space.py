import dataclasses
import pickle
from typing import Any

import optuna
import pytest

from gampen_ray.config import FineTuneConfig, SearchRange, TrainConfig, TuneConfig, default_search
from gampen_ray.config.base import build, fields, load_toml, to_toml
from gampen_ray.errors import UserError
from gampen_ray.tuning.space import SearchSpace

RANGES = """
[search.network.backbone.dropout_rate]
low = 1e-4
high = 0.3
log = true

[search.network.backbone.plan]
choices = [[8, "M", 16], [8, "M", 16, "M", 32]]

[search.network.backbone.pool_size]
low = 1
high = 5
step = 2

[search.network.backbone.stem_kernel]
choices = [3, 5]

[search.optimizer.momentum]
low = 0.5
high = 0.99
when = { optimizer.name = "sgd" }

[search.optimizer.nesterov]
choices = [true, false]
when = { optimizer.name = ["sgd"], network.backbone.plan = [[8, "M", 16]] }

[search.optimizer.name]
choices = ["adamw", "sgd"]
"""


def config(ranges: str = RANGES, **changes: Any) -> TuneConfig:
    """Build a config as the command line does."""
    return build(TuneConfig, load_toml(ranges.encode(), "tune.toml") | {"dataset": "d", "output": "o"} | changes)


def drawn(space: SearchSpace, count: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trials = [study.ask() for _ in range(count)]
    for trial in trials:
        assert space(trial) is None
    return [trial.params for trial in trials]


def test_conditional_fields_are_drawn_only_where_their_conditions_hold() -> None:
    rows = drawn(SearchSpace.of(config()))
    sgd = [row for row in rows if row["optimizer.name"] == "sgd"]
    assert 10 < len(sgd) < 50
    assert all(("optimizer.momentum" in row) == (row["optimizer.name"] == "sgd") for row in rows)
    shallow = '[8, "M", 16]'
    assert all(("optimizer.nesterov" in row) == (row["network.backbone.plan"] == shallow) for row in sgd)
    assert all("optimizer.nesterov" not in row for row in rows if row not in sgd)


def test_values_have_the_types_and_bounds_of_their_fields() -> None:
    rows = drawn(SearchSpace.of(config()))
    assert {row["network.backbone.pool_size"] for row in rows} == {1, 3, 5}
    assert all(type(row["network.backbone.pool_size"]) is int for row in rows)
    rates = sorted(row["network.backbone.dropout_rate"] for row in rows)
    assert 1e-4 <= rates[0] < 1e-3 < 5e-3 < rates[30] * 3 and rates[-1] <= 0.3


def test_a_trial_is_the_base_with_the_drawn_values_in_their_places() -> None:
    base = config()
    space = SearchSpace.of(base)
    values = {"network.backbone.plan": '[8, "M", 16]', "optimizer.nesterov": True, "network.backbone.pool_size": 3}
    values |= {"optimizer.name": "sgd"}
    trial = space.train_config(values, "runs/7")
    assert type(trial) is TrainConfig
    assert (trial.network.backbone.plan, trial.network.backbone.pool_size) == ((8, "M", 16), 3)
    assert (trial.optimizer.nesterov, trial.output) == (True, "runs/7")
    same = SearchSpace.of(base).train_config({}, base.output)
    assert all(getattr(same, name) == getattr(base, name) for name in fields(TrainConfig) if name != "resources")
    # What a trial's other fields leave without effect is left out of its file.
    assert "momentum" not in to_toml(space.train_config({"optimizer.momentum": 0.7}, "o"))


def test_every_drawn_config_is_one_that_train_takes() -> None:
    space = SearchSpace.of(config())
    for row in drawn(space, 20):
        trial = space.train_config(row, "o")
        assert build(TrainConfig, load_toml(to_toml(trial).encode(), "best.toml")) == trial


def test_values_that_do_not_go_together_are_the_trials_failure() -> None:
    space = SearchSpace.of(
        config("[search.optimizer.momentum]\nchoices = [0, 0.9]", optimizer={"name": "sgd", "nesterov": True})
    )
    with pytest.raises(UserError, match=r"optimizer: nesterov needs a momentum above 0"):
        space.train_config({"optimizer.momentum": 0}, "o")


def test_space_survives_plain_pickle() -> None:
    space = SearchSpace.of(config())
    before = drawn(space)
    assert drawn(pickle.loads(pickle.dumps(space))) == before


def test_space_of_an_empty_search_is_the_default_and_asks_for_the_momentum_of_sgd_alone() -> None:
    space = SearchSpace.of(config(""))
    assert set(space.ranges) == set(default_search(config("")))
    assert {"network.backbone.width", "network.backbone.block"} < set(drawn(space, 1)[0])
    assert "optimizer.momentum" not in drawn(space, 1)[0]
    assert "optimizer.momentum" in drawn(SearchSpace.of(config("", optimizer={"name": "sgd"})), 1)[0]


def test_a_search_starts_from_the_base_where_the_ranges_hold_it() -> None:
    space = SearchSpace.of(config(""))
    assert space.start is not None
    assert space.start["network.backbone.plan"] == '[24, 48, "M", 64, 64, "M", 128]'
    assert space.train_config(space.start, "o") == dataclasses.replace(space.base, output="o")
    # Drawn under sgd alone.
    assert "optimizer.momentum" not in space.start
    for ranges in ("dropout_rate = { low = 0.1, high = 0.2 }", 'plan = { choices = [[8, "M"], [16, "M"]] }'):
        assert SearchSpace.of(config(f"[search.network.backbone]\n{ranges}")).start is None
    assert SearchSpace.of(config("[search.optimizer]\nsync_batch_norm = { choices = [true, false] }")).start is None


def test_fine_tuning_searches_what_the_bundle_leaves_open() -> None:
    base = dataclasses.replace(config(""), fine_tune=FineTuneConfig(bundle="b"))
    space = SearchSpace.of(base)
    assert not [name for name in space.ranges if name.startswith(("network", "images"))]
    assert space.train_config(drawn(space, 1)[0], "o").fine_tune.dropout_rate > 0


def test_tables_and_quoted_names_say_the_same_and_a_config_survives_toml() -> None:
    quoted = config('[search."optimizer.momentum"]\nlow = 0.5\nhigh = 0.9\nwhen = {"optimizer.name" = "sgd"}')
    assert quoted == config('[search.optimizer.momentum]\nlow = 0.5\nhigh = 0.9\nwhen.optimizer.name = "sgd"')
    assert quoted.search == {"optimizer.momentum": SearchRange(low=0.5, high=0.9, when={"optimizer.name": "sgd"})}
    assert build(TuneConfig, load_toml(to_toml(config()).encode(), "t")) == config()


@pytest.mark.parametrize(
    ("name", "range_", "message"),
    [
        (
            "optimizer.learning_rat",
            "low=1\nhigh=2",
            r"unknown field; did you mean 'learning_rate'\? valid in optimizer: name, ",
        ),
        ("optimizer.clip_norm", "low=1\nhigh=2", r"renamed to search\.optimizer\.max_grad_norm"),
        ("optimiser.name", "choices=['a','b']", r"unknown field; did you mean 'optimizer'\? valid here: dataset, "),
        ("optimizer.name.x", "low=1\nhigh=2", r"optimizer\.name has no fields of its own"),
        ("network.backbone", "choices=[1,2]", r"a section, of which single fields are searched: plan, "),
        ("seed", "low=1\nhigh=2", r"must be the same in all trials, .*; search fields of images, network"),
        ("resources.num_workers", "low=1\nhigh=2", r"must be the same in all trials"),
        ("optimizer.epochs", "low=1\nhigh=2", r"must be the same in all trials"),
        ("fine_tune.dropout_rate", "low=0.1\nhigh=0.2", r"no bundle to start from; give fine_tune\.bundle"),
        ("optimizer.name", "low=1\nhigh=2", r"the field takes no numbers; give choices"),
        ("optimizer.nesterov", "low=0\nhigh=1", r"the field takes no numbers; give choices"),
        ("network.backbone.pool_size", "low=1\nhigh=2.5", r"high: 2\.5, but the field takes whole numbers"),
        ("network.backbone.pool_size", "low=0\nhigh=2", r"low: 0 is not allowed: give 1 or more"),
        ("network.backbone.dropout_rate", "low=0.1\nhigh=1", r"high: 1\.0 is not allowed: give less than 1"),
        ("optimizer.name", "choices=['adamw','adam']", r"choices: 'adam' is not allowed: give 'adamw' or 'sgd'"),
        (
            "network.backbone.block",
            "choices=['plain','resdual']",
            r"'resdual' is unknown; did you mean 'residual'\? give one of",
        ),
        ("network.backbone.plan", "choices=[[8],['N']]", r"choices: \['N'\] is not allowed"),
        ("optimizer.momentum", "choices=['0.5', 0.9]", r"choices: '0\.5' is not allowed: give a number"),
        ("optimizer.momentum", "low=0.1\nhigh=0.2\nwhen={optimizer.nam='sgd'}", r"when\.optimizer\.nam: unknown field"),
        (
            "optimizer.momentum",
            "low=0.1\nhigh=0.2\nwhen={optimizer.name='sdg'}",
            r"when\.optimizer\.name: 'sdg' is not allowed",
        ),
        ("optimizer.momentum", "low=0.1\nhigh=0.2\nwhen={optimizer.name=[]}", r"when\.optimizer\.name: no value given"),
        ("optimizer.momentum", "low=0.1\nhigh=0.2\nwhen={optimizer.momentum=0.1}", r"when: depends on itself"),
    ],
)
def test_a_range_that_does_not_suit_its_field_is_told_with_the_remedy(name: str, range_: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^search\.{name}[.:].*{message}|^search\.{name}\.{message}"):
        SearchSpace.of(config(f"[search.{name}]\n{range_}"))


def test_the_network_of_a_bundle_is_not_searched() -> None:
    with pytest.raises(UserError, match=r"the bundle in fine_tune\.bundle brings network; leave one of them out"):
        SearchSpace.of(config(fine_tune={"bundle": "b"}))


def test_a_trial_fails_for_its_own_fields_alone() -> None:
    assert SearchSpace.blames(UserError("network.backbone.plan: (8,) pools the image away"))
    assert SearchSpace.blames(UserError("optimizer.learning_rate: 1 is too high"))
    assert not SearchSpace.blames(UserError("s3://bucket/part-0.parquet: the server refuses the credentials"))
    assert not SearchSpace.blames(UserError("dataset: there are no networks.txt"))
