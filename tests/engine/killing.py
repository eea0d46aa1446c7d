"""Kill an inference again and again, and hold what comes out against an uninterrupted one; prints JSON.

``python -m tests.engine.killing --galaxies 20000 --shards 40 --kills driver,actor,node,actor,driver``: on a real S3 server and
a cluster of three nodes. Each kill is a SIGKILL at a random moment of the job; after a driver's the command is given again.
With ``--tiles 40`` the galaxies are sources of a catalogue on so many tiles in two bands, and there are no shards.
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from astropy.io import fits
from astropy.wcs import WCS
from ray.cluster_utils import Cluster

import gampen_ray
from gampen_ray import storage
from gampen_ray.catalog.manifest import MANIFEST
from gampen_ray.catalog.parquet import CATALOG, QUARANTINE
from gampen_ray.data import shards
from gampen_ray.inference.bundle import load_bundle
from gampen_ray.posterior.summary import summary_columns
from tests.data.tiles.layouts import LAYOUTS, TileContent
from tests.networks import NETWORK, bundle, galaxies
from tests.s3_server import BUCKET, s3_server

_BAD_EVERY = 97
# Slow enough that the actors, and not the writers, have most of the work.
SLOW_NETWORK = dataclasses.replace(NETWORK, backbone=dataclasses.replace(NETWORK.backbone, plan=(64, "M", 128, "M")))
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "OMP_NUM_THREADS": "1",
    # A dead node is noticed in seconds, a slow one is left alone.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}
_TILE_FLAGS = (f"--catalog=s3://{BUCKET}/kill/sources.parquet", "--reader.nan-policy=zero")
_NODE = {"num_cpus": 1, "object_store_memory": 150 << 20}


def main() -> None:
    """Run and print what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--galaxies", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--tiles", type=int, default=0)
    parser.add_argument("--passes", type=int, default=32)
    parser.add_argument("--kills", default="driver,actor,node,actor,driver")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", choices=("job", "library"), default="job", help="what the result is held against")
    arguments = parser.parse_args()
    os.environ |= _ENVIRONMENT
    # Paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="kill", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()
        os.environ["RAY_TMPDIR"] = folder
        with s3_server(Path(folder) / "s3") as environment:
            os.environ |= environment
            tiles = arguments.tiles
            inputs = _tiles(arguments.galaxies, tiles) if tiles else _inputs(arguments.galaxies, arguments.shards)
            reference = None if arguments.reference == "job" else _predicted(inputs, arguments.galaxies, arguments.passes)
            cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
            nodes = [cluster.add_node(**_NODE) for _ in range(2)]
            try:
                rng = np.random.default_rng(arguments.seed)
                killer = _Killer(cluster, nodes, inputs, arguments.passes, rng, extra=_TILE_FLAGS if tiles else ())
                result = killer.run(arguments.kills.split(","), tiles or arguments.shards, reference)
            finally:
                # Without this they drain for half a minute.
                for node in cluster.list_all_nodes():
                    cluster.remove_node(node, allow_graceful=False)
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _inputs(count: int, num_shards: int) -> str:
    """Upload a model and galaxies, some of them unusable, and return their folder."""
    root = f"s3://{BUCKET}/kill"
    bundle(SLOW_NETWORK).save(f"{root}/model")
    columns = galaxies(count)
    columns["image"][::_BAD_EVERY, 0, 0, 0] = np.nan
    info = shards.DatasetInfo(
        bands=("r",), cutout_size=columns["image"].shape[-1], num_rows={shards.ALL: count}, fingerprint="f"
    )
    for part, rows in enumerate(np.array_split(np.arange(count), num_shards)):
        shards.write_shard(shards.part_uri(f"{root}/data", shards.ALL, part), {k: v[rows] for k, v in columns.items()}, info)
    shards.write_dataset_info(f"{root}/data", info)
    return root


def _tiles(count: int, num_tiles: int) -> str:
    """Upload a model, tiles of the Legacy Surveys with sources, their footprint and a catalogue, and return their folder."""
    root, side, layout = f"s3://{BUCKET}/kill", 320, LAYOUTS["legacy"]
    bundle(SLOW_NETWORK, layout.bands).save(f"{root}/model")
    rng, degrees = np.random.default_rng(0), layout.scale_arcsec / 3600
    places = []
    with tempfile.TemporaryDirectory() as folder:
        for number, rows in enumerate(np.array_split(np.arange(count), num_tiles)):
            cards = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "RADESYS": "ICRS"})
            cards.update({"CRPIX1": side / 2, "CRPIX2": side / 2, "CRVAL1": 10.0 + 0.05 * number, "CRVAL2": 0.0})
            cards.update({"CD1_1": -degrees, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": degrees})
            # A few beyond the edge, in no tile.
            x_N, y_N = rng.uniform(-3, side, (2, len(rows)))
            places.append(np.stack(WCS(cards).all_pix2world(x_N, y_N, 0)))
            bad_HW = rng.random((side, side)) < 1e-3
            noise_HW = np.full((side, side), 0.1, np.float32)
            for band in layout.bands:
                image_HW = rng.normal(0, 0.1, (side, side)).astype(np.float32)
                image_HW[np.clip(y_N, 0, side - 1).astype(int), np.clip(x_N, 0, side - 1).astype(int)] += 5.0
                layout.write(TileContent(Path(folder), f"{number:04d}m001", band, image_HW, noise_HW, bad_HW, cards))
        for path in sorted(Path(folder).rglob("*.fz")):
            storage.write_bytes_atomic(f"{root}/tiles/{path.relative_to(folder)}", path.read_bytes())
    gampen_ray.footprint(survey="legacy", tiles=f"{root}/tiles", output=f"{root}/data", resources={"engine": "local"})
    ra_N, dec_N = np.concatenate(places, axis=1)
    table, sink = pa.table({"object_id": np.arange(count), "ra": ra_N, "dec": dec_N}), pa.BufferOutputStream()
    pq.write_table(table, sink)
    storage.write_bytes_atomic(f"{root}/sources.parquet", sink.getvalue())
    return root


def _predicted(root: str, count: int, passes: int) -> pa.Table:
    """Return the summaries of the usable galaxies without Ray and its files."""
    columns = galaxies(count)
    usable = np.arange(count) % _BAD_EVERY != 0
    torch.set_num_threads(os.cpu_count() or 1)
    posterior = load_bundle(f"{root}/model").predict(columns["image"][usable], num_passes=passes)
    return posterior.to_table().append_column("object_id", pa.array(columns["object_id"][usable]))


def inference_actors(address: str) -> list[int]:
    """Return the process ids of the inference actors of a cluster."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            parent = re.search(r"PPid:\s+(\d+)", (folder / "status").read_text())
            raylet = Path("/proc", parent[1], "cmdline").read_text() if parent else ""
        except OSError:
            continue
        if name.startswith("ray::") and "MapWorker" in name and address in raylet:
            found.append(int(folder.name))
    return found


class _Killer:
    def __init__(
        self, cluster: Cluster, nodes: list, root: str, passes: int, rng: np.random.Generator, extra: tuple[str, ...] = ()
    ) -> None:
        self._cluster, self._nodes, self._root, self._passes, self._rng = cluster, nodes, root, passes, rng
        self._extra = extra

    def run(self, kills: list[str], num_files: int, reference: pa.Table | None) -> dict:
        """Predict with kills, and without where there is no reference; return what was seen."""
        if reference is None:
            assert self._start("whole").wait() == 0
            reference = self._table("whole", CATALOG)
        # At random fractions of the work, in order.
        marks = np.sort(self._rng.uniform(0.05, 0.9, len(kills))) * num_files
        driver, killed = self._start("killed"), []
        written: dict[str, int] = {}
        for kind, mark in zip(kills, marks, strict=True):
            while len(self._files("killed")) < mark and driver.poll() is None:
                time.sleep(0.2)
            time.sleep(self._rng.uniform(0, 1))
            assert driver.poll() is None, f"the job ended before the {kind} was killed; give more galaxies or passes"
            written |= self._written("killed")
            self._kill(kind, driver)
            killed.append({"kind": kind, "files_before": len(written)})
            if kind == "driver":
                assert driver.wait() == -signal.SIGKILL
                driver = self._start("killed")
        assert driver.wait() == 0
        rewritten = [name for name, when in self._written("killed").items() if written.get(name, when) != when]
        again = subprocess.run(self._command("killed"), capture_output=True, text=True, check=True)
        return {
            "kills": killed,
            "files": len(self._files("killed")),
            "finished_files_written_again": len(rewritten),
            "same_command_says_complete": "is complete; nothing to do" in again.stderr,
            **self._compare(reference),
        }

    def _kill(self, kind: str, driver: subprocess.Popen) -> None:
        if kind == "driver":
            driver.kill()
        elif kind == "actor":
            os.kill(int(self._rng.choice(self._actors(driver))), signal.SIGKILL)
        else:
            self._cluster.remove_node(self._nodes.pop(int(self._rng.integers(len(self._nodes)))), allow_graceful=False)
            self._nodes.append(self._cluster.add_node(**_NODE))

    def _actors(self, driver: subprocess.Popen) -> list[int]:
        """Wait for inference actors of this cluster and return their process ids."""
        while not (found := inference_actors(self._cluster.address)):
            assert driver.poll() is None, "the job ended before an actor was killed; give more galaxies or passes"
            time.sleep(0.1)
        return found

    def _command(self, output: str) -> list[str]:
        fields = {"bundle": "model", "dataset": "data", "output": output}
        flags = [f"--{name}={self._root}/{value}" for name, value in fields.items()]
        settings = [f"--num-passes={self._passes}", "--resources.num-workers=2", "--resources.cpus-per-worker=0.4"]
        return [sys.executable, "-m", "gampen_ray", "infer", *flags, *settings, *self._extra]

    def _start(self, output: str) -> subprocess.Popen:
        environment = os.environ | {"RAY_ADDRESS": self._cluster.address}
        # What Ray says of dead nodes is not part of the JSON.
        return subprocess.Popen(self._command(output), env=environment, stdout=sys.stderr)

    def _files(self, output: str) -> list[str]:
        return storage.list_files(f"{self._root}/{output}/{CATALOG}", ".parquet")

    def _written(self, output: str) -> dict[str, int]:
        """When each catalogue file was written."""
        uris = self._files(output)
        fs, _ = storage.filesystem(self._root)
        return {
            uri: info.mtime_ns
            for uri, info in zip(uris, fs.get_file_info([u.removeprefix("s3://") for u in uris]), strict=True)
        }

    def _compare(self, wanted: pa.Table) -> dict:
        got = self._table("killed", CATALOG)
        ids = got["object_id"].to_pylist() + [int(name) for name in self._table("killed", QUARANTINE)["object_id"].to_pylist()]
        names = [column.name for column in summary_columns(load_bundle(f"{self._root}/model").targets)]
        differences = [
            np.max(np.abs(got[name].to_numpy() - wanted[name].to_numpy()) / (np.abs(wanted[name].to_numpy()) + 1e-6))
            for name in names
        ]
        manifest = storage.read_json(f"{self._root}/killed/{MANIFEST}")
        return {
            "ids": len(set(ids)),
            "duplicates": sum(count - 1 for count in Counter(ids).values()),
            "in_catalogue": manifest["num_galaxies"],
            "in_quarantine": manifest["num_quarantined"],
            "same_ids": wanted["object_id"].to_pylist() == got["object_id"].to_pylist(),
            "largest_relative_difference": float(max(differences)),
        }

    def _table(self, output: str, folder: str) -> pa.Table:
        tables = []
        for uri in storage.list_files(f"{self._root}/{output}/{folder}", ".parquet"):
            with storage.open_input(uri) as source:
                tables.append(pq.read_table(source))
        return pa.concat_tables(tables).sort_by("object_id")


if __name__ == "__main__":
    main()
