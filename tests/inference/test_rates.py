import time

import pytest

from gampen_ray.inference.rates import Rates, UnitReceipt, extrapolate


def receipt(seconds: float, **values: int) -> UnitReceipt:
    defaults = {"num_rows": 100, "num_quarantined": 0, "id_sum": 0, "bytes_read": 1000, "bytes_written": 200}
    return UnitReceipt(**defaults | values, seconds=seconds, device_seconds=0.5)


@pytest.mark.parametrize("jump", [0.0, -1.8e9, 3600.0])
def test_rates_exclude_the_start_up_whatever_happens_to_the_clock(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    rates = Rates(num_passes=4, began=time.monotonic() - 30)
    assert rates.to_dict() == {}
    monkeypatch.setattr(time, "time", lambda: now + jump)
    rates.add(receipt(9), workers=2, gpus_per_worker=1)
    rates.add(receipt(10), workers=2, gpus_per_worker=1)
    measured = rates.to_dict()
    assert measured["startup_seconds"] == pytest.approx(20, abs=0.01)
    assert measured["galaxies_per_second"] == pytest.approx(20, rel=0.02)
    assert measured["passes_per_second"] == pytest.approx(80, rel=0.02)
    assert measured["device_utilisation"] == pytest.approx(0.05, rel=0.02)
    assert (measured["galaxies"], measured["bytes_read"], measured["bytes_written"]) == (200, 2000, 400)


def test_receipts_that_arrive_together_make_no_device_busier_than_the_job() -> None:
    rates = Rates(num_passes=4, began=time.monotonic() - 30)
    for _ in range(8):
        rates.add(receipt(1), workers=1, gpus_per_worker=0)
    measured = rates.to_dict()
    assert measured["device_utilisation"] == 1
    assert measured["seconds"] == pytest.approx(8 * 0.5)


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0), (8, 1), (1000, 1)])
def test_an_estimate_is_arithmetic(workers: int, gpus: int) -> None:
    measured = {
        "galaxies": 1000,
        "galaxies_per_second": 50.0,
        "workers": 2,
        "gpus_per_worker": gpus,
        "startup_seconds": 36.0,
        "bytes_read": 4_000,
        "bytes_written": 1_000,
    }
    result = extrapolate(measured, 10**9, workers)
    hours = 10**9 / (25 * workers) / 3600 + 0.01
    assert result["hours"] == pytest.approx(hours)
    assert result["gpu_hours"] == pytest.approx(hours * workers * gpus)
    assert (result["input_bytes"], result["output_bytes"]) == (4 * 10**9, 10**9)
