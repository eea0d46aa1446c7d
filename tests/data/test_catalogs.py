"""Input catalogues: CSV, FITS and Parquet give the same table, and identifiers survive exactly."""

import bz2
import gzip
from pathlib import Path

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import MaskedColumn, Table

from gampen_ray.data.catalogs import column_unit, numbers, read_catalog, require_columns, to_ids
from gampen_ray.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "real"
# Neighbours that are one float64.
SDSS_IDS = [587722984439545906, 587722984439545907, 587739130813546660]


def _write(path: Path) -> None:
    table = Table({"objid": SDSS_IDS, "file_name": ["a.fits", "b.fits", "c.fits"], "flux": [1.5, 2.5, 3.5], "bulge": [1, 2, 3]})
    table["flux"].unit = u.Jy
    if ".csv" in path.suffixes:
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
            file.write("objid,file_name,flux,bulge\n" + "\n".join(",".join(map(str, row)) for row in table) + "\n")
    elif path.suffix == ".parquet":
        arrow = pa.table({name: table[name].tolist() for name in table.colnames})
        fields = [field.with_metadata({"unit": "Jy"}) if field.name == "flux" else field for field in arrow.schema]
        pq.write_table(arrow.cast(pa.schema(fields)), path)
    else:
        table.write(path, format="fits")


@pytest.mark.parametrize("name", ["c.csv", "c.fits", "C.FIT", "c.csv.gz", "c.fits.gz", "c.parquet"])
def test_every_format_gives_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _write(path)
    table = read_catalog(str(path), ("objid", "file_name"))
    assert table.column_names == ["objid", "file_name", "flux", "bulge"]
    ids = to_ids(table.column("objid"))
    assert (ids.type, ids.to_pylist()) == (pa.int64(), SDSS_IDS)
    assert table.column("file_name").to_pylist() == ["a.fits", "b.fits", "c.fits"]
    assert numbers(table.column("flux"))[0].tolist() == [1.5, 2.5, 3.5]
    assert column_unit(table, "flux") == ("" if ".csv" in name else "Jy")


def test_fits_masks_and_vectors(tmp_path: Path) -> None:
    table = Table({"id": MaskedColumn([1, 2, 3], mask=[False, True, False]), "x": [1.0, np.nan, 3.0], "v": np.zeros((3, 2))})
    table.write(tmp_path / "c.fits")
    read = read_catalog(str(tmp_path / "c.fits"))
    assert read.column_names == ["id", "x"]
    assert to_ids(read.column("id")).to_pylist() == [1, None, 3]


def test_parquet_drops_non_scalar_columns_and_decodes_dictionaries(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [[1], [2]], "b": pa.array(["x", "y"]).dictionary_encode()}), tmp_path / "c.parquet")
    read = read_catalog(str(tmp_path / "c.parquet"))
    assert read.schema == pa.schema([("b", pa.string())])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["1", " 2 ", ""]), pa.array([1, 2, None])),
        (pa.array(["007", "8"]), pa.array(["007", "8"])),
        (pa.array(["1_0", "8"]), pa.array(["1_0", "8"])),
        (pa.array(["1.0", "2"]), pa.array(["1.0", "2"])),
        (pa.array(["99999999999999999999", "2"]), pa.array(["99999999999999999999", "2"])),
        (pa.array(["G1", None]), pa.array(["G1", None])),
        (pa.array([2**64 - 1, 1], type=pa.uint64()), pa.array([str(2**64 - 1), "1"])),
        (pa.array([3, None], type=pa.int16()), pa.array([3, None])),
        (pa.array([1.0, None, np.nan]), pa.array([1, None, None])),
    ],
)
def test_ids_are_integers_only_where_nothing_is_lost(values: pa.Array, expected: pa.Array) -> None:
    assert to_ids(pa.chunked_array([values])).equals(expected)


@pytest.mark.parametrize("value", [1.5, 587722984439545906.0])
def test_inexact_ids_are_refused(value: float) -> None:
    with pytest.raises(UserError, match="floating-point numbers, which are not exact"):
        to_ids(pa.chunked_array([pa.array([value])]))


def test_numbers_report_what_is_wrong() -> None:
    values, faults = numbers(pa.chunked_array([pa.array(["1.5", "abc", None, "inf", " "])]))
    assert values[0] == 1.5
    assert faults.tolist() == [
        "",
        "is 'abc', not a finite number",
        "is missing",
        "is 'inf', not a finite number",
        "is missing",
    ]
    assert numbers(pa.chunked_array([pa.array([np.nan, 2])]))[1].tolist() == ["is nan, not a finite number", ""]


def test_missing_columns_name_the_field_and_the_existing_columns(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    _write(path)
    with pytest.raises(
        UserError, match=r"targets: catalog .*c.csv has no column 'mass'; its columns: objid, file_name, flux, bulge"
    ):
        require_columns(str(path), read_catalog(str(path)), {"flux": "targets", "mass": "targets"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.doc", "a\n1\n", "the name must end in .csv, .tsv"),
        ("c.txt", "a\n1 2\n3\n", "c.txt: cannot be read: the layout of its columns cannot be guessed"),
        ("c.csv", "", "c.csv: cannot be read: Empty CSV"),
        ("c.csv", "a,b\n", "c.csv: has no rows"),
        ("c.csv", "a,b\n1\n", "Expected 2 columns, got 1"),
        ("c.csv", "a,a\n1,2\n", "several columns are named 'a'"),
        ("c.fits", "text", "c.fits: cannot be read"),
        ("c.parquet", "text", "c.parquet: cannot be read"),
    ],
)
def test_unreadable_catalogues(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_catalog(str(tmp_path / name))


def test_truncated_and_missing_catalogues(tmp_path: Path) -> None:
    path = tmp_path / "c.fits"
    Table({"a": np.arange(5000)}).write(path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"c.fits: cannot be read: .*truncated"):
        read_catalog(str(path))
    with pytest.raises(UserError, match="no such file"):
        read_catalog(str(tmp_path / "absent.csv"))


_TEXTS = {
    "bom.csv": "\ufeffobjid,name,flux\n",
    "semicolon.csv": "objid;name;flux\n",
    "tab.tsv": "objid\tname\tflux\n",
    "comments.csv": "# made by hand\n# twice\nobjid,name,flux\n",
    "hsc.csv": "# objid,name,flux\n",
    "index.csv": ",# objid,name,flux\n",
    "spaces.txt": "# objid name flux\n",
    "fixed.txt": "| objid | name | flux |\n",
}


def _rows_of(table: pa.Table) -> dict[str, list]:
    return {
        "objid": to_ids(table["objid"]).to_pylist(),
        "name": table["name"].to_pylist(),
        "flux": numbers(table["flux"])[0].tolist(),
    }


ROWS = {"objid": SDSS_IDS, "name": ["007", "008", "9"], "flux": [1.5, -2.5, 0.25]}


@pytest.mark.parametrize("name", _TEXTS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_dialects_of_text_tables_give_the_same(tmp_path: Path, name: str, newline: str) -> None:
    header = _TEXTS[name]
    delimiter = next(one for one in "|,;\t " if one in header.removeprefix("# made by hand").lstrip("# "))
    rows = [list(map(str, row)) for row in zip(*ROWS.values(), strict=True)]
    if name == "index.csv":
        rows = [[str(index), *row] for index, row in enumerate(rows)]
    lines = [f"| {' | '.join(row)} |" if delimiter == "|" else delimiter.join(row) for row in rows]
    (tmp_path / name).write_bytes((header + "\n".join(lines) + "\n").replace("\n", newline).encode())
    assert _rows_of(read_catalog(str(tmp_path / name), ("objid", "name"))) == ROWS


def test_a_spreadsheet_with_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id;flux\n1;1,5\n2;-2,25\n")
    assert read_catalog(str(tmp_path / "c.csv"))["flux"].to_pylist() == [1.5, -2.25]
    (tmp_path / "c.csv").write_bytes("id\tflux\n1\t1.5\n".encode("utf-16"))
    assert read_catalog(str(tmp_path / "c.csv"))["flux"].to_pylist() == [1.5]


@pytest.mark.parametrize(
    ("suffix", "format_"),
    [
        ("ecsv", "ascii.ecsv"),
        ("csv", "ascii.ecsv"),
        ("vot", "votable"),
        ("xml", "votable"),
        ("mrt", "ascii.mrt"),
        ("dat", "ascii.cds"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_astropys_tables_keep_identifiers_and_units(tmp_path: Path, suffix: str, format_: str) -> None:
    table = Table(ROWS)
    table["flux"].unit = u.Jy
    path = tmp_path / f"c.{suffix}"
    if format_ == "ascii.cds":
        table.write(tmp_path / "c.mrt", format="ascii.mrt")
        # The table of a CDS file has no title.
        text = (tmp_path / "c.mrt").read_text()
        path.write_text(text[text.index("=====") :])
    else:
        table.write(path, format=format_)
    read = read_catalog(str(path), ("objid", "name"))
    assert _rows_of(read) == ROWS
    assert column_unit(read, "flux") == "Jy"
    path.with_name(f"d.{suffix}.bz2").write_bytes(bz2.compress(path.read_bytes()))
    assert read_catalog(str(path.with_name(f"d.{suffix}.bz2")), ("objid", "name")).equals(read)


def test_masked_texts_are_missing(tmp_path: Path) -> None:
    Table({"id": MaskedColumn(["a", "b"], mask=[False, True]), "x": [1, 2]}).write(tmp_path / "c.vot", format="votable")
    assert to_ids(read_catalog(str(tmp_path / "c.vot"))["id"]).to_pylist() == ["a", None]


def test_texts_of_parquet_that_are_none_are_one_line(tmp_path: Path) -> None:
    texts = pa.array([b"fine", b"1.5\xf4\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": [1, 2], "flux": texts}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match=r"^catalog .*/c\.parquet: cannot be read: .*UTF8"):
        read_catalog(str(tmp_path / "c.parquet"))


def test_a_folder_of_parquet_and_a_hats_catalogue(tmp_path: Path) -> None:
    for folder, name in (("plain", "a.parquet"), ("hats", "dataset/Norder=1/Dir=0/Npix=4.parquet")):
        first = tmp_path / folder / name
        first.parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": [1, 2], "image": [[1.0], [2.0]]}), first)
        pq.write_table(
            pa.table({"id": [3], "image": [[1.0]]}), first.with_name(first.name.replace("a.", "b.").replace("4", "5"))
        )
    (tmp_path / "hats" / "dataset" / "_metadata").write_bytes(b"")
    pq.write_table(pa.table({"id": [3]}), tmp_path / "hats" / "dataset" / "data_thumbnail.parquet")
    (tmp_path / "hats" / "hats.properties").write_text("hats_nrows = 3\n")
    (tmp_path / "collection.properties").write_text("#HATS\nhats_primary_table_url=hats\n")
    for folder in ("plain", "hats", "."):
        assert read_catalog(str(tmp_path / folder)).to_pydict() == {"id": [1, 2, 3]}


@pytest.mark.parametrize("value", ["3.90E+16", "3,90E+16", "587722984439545906.0", "4e16"])
def test_identifiers_that_a_spreadsheet_rounded_are_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"id_column: the identifier '.*' has been rounded by a spreadsheet"):
        to_ids(pa.chunked_array([pa.array(["1", value])]))
    # A name in such a notation, with letters besides, is a name.
    assert to_ids(pa.chunked_array([pa.array(["J1E+5", "1e-3"])])).type == pa.string()


def test_hexadecimal_identifiers_are_names() -> None:
    values = pa.chunked_array([pa.array(["4e12", "00ff", "12345678", None])])
    assert to_ids(values).to_pylist() == ["4e12", "00ff", "12345678", None]
    with pytest.raises(UserError, match="rounded"):
        to_ids(pa.chunked_array([pa.array(["3.90E+16", "NGC 1"])]))


def test_a_table_in_latin_1(tmp_path: Path) -> None:
    for ids in ("caf\xe9", "1"):
        text = f"object_id,comment\n{ids},na\xefve\n"
        (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
        read = read_catalog(str(tmp_path / "a.csv"), ("object_id",))
        assert read.to_pydict() == {"object_id": [ids], "comment": ["na\xefve"]}


@pytest.mark.skipif(not REAL.exists(), reason="needs the real files")
def test_hsc_catalogues_as_downloaded() -> None:
    for name in ("hyrax_star_cat.csv", "hyrax_star_cat.fits"):
        table = read_catalog(str(REAL / name), ("object_id",))
        assert table.column_names[:2] == ["object_id", "parent_id"]
        assert to_ids(table["object_id"]).type == pa.int64()


def test_a_column_number_of_sextractor_is_bounded(tmp_path: Path) -> None:
    # Astropy would make a billion columns.
    (tmp_path / "a.cat").write_text("#   1 NUMBER      Running number\n#   1000000000 FLUX_AUTO   Flux [count]\n  0 12.98\n")
    with pytest.raises(UserError, match="a comment numbers column 1,000,000,000, of 5,000 at most; correct or remove it"):
        read_catalog(str(tmp_path / "a.cat"))
