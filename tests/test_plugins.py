"""Registries of names, open to the modules that GAMPEN_RAY_PLUGINS names."""

from pathlib import Path

import pytest

from gampen_ray import plugins
from gampen_ray.errors import UserError
from gampen_ray.plugins import Registry, load_plugins


@pytest.fixture(autouse=True)
def plugins_load_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_registering", set())
    load_plugins.cache_clear()


def likelihoods() -> Registry[object]:
    registry: Registry[object] = Registry("network.likelihood")
    for name in ("diagonal", "full"):
        registry.register(name)(type(name, (), {}))
    return registry


def test_a_name_gives_what_was_registered_and_is_taken() -> None:
    registry = likelihoods()
    assert registry["full"].__name__ == "full"  # type: ignore[attr-defined]
    assert registry.names == ("diagonal", "full")
    with pytest.raises(UserError, match=r"network.likelihood: 'full' is registered already, by .*; choose another name"):
        registry.register("full")(dict)


def test_an_unknown_name_is_told_with_the_valid_ones_and_the_closest() -> None:
    message = "network.likelihood: 'ful' is unknown; did you mean 'full'\\? give one of diagonal, full, or name the module"
    with pytest.raises(UserError, match=message):
        likelihoods()["ful"]


def test_a_named_module_is_imported_when_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    registry = likelihoods()
    monkeypatch.setattr(plugins, "REGISTRY", registry, raising=False)
    module = "from gampen_ray.plugins import REGISTRY\n@REGISTRY.register('mine')\nclass Mine: ...\n"
    (tmp_path / "my_gampen_ray_plugin.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, " my_gampen_ray_plugin,")
    assert registry["mine"].__name__ == "Mine"  # type: ignore[attr-defined]
    assert plugins.plugin_modules().split(",") == ["my_gampen_ray_plugin", __name__]


def test_a_module_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "no_such_module")
    with pytest.raises(UserError, match="GAMPEN_RAY_PLUGINS: no_such_module cannot be imported"):
        load_plugins()
