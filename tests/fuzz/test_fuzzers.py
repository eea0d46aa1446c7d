"""A short run of what `make fuzz` does at length, and findings of it, made again."""

import gzip
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gampen_ray.cli import parse
from gampen_ray.config import ReaderConfig
from gampen_ray.data.catalogs import read_catalog
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.parquet_footers import footer_of
from gampen_ray.data.reader_process import bytes_per_row
from gampen_ray.errors import UserError
from gampen_ray.gampen.weights import read_state_dict
from tests.fuzz import mutations
from tests.fuzz.all import FUZZERS
from tests.fuzz.harness import generator
from tests.gampen.test_weights import saved


def test_mutated_input_is_read_or_refused_in_one_line() -> None:
    # In a process of its own: the memory is the largest that a process ever had.
    command = [sys.executable, "-m", "tests.fuzz", "--count", "8", "--seed", "20"]
    results = json.loads(subprocess.run(command, check=False, capture_output=True, text=True).stdout)
    assert results.keys() == FUZZERS.keys()
    for name, result in results.items():
        assert result["found"] == [], name
        assert result["peak_memory_gb"] < 1.5, name
    assert sum(result["read"] for result in results.values()) > 5


@pytest.mark.parametrize("name", FUZZERS)
def test_a_mutation_is_reproduced_by_its_seed_and_number(name: str, tmp_path: Path) -> None:
    written = []
    for place in ("first", "again"):
        folder = tmp_path / place
        folder.mkdir()
        FUZZERS[name](generator(1, 4), 4, folder)
        written.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert written[0] == written[1]


def test_a_document_is_mutated_in_its_structure() -> None:
    intact = {"a": [1, 2.5], "b": {"c": "text"}}
    texts = {mutations.document(intact, generator(1, number)) for number in range(200)}
    assert len(texts) > 150
    assert any(b"NaN" in text for text in texts)


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, "\udcff"])
def test_flags_that_no_toml_holds(text: str) -> None:
    with pytest.raises(UserError, match=r"^(galaxies_per_shard|seed|output): "):
        parse(["simulate", "--output", "o" if text != "\udcff" else text, "--seed", text])


def test_a_toml_file_of_nested_arrays(tmp_path: Path) -> None:
    for depth in (300, 5000):
        (tmp_path / "c.toml").write_text(f"seed = {'[' * depth}{']' * depth}\noutput = 'o'\n")
        with pytest.raises(UserError, match=r"nested too deeply|not valid TOML"):
            parse(["simulate", str(tmp_path / "c.toml")])


def test_a_parquet_footer_over_which_arrow_ends_the_process(tmp_path: Path) -> None:
    written = io.BytesIO()
    pq.write_table(pa.table({"flux": np.ones(30)}), written)
    data = written.getvalue()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    # The numbers of missing and of known values, 0 and 30 in Thrift's encoding: one of them is left out.
    assert b"\x19\x26\x00\x3c" in data[start:]
    footer = data[start:-8].replace(b"\x19\x26\x00\x3c", b"\x19\x16\x3c", 1)
    (tmp_path / "a.parquet").write_bytes(data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read: Definition level histogram size mismatch"):
        read_catalog(str(tmp_path / "a.parquet"))
    with pa.OSFile(str(tmp_path / "a.parquet")) as source:
        footer = footer_of(source)
    with pytest.raises(CutoutError, match=r"reading it ended the process that read it \(signal 6\)"):
        bytes_per_row(footer, "flux", ReaderConfig())
    with pytest.raises(CutoutError, match=r"the footer .* 1 \(reader\.max_mebibytes\)"):
        bytes_per_row(bytes(2 << 20), "flux", ReaderConfig(max_mebibytes=1))


def test_weights_that_are_compressed() -> None:
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(10)}))) as intact,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for name in intact.namelist():
            file.writestr(name, intact.read(name))
    with pytest.raises(UserError, match=r"m\.pt is not a state dict; give the undamaged file"):
        read_state_dict(bomb.getvalue(), "m.pt")


def test_small_catalogues_of_much_content(tmp_path: Path) -> None:
    repeated = io.BytesIO()
    zero_N = pa.array(np.zeros(8_000_000))
    pq.write_table(pa.table(dict.fromkeys("abcde", zero_N)), repeated, compression="zstd")
    zeros = b"0,0\n" * 5_000_000
    for name, content, match in (
        ("a.csv.gz", gzip.compress(b"a,b\n" + zeros, 1), "decompresses to more than 16 MiB"),
        ("a.txt.gz", gzip.compress(b"a b\n" + zeros.replace(b",", b" "), 1), "decompresses to more than 16 MiB"),
        ("a.parquet", repeated.getvalue(), "it has more than 256 MiB in memory, 200 times its size"),
        ("a.csv", b"a," * 100_000, "a line has 100,000 fields, more than 5,000; store the table as FITS or Parquet"),
        ("a.txt", b"a " * 100_000, "a line has 100,000 fields"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=match):
            read_catalog(str(tmp_path / name))


# Minutes, where every name is compared with every other.
@pytest.mark.timeout(120)
def test_a_catalogue_of_many_columns_is_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(f"c{i}" for i in range(4000)) + "\n" + ",".join("1" * 4000) + "\n")
    assert read_catalog(str(tmp_path / "a.csv")).num_columns == 4000
