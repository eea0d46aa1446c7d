import pickle
import re

import pytest

from gampen_ray import config
from gampen_ray.commands.crop import CropConfig
from gampen_ray.commands.demo import DemoConfig
from gampen_ray.commands.evaluate import EvaluateConfig
from gampen_ray.commands.infer import InferConfig
from gampen_ray.commands.ingest import IngestConfig
from gampen_ray.commands.registry import load_verbs
from gampen_ray.commands.report import ReportConfig
from gampen_ray.commands.simulate import SimulateConfig
from gampen_ray.config.base import build, fields, given, load_toml, narrowed, replace, to_dict, to_toml, upgraded
from gampen_ray.config.leaves import sections
from gampen_ray.errors import UserError

CONFIGS = [
    SimulateConfig(output="d"),
    IngestConfig(images="i", output="d", reader=config.ReaderConfig(hdu=1), targets=("flux",)),
    config.TrainConfig(dataset="d", output="r"),
    config.TrainConfig(dataset="d", output="r", network=config.gampen_vgg16()),
    InferConfig(bundle="b", dataset="d", output="o", resources=config.ActorResources(use_gpu=False)),
    EvaluateConfig(catalog="c", output="e"),
    ReportConfig(evaluation="e", output="r.html"),
    DemoConfig(output='quoted "name" \\ ünï'),
]


@pytest.mark.parametrize("value", CONFIGS, ids=lambda value: type(value).__name__)
def test_toml_round_trip(value: object) -> None:
    assert build(type(value), load_toml(to_toml(value).encode(), "here")) == value


@pytest.mark.parametrize("verb", load_verbs())
def test_every_field_is_documented(verb: str) -> None:
    undocumented = [
        leaf.name for _, _, leaves in sections(load_verbs()[verb].config) for leaf in leaves if not leaf.description
    ]
    assert undocumented == []


TRAIN = {"dataset": "d", "output": "r"}


@pytest.mark.parametrize("name", ["log M", "a.b", 'quoted "x"', "größe", "[t]"])
def test_names_of_targets_survive_toml(name: str) -> None:
    value = config.TrainConfig(**TRAIN, targets={name: config.TargetConfig(transform="log")})
    assert build(config.TrainConfig, load_toml(to_toml(value).encode(), "best.toml")) == value


def test_given_fields_are_told_from_those_left_out() -> None:
    value = build(config.TrainConfig, TRAIN | {"optimizer": {"epochs": 12}, "targets": {"a.b": {"transform": "log"}}})
    named = {"dataset", "output", "optimizer.epochs", "targets", "targets.a.b.transform"}
    assert given(value) == named
    assert value == config.TrainConfig(**TRAIN, targets=value.targets)
    assert given(config.TrainConfig(**TRAIN, optimizer=config.OptimizerConfig(epochs=12))) == {*TRAIN, "optimizer.epochs"}
    assert given(pickle.loads(pickle.dumps(value))) == named
    changed = replace(value, seed=0, **{"fine_tune.bundle": "b", "fine_tune.head": "keep"})
    assert given(changed) == named | {"seed", "fine_tune.bundle", "fine_tune.head"}
    assert (changed.fine_tune.bundle, changed.optimizer) == ("b", value.optimizer)
    study = build(config.TuneConfig, TRAIN | {"num_trials": 3, "seed": 1})
    assert given(narrowed(study, config.TrainConfig, resources=config.TrainResources())) == {"dataset", "output", "seed"}


@pytest.mark.parametrize(
    ("verb", "values", "message"),
    [
        ("train", {"optimizer": {"momentum": 0.9}}, "optimizer.momentum: 0.9 has no effect with optimizer.name adamw"),
        ("train", {"optimizer": {"nesterov": False}}, "optimizer.nesterov: false has no effect with optimizer.name adamw"),
        ("train", {"fine_tune": {"head": "keep"}}, "fine_tune.head: keep has no effect without fine_tune.bundle"),
        (
            "train",
            {"targets": {"f": {"transform": "log", "clip": 0.01}}},
            "targets.f.clip: 0.01 has no effect with targets.f",
        ),
        (
            "train",
            {"optimizer": {"batch_norm_fraction": 0.6}, "network": {"backbone": {"normalisation": "none"}}},
            "optimizer.b",
        ),
        (
            "train",
            {"optimizer": {"beta": 0.5}, "network": {"likelihood": "unit_variance"}},
            "optimizer.beta: 0.5 has no",
        ),
        ("train", {"network": {"spatial_transformer": {"family": "none", "hidden": 32}}}, "network.spatial_transformer.hidden"),
        ("tune", {"objectives": ["flops"], "grace_epochs": 2}, "grace_epochs: 2 has no effect with objectives"),
        ("tune", {"resources": {"use_gpu": False, "gpus_per_worker": 0.5}}, "resources.gpus_per_worker: 0.5 has no effect"),
        ("scan-dropout", {"bundle": "b", "rates": [0.1, 0.2], "num_rates": 12}, "num_rates: 12 has no effect with rates"),
        ("split", {"images": "i", "num_strata": 20}, "num_strata: 20 has no effect with scheme gampen"),
        ("split", {"images": "i", "seed": 0}, "seed: 0 has no effect with scheme gampen"),
        ("split", {"images": "i", "scheme": "sky", "target": "bt_g"}, "target: bt_g has no effect with scheme sky"),
        ("split", {"images": "i", "scheme": "stratified", "cell_size_deg": 1.0}, "cell_size_deg: 1.0 has no effect"),
        ("infer", {"bundle": "b", "gampen_magnitudes": True}, "gampen_magnitudes: true has no effect with catalog_format parq"),
        ("infer", {"bundle": "b", "estimate_workers": 4}, "estimate_workers: 4 has no effect with estimate false"),
        ("ingest", {"images": "i", "split": {"val": 0.2}}, "split: has no effect without targets"),
    ],
)
def test_a_given_value_without_effect_is_refused(verb: str, values: dict, message: str) -> None:
    found = load_verbs()[verb]
    values = {name: value for name, value in TRAIN.items() if name in fields(found.config)} | values
    with pytest.raises(UserError, match="^" + re.escape(message)) as caught:
        found.configured(values)
    assert "leave" in str(caught.value)


def test_resources_are_those_that_the_verb_uses() -> None:
    names = {
        name: set(fields(fields(verb.config)["resources"].annotation))
        for name, verb in load_verbs().items()
        if "resources" in fields(verb.config)
    }
    tasks, actors = {"num_workers", "cpus_per_worker"}, {"num_workers", "cpus_per_worker", "use_gpu"}
    assert names["simulate"] == names["ingest"] == tasks | {"engine"}
    assert names["infer"] == names["crop"] == actors | {"engine"}
    assert names["train"] == names["scan-dropout"] == actors | {"engine", "min_workers"}
    assert names["tune"] == actors | {"gpus_per_worker"}
    assert "evaluate" not in names


def test_what_has_an_effect_in_some_trial_may_be_given() -> None:
    study = TRAIN | {"optimizer": {"momentum": 0.8}}
    with pytest.raises(UserError, match=r"optimizer\.momentum: 0\.8 has no effect"):
        build(config.TuneConfig, study)
    names = {"optimizer": {"name": {"choices": ["adamw", "sgd"]}}}
    assert build(config.TuneConfig, study | {"search": names}).optimizer.momentum == 0.8


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (config.TrainConfig, {"optimizer": {"clip_norm": 1.0}}, r"^optimizer\.clip_norm: renamed to optimizer\.max_grad_norm$"),
        (
            config.TrainConfig,
            {"optimizer": {"accumulate": 2}},
            r"^optimizer\.accumulate: renamed to optimizer\.gradient_acc",
        ),
        (config.TrainConfig, {"network": {"likelihood": "mse"}}, r"^network\.likelihood: 'mse' is renamed to 'unit_variance'$"),
        (
            config.TuneConfig,
            {"stage": "dropout-by-coverage"},
            r"^stage: the dropout scan is the verb scan-dropout; leave",
        ),
    ],
)
def test_names_of_earlier_versions_are_refused_with_that_of_today(cls: type, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(cls, TRAIN | values)


def test_records_of_earlier_versions_can_be_read() -> None:
    today = to_dict(config.TrainConfig(**TRAIN))
    optimizer = {
        {"max_grad_norm": "clip_norm", "gradient_accumulation_steps": "accumulate"}.get(name, name): value
        for name, value in today["optimizer"].items()
    }
    old = today | {"optimizer": optimizer, "network": today["network"] | {"likelihood": "mse"}}
    assert upgraded(config.TrainConfig, old) == today | {"network": today["network"] | {"likelihood": "unit_variance"}}
    assert build(config.TrainConfig, old, recorded=True).network.likelihood == "unit_variance"
    # Momentum with adamw, and the network of a run that started from a bundle.
    assert build(config.TrainConfig, today, recorded=True) == config.TrainConfig(**TRAIN)
    tuned = build(config.TrainConfig, today | {"fine_tune": {"bundle": "b"}}, recorded=True)
    assert not [name for name in given(tuned) if name.startswith(("network", "images", "targets"))]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"network": {"backbone": {"plan": [8, "X"]}}}, r"^network\.backbone\.plan\.1: 'X' is not allowed: .* or \"M\"$"),
        ({"network": {"backbone": {"classifier": [0]}}}, r"^network\.backbone\.classifier\.0: 0 is not allowed"),
        ({"optimizer": {"name": "sgd", "nesterov": True, "momentum": 0.0}}, r"^optimizer: nesterov needs a momentum above 0"),
        ({"optimizer": {"learning_rate": float("inf")}}, r"^optimizer\.learning_rate: inf is not allowed"),
        ({"output": "r"}, r"^dataset: required; set it in the TOML file or give --dataset$"),
        (
            {"optimizer": {"lr": 1}},
            r"^optimizer\.lr: unknown field; valid here: augment, .*weight_decay$",
        ),
        ({"optimizer": {"epoch": 1}}, r"^optimizer\.epoch: unknown field; did you mean 'epochs'\? valid here: "),
        ({"optimiser": {}}, r"^optimiser: unknown field; did you mean 'optimizer'\?"),
        ({"targets": {"flux": {"transfrm": "log"}}}, r"^targets\.flux\.transfrm: unknown field; did you mean 'transform'\?"),
        ({"optimizer": {"epochs": "5"}}, r"^optimizer\.epochs: '5' is not allowed: give a whole number"),
        ({"optimizer": {"epochs": -1}}, r"^optimizer\.epochs: -1 is not allowed: give 0 or more"),
        ({"optimizer": {"name": "adam"}}, r"^optimizer\.name: 'adam' is not allowed: .*'adamw' or 'sgd'"),
        ({"targets": {"flux": {"clip": 0.7}}}, r"^targets\.flux\.clip: 0\.7 is not allowed"),
    ],
)
def test_mistake_is_one_line_with_field_value_and_remedy(values: dict, match: str) -> None:
    required = {} if "dataset" in match else {"dataset": "d"}
    with pytest.raises(UserError, match=match) as caught:
        build(config.TrainConfig, {"output": "r", **required, **values})
    assert "\n" not in str(caught.value)


def test_broken_toml_names_its_file() -> None:
    with pytest.raises(UserError, match=r"^train\.toml: not valid TOML: .*line 1"):
        load_toml(b"epochs = = 3", "train.toml")


def test_configs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        CONFIGS[0].output = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (InferConfig, "bands", ["g"]),
        (CropConfig, "bands", ["g"]),
        (CropConfig, "zero_point_mag", 0.0),
        (CropConfig, "pixel_scale_arcsec", 0.2),
    ],
)
def test_what_the_bundle_determines_is_refused_of_the_reader(cls: type, field: str, value: object) -> None:
    required = {"bundle": "b", "output": "o", "dataset" if cls is InferConfig else "images": "i"}
    with pytest.raises(UserError, match=rf"^reader\.{field} is .*, but it comes from the bundle; leave it out$"):
        build(cls, required | {"reader": {field: value}})


@pytest.mark.parametrize("bands", [["r", "r"], [""], ["g", ""]])
def test_bands_have_names_of_their_own(bands: list[str]) -> None:
    with pytest.raises(UserError, match=r"bands is .*; give each band once, by its name"):
        build(IngestConfig, {"images": "i", "output": "o", "reader": {"bands": bands}})
