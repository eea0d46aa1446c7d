"""What a user's own code adds through the registries, without editing the package: see `tests/extension.py`."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy.table import Table
from torch import nn

from gampen_ray import cli, plugins
from gampen_ray.catalog.columns import COLUMNS
from gampen_ray.catalog.parquet import catalog_parts
from gampen_ray.data import shards
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.folding import folded
from gampen_ray.model.backbones import BLOCKS, Block
from gampen_ray.model.likelihoods import LIKELIHOODS
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.run import execute, prepare
from tests.networks import NETWORK, dataset, galaxies, train_config

MODULE = "tests.extension"
REGISTRIES = (LIKELIHOODS, BLOCKS, COLUMNS)


@pytest.fixture(scope="module", autouse=True)
def extension() -> Iterator[None]:
    """Name the module, and forget at the end what it registered."""
    before = [dict(registry) for registry in REGISTRIES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.VARIABLE, MODULE)
        patch.setattr(plugins, "_registering", set())
        plugins.load_plugins.cache_clear()
        yield
    for registry, content in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(content)
    sys.modules.pop(MODULE, None)
    plugins.load_plugins.cache_clear()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and a network of the user's likelihood and block that is trained on it."""
    folder = tmp_path_factory.mktemp("extension")
    data = dataset(str(folder / "data"), {"train": 160, "val": 60})
    backbone = dataclasses.replace(NETWORK.backbone, block="separable", dropout_placement="every_conv")
    network = dataclasses.replace(NETWORK, likelihood="laplace", backbone=backbone)
    config = dataclasses.replace(train_config(data, str(folder / "run"), epochs=3), network=network)
    prepared = prepare(config)
    execute(LocalWorker.read(prepared), prepared)
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Bundle:
    return load_bundle(str(run / "run"))


def test_a_likelihood_trains_and_predicts(model: Bundle) -> None:
    assert type(model.network.likelihood).__name__ == "Laplace"
    posterior = model.predict(galaxies(30, seed=5)["image"], num_passes=4)
    # A mean and a scale for each of two targets; a Laplace distribution's variance is twice its squared scale.
    outputs_NP = model.network(model.images(torch.from_numpy(galaxies(30, seed=5)["image"]))).detach()
    assert outputs_NP.shape == (30, 4)
    assert (posterior.scale_tril_NKDD[..., 1, 0] == 0).all()
    width = 2**0.5 * outputs_NP[:, 2:].exp().numpy() * model.calibration_scale_D
    assert posterior.standardised_std() == pytest.approx(width, rel=0.3)


def test_a_block_is_folded_and_its_dropout_kept(model: Bundle) -> None:
    names = [type(layer).__name__ for layer in (*model.network.stem, *model.network.tail) if isinstance(layer, Block)]
    assert names == ["SeparableBlock"]
    assert list(model.network.blocks()) == ["spatial_transformer", "block1", "block2", "classifier", "head"]
    small = folded(model.network)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in small.modules())
    x = model.images(torch.from_numpy(galaxies(5)["image"]))
    expected = model.network.prefix(x)[0]
    for layer in model.network.tail:
        expected = expected / (1 - layer.p) if isinstance(layer, nn.Dropout) else layer(expected)
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.ray
def test_a_column_is_in_the_catalogue_that_workers_write(run: Path, model: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gampen_ray", "infer", "--bundle", str(run / "run"), "--dataset", str(run / "data")]
    options = ["--output", str(tmp_path), "--split", "val", "--num-passes", "3", "--columns", "flux_to_noise"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # The module lies in the working directory, which Ray's workers search too.
    root = Path(__file__).parents[1]
    done = subprocess.run([*command, *options], cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (table,) = catalog_parts(str(tmp_path))
    rows = shards.read_shard(shards.shard_uris(str(run / "data"), "val")[0])
    assert table["object_id"].to_pylist() == rows["object_id"].to_pylist()
    posterior = model.predict(shards.images(rows), num_passes=3)
    d = model.targets.names.index("flux")
    expected = posterior.mean()[:, d] / posterior.std()[:, d]
    np.testing.assert_allclose(table["flux_to_noise"].to_numpy(), expected, rtol=1e-4)
    text = COLUMNS["flux_to_noise"].description
    (path,) = (tmp_path / "catalog").glob("*.parquet")
    assert pq.read_schema(path).field("flux_to_noise").metadata[b"description"].decode() == text
    assert Table.read(path)["flux_to_noise"].description == text


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--network.likelihood=laplac", "network.likelihood: 'laplac' is unknown; did you mean 'laplace'? give one of full, "),
        ("--network.backbone.block=seperable", "network.backbone.block: 'seperable' is unknown; did you mean 'separable'? "),
    ],
)
def test_an_unknown_name_is_told_in_one_line(
    flag: str, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--targets={flux={transform='log'}}", "--network.spatial_transformer.family", "none", flag]
    assert cli.main(["train", "--dataset", str(run / "data"), "--output", str(tmp_path / "out"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gampen-ray: error: {message}")


def test_an_unknown_column_is_told_before_any_work(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ["infer", "--bundle", str(run / "run"), "--dataset", str(run / "data"), "--output", str(tmp_path / "out")]
    assert cli.main([*job, "--columns", "flux_to_nois"]) == 2
    assert (
        "columns: 'flux_to_nois' is unknown; did you mean 'flux_to_noise'? give one of flux_to_noise" in capsys.readouterr().err
    )
    assert cli.main([*job, "--columns", "flags"]) == 2
    assert "columns: 'flags' is a column of the catalogue already; register yours under another" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
