"""What a user's own code adds through the registries, without editing the package: see `tests/extension.py`."""

import dataclasses
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from astropy.io import fits
from astropy.table import Table
from torch import nn

from gampen_ray import cli, plugins
from gampen_ray.catalog.columns import COLUMNS
from gampen_ray.catalog.parquet import catalog_parts
from gampen_ray.commands.crop import CropConfig, crop
from gampen_ray.commands.registry import VERBS, load_verbs
from gampen_ray.data import quarantine, shards, validation
from gampen_ray.data.readers import READERS
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.folding import folded
from gampen_ray.model.backbones import BLOCKS, Block
from gampen_ray.model.likelihoods import LIKELIHOODS
from gampen_ray.simulation.scene import simulate
from gampen_ray.simulation.surveys import SURVEYS
from gampen_ray.training.execute import execute
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.run import prepare
from tests.networks import NETWORK, dataset, galaxies, train_config

MODULE = "tests.extension"
REGISTRIES = (LIKELIHOODS, BLOCKS, COLUMNS, READERS, SURVEYS, VERBS)
# The module lies in the working directory, which Ray's workers search too.
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def extension() -> Iterator[None]:
    """Name the module, and forget at the end what it registered."""
    # Those of the package that are not imported yet would be forgotten, too.
    load_verbs()
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
    width = 2**0.5 * outputs_NP[:, 2:].exp().numpy() * model.calibration.scale_DB[:, 0]
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


def python(*arguments: str) -> str:
    """Run Python in a process of its own, with workers of its own, and return its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files of the user's own format, g0.npy, g1.npy and so on; the last one is cut."""
    folder = tmp_path_factory.mktemp("cutouts")
    for i, image_CHW in enumerate(galaxies(12, seed=7)["image"]):
        np.save(folder / f"g{i:02}.npy", image_CHW)
    last = folder / "g11.npy"
    last.write_bytes(last.read_bytes()[:-5])
    return folder


# Of the command line, one after the other with the same workers: Ray starts once.
JOBS = """
import sys
from gampen_ray import cli
from gampen_ray.engine.session import ray_session
with ray_session():
    sys.exit(any([cli.main(job.split("\\t")) for job in sys.argv[1:]]))
"""
SIMULATE = ["simulate", "--survey", "space-h", "--num-galaxies", "8", "--cutout-size", "24", "--output"]


@pytest.fixture(scope="module")
def done(run: Path, cutouts: Path) -> Path:
    """A folder with a dataset of the files, the catalogue of the same files with the user's column, and a simulated dataset."""
    rows = [f"{i},g{i:02}.npy,{flux}" for i, flux in enumerate(galaxies(12, seed=7)["flux"])]
    (run / "c.csv").write_text("\n".join(["object_id,file_name,flux", *rows]) + "\n")
    files = ["--images", str(cutouts), "--catalog", str(run / "c.csv"), "--reader.format", "npy", "--reader.bands", "r"]
    shape = ["--targets", "flux", "--cutout-size", "16", "--galaxies-per-shard", "5"]
    model = ["--bundle", str(run / "run"), "--num-passes", "3", "--columns", "flux_to_noise"]
    jobs = [
        ["ingest", *files, *shape, "--output", str(run / "ingested")],
        ["infer", *model, "--dataset", str(cutouts), "--pattern", "*.npy", "--output", str(run / "inferred")],
        ["crop", *model[:2], "--images", str(cutouts), "--pattern", "*.npy", "--output", str(run / "crops")],
        [*SIMULATE, str(run / "simulated")],
    ]
    python("-c", JOBS, *map("\t".join, jobs))
    return run


@pytest.mark.ray
def test_workers_ingest_files_of_the_users_own_format(done: Path) -> None:
    data, drawn = str(done / "ingested"), galaxies(12, seed=7)
    assert validation.validate_dataset(data) == []
    found = []
    for uri in shards.shard_uris(data):
        table = shards.read_shard(uri)
        found += table["object_id"].to_pylist()
        np.testing.assert_array_equal(shards.images(table), drawn["image"][table["object_id"].to_numpy(), :, 2:18, 2:18])
    assert sorted(found) == list(range(11))
    ((name, reason),) = quarantine.read_quarantine(data)
    assert name.endswith("/g11.npy")
    assert reason.startswith("damaged NPY file: ValueError: ")


@pytest.mark.ray
def test_workers_simulate_the_users_own_survey(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(done / "simulated")
    info = shards.read_dataset_info(data)
    assert (info.survey, info.bands, info.pixel_scale_arcsec, info.zero_point_mag) == ("space-h", ("h",), 0.06, 25.96)
    expected = simulate(SURVEYS["space-h"], cutout_size=24, seed=0, start=0, stop=8)
    tables = [shards.read_shard(uri) for uri in shards.shard_uris(data)]
    assert sum(map(len, tables)) == 8
    for table in tables:
        np.testing.assert_array_equal(shards.images(table), expected["image"][table["object_id"].to_numpy()])
    # The same name with other numbers is another dataset.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SURVEYS, "space-h", dataclasses.replace(SURVEYS["space-h"], sky_noise=0.1))
        assert cli.main([*SIMULATE, data]) == 2
    assert "holds a run on another survey preset; nothing was changed" in capsys.readouterr().err


@pytest.mark.ray
def test_a_column_is_in_the_catalogue_that_workers_write(done: Path, model: Bundle) -> None:
    (table,) = catalog_parts(str(done / "inferred"))
    assert table["object_id"].to_pylist() == [f"g{i:02}" for i in range(11)]
    posterior = model.predict(galaxies(12, seed=7)["image"][:11], num_passes=3)
    d = model.targets.names.index("flux")
    expected = posterior.mean()[:, d] / posterior.std()[:, d]
    np.testing.assert_allclose(table["flux_to_noise"].to_numpy(), expected, rtol=1e-4)
    text = COLUMNS["flux_to_noise"].description
    (path,) = (done / "inferred" / "catalog").glob("*.parquet")
    assert pq.read_schema(path).field("flux_to_noise").metadata[b"description"].decode() == text
    with warnings.catch_warnings(action="ignore"):
        # The identifiers are text, whose length astropy would like to be told.
        assert Table.read(path)["flux_to_noise"].description == text


@pytest.mark.ray
def test_crops_of_the_users_own_format_are_named_as_the_fits_that_they_are(done: Path, model: Bundle, cutouts: Path) -> None:
    crops = {path.name: path.read_bytes() for path in (done / "crops").glob("*.fits")}
    assert sorted(crops) == [f"g{i:02}.npy.fits" for i in range(11)]
    assert not list((done / "crops").glob("*.npy"))
    ((name, _),) = quarantine.read_quarantine(str(done / "crops"))
    assert name.endswith("/g11.npy")
    with fits.open(done / "crops" / "g03.npy.fits") as hdus:
        assert hdus[0].data.shape == (model.network.transformer.output_size,) * 2
    # A FITS file under the very name of the crop.
    (cutouts / "g03.npy.fits").write_bytes(crops["g03.npy.fits"])
    again = CropConfig(bundle=str(done / "run"), images=str(cutouts), pattern="g*", output=str(done / "again"))
    with pytest.raises(UserError, match=r"^images: g03\.npy and g03\.npy\.fits would have the same crop; rename one"):
        crop(again)
    (cutouts / "g03.npy.fits").unlink()


@pytest.mark.ray
def test_a_verb_is_a_command_and_a_function(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = str(done / "inferred")
    (table,) = catalog_parts(catalog)
    flux = dict(zip(table["object_id"].to_pylist(), table["flux_mean"].to_pylist(), strict=True))
    expected = sorted(flux, key=lambda name: -flux[name])
    assert python("-m", "gampen_ray", "list-brightest", catalog).split() == expected[:3]
    assert cli.main(["list-brightest", "--catalog", catalog, "--count", "5"]) == 0
    assert capsys.readouterr().out.split() == expected[:5]
    # In a program that has imported nothing else.
    call = f"import gampen_ray; gampen_ray.list_brightest(catalog={catalog!r}, count=2)"
    assert python("-c", call).split() == expected[:2]


def test_a_verb_is_listed_explained_and_completed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["--help"], ["list-brightest", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(command)
    shown = " ".join(capsys.readouterr().out.split())
    assert "list-brightest List the brightest galaxies of a catalogue. options:" in shown
    assert "--count INT How many galaxies. [default: 3]" in shown
    assert 'list-brightest) words="--catalog --count --verbose --quiet --print-config --help"' in cli.completion()
    assert cli.main(["list-brightest", "--catalog", "c", "--cuont", "5"]) == 2
    message = "--cuont: unknown flag; did you mean --count? `gampen-ray list-brightest --help` lists the valid ones"
    assert capsys.readouterr().err == f"gampen-ray: error: {message}\n"


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
    assert "/data has no column 'flux_to_nois'; did you mean 'flux_to_noise'? its columns: " in capsys.readouterr().err
    assert cli.main([*job, "--columns", "flags"]) == 2
    assert "columns: 'flags' is a column of the catalogue already; leave it out, or rename yours" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
