"""How PyTorch's workers meet on one machine: in a file, as its usual store listens on all interfaces, open to everyone.

A cluster's workers meet at a port of the first.
"""

import dataclasses
import uuid
from pathlib import Path
from typing import Any

import ray
from ray._private.worker import global_worker
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

__all__ = ["torch_config"]


def torch_config(backend: str) -> TorchConfig:
    """Return how workers meet that communicate by ``nccl`` or ``gloo``: in a file if Ray is on the loopback interface."""
    if ray.util.get_node_ip_address() != "127.0.0.1":
        return TorchConfig(backend=backend)
    node: Any = global_worker.node
    # A folder that this user alone can enter.
    return _OneMachine(backend=backend, folder=node.get_session_dir_path())


@dataclasses.dataclass
class _OneMachine(TorchConfig):
    folder: str = ""

    @property
    def backend_cls(self) -> type["_Meeting"]:
        return _Meeting


class _Meeting(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Connect the workers; called again where some were replaced, which meet in another file."""
        worker_group.execute(_set_torch_distributed_env_vars)
        how = {
            "backend": backend_config.backend,
            "world_size": len(worker_group),
            "init_method": f"file://{Path(backend_config.folder) / uuid.uuid4().hex}",
            "timeout_s": backend_config.timeout_s,
        }
        ray.get(
            [
                worker_group.execute_single_async(rank, _setup_torch_process_group, world_rank=rank, **how)
                for rank in range(len(worker_group))
            ]
        )
