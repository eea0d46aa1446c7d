"""Fixtures that several folders of tests share."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.s3_server import BUCKET, s3_environment, s3_server

# A suite in a shell's background ignores Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Ray's workers inherit these: two of them on two cores must not start four threads each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# On a busy machine threads of small tensors wait for one another.
torch.set_num_threads(1)
# The hats libraries: compiling takes ten seconds, what is compiled none.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold slow tests, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def package_logger() -> Iterator[None]:
    """Undo what the command line does to the package's logger: its handler holds this test's standard error."""
    yield
    logger = logging.getLogger("gampen_ray")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def storage_environment() -> Iterator[dict[str, str]]:
    """Variables of the S3 server, set before Ray starts, as its workers inherit them; the server itself may start later."""
    environment = s3_environment()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(scope="session")
def s3_bucket(storage_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of the bucket of a real S3 server, which runs until the last test is done."""
    with s3_server(tmp_path_factory.mktemp("s3"), storage_environment):
        yield f"s3://{BUCKET}"


@pytest.fixture
def s3_folder(s3_bucket: str, tmp_path: Path) -> str:
    """URI of a folder in that bucket for one test."""
    return f"{s3_bucket}/{tmp_path.name}"


@pytest.fixture(scope="session")
def ray_local(storage_environment: dict[str, str]) -> Iterator[None]:
    """One local Ray with two CPUs for all tests that need it; code under test finds it running and keeps it."""
    del storage_environment
    import ray

    from gampen_ray.engine.session import ray_session

    with ray_session():
        assert ray.is_initialized()
        yield


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a folder for output, on the local disk and on S3."""
    return str(tmp_path / "o") if request.param == "local" else request.getfixturevalue("s3_folder")
