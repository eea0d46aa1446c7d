"""astropy without the network, for files from outside: a date in one would make it download tables of time."""

import contextlib
import threading
from collections.abc import Iterator

from astropy.utils import iers

_lock = threading.Lock()


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Keep astropy from downloading leap seconds and the Earth's rotation; the setting is the process's, and restored."""
    with _lock, iers.conf.set_temp("auto_download", False), iers.conf.set_temp("auto_max_age", None):
        yield
