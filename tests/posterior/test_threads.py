import pytest
import torch

from gampen_ray.posterior.calibration import Calibration, coverage
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.summary import summarise
from gampen_ray.posterior.threads import one_thread
from tests.posterior.posterior_cases import mixture


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_one_thread_and_then_as_before():
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("function", "threads"),
    # Workers summarise in one thread while they predict in another: the process's number must stay.
    [(coverage, 1), (Calibration.fit, 1), (lambda m, _: summarise(m), 3)],
    ids=["coverage", "calibration", "summary"],
)
def test_threads_of_the_arithmetic_of_posteriors(function, threads, monkeypatch):
    seen = []
    rows = Mixture._rows

    def watched(self):
        seen.append(torch.get_num_threads())
        return rows(self)

    monkeypatch.setattr(Mixture, "_rows", watched)
    m = mixture("log", num_galaxies=20, num_passes=4)
    function(m, m.sample(1, 0)[:, 0])
    assert set(seen) == {threads}
    assert torch.get_num_threads() == 3
