"""The verb `footprint`: from a folder of tiles to an index that others read, resumed and refused as other verbs are."""

from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

from gampen_ray import footprint
from gampen_ray.cli import main
from gampen_ray.data.quarantine import read_quarantine
from gampen_ray.data.tiles.footprint import FOOTPRINT_JSON, INDEX, Footprint
from gampen_ray.errors import UserError
from tests.data.tiles.layouts import LAYOUTS, write_sky

pytestmark = pytest.mark.ray


def made(tmp_path: Path, **options: Any) -> Any:
    return footprint(
        **{"survey": "hsc", "tiles": str(tmp_path / "tiles"), "output": str(tmp_path / "o"), "files_per_unit": 3} | options
    )


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    write_sky(tmp_path / "tiles", LAYOUTS["hsc"])
    return tmp_path / "tiles"


def test_an_index_has_each_tile_and_band_and_unusable_files_are_in_quarantine(
    tiles: Path, tmp_path: Path, ray_local: None
) -> None:
    broken = next(tiles.rglob("calexp-HSC-G-9813-4,5.fits"))
    broken.write_bytes(broken.read_bytes()[:5000])
    info = made(tmp_path)
    assert (info.num_tiles, info.num_rows, info.num_quarantined, info.bands) == (4, 7, 1, ("g", "r"))
    ((source, reason),) = read_quarantine(str(tmp_path / "o"))
    assert source == str(broken)
    assert "the file is truncated" in reason
    found = Footprint(str(tmp_path / "o"))
    assert list(found.names) == ["9813-4,4", "9813-4,5", "9813-5,4", "9813-5,5"]
    both, red = found.select(("g", "r")), found.select(("r",))
    assert both.fault(1) == "band missing: tile 9813-4,5 has no g"
    assert [red.fault(tile) for tile in range(4)] == [""] * 4
    row = both.files(0)[0]
    assert (row.tract, row.patch, row.mask_bits, row.noise_kind) == ("9813", "4,4", 1 << 0 | 1 << 1 | 1 << 8, "variance")
    assert row.image.stamp.split()[0] == str(next(tiles.rglob("calexp-HSC-G-9813-4,4.fits")).stat().st_size)


def test_a_killed_run_is_resumed_and_a_finished_one_is_left(tiles: Path, tmp_path: Path, ray_local: None) -> None:
    first = made(tmp_path)
    index = sorted((tmp_path / "o" / INDEX).iterdir())
    assert len(index) == 3
    contents = [path.read_bytes() for path in index]
    (tmp_path / "o" / FOOTPRINT_JSON).unlink()
    index[1].unlink()
    kept = index[0].stat().st_mtime_ns
    assert made(tmp_path) == first
    assert [path.read_bytes() for path in index] == contents
    assert index[0].stat().st_mtime_ns == kept
    assert made(tmp_path) == first
    with pytest.raises(UserError, match=r"output: .* holds a run with another mask_planes"):
        made(tmp_path, mask_planes=("SAT",))


def test_bands_of_one_tile_on_different_grids_are_refused_naming_both(tiles: Path, tmp_path: Path, ray_local: None) -> None:
    path = next(tiles.rglob("calexp-HSC-R-9813-5,4.fits"))
    with fits.open(path, mode="update") as hdus:
        hdus[1].header["CRPIX1"] += 3
    made(tmp_path)
    fault = Footprint(str(tmp_path / "o")).select(("g", "r")).fault(2)
    assert fault.startswith("bands on different grids: tile 9813-5,4 has 112 x 112 pixels of 0.168 arcsec about")
    assert fault.count("about") == 2


def test_mistakes_are_one_line(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        ("--survey", "legcy"): "survey: 'legcy' is unknown; did you mean 'legacy'? ",
        ("--survey", "kids"): "has a name of the survey kids, ",
        ("--survey", "generic"): "table: left out, but survey is generic; generic needs a table, others none",
        ("--survey", "hsc", "--bands", "z"): "bands: no tile of z below",
        (): "survey: is missing",
    }
    file = next(tiles.rglob("*.fits"))
    cases["--survey", "hsc", "--tiles", str(file)] = f"tiles: {file} is a file; give the folder that holds it"
    for arguments, message in cases.items():
        code = main(["footprint", "--tiles", str(tiles), *arguments, "--output", str(tmp_path / "o")])
        error = capsys.readouterr().err
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
    assert not (tmp_path / "o").exists()


def test_no_usable_tile_ends_the_run_and_leaves_the_folder_free(tiles: Path, tmp_path: Path, ray_local: None) -> None:
    for path in tiles.rglob("*.fits"):
        path.write_bytes(path.read_bytes()[:2880])
    with pytest.raises(UserError, match="tiles: none of the 8 images can be used; the most common reason"):
        made(tmp_path)
    write_sky(tiles, LAYOUTS["hsc"])
    assert made(tmp_path).num_rows == 8


def test_list_surveys_prints_what_each_expects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["footprint", "--list-surveys"]) == 0
    shown = capsys.readouterr().out
    assert "legacy: DESI Legacy Imaging Surveys" in shown
    assert "unverified: " in shown
