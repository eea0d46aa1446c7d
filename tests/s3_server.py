"""A real S3-compatible server (SeaweedFS) on loopback, for tests and benchmarks."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

BUCKET = "galaxies"
"""Name of the bucket that a new server has."""
_START_SECONDS = 60


def s3_environment() -> dict[str, str]:
    """Return the variables that lead to a server on a free port of loopback, which `s3_server` starts, with a new secret."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{_free_ports(1)[0]}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
    }


@contextlib.contextmanager
def s3_server(folder: Path, environment: dict[str, str] | None = None) -> Iterator[dict[str, str]]:
    """Run a server that keeps its data in a folder, with the bucket `BUCKET`.

    Parameters
    ----------
    folder
        For data and log; no server may have used it before.
    environment
        Of `s3_environment`, where it must be known before the server runs; left out: a new one.

    Yields
    ------
    dict
        The variables (``AWS_ENDPOINT_URL`` and so on) with which gampen_ray finds it; they are not set here.
    """
    environment = environment or s3_environment()
    data, log = folder / "data", folder / "server.log"
    data.mkdir(parents=True)
    with log.open("wb") as output:
        # The server takes the keys that it accepts from its own environment.
        command = _command(int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2]), data)
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=os.environ | environment)
    try:
        _make_bucket(environment, server, log)
        yield environment
    finally:
        # Its data are thrown away: it need not wait ten seconds for idle connections.
        server.kill()
        server.wait()


def _command(s3_port: int, data: Path) -> list[str]:
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = _free_ports(7)
    return [
        str(Path(sys.executable).with_name("weed")),
        *("-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.telemetry=false"),
        *("-master.volumeSizeLimitMB=128", f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=100"),
        # By default it takes no more writes where less than 1 % of a disk is free, which may be gigabytes.
        "-volume.minFreeSpace=64MiB",
        *("-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}"),
        *("-s3", f"-s3.port={s3_port}", f"-s3.port.grpc={s3_grpc}"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
    ]


def _make_bucket(environment: dict[str, str], server: subprocess.Popen, log: Path) -> None:
    # The first file that is written says that the server is up: a bucket is made where no volume has space, too.
    filesystem = pafs.S3FileSystem(
        access_key=environment["AWS_ACCESS_KEY_ID"],
        secret_key=environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=environment["AWS_ENDPOINT_URL"],
        region=environment["AWS_REGION"],
        allow_bucket_creation=True,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
        request_timeout=10,
    )
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            filesystem.create_dir(BUCKET)
            with filesystem.open_output_stream(f"{BUCKET}/.up") as stream:
                stream.write(b"up")
            return filesystem.delete_file(f"{BUCKET}/.up")
        except OSError as error:
            if server.poll() is not None or time.monotonic() > end:
                lines = "\n".join(log.read_text().splitlines()[-20:])
                raise RuntimeError(f"the S3 server did not start (exit code {server.poll()}): {error}\n{lines}") from None
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        # All are held until the last is found, so that none comes twice.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]
