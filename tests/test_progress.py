import logging
import time

import pytest

from gampen_ray.progress import Progress


def test_rate_and_remaining_time_leave_out_what_came_before(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    progress = Progress("train", 1000, "galaxies")
    progress.skip(100)
    now += 50
    progress.advance(0, "waiting", always=True)
    progress.advance(250, always=True)
    assert caplog.messages == [
        "train: 100/1,000 galaxies | waiting",
        "train: 350/1,000 galaxies, 5.0/s, 130 s left",
    ]
