import dataclasses
import importlib.metadata
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from astropy.table import Table

from gampen_ray import cli, storage
from gampen_ray.catalog import single_file
from gampen_ray.catalog.parquet import mixture_from_catalog, provenance_of
from gampen_ray.commands import infer as command
from gampen_ray.commands.infer import InferConfig, infer
from gampen_ray.config import ActorResources
from gampen_ray.data import shards
from gampen_ray.engine import cluster, units
from gampen_ray.engine import ray_units as engine
from gampen_ray.errors import StorageError, UserError
from gampen_ray.inference.bundle import bundle_digest, load_bundle
from gampen_ray.inference.flags import Flag, FlagCounts
from gampen_ray.reports.evaluated import load_evaluated_catalog
from tests.commands.infer_cases import ON_RAY, catalog, config
from tests.engine.killing import SLOW_NETWORK, inference_actors
from tests.networks import SIZE, bundle, dataset, galaxies

COUNT = 150


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    bundle().save(str(root / "model"))
    dataset(str(root / "data"), {shards.ALL: COUNT}, rows_per_shard=60)
    return root


@pytest.mark.ray
def test_catalogue_does_not_depend_on_batches_or_workers(ray_local: None, inputs: Path, tmp_path: Path) -> None:
    tables = []
    for batch_size, workers in ((64, 2), (1, 1)):
        output = tmp_path / f"{batch_size}-{workers}"
        manifest = infer(
            config(inputs, output, batch_size=batch_size, resources=ActorResources(num_workers=workers, cpus_per_worker=0.4))
        )
        assert (manifest["num_galaxies"], manifest["num_quarantined"]) == (COUNT, 0)
        tables.append(catalog(output))
        counted = FlagCounts.of(tables[-1]["flags"].to_numpy())
        assert (manifest["num_warned"], manifest["flags"]) == (counted.num_warned, counted.flags)
    assert tables[0]["object_id"].to_pylist() == list(range(COUNT))
    for name in tables[0].column_names:
        a, b = (table[name].combine_chunks() for table in tables)
        if pa.types.is_fixed_size_list(a.type):
            a, b = a.flatten(), b.flatten()
        if pa.types.is_floating(a.type):
            np.testing.assert_allclose(a.to_numpy(False), b.to_numpy(False), rtol=1e-4, atol=1e-6, err_msg=name)
    rates = manifest["rates"]
    assert (rates["galaxies"], rates["workers"]) == (COUNT, 1)
    assert rates["bytes_read"] > COUNT * SIZE**2 * 2
    assert 0 < rates["device_utilisation"] <= 1
    assert rates["passes_per_second"] == pytest.approx(4 * rates["galaxies_per_second"])
    # ... and is what the library predicts from the same images.
    expected = load_bundle(str(inputs / "model")).predict(galaxies(COUNT)["image"], num_passes=4)
    np.testing.assert_allclose(tables[0]["flux_median"].to_numpy(), expected.quantile(0.5)[:, 0], rtol=1e-4)
    stored = mixture_from_catalog(tables[0], expected.targets)
    np.testing.assert_allclose(stored.quantile(0.9), expected.quantile(0.9), rtol=1e-4)


@pytest.mark.ray
def test_in_this_process_the_catalogue_is_the_same_byte_for_byte(ray_local: None, inputs: Path, tmp_path: Path) -> None:
    files = []
    for where in ("ray", "local"):
        output = tmp_path / where
        infer(config(inputs, output, resources=ActorResources(num_workers=1, engine=where)))
        assert not (output / "receipts").exists()
        files.append({path.name: path.read_bytes() for path in output.glob("catalog/*.parquet")})
    assert files[0] == files[1]
    assert len(files[0]) == 3


@pytest.mark.ray
def test_interrupted_job_goes_on_and_a_finished_one_is_left(
    ray_local: None, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(inputs, tmp_path / "o", resources=ON_RAY)
    first = begun(wanted, monkeypatch)
    written = first.stat().st_mtime_ns
    with pytest.raises(UserError, match=r"another seed \(0, not 1\); nothing was changed: give a new folder"):
        infer(dataclasses.replace(wanted, seed=1))
    assert infer(wanted)["num_galaxies"] == COUNT
    assert first.stat().st_mtime_ns == written
    assert catalog(tmp_path / "o")["object_id"].to_pylist() == list(range(COUNT))
    monkeypatch.setattr(engine, "stream_units", None)
    assert infer(wanted)["num_galaxies"] == COUNT


def test_resumed_files_are_those_of_one_run_and_name_what_made_them(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    files = []
    for folder in ("whole", "resumed"):
        wanted = config(inputs, tmp_path / folder, catalog_format="fits", resources=ActorResources(engine="local"))
        if folder == "resumed":
            # Before its last step, and with a unit that is missing.
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(single_file, "write_single_file", killed)
                infer(wanted)
            next((tmp_path / folder / "catalog").iterdir()).unlink()
        infer(wanted)
        files.append({path.name: path.read_bytes() for path in (tmp_path / folder).rglob("catalog*/*.parquet")})
        files[-1]["catalog.fits"] = (tmp_path / folder / "catalog.fits").read_bytes()
    assert files[0] == files[1]
    assert len(files[0]) == 4
    made = provenance_of(pq.read_schema(next((tmp_path / "whole" / "catalog").iterdir())))
    version = importlib.metadata.version("gampen_ray")
    digest = bundle_digest(str(inputs / "model"))
    assert made == {"version": version, "bundle": digest, "num_passes": "4", "seed": "0", "precision": "float32"}
    assert len(Table.read(tmp_path / "whole" / "catalog.fits")) == COUNT


def test_a_table_too_large_for_one_file_is_refused_before_anything_is_written(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(single_file._MOST_BYTES, "votable", 10_000)
    with pytest.raises(UserError, match=r"catalog_format: 150 rows of [\d,]+ bytes are .*, and catalog.vot may have"):
        infer(config(inputs, tmp_path / "o", catalog_format="votable"))
    assert not (tmp_path / "o").exists()


def begun(wanted: InferConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run a job that is interrupted after its first unit; return the file that it leaves."""
    module, name = (units, "_local_units") if wanted.resources.engine == "local" else (engine, "stream_units")
    real = getattr(module, name)

    def interrupted(some, *arguments, **options):
        yield from real(some[:1], *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, interrupted)
        infer(wanted)
    (first,) = Path(wanted.output, "catalog").iterdir()
    assert not Path(wanted.output, "manifest.json").exists()
    return first


def test_a_dataset_divided_otherwise_is_not_continued_with(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    dataset(str(data), {shards.ALL: COUNT}, rows_per_shard=60)
    wanted = config(inputs, tmp_path / "o", dataset=str(data))
    begun(wanted, monkeypatch)
    # The same galaxies, and files of the same names.
    shutil.rmtree(data)
    dataset(str(data), {shards.ALL: COUNT}, rows_per_shard=50)
    with pytest.raises(UserError, match=r"/o holds a run on another dataset shard part-000000\.parquet; nothing was changed"):
        infer(wanted)
    # Elsewhere, the dataset is the same one.
    dataset(str(tmp_path / "moved"), {shards.ALL: COUNT}, rows_per_shard=60)
    assert infer(config(inputs, tmp_path / "o", dataset=str(tmp_path / "moved")))["num_galaxies"] == COUNT


def test_galaxies_are_compared_and_not_only_counted(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config(inputs, tmp_path / "o")
    first = begun(wanted, monkeypatch)
    table = pq.read_table(first)
    ids = pa.array([1, *table["object_id"].to_pylist()[1:]])
    # Not noticed before the work, as of no unit.
    stranger = first.with_name("part-7.parquet")
    pq.write_table(table.set_column(0, table.schema.field(0), ids), stranger)
    count = COUNT + len(table)
    with pytest.raises(StorageError, match=f"/o holds {count} galaxies that are not the {COUNT} of .*: its files were changed"):
        infer(wanted)
    stranger.write_bytes(b"")
    with pytest.raises(StorageError, match=r"part-7.parquet was damaged since it was written: .*; run the same command again"):
        infer(wanted)
    stranger.unlink()
    # ... and is repaired.
    whole = first.read_bytes()
    (second,) = first.parent.glob("part-000001*")
    for damage in (b"", whole[:2000] + b"garbage" + whole[2007:], second.read_bytes()):
        first.write_bytes(damage)
        assert infer(wanted)["num_galaxies"] == COUNT
        assert first.read_bytes() == whole
        (tmp_path / "o" / "manifest.json").unlink()


@pytest.mark.ray
def test_precision_is_one_and_recorded(ray_local: None, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config(inputs, tmp_path / "o", posterior="summary", resources=ON_RAY)
    # As on a cluster with GPUs; the workers do as they are told, whatever they have.
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "uses_gpus", lambda resources: True)
        begun(wanted, patch)
    with pytest.raises(UserError, match=r"another precision \('bfloat16', not 'float32'\)"):
        infer(dataclasses.replace(wanted, precision="float32"))
    assert infer(wanted)["config"]["precision"] == "bfloat16"
    medians = catalog(tmp_path / "o")["flux_median"].to_numpy()
    predict = load_bundle(str(inputs / "model")).predict
    half, whole = (
        predict(galaxies(COUNT)["image"], num_passes=4, device="cpu", precision=precision).quantile(0.5)[:, 0]
        for precision in ("bfloat16", "float32")
    )
    np.testing.assert_allclose(medians, half, rtol=1e-4)
    assert np.abs(medians / whole - 1).max() > 1e-3
    assert infer(config(inputs, tmp_path / "p"))["config"]["precision"] == "float32"


@pytest.mark.ray
def test_a_killed_actor_costs_nothing_but_time(ray_local: None, tmp_path: Path) -> None:
    bundle(SLOW_NETWORK).save(str(tmp_path / "model"))
    dataset(str(tmp_path / "data"), {shards.ALL: 300}, rows_per_shard=25)
    killed = []

    def kill() -> None:
        while not list(tmp_path.glob("o/catalog/*.parquet")):
            time.sleep(0.05)
        killed.extend(inference_actors(ray.get_runtime_context().gcs_address))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert infer(config(tmp_path, tmp_path / "o", num_passes=60, resources=ON_RAY))["num_galaxies"] == 300
    killer.join(1)
    assert len(killed) == 1
    table = catalog(tmp_path / "o")
    assert table["object_id"].to_pylist() == list(range(300))
    expected = load_bundle(str(tmp_path / "model")).predict(galaxies(300)["image"], num_passes=60)
    np.testing.assert_allclose(table["flux_median"].to_numpy(), expected.quantile(0.5)[:, 0], rtol=1e-4)


def test_unusable_rows_go_to_quarantine_with_a_reason(inputs: Path, tmp_path: Path) -> None:
    columns = galaxies(40)
    columns["image"][3] = np.nan
    columns["image"][5] = 1.5
    columns["image"][7, 0, 4, 4] = -3.4e38  # finite, as some masks are
    columns["object_id"] = np.array([f"J{i:04d}" for i in range(40)])
    columns["ra"], columns["dec"] = np.linspace(0, 39, 40), np.full(40, -1.0)
    info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE, num_rows={shards.ALL: 40})
    shards.write_shard(shards.part_uri(str(tmp_path / "d"), shards.ALL, 0), columns, info)
    shards.write_dataset_info(str(tmp_path / "d"), info)
    manifest = infer(config(inputs, tmp_path / "o", dataset=str(tmp_path / "d"), posterior="summary", catalog_format="hats"))
    assert [manifest[f"num_{name}"] for name in ("galaxies", "quarantined", "in_hats")] == [37, 3, 37]
    quarantine = pq.read_table(tmp_path / "o" / "quarantine").sort_by("object_id").to_pylist()
    assert [row["object_id"] for row in quarantine] == ["J0003", "J0005", "J0007"]
    assert "400 of 400 pixels are not finite" in quarantine[0]["reason"]
    assert "all pixels have the same value 1.5" in quarantine[1]["reason"]
    assert quarantine[2]["reason"] == "the network gives no finite posterior: extreme pixel values"
    assert all(row["source"].endswith("part-000000.parquet") for row in quarantine)
    table = catalog(tmp_path / "o")
    assert set(table["object_id"].to_pylist()) == {f"J{i:04d}" for i in range(40)} - {"J0003", "J0005", "J0007"}
    assert table["ra"].to_pylist() == [float(name[1:]) for name in table["object_id"].to_pylist()]
    assert "mixture_mean" not in table.column_names
    found = lsdb.open_catalog(tmp_path / "o" / "hats").cone_search(10, -1, 5400).compute()
    assert sorted(found["object_id"]) == ["J0009", "J0010", "J0011"]


def test_repeated_identifiers_are_told(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = dataset(str(tmp_path / "d"), {shards.ALL: 20}, rows_per_shard=10)
    info = shards.read_dataset_info(data)
    storage.copy(shards.part_uri(data, shards.ALL, 0), shards.part_uri(data, shards.ALL, 2))
    with pytest.raises(UserError, match=r"the shards of .*/d hold 30 galaxies, but dataset.json says 20: shards were added"):
        infer(config(inputs, tmp_path / "o", dataset=data))
    assert not (tmp_path / "o").exists()
    shards.write_dataset_info(data, dataclasses.replace(info, num_rows={shards.ALL: 30}))
    assert infer(config(inputs, tmp_path / "o", dataset=data))["num_galaxies"] == 30
    assert f"10 of 30 galaxies repeat the identifier of another in {data}, the first is 0\n" in caplog.text
    with pytest.raises(UserError, match=r"/o repeats identifiers; make .*/d again with unique ones"):
        load_evaluated_catalog(str(tmp_path / "o"))


@pytest.mark.ray
def test_a_bundle_replaced_while_an_actor_restarts_ends_the_job(ray_local: None, tmp_path: Path) -> None:
    bundle(SLOW_NETWORK).save(str(tmp_path / "model"))
    dataset(str(tmp_path / "data"), {shards.ALL: 300}, rows_per_shard=25)

    def replace_and_kill() -> None:
        while not list(tmp_path.glob("o/catalog/*.parquet")):
            time.sleep(0.05)
        retrained = bundle(SLOW_NETWORK)
        retrained.calibration.scale_DB[:] = 7.3
        retrained.save(str(tmp_path / "model"))
        os.kill(inference_actors(ray.get_runtime_context().gcs_address)[0], signal.SIGKILL)

    threading.Thread(target=replace_and_kill, daemon=True).start()
    with pytest.raises(UserError, match=r"bundle: .*/model was replaced while it was in use"):
        infer(config(tmp_path, tmp_path / "o", num_passes=60, resources=ON_RAY))


def test_flags_tell_what_was_done_to_the_pixels(inputs: Path, tmp_path: Path) -> None:
    columns = galaxies(4)
    columns["pixels_filled"] = np.array([False, True, False, True])
    columns["side_pixels"] = np.array([SIZE, SIZE, SIZE - 1, SIZE - 1])
    info = shards.DatasetInfo(bands=("r",), cutout_size=SIZE, num_rows={shards.ALL: 4})
    shards.write_shard(shards.part_uri(str(tmp_path / "d"), shards.ALL, 0), columns, info)
    shards.write_dataset_info(str(tmp_path / "d"), info)
    infer(config(inputs, tmp_path / "o", dataset=str(tmp_path / "d")))
    filled, padded = Flag.PIXELS_FILLED.value, Flag.INPUT_PADDED.value
    flags = catalog(tmp_path / "o")["flags"].to_numpy() & (filled | padded)
    assert flags.tolist() == [0, filled, padded, filled | padded]


def test_another_bundle_in_the_same_place_makes_another_run(inputs: Path, tmp_path: Path) -> None:
    storage.copy(str(inputs / "model"), str(tmp_path / "model"))
    wanted = config(inputs, tmp_path / "o", bundle=str(tmp_path / "model"))
    infer(wanted)
    retrained = bundle()
    retrained.calibration.scale_DB[:] = 3.0
    retrained.save(str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"output: .*/o holds a run on another bundle; nothing was changed: give a new folder"):
        infer(wanted)
    with pytest.raises(UserError, match=r"catalog: .*/o was made with another bundle than .*/model holds now; run infer again"):
        load_evaluated_catalog(str(tmp_path / "o"))


@pytest.mark.ray
def test_an_estimate_writes_nothing_and_scales(
    ray_local: None, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(command, "_ESTIMATE_SECONDS", 1.0)
    caplog.set_level("INFO", "gampen_ray")
    # Shards of one size: how many of them are measured in the time does not matter.
    dataset(str(tmp_path / "d"), {shards.ALL: COUNT}, rows_per_shard=50)
    wanted = config(inputs, tmp_path / "o", dataset=str(tmp_path / "d"), resources=ON_RAY)
    result = infer(dataclasses.replace(wanted, estimate=True, estimate_workers=64))
    assert not (tmp_path / "o").exists()
    measured, scaled = result["measured"], result["estimate"]
    assert 0 < measured["galaxies"] <= COUNT
    assert scaled["galaxies_per_second"] == pytest.approx(64 / measured["workers"] * measured["galaxies_per_second"])
    written = infer(wanted)["rates"]["bytes_written"]
    assert scaled["output_bytes"] == pytest.approx(written, rel=0.1)
    assert f"estimate for {COUNT} galaxies and 64 workers: " in caplog.text


@pytest.mark.ray
def test_damaged_shard_is_one_line_for_the_user(ray_local: None, inputs: Path, tmp_path: Path) -> None:
    storage.copy(str(inputs / "data"), str(tmp_path / "d"))
    shard = tmp_path / "d" / "part-000001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"part-000001\.parquet: damaged or not Parquet: "):
        infer(config(inputs, tmp_path / "o", dataset=str(tmp_path / "d"), resources=ON_RAY))
    shard.write_bytes(data[:-20])
    with pytest.raises(UserError, match=r"part-000001\.parquet: damaged or not Parquet: "):
        infer(config(inputs, tmp_path / "p", dataset=str(tmp_path / "d")))
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("usable", [False, True])
def test_reasons_are_told_and_what_comes_next_can_be_done(
    usable: bool, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cutouts").mkdir()
    image_NCHW = galaxies(3)["image"]
    image_NCHW[: 1 if usable else 3] = 1e34
    for number, image_CHW in enumerate(image_NCHW):
        np.save(tmp_path / "cutouts" / f"{number}.npy", image_CHW)
    output = str(tmp_path / "o")
    flags = ["--pattern", "*.npy", "--num-passes", "4", "--posterior", "mixture", "--resources.engine", "local"]
    assert cli.main(["infer", str(tmp_path / "cutouts"), "--bundle", str(inputs / "model"), "--output", output, *flags]) == 0
    shown = capsys.readouterr().err
    reason = "all pixels are without a value: NaN, infinite, 1e20 or more, masked"
    assert f"  {1 if usable else 3} in quarantine: {reason}" in shown
    # There are no true values to evaluate with.
    assert (f"next: gampen-ray view {output}\n" in shown) == usable
    assert ("next: " in shown) == usable
    assert cli.main(["evaluate", "--catalog", output, "--output", str(tmp_path / "e")]) == 2
    wrong = f"{output} is of {tmp_path / 'cutouts'}, which has no true values; give --truth, a table of them"
    assert wrong in capsys.readouterr().err
    assert cli.main(["status", output]) == 0
    assert ("gampen-ray view" in capsys.readouterr().out) == usable


def test_bands_that_do_not_fit_are_refused(inputs: Path, tmp_path: Path) -> None:
    columns = galaxies(3)
    columns["image"] = np.repeat(columns["image"], 2, axis=1)
    info = shards.DatasetInfo(bands=("g", "r"), cutout_size=SIZE, num_rows={shards.ALL: 3})
    shards.write_shard(shards.part_uri(str(tmp_path / "d"), shards.ALL, 0), columns, info)
    shards.write_dataset_info(str(tmp_path / "d"), info)
    with pytest.raises(UserError, match=r"dataset: .*/d has the bands g, r, but the bundle was trained on r"):
        infer(config(inputs, tmp_path / "o", dataset=str(tmp_path / "d")))
    assert not (tmp_path / "o").exists()
