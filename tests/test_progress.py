import io
import logging
import sys
import time

import pytest

from gampen_ray import progress
from gampen_ray.progress import ERASE, Phase, Progress, current, duration


class Clock:
    """A clock that the test moves."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock()


def screen_of(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    # Not a fixture: pytest replaces standard error once more after these.
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_rate_and_remaining_time_leave_out_what_came_before(clock: Clock) -> None:
    counter = Progress("train", 1000, "galaxies")
    counter.skip(100)
    # The clock starts with the work, not with Ray.
    Clock.now += 500
    with counter:
        Clock.now += 50
        assert counter.text() == "train: 100/1,000 galaxies, 50 s"
        counter.advance(250, "loss 2")
        assert counter.text() == "train: 350/1,000 galaxies, 5.0/s, 2 min left | loss 2"


def test_epochs_are_counted_and_galaxies_of_the_current_one(clock: Clock) -> None:
    with Progress("train", 1000, "galaxies", epochs=3) as counter:
        assert counter.text() == "train: epoch 1/3, 0/1,000 galaxies"
        Clock.now += 10
        counter.advance(1500)
        assert counter.text() == "train: epoch 2/3, 500/1,000 galaxies, 150.0/s, 10 s left"
        counter.advance(1500)
        assert counter.text() == "train: epoch 3/3, 1,000/1,000 galaxies, 300.0/s, 0 s left"


def test_a_log_has_ever_fewer_lines_and_the_last_one(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with Progress("infer", 86_400, "galaxies") as counter:
        for _ in range(86_400):
            Clock.now += 1
            counter.advance(1)
    assert 50 < len(caplog.messages) < 200
    assert caplog.messages[-1].startswith("infer: 86,400/86,400 galaxies, 1.0/s")


def test_the_innermost_phase_is_current_and_is_shown_while_nothing_advances(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screen_of(monkeypatch)
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    with Phase("train", announced=False):
        assert current().startswith("train")
        with Phase("starting Ray"):
            assert current().startswith("starting Ray")
            end = time.monotonic() + 20
            while terminal.getvalue().count("starting Ray, ") < 3:
                assert time.monotonic() < end
                time.sleep(0.01)
        assert current().startswith("train")
    assert current() == ""
    lines = terminal.getvalue().split(ERASE)
    assert lines[1] == "starting Ray"
    # It remains when it has ended, and the outer one leaves nothing.
    assert [line[:14] for line in lines if line.endswith("\n")] == ["starting Ray, "]
    assert lines[-1] == ""


def test_quiet_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screen_of(monkeypatch)
    for level, lines in ((logging.WARNING, 0), (logging.INFO, 2)):
        logging.getLogger("gampen_ray").setLevel(level)
        with Phase("starting Ray"), Progress("train", 10, "galaxies") as counter:
            counter.advance(10)
        assert terminal.getvalue().count("\n") == lines


def test_durations_have_a_unit_that_suits_them() -> None:
    found = [duration(seconds) for seconds in (0, 89, 91, 5399, 5401, 170_000, 180_000)]
    assert found == ["0 s", "89 s", "2 min", "90 min", "1.5 h", "47.2 h", "2.1 days"]
