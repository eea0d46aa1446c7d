import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gampen_ray.commands.simulate import SimulateConfig, simulate
from gampen_ray.config import SplitConfig, TaskResources
from gampen_ray.config.base import build
from gampen_ray.config.scene import NeighboursConfig, PsfConfig, SceneConfig
from gampen_ray.data import shards, validation
from gampen_ray.data.splits import assign_splits
from gampen_ray.engine import units
from gampen_ray.errors import UserError
from gampen_ray.provenance import content_fingerprint
from gampen_ray.run_folder import RunFolder
from gampen_ray.simulation import scene
from gampen_ray.simulation.surveys import SURVEYS

ALONE = SceneConfig(neighbours=NeighboursConfig(galaxies=0, stars=0))
CHANGES: dict[str, dict] = {
    "a": {},
    "b": {"galaxies_per_shard": 7},
    "c": {"seed": 1},
    "d": {"survey": "mine"},
    "e": {"scene": ALONE},
}


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
    simulate(wanted)
    assert validation.validate_dataset(wanted.output) == []
    expected = scene.simulate(SURVEYS["kids-r"], cutout_size=16, seed=0, start=0, stop=50)
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

    def die_after_the_first(what: str, units: list, start: Callable, **_: object) -> None:
        start(None)(units[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(units, "run_units", die_after_the_first)
        simulate(wanted)
    first = shards.part_uri(wanted.output, "train", 0)
    written = Path(first).stat().st_mtime_ns
    with pytest.raises(UserError, match="is not complete"):
        shards.read_dataset_info(wanted.output)
    with pytest.raises(UserError, match=r"another seed \(0, not 1\); nothing was changed"):
        simulate(dataclasses.replace(wanted, seed=1))

    with caplog.at_level(logging.INFO):
        simulate(wanted)
    # What was there before does not count for the rate.
    assert next(line for line in caplog.messages if line.startswith("simulate: ")) == "simulate: 20/50 galaxies"
    assert Path(first).stat().st_mtime_ns == written
    np.testing.assert_array_equal(read(wanted.output)["object_id"], np.arange(50))

    monkeypatch.setattr(units, "run_units", None)
    with caplog.at_level(logging.INFO):
        simulate(dataclasses.replace(wanted, resources=TaskResources(num_workers=1)))
    assert "is complete" in caplog.text
    with pytest.raises(UserError, match=r"another num_galaxies \(50, not 60\);|another survey"):
        simulate(dataclasses.replace(wanted, num_galaxies=60, survey="hsc-g"))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(UserError, match="already holds other files; nothing was changed"):
        simulate(config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_shards_do_not_change_the_galaxies_or_the_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(what: str, units: list, start: Callable, **_: object) -> None:
        for unit in units:
            start(None)(unit)

    monkeypatch.setattr(units, "run_units", run_here)
    # A survey is known by its numbers, not by its name.
    monkeypatch.setitem(SURVEYS, "mine", dataclasses.replace(SURVEYS["kids-r"], name="mine", band="i"))
    wanted = [config(tmp_path / name, **changes) for name, changes in CHANGES.items()]
    for each in wanted:
        simulate(each)
    infos = [shards.read_dataset_info(each.output) for each in wanted]
    assert infos[0].fingerprint == infos[1].fingerprint
    assert len({info.fingerprint for info in infos}) == 4
    assert infos[3].bands == ("i",)
    datasets = [read(each.output) for each in wanted]
    for name, values in datasets[0].items():
        np.testing.assert_array_equal(values, datasets[1][name])


@pytest.mark.ray
def test_an_error_of_a_task_is_one_line_for_the_user(ray_local: None, tmp_path: Path) -> None:
    wanted = config(tmp_path / "dataset")
    inputs = {"survey preset": content_fingerprint(dataclasses.asdict(SURVEYS["kids-r"]))}
    with RunFolder.open(wanted.output, "simulate", wanted, inputs, complete=shards.DATASET_JSON):
        (tmp_path / "dataset" / "split=train").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"split=train/part-00000\d.parquet: "):
        simulate(wanted)


def test_a_run_on_other_psf_stamps_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "run_units", lambda what, units, start, **_: [start(None)(unit) for unit in units])
    y, x = np.indices((21, 21)) - 10
    for name, width in (("here", 2.0), ("moved", 2.0), ("other", 2.5)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "psf.npy", np.exp(-(x**2 + y**2) / width**2))
    wanted = [
        config(tmp_path / "d", num_galaxies=4, scene=SceneConfig(psf=PsfConfig(stamps=str(tmp_path / name))))
        for name in ("here", "moved", "other")
    ]
    simulate(wanted[0])
    assert set(read(wanted[0].output)["psf_stamp"]) == {0.0}
    simulate(wanted[1])
    again = dataclasses.replace(wanted[1], output=str(tmp_path / "again"))
    simulate(again)
    first, second = (shards.read_dataset_info(one.output).fingerprint for one in (wanted[0], again))
    assert first == second
    with pytest.raises(UserError, match=r"holds a run on another scene.psf.stamps"):
        simulate(wanted[2])


def test_the_neighbours_of_earlier_versions_are_explained() -> None:
    with pytest.raises(UserError, match=r"neighbour_fraction: neighbours come by number counts, scene.neighbours.galaxies"):
        build(SimulateConfig, {"output": "d", "neighbour_fraction": 0.2})


def test_a_cutout_too_small_for_the_survey_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    wanted = build(
        SimulateConfig, {"output": str(tmp_path / "d"), "cutout_size": 16, "scene": {"galaxies": {"largest_radius": 0.05}}}
    )
    with pytest.raises(UserError, match=r"cutout_size: 3.2 arcsec hold radii to 0.16 arcsec"):
        simulate(wanted)
    assert not (tmp_path / "d").exists()


def test_an_unknown_survey_is_refused_with_the_valid_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"survey: 'kidz-r' is unknown; did you mean 'kids-r'\? give one of hsc-g, "):
        simulate(config(tmp_path / "d", survey="kidz-r"))
    assert not (tmp_path / "d").exists()
