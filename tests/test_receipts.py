"""Receipts: a unit is finished if its files are as they were written."""

import logging
import shutil
from pathlib import Path

import pytest

from gampen_ray import storage
from gampen_ray.receipts import verified_receipts, write_receipt


def _write(output: str, unit: str, content: bytes) -> None:
    uris = [storage.join(output, folder, unit) for folder in ("catalog", "quarantine")]
    for uri in uris:
        storage.write_bytes_atomic(uri, content)
    write_receipt(output, unit, uris, {"id_sum": 2**63 + len(content)})


def test_files_are_as_they_were_written_also_elsewhere(output: str, tmp_path: Path) -> None:
    for unit in ("a", "b"):
        _write(output, unit, unit.encode() * 9)
    wanted = {"a": {"id_sum": 2**63 + 9}, "b": {"id_sum": 2**63 + 9}}
    assert verified_receipts(output, dict[str, int]) == wanted
    storage.copy(output, str(tmp_path / "moved"))
    assert verified_receipts(str(tmp_path / "moved"), dict[str, int]) == wanted
    assert verified_receipts(str(tmp_path / "none"), dict[str, int]) == {}


@pytest.mark.parametrize("name", ["catalog/a", "quarantine/a", "receipts/a.json"])
@pytest.mark.parametrize("damage", [b"", b"aaaaxaaaa", b"bbbbbbbbb", None, b"[]", b'{"files": 1}', b'{"files": {}}'])
def test_damaged_exchanged_and_lost_files_are_not(
    name: str, damage: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for unit in ("a", "b"):
        _write(str(tmp_path), unit, unit.encode() * 9)
    if damage is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert verified_receipts(str(tmp_path), dict[str, int]).keys() == {"b"}
    # Without a receipt, there is nothing to say.
    assert ("a.json: the files of this finished unit are damaged or gone" in caplog.text) == (
        tmp_path / "receipts/a.json"
    ).exists()
    shutil.rmtree(tmp_path / "receipts")
    assert verified_receipts(str(tmp_path), dict[str, int]) == {}
