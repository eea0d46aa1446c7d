import itertools

import pytest

from gampen_ray.config import ActorResources
from gampen_ray.engine.resources import Node, plan_workers
from gampen_ray.errors import UserError

LAPTOP, HEAD = Node(2), Node(0)
CLUSTERS = {
    "laptop": [LAPTOP],
    "workstation": [Node(64)],
    "small nodes": [HEAD, Node(1), Node(1)],
    "nodes of two sizes": [Node(16), Node(4)],
    "gpu node": [Node(96, 8)],
    "gpu nodes and others": [HEAD, Node(16), Node(8, 1), Node(8, 1)],
    "few cpus": [Node(8, 4)],
    "one cpu beside a gpu": [HEAD, Node(1, 1), Node(0, 1)],
}


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("nodes", CLUSTERS.values(), ids=CLUSTERS)
def test_workers_fit_into_single_nodes_and_leave_room(num_workers: int, nodes: list[Node]) -> None:
    workers = plan_workers(ActorResources(num_workers=num_workers), nodes)
    assert workers.cpus > 0
    assert num_workers in (0, workers.count)
    assert workers.room <= workers.count
    # Each node's workers leave 10 % of its CPUs, or one.
    spare = [max(min(0.1 * node.cpus, 1.1), 0.25 if workers.gpus else 0) for node in nodes]
    fit = [int(max(0, node.cpus - spare_) / workers.cpus + 1e-9) for node, spare_ in zip(nodes, spare, strict=True)]
    fit = [min(fit_, workers.count, int(node.gpus) if workers.gpus else fit_) for fit_, node in zip(fit, nodes, strict=True)]
    assert workers.room == min(sum(fit), workers.count)
    assert workers.threads >= 1
    assert all(workers.threads * count <= max(node.cpus, count) for count, node in zip(fit, nodes, strict=True))


def test_one_worker_per_gpu_or_per_two_cpus() -> None:
    def counted(*nodes: Node) -> tuple[int, int]:
        workers = plan_workers(ActorResources(), nodes)
        return workers.count, workers.room

    assert counted(Node(96, 8)) == (8, 8)
    assert counted(Node(16)) == (8, 8)
    assert counted(LAPTOP) == (2, 2)
    assert counted(HEAD, Node(1), Node(1), Node(1)) == (3, 3)
    assert counted(HEAD, Node(16), Node(8, 1), Node(8, 1)) == (2, 2)


def test_a_share_of_all_cpus_never_exceeds_a_node() -> None:
    # Of 20 CPUs three workers could have six each, of which the smaller node has none.
    workers = plan_workers(ActorResources(num_workers=3), [Node(16), Node(4)])
    assert (workers.cpus, workers.room, workers.threads) == (4, 3, 4)
    alone = plan_workers(ActorResources(num_workers=1), [Node(8, 1)])
    assert (alone.cpus, alone.threads) == (7, 8)


def test_explicit_cpus_may_be_all_of_a_node_without_gpus() -> None:
    assert plan_workers(ActorResources(num_workers=2, cpus_per_worker=4), [Node(4), Node(4)]).room == 2
    # And as many as the cluster holds.
    assert plan_workers(ActorResources(cpus_per_worker=12), [Node(16)]).count == 1
    # What writes beside a GPU needs some.
    assert plan_workers(ActorResources(num_workers=2, cpus_per_worker=4), [Node(4, 1), Node(4, 1)]).room == 0


@pytest.mark.parametrize(
    ("config", "nodes", "room"),
    [
        (ActorResources(num_workers=3), [LAPTOP], 2),
        (ActorResources(num_workers=3, use_gpu=True), [Node(8, 1)], 1),
        (ActorResources(num_workers=4, cpus_per_worker=4.0), [Node(8)], 2),
        (ActorResources(num_workers=3), [HEAD], 0),
        (ActorResources(num_workers=8, use_gpu=True), [HEAD, Node(16)], 0),
        # Of 0.93 CPUs each, as 16 of them would have.
        (ActorResources(num_workers=40), [HEAD, Node(16)], 17),
    ],
)
def test_room_says_how_many_wait_for_the_cluster_to_grow(config: ActorResources, nodes: list[Node], room: int) -> None:
    workers = plan_workers(config, nodes)
    assert (workers.count, workers.room) == (config.num_workers, room)
    assert bool(workers.gpus) == bool(config.use_gpu)


def test_a_new_node_of_the_same_kind_takes_as_many_as_the_first() -> None:
    for size, number in itertools.product((1, 2, 8, 64), (2, 5)):
        asked = ActorResources(num_workers=1000)
        assert plan_workers(asked, [Node(size)] * number).room == number * plan_workers(asked, [Node(size)]).room


def test_no_number_on_an_empty_cluster_is_refused() -> None:
    with pytest.raises(UserError, match=r"resources\.num_workers: 0, .* no node with CPUs; give their number"):
        plan_workers(ActorResources(), [HEAD])
    with pytest.raises(UserError, match=r"no node with GPUs; .* or set resources\.use_gpu to false"):
        plan_workers(ActorResources(use_gpu=True), [HEAD, Node(16)])


def test_trials_share_gpus() -> None:
    nodes = [Node(16, 1), Node(16, 1)]
    third = plan_workers(ActorResources(), nodes, gpus_per_worker=1 / 3)
    assert (third.count, third.gpus, third.cpus) == (6, 1 / 3, 4)
    # No trial takes its share from two of them.
    assert plan_workers(ActorResources(), nodes, gpus_per_worker=0.4).count == 4
    assert plan_workers(ActorResources(use_gpu=False), nodes, gpus_per_worker=0.4).gpus == 0
    assert plan_workers(ActorResources(num_workers=5), nodes, gpus_per_worker=0.4).room == 4
