import logging

import pytest

from gampen_ray.data.quarantine import log_reasons


def test_reasons_are_counted_by_kind_and_told_by_an_example(caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"s3://a/{number}.fits", f"target radius_arcsec is -{number}") for number in (99, 98, 97)]
    with caplog.at_level(logging.INFO):
        reasons = log_reasons([("b.fits", "not a file of a known format"), *rows])
    assert reasons == {"target radius_arcsec is -99 (99.fits)": 3, "not a file of a known format (b.fits)": 1}
    assert caplog.messages == [f"  {count} in quarantine: {reason}" for reason, count in reasons.items()]
