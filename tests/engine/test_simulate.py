import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest

from gampen_ray.config import ResourcesConfig, SimulateConfig, SplitConfig
from gampen_ray.data import shards, validation
from gampen_ray.data.splits import assign_splits
from gampen_ray.engine import simulate as engine
from gampen_ray.errors import UserError
from gampen_ray.provenance import claim_output
from gampen_ray.simulation.galaxies import simulate as simulate_galaxies


def config(output: Path, **changes: object) -> SimulateConfig:
    return SimulateConfig(
        **({"output": str(output), "num_galaxies": 50, "cutout_size": 16, "galaxies_per_shard": 20} | changes)
    )


def read(dataset: Path | str, split: str = "") -> dict[str, np.ndarray]:
    tables = [shards.read_shard(uri) for uri in shards.shard_uris(str(dataset), split)]
    ids = np.concatenate([table.column("object_id").to_numpy() for table in tables])
    columns = {"object_id": ids, "image": np.concatenate([shards.images(table) for table in tables])}
    for name in set(tables[0].column_names) - set(columns):
        columns[name] = np.concatenate([table.column(name).to_numpy() for table in tables])
    order = np.argsort(ids)
    return {name: values[order] for name, values in columns.items()}


@pytest.mark.ray
def test_dataset_is_that_of_the_pure_function(ray_local: None, tmp_path: Path) -> None:
    wanted = config(tmp_path / "dataset", split=SplitConfig(train=0.6, val=0.2))
    engine.simulate(wanted)
    assert validation.validate_dataset(wanted.output) == []
    expected = simulate_galaxies(wanted, 0, 50)
    found = read(wanted.output)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    info = shards.read_dataset_info(wanted.output)
    splits = assign_splits(np.arange(50), wanted.split)
    for split in shards.SPLITS:
        np.testing.assert_array_equal(read(wanted.output, split)["object_id"], np.flatnonzero(splits == split))
        assert info.num_rows[split] == (splits == split).sum()
    assert (info.bands, info.zero_point_mag, info.pixel_scale_arcsec) == (("r",), 30.0, 0.2)
    assert info.target_units == {"bulge_to_total": "", "effective_radius_arcsec": "arcsec", "flux": "1e-12 mgy"}


@pytest.mark.ray
def test_an_unfinished_dataset_is_completed_and_a_complete_one_left(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = config(tmp_path / "dataset")

    def die_after_the_first(config: SimulateConfig, info: shards.DatasetInfo, parts: list[int]) -> list[int]:
        engine.simulate_part(config, info, parts[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "_run", die_after_the_first)
        engine.simulate(wanted)
    first = shards.part_uri(wanted.output, "train", 0)
    written = Path(first).stat().st_mtime_ns
    with pytest.raises(UserError, match="is not complete"):
        shards.read_dataset_info(wanted.output)
    with pytest.raises(UserError, match=r"another seed \(0, not 1\); nothing was changed"):
        engine.simulate(dataclasses.replace(wanted, seed=1))

    engine.simulate(wanted)
    assert Path(first).stat().st_mtime_ns == written
    np.testing.assert_array_equal(read(wanted.output)["object_id"], np.arange(50))

    monkeypatch.setattr(engine, "_run", None)
    with caplog.at_level(logging.INFO):
        engine.simulate(dataclasses.replace(wanted, resources=ResourcesConfig(num_workers=1)))
    assert "is complete" in caplog.text
    with pytest.raises(UserError, match=r"another num_galaxies \(50, not 60\);|another survey"):
        engine.simulate(dataclasses.replace(wanted, num_galaxies=60, survey="hsc-g"))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(UserError, match="already holds other files; nothing was changed"):
        engine.simulate(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_shards_do_not_change_the_galaxies_or_the_fingerprint(tmp_path: Path) -> None:
    datasets = []
    for per_shard in (7, 20):
        wanted = config(tmp_path / str(per_shard), num_galaxies=20, galaxies_per_shard=per_shard)
        info = engine.dataset_info(wanted)
        counts = [engine.simulate_part(wanted, info, part) for part in range(-(-20 // per_shard))]
        assert sum(counts) == 20
        datasets.append((info.fingerprint, read(wanted.output)))
    assert datasets[0][0] == datasets[1][0]
    for name, values in datasets[0][1].items():
        np.testing.assert_array_equal(values, datasets[1][1][name])
    assert engine.dataset_info(config(tmp_path, seed=1)).fingerprint != engine.dataset_info(config(tmp_path)).fingerprint


@pytest.mark.ray
def test_an_error_of_a_task_is_one_line_for_the_user(ray_local: None, tmp_path: Path) -> None:
    wanted = config(tmp_path / "dataset")
    claim_output(wanted.output, wanted, {})
    (tmp_path / "dataset" / "split=train").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"split=train/part-000000.parquet: "):
        engine.simulate(wanted)
