"""Templates that fit the names of files, over layouts that surveys and tools use."""

import pytest

from gampen_ray.data.name_templates import band_template, id_template

IDS = ["000007", "000008", "12", "NGC 1300", "J1-2"]


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(
    ("template", "bands"),
    [
        ("{object_id}_{band}.fits", ["g", "r", "i"]),
        ("{object_id}-{band}.fits.gz", ["g", "z"]),
        ("{band}/{object_id}.fits", ["u", "VIS", "J"]),
        ("{object_id}/{band}.fits", ["r", "Ks"]),
        ("deep/{object_id}_{band}_sci.fits", ["F115W", "F200W"]),
        ("{band}_{object_id}.fits", ["g", "r"]),
    ],
)
def test_files_of_several_bands(template: str, bands: list[str], count: int) -> None:
    names = [template.replace("{object_id}", one).replace("{band}", band) for one in IDS[:count] for band in bands]
    assert band_template(names) == (template, bands)


def test_words_around_the_identifier() -> None:
    names = [f"cutout-{one}-HSC-{band}.fits" for one in IDS for band in "GRI"]
    assert band_template(names) == ("cutout-{object_id}-HSC-{band}.fits", ["G", "R", "I"])
    # A galaxy may lack a band.
    assert band_template(names[:-1])[1] == ["G", "R", "I"]


@pytest.mark.parametrize(
    "names",
    [
        [],
        [f"{one}.fits" for one in IDS],
        [f"{one}_r.fits" for one in IDS],
        [f"{one}_r.fits" for one in IDS] + ["1_g.fits"],
        [f"{one}-{number}.fits" for number, one in enumerate(IDS)],
        ["a_g_1.fits", "a_r_1.fits", "b_g_2.fits", "b_r_2.fits"],
    ],
)
def test_files_of_one_band_and_files_that_no_template_fits(names: list[str]) -> None:
    assert band_template(names) == ("", [])


def test_files_of_a_catalogues_rows() -> None:
    names = [f"{one}-cutout-HSC-{number}-pdr2.fits" for number, one in enumerate(IDS)]
    assert id_template(IDS, names, "id") == "{id}-cutout-HSC-*-pdr2.fits"
    assert id_template(IDS, [f"sub/{one}.fits" for one in IDS], "name") == "sub/{name}.fits"
    assert id_template(["1", "2"], ["a.fits"], "id") == ""
