"""From a footprint and a catalogue to posteriors: every source once, and as from stored cutouts of the same pixels."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gampen_ray.commands import catalog_files
from gampen_ray.commands import infer as command
from gampen_ray.commands.infer import InferConfig, infer
from gampen_ray.commands.ingest import IngestConfig, ingest
from gampen_ray.commands.tile_plans import num_sources
from gampen_ray.config import ActorResources, ReaderConfig
from gampen_ray.data import shards
from gampen_ray.data.quarantine import read_quarantine
from gampen_ray.data.tiles import surveys
from gampen_ray.data.tiles.cutting import first_pixels
from gampen_ray.data.tiles.reading import TILE_COLUMNS
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import load_bundle
from gampen_ray.inference.flags import Flag
from tests.data.tiles.layouts import LAYOUTS, Sky, write_sky
from tests.data.tiles.test_aligning import cards, positions, write_tile
from tests.data.tiles.test_surveys import made_footprint
from tests.networks import SIZE, TARGETS, bundle

pytestmark = pytest.mark.ray
ONE = ActorResources(num_workers=1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sky]:
    """A footprint of the Legacy Surveys, whose tiles have a PSF, a model, and a catalogue with sources elsewhere."""
    root = tmp_path_factory.mktemp("inputs")
    sky = write_sky(root / "tiles", LAYOUTS["legacy"])
    made_footprint(root / "tiles", root / "footprint", surveys.TILE_SURVEYS["legacy"])
    bundle().save(str(root / "model"))
    columns = {
        "object_id": np.arange(len(sky.ra_N) + 2),
        "ra": np.append(sky.ra_N, [10, np.nan]),
        "dec": np.append(sky.dec_N, [10, 0]),
    }
    pq.write_table(pa.table(columns), root / "catalog.parquet", row_group_size=40)
    return root, sky


def config(root: Path, output: Path, **fields: Any) -> InferConfig:
    uris = {"bundle": str(root / "model"), "dataset": str(root / "footprint"), "catalog": str(root / "catalog.parquet")}
    usual = {"num_passes": 4, "galaxies_per_file": 16, "resources": ONE, "reader": ReaderConfig(nan_policy="zero")}
    return InferConfig(**{**uris, "output": str(output), **usual, **fields})


def catalog(output: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted(output.glob("catalog/*.parquet"))).sort_by("object_id")


@pytest.fixture(scope="module")
def whole(inputs: tuple[Path, Sky], ray_local: None) -> tuple[Path, dict[str, Any]]:
    """The output of an unbroken job, and its manifest."""
    root, _ = inputs
    return root / "whole", infer(config(root, root / "whole"))


def test_each_source_is_once_in_the_catalogue_or_in_quarantine(
    inputs: tuple[Path, Sky], whole: tuple[Path, dict[str, Any]]
) -> None:
    (_, sky), (output, manifest) = inputs, whole
    found, bad = catalog(output), read_quarantine(str(output))
    assert manifest["num_galaxies"] + manifest["num_quarantined"] == len(sky.ra_N) + 2
    assert (manifest["num_galaxies"], manifest["num_quarantined"]) == (len(found), len(bad))
    kinds = Counter(reason.partition(":")[0] for _, reason in bad)
    assert (kinds["in no tile of the footprint"], kinds["the position is missing"]) == (1, 1)
    assert kinds.keys() <= {"in no tile of the footprint", "the position is missing", "beyond the edge", "masked centre"}
    assert len(found) > 60
    np.testing.assert_allclose(found["ra"].to_numpy(), sky.ra_N[found["object_id"].to_numpy()])
    assert not (output / "plan").exists()


def test_posteriors_from_tiles_equal_those_from_stored_cutouts(
    inputs: tuple[Path, Sky], whole: tuple[Path, dict[str, Any]]
) -> None:
    (root, sky), (output, _) = inputs, whole
    found = catalog(output)
    image_NCHW, filled_N = np.empty((len(found), 1, SIZE, SIZE), np.float32), np.zeros(len(found), int)
    for row, galaxy in enumerate(found.select(["tile", "x", "y"]).to_pylist()):
        image_HW, bad_HW = sky.pixels[galaxy["tile"], "r"]
        left, first = (int(first_pixels(np.array([galaxy[axis]]), SIZE)[0]) for axis in ("x", "y"))
        window = slice(first, first + SIZE), slice(left, left + SIZE)
        image_NCHW[row, 0], filled_N[row] = np.where(bad_HW[window], 0, image_HW[window]), bad_HW[window].sum()
    assert (filled_N > 0).any()
    stored = load_bundle(str(root / "model")).predict(image_NCHW, num_passes=4, seed=0)
    std_ND = stored.std()
    for place, name in enumerate(TARGETS):
        # Float32 rounds differently in batches of another size.
        for statistic, value_ND in (("mean", stored.mean()), ("std", std_ND)):
            difference_N = found[f"{name}_{statistic}"].to_numpy() - np.asarray(value_ND)[:, place]
            assert np.abs(difference_N / np.asarray(std_ND)[:, place]).max() < 2e-6
    assert set(TILE_COLUMNS) <= set(found.column_names)
    np.testing.assert_allclose(found["psf_fwhm_arcsec"].to_numpy(), 1.25)
    np.testing.assert_allclose(found["mask_share"].to_numpy(), filled_N / SIZE**2, atol=1e-12)
    np.testing.assert_array_equal(found["flags"].to_numpy() & Flag.PIXELS_FILLED.value > 0, filled_N > 0)


def test_a_bundle_with_the_psf_as_a_condition_takes_it_from_the_tiles_and_hats_is_written(
    inputs: tuple[Path, Sky], tmp_path: Path, ray_local: None
) -> None:
    fields = {"bundle": "builtin:kids-r", "missing_conditions": "marginalise", "catalog_format": "hats", "max_beyond": 40}
    manifest = infer(config(inputs[0], tmp_path / "out", **fields))
    found = catalog(tmp_path / "out")
    assert manifest["num_galaxies"] == manifest["num_in_hats"] == len(found) > 20
    np.testing.assert_allclose(found["psf_fwhm_arcsec"].to_numpy(), 1.25)
    assert set(TILE_COLUMNS) <= set(found.column_names)
    assert {"hats", "catalog"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_columns_of_the_catalogue_are_carried_from_a_footprint(inputs: tuple[Path, Sky], tmp_path: Path) -> None:
    root, _ = inputs
    table = pq.read_table(root / "catalog.parquet")
    count = len(table)
    # Integers that floating-point numbers would round, some of them missing.
    neighbour = pa.array([None if i % 3 == 0 else 2**60 + i for i in range(count)], pa.int64())
    z_phot = pa.field("z_phot", pa.float32(), metadata={"unit": "mag", "description": "photometric redshift"})
    table = table.append_column("neighbour", neighbour).append_column(z_phot, pa.array(np.arange(count) / 8, pa.float32()))
    table = table.append_column("class", pa.array([f"c{i}" for i in range(count)]))
    pq.write_table(table, tmp_path / "more.parquet", row_group_size=40)
    local = {"catalog": str(tmp_path / "more.parquet"), "resources": ActorResources(num_workers=1, engine="local")}
    infer(config(root, tmp_path / "o", **local, columns=("class", "neighbour", "z_phot")))
    found = catalog(tmp_path / "o")
    rows = found["object_id"]
    for name in ("class", "neighbour", "z_phot"):
        assert found[name].equals(table[name].take(rows)), name
    assert found.schema.field("z_phot").metadata == {b"unit": b"mag", b"description": b"photometric redshift", b"ucd": b""}
    assert found["neighbour"].null_count > 0
    for name, message in (
        (
            "z_spec",
            r"columns: .*/more.parquet has no column 'z_spec'; its columns: object_id, ra, dec, neighbour, z_phot, class; a",
        ),
        ("dec", "columns: 'dec' is a column of the catalogue already; leave it out, or rename yours"),
        ("x", "columns: 'x' is a column of the catalogue already"),
    ):
        with pytest.raises(UserError, match=message):
            infer(config(root, tmp_path / "p", **local, columns=(name,)))


def test_few_sources_are_predicted_without_ray(inputs: tuple[Path, Sky], tmp_path: Path) -> None:
    root, sky = inputs
    wanted = config(root, tmp_path / "o")
    assert num_sources(wanted) == len(sky.ra_N) + 2
    program = "import sys\nfrom gampen_ray.cli import main\nassert main(sys.argv[1:]) == 0 and 'ray' not in sys.modules\n"
    flags = [f"--{name}={getattr(wanted, name)}" for name in ("bundle", "dataset", "catalog", "output")]
    command = ["infer", *flags, "--num-passes", "4", "--reader.nan-policy", "zero"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run([sys.executable, "-c", program, *command], check=True, env=environment)
    assert len(catalog(tmp_path / "o")) > 60


def test_an_interrupted_job_ends_as_an_unbroken_one(
    inputs: tuple[Path, Sky], whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root, _), (output, _) = inputs, whole
    with monkeypatch.context() as patch:
        patch.setattr(catalog_files, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            infer(config(root, tmp_path / "broken"))
    parts = sorted((tmp_path / "broken" / "catalog").iterdir())
    parts[0].unlink()
    kept = parts[1].stat().st_mtime_ns
    infer(config(root, tmp_path / "broken"))
    assert parts[1].stat().st_mtime_ns == kept
    for path in output.rglob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "broken" / path.relative_to(output)).read_bytes()
    with pytest.raises(UserError, match=r"output: .* holds a run with another max_beyond"):
        infer(config(root, output, max_beyond=3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"catalog": ""}, "catalog: is missing; with a footprint"),
        ({"split": "test"}, "split: test cannot be had with a footprint"),
        ({"file_template": "{object_id}.fits"}, "file_template: has no effect with a footprint"),
    ],
)
def test_mistakes_are_named(fields: dict[str, Any], message: str, inputs: tuple[Path, Sky], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        infer(config(inputs[0], tmp_path / "o", **fields))


def test_a_catalogue_elsewhere_on_the_sky_is_refused(inputs: tuple[Path, Sky], tmp_path: Path, ray_local: None) -> None:
    pq.write_table(pa.table({"object_id": [1, 2], "ra": [50.0, 51.0], "dec": [0.0, 0.0]}), tmp_path / "c.parquet")
    message = r"catalog: none of the 2 sources can be cut from a tile; .*: in no tile of the footprint"
    with pytest.raises(UserError, match=message):
        infer(config(inputs[0], tmp_path / "o", catalog=str(tmp_path / "c.parquet")))
    assert not [path for path in (tmp_path / "o").rglob("*") if path.is_file() and not path.name.startswith(".")]


def test_an_estimate_measures_some_tiles_and_leaves_nothing(
    inputs: tuple[Path, Sky], whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root, sky), (_, manifest) = inputs, whole
    monkeypatch.setattr(command, "_ESTIMATE_SECONDS", 2.0)
    stale = tmp_path / "o.estimate" / "part-000000.parquet"
    stale.parent.mkdir()
    stale.write_bytes(b"of an estimate that was killed")
    result = infer(config(root, tmp_path / "o", estimate=True, estimate_workers=8))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert result["estimate"]["galaxies"] == len(sky.ra_N) + 2
    assert 0 < result["measured"]["galaxies"] <= manifest["num_galaxies"] + manifest["num_quarantined"]
    assert result["measured"]["bytes_read"] > 0


def test_ingest_stores_what_infer_cuts_with_targets_in_their_splits(
    inputs: tuple[Path, Sky], whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    (root, sky), (output, _) = inputs, whole
    catalog_ = pq.read_table(root / "catalog.parquet")
    radius = pa.field("effective_radius_arcsec", pa.float64(), metadata={"unit": "arcsec"})
    flux_N = np.append(10 ** (0.4 * (22.5 - sky.mag_NC[:, 1])), [1.0, 1.0])
    labels = catalog_.append_column("flux", pa.array(flux_N)).append_column(
        radius, pa.array(np.linspace(-0.1, 2, len(catalog_)))
    )
    # Others are kept, as from cutouts, in the type that they have where none is missing.
    count = len(catalog_)
    labels = labels.append_column("visits", pa.array([None if i % 3 == 0 and i > 40 else i for i in range(count)]))
    labels = labels.append_column("note", pa.array([f"n{i}" for i in range(count)]))
    pq.write_table(labels, tmp_path / "labels.parquet")
    how: dict[str, Any] = {"images": str(root / "footprint"), "output": str(tmp_path / "d"), "cutout_size": SIZE}
    how |= {"targets": ("flux", "effective_radius_arcsec"), "reader": ReaderConfig(nan_policy="zero", bands=("r",))}
    made = IngestConfig(catalog=str(tmp_path / "labels.parquet"), **how, galaxies_per_shard=16)
    with pytest.raises(UserError, match=r"flux_unit: uJy has the zero point 23\.900, but that of the images is 22\.5"):
        ingest(IngestConfig(catalog=str(tmp_path / "labels.parquet"), **how, flux_unit="uJy"))
    summary = ingest(made)
    assert ingest(made) == summary
    info = shards.read_dataset_info(str(tmp_path / "d"))
    assert (info.bands, info.zero_point_mag, info.cutout_size) == (("r",), 22.5, SIZE)
    assert info.target_units == {"flux": "", "effective_radius_arcsec": "arcsec"}
    assert set(summary.num_rows) == {"train", "val", "test"}
    assert sum(summary.num_rows.values()) + summary.num_quarantined == len(catalog_)
    assert any("effective_radius" in reason for reason in summary.reasons)
    stored = pa.concat_tables([shards.read_shard(uri) for uri in shards.shard_uris(str(tmp_path / "d"))]).sort_by("object_id")
    # The same galaxies as `infer` took, less those without a radius.
    expected = set(catalog(output)["object_id"].to_pylist()) - set(np.flatnonzero(np.linspace(-0.1, 2, len(catalog_)) <= 0))
    assert set(stored["object_id"].to_pylist()) == expected
    np.testing.assert_allclose(stored["flux"].to_numpy(), flux_N[stored["object_id"].to_numpy()])
    assert stored.schema.field("visits").type == pa.int64()
    for row in stored.select(["object_id", "visits", "note"]).to_pylist():
        i = row["object_id"]
        assert row == {"object_id": i, "visits": None if i % 3 == 0 and i > 40 else i, "note": f"n{i}"}
    row = stored.slice(10, 1)
    left, first = (int(first_pixels(row[axis].to_numpy(), SIZE)[0]) for axis in ("x", "y"))
    image_HW, bad_HW = sky.pixels[row["tile"][0].as_py(), "r"]
    window = slice(first, first + SIZE), slice(left, left + SIZE)
    np.testing.assert_array_equal(shards.images(row)[0, 0], np.where(bad_HW[window], 0, image_HW[window]))


def test_bands_on_different_grids_are_refused_or_aligned_and_flagged_from_tiles_and_as_stored(tmp_path: Path) -> None:
    write_tile(tmp_path / "tiles", {"g": cards(240, 0.2), "r": cards(240, 0.15, 30.0)})
    bundle(bands=("g", "r")).save(str(tmp_path / "model"))
    ra_N, dec_N = positions()
    pq.write_table(pa.table({"object_id": [1, 2, 3], "ra": ra_N, "dec": dec_N}), tmp_path / "catalog.parquet")
    # In this process.
    usual: dict[str, Any] = {"resources": ActorResources(engine="local")}
    message = r"none of the 3 sources .*: bands on different grids: tile t has 240 x 240 pixels of 0.2 .* in g, .* in r; align"
    with pytest.raises(UserError, match=message):
        infer(config(tmp_path, tmp_path / "out", **usual))
    infer(config(tmp_path, tmp_path / "out", align=True, **usual))
    found = catalog(tmp_path / "out")
    assert len(found) == 3
    assert (found["flags"].to_numpy() & Flag.RESAMPLED.value).all()
    how: dict[str, Any] = {"images": str(tmp_path / "footprint"), "catalog": str(tmp_path / "catalog.parquet")}
    how |= {"cutout_size": SIZE, "reader": ReaderConfig(nan_policy="zero", bands=("g", "r"))}
    ingest(IngestConfig(**how, output=str(tmp_path / "stored"), align=True))
    assert shards.read_dataset_info(str(tmp_path / "stored")).pixel_scale_arcsec == pytest.approx(0.2)
    infer(
        InferConfig(
            **{"bundle": str(tmp_path / "model"), "dataset": str(tmp_path / "stored")},
            output=str(tmp_path / "again"),
            num_passes=4,
        )
    )
    again = catalog(tmp_path / "again")
    for name in ("flags", "flux_mean", "flux_std"):
        np.testing.assert_array_equal(again[name].to_numpy(), found[name].to_numpy())
    with pytest.raises(UserError, match="align: has an effect with a footprint alone; leave it out"):
        infer(
            InferConfig(
                bundle=str(tmp_path / "model"), dataset=str(tmp_path / "stored"), output=str(tmp_path / "o"), align=True
            )
        )
