"""Progress of long work: on a terminal a line that is redrawn every second, elsewhere log lines, ever fewer of them.

Phases nest. The innermost one is shown, even while nothing advances.
"""

import logging
import sys
import threading
import time
from typing import Self

from gampen_ray.messages import printable

__all__ = ["ERASE", "Phase", "Progress", "current", "duration"]

ERASE = "\r\x1b[K"
"""Erases the line that is shown on a terminal, before another is written."""
_TICK_S, _DRAW_S = 1.0, 0.1
# Between two log lines of a phase: this long, or this share of the time since it began.
_LOG_INTERVAL_S, _LOG_SHARE = 10.0, 0.05

logger = logging.getLogger(__name__)
_lock = threading.RLock()
_open: list["Phase"] = []


def current() -> str:
    """Return what this process is doing, in one line; empty if no phase is open."""
    with _lock:
        return _open[-1].text() if _open else ""


def duration(seconds: float) -> str:
    """Return a time in a unit that suits it: ``"45 s"``, ``"12 min"``, ``"3.5 h"``, ``"2.1 days"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


class Phase:
    """A part of the work with a name, and the time since it began; a context manager.

    Parameters
    ----------
    what
        Its name, e.g. ``"starting Ray"``.
    announced
        Whether it is shown when it begins, and remains on a terminal when it has ended; otherwise a terminal alone shows it.
    """

    def __init__(self, what: str, *, announced: bool = True) -> None:
        self._what, self._announced = what, announced
        self._begin = self._last = time.monotonic()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._begin = self._last = time.monotonic()
        with _lock:
            _open.append(self)
            if self._announced:
                self._show()
        threading.Thread(target=self._tick, name="gampen_ray progress", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with _lock:
            _open.remove(self)
            if _open:
                _open[-1]._last = time.monotonic()
            if _is_drawn():
                sys.stderr.write(f"{ERASE}{printable(self.text())}\n" if self._announced else ERASE)
                sys.stderr.flush()

    def text(self) -> str:
        """Return the line that is shown."""
        elapsed = self._elapsed_s()
        return self._what + (f", {duration(elapsed)}" if elapsed >= _TICK_S else "")

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begin

    def _show(self) -> None:
        self._last = time.monotonic()
        if _is_drawn():
            sys.stderr.write(ERASE + printable(self.text()))
            sys.stderr.flush()
        else:
            logger.info(self.text())

    def _show_if_due(self, interval_s: float) -> None:
        if not _is_drawn():
            interval_s = max(_LOG_INTERVAL_S, _LOG_SHARE * self._elapsed_s())
        if time.monotonic() - self._last >= interval_s:
            self._show()

    def _tick(self) -> None:
        while not self._ended.wait(_TICK_S):
            with _lock:
                if _open and _open[-1] is self and (self._announced or _is_drawn()):
                    self._show_if_due(0)


class Progress(Phase):
    """A counter of finished work that shows rate and remaining time.

    Parameters
    ----------
    what
        Name of the job, e.g. ``"simulate"``.
    total
        Final count, of each epoch; None: unknown, and a short job shows nothing.
    noun
        What is counted, in the plural, e.g. ``"galaxies"``.
    epochs
        How often the count reaches its total.
    """

    def __init__(self, what: str, total: int | None, noun: str, *, epochs: int = 1) -> None:
        super().__init__(what, announced=total is not None)
        self._total, self._noun, self._epochs, self._note = total, noun, epochs, ""
        self._done = self._skipped = 0

    def skip(self, count: int) -> None:
        """Add what was finished earlier, which does not enter the rate."""
        self._done += count
        self._skipped += count

    def advance(self, count: int, note: str = "") -> None:
        """Add what was finished now, and show it with ``note`` if a line is due."""
        with _lock:
            self._done += count
            self._note = note
            if count and self._total is not None and self._done >= self._total * self._epochs:
                self._show()
            else:
                self._show_if_due(_DRAW_S)

    def text(self) -> str:
        """Return the line that is shown."""
        done, elapsed = self._done, self._elapsed_s()
        text = f"{self._what}: "
        if self._total is None:
            text += f"{done:,} {self._noun}"
        else:
            epoch = min(done // self._total, self._epochs - 1) if self._total else 0
            text += f"epoch {epoch + 1}/{self._epochs}, " if self._epochs > 1 else ""
            text += f"{done - epoch * self._total:,}/{self._total:,} {self._noun}"
        if done > self._skipped:
            rate = (done - self._skipped) / max(elapsed, 1e-9)
            text += f", {rate:,.1f}/s" if rate >= 1 else f", {60 * rate:,.1f}/min"
            if self._total is not None:
                text += f", {duration(max(self._total * self._epochs - done, 0) / rate)} left"
        elif elapsed >= _TICK_S:
            text += f", {duration(elapsed)}"
        return text + (f" | {self._note}" if self._note else "")


def _is_drawn() -> bool:
    """Return whether lines are drawn on a terminal, unless the user asks for quiet."""
    return sys.stderr.isatty() and logging.getLogger("gampen_ray").level <= logging.INFO
