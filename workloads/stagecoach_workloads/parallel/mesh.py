"""Which ranks share what: the device mesh of a layout (FSDP over `dp_shard`, copies of it over `dp_replicate`: HSDP)."""

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from stagecoach.contract.plan import Layout
from stagecoach.errors import ConfigError

RESERVED = {"tp": "tensor parallelism", "ep": "expert parallelism"}


def mesh_axes(layout: Layout, world_size: int) -> dict[str, int]:
    """Axis -> ranks, in the mesh's order: neighbours in rank share a shard group. The world may be another than the plan's own.

    Raises ConfigError for an axis that is reserved, and for axes whose product is not the world.
    """
    for axis, name in RESERVED.items():
        if (size := getattr(layout, axis)) != 1:
            raise ConfigError(f"layout.{axis}={size}: {name} is reserved and not built yet; set it to 1 and use layout.dp_shard")
    replicate = layout.dp_replicate
    shard = layout.dp_shard if layout.dp_shard is not None else max(1, world_size // replicate)
    if replicate * shard != world_size:
        stated = layout.dp_shard if layout.dp_shard is not None else "(the rest)"
        raise ConfigError(
            f"layout: dp_replicate {replicate} x dp_shard {stated} = {replicate * shard}, and there are {world_size} ranks; make both "
            "sides equal (dp_shard=null takes what is left)"
        )
    return {"dp_replicate": replicate, "dp_shard": shard}


def build_mesh(axes: dict[str, int], device: torch.device) -> DeviceMesh:
    """The mesh that `fully_shard` takes: one axis, or two when the state is replicated. The process group must be open."""
    used = {name: size for name, size in axes.items() if name == "dp_shard" or size > 1}
    return init_device_mesh(device.type, tuple(used.values()), mesh_dim_names=tuple(used))
