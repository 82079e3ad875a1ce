"""Which processes belong together: a process group, from what the user passes.

The group says who is who and holds the store through which its members find each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def process_group(group: ProcessGroup | DeviceMesh | None) -> ProcessGroup:
    """The group meant by an argument.

    Args:
        group: A process group, a ``DeviceMesh`` with one dimension, or None for the default group.

    Returns:
        A group that this process belongs to.

    Raises:
        ValueError: No process group is initialised, the mesh has several dimensions, or this
            process is not a member.
        TypeError: It is something else.
    """
    if not dist.is_available():
        raise ValueError("group needs torch.distributed, which this build of torch lacks")
    if not dist.is_initialized():
        raise ValueError(
            "group needs an initialised process group: run under torchrun and call "
            "torch.distributed.init_process_group(), got none"
        )
    from torch.distributed.device_mesh import DeviceMesh

    found: object = group
    if isinstance(found, DeviceMesh):
        if found.ndim != 1:
            names = found.mesh_dim_names or ()
            how = f", such as mesh[{names[0]!r}]" if names else ""
            raise ValueError(
                f"group must be a mesh with one dimension{how}, got {found.ndim} dimensions"
            )
        found = found.get_group()
    if found is None:
        found = dist.group.WORLD
    # new_group gives a number to processes that are not in the group.
    if found == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group must contain this process, got a group of other processes")
    if not isinstance(found, dist.ProcessGroup):
        raise TypeError(
            f"group must be a ProcessGroup, a DeviceMesh or None, got {type(found).__name__}"
        )
    if found not in dist.distributed_c10d._world.pg_map:
        raise ValueError("group must be in use, got one that was destroyed")
    return found


def store_of(group: ProcessGroup) -> Store:
    """The store that the members of a group share; its keys are the group's own."""
    return dist.distributed_c10d._get_process_group_store(group)
