"""Nodes of `local.py up --grow`, which Ray's autoscaler starts and ends; those of Ray's own tests share the head's folder."""

from pathlib import Path
from typing import Any

from local import Cluster
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import NODE_KIND_WORKER, STATUS_UP_TO_DATE
from ray.autoscaler.tags import TAG_RAY_NODE_KIND as KIND
from ray.autoscaler.tags import TAG_RAY_NODE_NAME as NAME
from ray.autoscaler.tags import TAG_RAY_NODE_STATUS as STATUS


class LocalNodes(FakeMultiNodeProvider):
    """Ray's provider of nodes on one machine, whose nodes are those of `local.Cluster`."""

    def _create_node_with_resources_and_labels(
        self, node_config: dict, tags: dict, count: int, resources: dict, labels: dict
    ) -> None:
        with self.lock:
            node_id = self._next_hex_node_id()
            name = f"node{self._next_node_id}"
            known = {
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id,
                "RAY_CLOUD_INSTANCE_ID": node_id,
                "RAY_NODE_TYPE_NAME": "worker",
            }
            self._cluster.add(name, int(resources["CPU"]), known)
            made = {KIND: NODE_KIND_WORKER, NAME: node_id, STATUS: STATUS_UP_TO_DATE}
            node: dict[str, Any] = {"tags": made | tags, "node": name}
            self._nodes[node_id] = node

    def _terminate_node(self, node: dict[str, Any]) -> None:
        self._cluster.end(node["node"])

    @property
    def _cluster(self) -> Cluster:
        return Cluster(Path(self.provider_config["folder"]))
