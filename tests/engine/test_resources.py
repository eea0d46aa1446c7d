import pytest

from gampen_ray.config import ResourcesConfig
from gampen_ray.engine.resources import plan_workers
from gampen_ray.errors import UserError


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize(("num_cpus", "num_gpus"), [(2, 0), (4, 0), (16, 0), (64, 0), (16, 1), (96, 8), (8, 4)])
def test_workers_fit_and_leave_room_for_reading(num_workers: int, num_cpus: int, num_gpus: int) -> None:
    use_gpu = None if num_workers <= num_gpus else False
    workers = plan_workers(ResourcesConfig(num_workers=num_workers, use_gpu=use_gpu), num_cpus=num_cpus, num_gpus=num_gpus)
    assert workers.cpus * workers.count <= num_cpus - 1
    assert workers.gpus * workers.count <= num_gpus
    assert workers.cpus > 0
    assert 1 <= workers.threads * workers.count <= max(num_cpus, workers.count)
    assert num_workers in (0, workers.count)


def test_one_worker_per_gpu_or_per_two_cpus() -> None:
    assert plan_workers(ResourcesConfig(), num_cpus=96, num_gpus=8).count == 8
    assert plan_workers(ResourcesConfig(), num_cpus=16, num_gpus=0).count == 8
    assert plan_workers(ResourcesConfig(), num_cpus=2, num_gpus=0).count == 2


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (ResourcesConfig(num_workers=3, use_gpu=True), r"resources\.num_workers: 3 workers with a GPU each, .* has 1 GPUs"),
        (
            ResourcesConfig(num_workers=4, cpus_per_worker=4.0, use_gpu=False),
            r"resources\.num_workers: 4 workers with 4\.0 CPUs each do not fit",
        ),
    ],
)
def test_more_than_the_cluster_holds_is_refused(config: ResourcesConfig, match: str) -> None:
    with pytest.raises(UserError, match=match):
        plan_workers(config, num_cpus=8, num_gpus=1)


def test_trials_share_gpus() -> None:
    third = plan_workers(ResourcesConfig(), num_cpus=32, num_gpus=2, gpus_per_worker=1 / 3)
    assert (third.count, third.gpus, third.cpus) == (6, 1 / 3, 5)
    # No trial takes its share from two of them.
    assert plan_workers(ResourcesConfig(), num_cpus=32, num_gpus=2, gpus_per_worker=0.4).count == 4
    assert plan_workers(ResourcesConfig(use_gpu=False), num_cpus=32, num_gpus=2, gpus_per_worker=0.4).gpus == 0
    with pytest.raises(UserError, match=r"num_workers: 5 workers with 0\.4 of a GPU each, but the cluster has 2 GPUs; lower"):
        plan_workers(ResourcesConfig(num_workers=5), num_cpus=32, num_gpus=2, gpus_per_worker=0.4)
