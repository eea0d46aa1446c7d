import dataclasses
from pathlib import Path

import pytest

from gampen_ray.commands.simulate import SimulateConfig, simulate
from gampen_ray.config import TaskResources
from gampen_ray.data import shard_index, shards
from gampen_ray.data.sources import dataset_units
from gampen_ray.errors import UserError
from tests.networks import dataset


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset of five shards with an index."""
    monkeypatch.setattr(shard_index, "_LEAST_SHARDS", 5)
    dataset(str(tmp_path), {"train": 40, "val": 10}, rows_per_shard=10)
    shard_index.write_index(str(tmp_path), shards.read_dataset_info(str(tmp_path)))
    return str(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards whose footers are read."""
    names, real = [], shards.read_footer

    def footer(uri: str, info: shards.DatasetInfo) -> shards.Footer:
        names.append(uri.rpartition("/")[2])
        return real(uri, info)

    monkeypatch.setattr(shards, "read_footer", footer)
    return names


def test_footers_of_the_index_are_those_of_the_shards(root: str, read: list[str]) -> None:
    info = shards.read_dataset_info(root)
    for split in ("", "train", "val"):
        uris = shards.shard_uris(root, split)
        known = shard_index.footers(root, uris, info)
        assert read == []
        assert known == [shards.read_footer(uri, info) for uri in uris]
        read.clear()
    units = dataset_units(root, "train", info, 10)
    assert read == []
    (Path(root) / shard_index.INDEX).unlink()
    assert dataset_units(root, "train", info, 10) == units
    assert len(read) == 4


def test_a_shard_that_was_replaced_is_read(root: str, read: list[str]) -> None:
    info, uri = shards.read_dataset_info(root), shards.shard_uris(root)[2]
    before = shard_index.footers(root, shards.shard_uris(root), info)
    table = shards.read_shard(uri)
    columns = {name: table[name].to_numpy() for name in ("object_id", *info.target_units)} | {"image": shards.images(table)}
    shards.write_shard(uri, {name: values[:7] for name, values in columns.items()}, info)
    after = shard_index.footers(root, shards.shard_uris(root), info)
    assert read == [uri.rpartition("/")[2]]
    assert [sum(footer.group_rows) for footer in after] == [10, 10, 7, 10, 10]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True, True]
    Path(uri).write_bytes(Path(uri).read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged"):
        shard_index.footers(root, shards.shard_uris(root), info)


def test_an_index_that_is_damaged_or_of_another_dataset_counts_for_nothing(root: str, read: list[str]) -> None:
    info, uris, path = shards.read_dataset_info(root), shards.shard_uris(root), Path(root) / shard_index.INDEX
    other = dataclasses.replace(info, target_units=info.target_units | {"more": ""})
    with pytest.raises(UserError, match="no column 'more'"):
        shard_index.footers(root, uris, other)
    content = path.read_bytes()
    for damaged in (content[:100], b"", content[:200] + b"?" * 50 + content[250:]):
        path.write_bytes(damaged)
        read.clear()
        assert len(shard_index.footers(root, uris, info)) == len(read) == 5


def test_a_few_shards_have_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(name: str) -> bool:
        fields = {"num_galaxies": 12, "galaxies_per_shard": 4, "cutout_size": 32, "resources": TaskResources(engine="local")}
        simulate(SimulateConfig(output=str(tmp_path / name), **fields))
        return (tmp_path / name / shard_index.INDEX).exists()

    assert not made("few")
    monkeypatch.setattr(shard_index, "_LEAST_SHARDS", 3)
    assert made("many")
