from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gampen_ray.data.tiles import surveys
from gampen_ray.data.tiles.cutting import first_pixels
from gampen_ray.data.tiles.planning import Planning, plan_locally
from gampen_ray.data.tiles.reading import TILE_COLUMNS, TileReader
from gampen_ray.data.tiles.units import read_unit, units
from tests.data.tiles.layouts import LAYOUTS, write_sky
from tests.data.tiles.test_surveys import made_footprint

SIZE = 40


@pytest.mark.parametrize("nan_policy", ["quarantine", "zero"])
def test_cutouts_that_reach_over_the_edge_are_filled_or_refused_as_asked(nan_policy: str, tmp_path: Path) -> None:
    sky = write_sky(tmp_path / "tiles", LAYOUTS["legacy"])
    uri = made_footprint(tmp_path / "tiles", tmp_path / "footprint", surveys.TILE_SURVEYS["legacy"]).uri
    psf_N = np.full(len(sky.ra_N), 0.7)
    columns = {"object_id": np.arange(len(psf_N)), "ra": sky.ra_N, "dec": sky.dec_N, "psf_fwhm_g": psf_N}
    pq.write_table(pa.table(columns), tmp_path / "catalog.parquet")
    how = {"footprint": uri, "bands": ("g", "r"), "size": SIZE}
    planning = Planning(**how, output=str(tmp_path / "plan"), max_beyond=SIZE, optional=("psf_fwhm_g", "other"))
    plan_locally(str(tmp_path / "catalog.parquet"), planning)
    reader = TileReader(**how, policies=(nan_policy,))
    read = [rows for unit in units(planning.output) for rows, _ in reader.read(unit, 32, {})]
    rows = {name: np.concatenate([one[name] for one in read]) for name in read[0]}
    np.testing.assert_array_equal(np.sort(rows["object_id"]), np.arange(len(psf_N)))
    assert set(TILE_COLUMNS) <= rows.keys()
    over_N, masked_N = rows["edge_share"] > 0, rows["mask_share"] > 0
    assert over_N.sum() > 10
    assert (masked_N & ~over_N).any()
    bad_N, cut_N = rows["reason"] != "", np.isfinite(rows["mask_share"])
    assert all(reason.startswith("masked centre") for reason in rows["reason"][~cut_N])
    if nan_policy == "quarantine":
        np.testing.assert_array_equal(bad_N, over_N | masked_N | ~cut_N)
    else:
        np.testing.assert_array_equal(bad_N, ~cut_N)
        good_N = over_N & ~bad_N
        share_N = rows["pixels_filled"][good_N] / (2 * SIZE**2)
        np.testing.assert_allclose(share_N, (rows["edge_share"] + rows["mask_share"])[good_N])
        # The galaxy stays at the centre: off-tile pixels are zero, and nothing is shifted.
        middle = SIZE // 2
        peak_N = rows["image"][good_N, 0, middle - 2 : middle + 2, middle - 2 : middle + 2].max(axis=(1, 2))
        assert (peak_N == rows["image"][good_N, 0, middle - 6 : middle + 6, middle - 6 : middle + 6].max(axis=(1, 2))).all()
    assert not rows["image"][bad_N].any()
    # What the catalogue states is kept, the tile's map fills the rest.
    np.testing.assert_array_equal(rows["psf_fwhm_g"], 0.7)
    np.testing.assert_array_equal(rows["psf_fwhm_r"][cut_N], 1.25)
    # The tiles' files, and those that were looked into for masked sources.
    read_bytes = sum(num_bytes for unit in units(planning.output) for _, num_bytes in reader.read(unit, 32, {}))
    assert read_bytes >= sum(path.stat().st_size for path in (tmp_path / "tiles").rglob("*.fz"))
    unit = max(units(planning.output), key=lambda unit: unit.num_rows)
    whole = {
        id_: reason for one, _ in reader.read(unit, 32, {}) for id_, reason in zip(one["object_id"], one["reason"], strict=True)
    }
    for rows in ([0, 2], range(unit.num_rows)):
        found = [one for one, _ in reader.read(unit, 2, dict.fromkeys(rows, "it kills"))]
        reasons = {id_: reason for one in found for id_, reason in zip(one["object_id"], one["reason"], strict=True)}
        refused = read_unit(unit)["object_id"].take(pa.array(list(rows))).to_pylist()
        assert reasons == whole | dict.fromkeys(refused, "it kills")


def test_a_source_whose_centre_is_masked_is_cut_from_the_next_best_tile(tmp_path: Path) -> None:
    layout = LAYOUTS["legacy"]
    sky = write_sky(tmp_path / "tiles", layout)
    uri = made_footprint(tmp_path / "tiles", tmp_path / "footprint", surveys.TILE_SURVEYS["legacy"]).uri
    # In the middle of the masked pixels of each tile: two of them are in a neighbour too.
    ra_N, dec_N = np.transpose([np.ravel(sky.wcs[tile].all_pix2world([[25, 50.8]], 0)) for tile in layout.tiles])
    pq.write_table(pa.table({"object_id": list(layout.tiles), "ra": ra_N, "dec": dec_N}), tmp_path / "catalog.parquet")
    how = {"footprint": uri, "bands": ("g",), "size": 12}
    planning = Planning(**how, output=str(tmp_path / "plan"))
    plan_locally(str(tmp_path / "catalog.parquet"), planning)
    reader = TileReader(**how, policies=("zero",))
    read = [rows for unit in units(planning.output) for rows, _ in reader.read(unit, 32, {})]
    rows = {name: np.concatenate([one[name] for one in read]) for name in read[0]}
    assert sorted(rows["object_id"]) == sorted(layout.tiles)
    moved_N = rows["object_id"] != rows["tile"]
    assert moved_N.sum() == 2
    assert list(rows["reason"][moved_N]) == ["", ""]
    assert all(reason.startswith("masked centre") for reason in rows["reason"][~moved_N])
    for row in np.flatnonzero(moved_N):
        tile, x, y = rows["tile"][row], rows["x"][row], rows["y"][row]
        np.testing.assert_allclose(
            sky.wcs[tile].all_pix2world([[x, y]], 0)[0, 1], dec_N[layout.tiles.index(rows["object_id"][row])]
        )
        left, first = (int(first_pixels(np.array([at]), 12)[0]) for at in (x, y))
        image_HW, bad_HW = sky.pixels[tile, "g"]
        window = slice(first, first + 12), slice(left, left + 12)
        np.testing.assert_array_equal(rows["image"][row, 0], np.where(bad_HW[window], 0, image_HW[window]))
        assert tile in rows["source"][row]
