"""Fixtures that several folders of tests share."""

import logging
import os
from collections.abc import Iterator

import pytest

# Ray's workers inherit these: two of them on two cores must not start four threads each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The hats libraries: compiling takes ten seconds, what is compiled none.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")


@pytest.fixture(autouse=True)
def package_logger() -> Iterator[None]:
    """Undo what the command line does to the package's logger: its handler holds this test's standard error."""
    yield
    logger = logging.getLogger("gampen_ray")
    logger.handlers, logger.propagate = [], True


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray with two CPUs for all tests that need it; code under test finds it running and keeps it."""
    import ray

    from gampen_ray.engine.session import ray_session

    with ray_session():
        assert ray.is_initialized()
        yield
