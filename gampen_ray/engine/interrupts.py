"""Ctrl-C, and SIGTERM, by which clusters end a job."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_interrupted = threading.Event()


def raise_if_interrupted() -> None:
    """Raise the KeyboardInterrupt of a Ctrl-C or SIGTERM that Ray has swallowed in a callback or destructor."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Raise a KeyboardInterrupt on Ctrl-C, unless the process ignores it, and on SIGTERM."""
    _interrupted.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    # None: a handler of Ray's C++, which would print a stack trace and end the process.
    handlers = {number: signal.signal(number, _interrupt) or signal.SIG_DFL for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    _interrupted.set()
    raise KeyboardInterrupt
