import pytest

from gampen_ray import config
from gampen_ray.commands.crop import CropConfig
from gampen_ray.commands.infer import InferConfig
from gampen_ray.commands.ingest import IngestConfig
from gampen_ray.commands.simulate import SimulateConfig
from gampen_ray.config.base import build, fields, load_toml, to_toml
from gampen_ray.errors import UserError

CONFIGS = [
    SimulateConfig(output="d"),
    IngestConfig(images="i", output="d", reader=config.ReaderConfig(hdu=1), targets=("flux",)),
    config.TrainConfig(dataset="d", output="r"),
    config.TrainConfig(dataset="d", output="r", network=config.gampen_vgg16()),
    InferConfig(bundle="b", dataset="d", output="o", resources=config.ResourcesConfig(use_gpu=False)),
    config.EvaluateConfig(catalog="c", output="e"),
    config.ReportConfig(evaluation="e", output="r.html"),
    config.DemoConfig(output='quoted "name" \\ ünï'),
]


@pytest.mark.parametrize("value", CONFIGS, ids=lambda value: type(value).__name__)
def test_toml_round_trip(value: object) -> None:
    assert build(type(value), load_toml(to_toml(value).encode(), "here")) == value


@pytest.mark.parametrize("cls", dict.fromkeys(type(value) for value in CONFIGS), ids=lambda cls: cls.__name__)
def test_every_field_is_documented(cls: type) -> None:
    undocumented = [name for name, field in fields(cls).items() if not field.description]
    assert undocumented == []


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"network": {"backbone": {"plan": [8, "X"]}}}, r"^network\.backbone\.plan\.1: 'X' is not allowed: .* or \"M\"$"),
        ({"network": {"backbone": {"classifier": [0]}}}, r"^network\.backbone\.classifier\.0: 0 is not allowed"),
        ({"optimizer": {"nesterov": True, "momentum": 0.0}}, r"^optimizer: nesterov needs a momentum above 0"),
        ({"optimizer": {"learning_rate": float("inf")}}, r"^optimizer\.learning_rate: inf is not allowed"),
        ({"output": "r"}, r"^dataset: required; set it in the TOML file or give --dataset$"),
        (
            {"optimizer": {"lr": 1}},
            r"^optimizer\.lr: unknown field; valid here: augment, .*weight_decay$",
        ),
        ({"optimizer": {"epoch": 1}}, r"^optimizer\.epoch: unknown field; did you mean 'epochs'\? valid here: "),
        ({"optimiser": {}}, r"^optimiser: unknown field; did you mean 'optimizer'\?"),
        ({"targets": {"flux": {"transfrm": "log"}}}, r"^targets\.flux\.transfrm: unknown field; did you mean 'transform'\?"),
        ({"optimizer": {"epochs": "5"}}, r"^optimizer\.epochs: '5' is not allowed: .*valid integer"),
        ({"optimizer": {"epochs": 0}}, r"^optimizer\.epochs: 0 is not allowed: .*greater than or equal to 1"),
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
