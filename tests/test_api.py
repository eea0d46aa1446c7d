"""The Python API: a function of each verb, made from its config."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import gampen_ray
from gampen_ray.commands.registry import VERBS, load_verbs, verb
from gampen_ray.config import TargetConfig, TrainConfig
from gampen_ray.config.base import config_class, default, fields, given
from gampen_ray.errors import UserError


@config_class
class PartConfig:
    """A part."""

    rate: float = 0.5
    """Rate."""


@config_class
class EchoConfig:
    """Return the config."""

    name: str
    """A name."""
    count: int = 1
    """A number."""
    part: PartConfig = default(PartConfig)
    """A section."""


@pytest.fixture
def echo() -> Iterator[Callable[..., EchoConfig]]:
    @verb("test-echo")
    def returned(config: EchoConfig) -> EchoConfig:
        return config

    yield gampen_ray.test_echo
    del VERBS["test-echo"]


def test_every_verb_is_a_function() -> None:
    names = {name.replace("-", "_") for name in load_verbs()}
    assert names == set(gampen_ray.__all__) - {"__version__", "load_bundle", "plot"}
    for name in gampen_ray.__all__:
        assert callable(getattr(gampen_ray, name)) or name in ("__version__", "plot")
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        gampen_ray.trian  # noqa: B018


def test_signature_and_documentation_are_those_of_the_config() -> None:
    signature = inspect.signature(gampen_ray.train)
    assert list(signature.parameters) == ["file", *fields(TrainConfig)]
    assert signature.parameters["dataset"].default is inspect.Parameter.empty
    assert signature.parameters["seed"].default == 0
    assert "optimizer: gampen_ray.config.parts.OptimizerConfig | dict = OptimizerConfig()" in str(signature)
    text = inspect.getdoc(gampen_ray.train)
    assert text is not None and gampen_ray.train.__name__ == "train"
    for leaf in load_verbs()["train"].leaves.values():
        assert f"\n{leaf.name} : " in text
        assert leaf.description.splitlines()[0] in text


def test_keywords_make_the_config(echo: Callable[..., EchoConfig], tmp_path: Path) -> None:
    run = echo
    assert run(name="n") == EchoConfig(name="n")
    assert run(name="n", part={"rate": 0.1}) == run(name="n", part=PartConfig(rate=0.1))
    assert given(run(name="n", part=PartConfig(rate=0.5))) == {"name", "part.rate"}
    assert given(run(name="n", part=PartConfig())) == {"name"}
    assert run(name=tmp_path, count=np.int64(3)) == EchoConfig(name=str(tmp_path), count=3)
    (tmp_path / "file.toml").write_text('name = "n"\ncount = 4\n[part]\nrate = 0.2\n')
    assert run(str(tmp_path / "file.toml"), count=5) == EchoConfig(name="n", count=5, part=PartConfig(rate=0.2))


def test_mistakes_are_those_of_the_command_line(echo: Callable[..., EchoConfig], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^part\.rte: unknown field; did you mean 'rate'"):
        echo(name="n", part={"rte": 1.0})
    with pytest.raises(UserError, match=r"^dataset: required"):
        gampen_ray.train(output="o")
    with pytest.raises(UserError, match=r"^targets\.flux\.clip: 0\.1 has no effect with targets\.flux\.transform log"):
        gampen_ray.train(dataset="d", output="o", targets={"flux": TargetConfig(transform="log", clip=0.1)})
    with pytest.raises(UserError, match=r"catalog: .*/no-such-catalog does not exist"):
        gampen_ray.evaluate(catalog=str(tmp_path / "no-such-catalog"), output=str(tmp_path / "o"))


def test_a_verb_works_from_python_also_when_its_package_is_imported(tmp_path: Path) -> None:
    import gampen_ray.reports

    with pytest.raises(UserError, match=r"has no evaluation\.json"):
        gampen_ray.report(evaluation=str(tmp_path), output=str(tmp_path / "o.html"))
    (tmp_path / "info.csv").write_text("bt_g\n" + "\n".join(f"{i / 100}" for i in range(100)) + "\n")
    counts = gampen_ray.split(images=str(tmp_path), scheme="stratified")
    assert counts["stratified-dev-train.csv"] == 70
