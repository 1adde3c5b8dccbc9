"""What a user says about the processes that share a batch."""

import dataclasses
from typing import TYPE_CHECKING, TypeAlias

import torch.distributed as dist

if TYPE_CHECKING or dist.is_available():
    from torch.distributed import ProcessGroup as ProcessGroup  # for the other modules here
    from torch.distributed.device_mesh import DeviceMesh
else:  # a PyTorch built without it: nothing is a group

    class ProcessGroup:
        """None there is."""

    class DeviceMesh:
        """None there is."""


GRAD_SCALES = ("ddp", "sum")
TRANSPORTS = ("auto", "gather", "ring")


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes that share a batch, for the argument ``group`` of a loss.

    Every rank passes its own rows; the loss is that of all rows, the same number on every rank, and each rank gets the
    exact gradient of its own rows. Numbers of rows may differ, and a rank may have none (``(0, D)``). What is not rows
    of the batch (a queue, a temperature) is the same on every rank. All ranks call the loss, and its backward,
    together; a bad argument on one of them raises on all. What is made of a reduced loss, it is one loss, is the same
    on every rank too: a factor that differs between ranks leaves gradients of no loss at all. Second derivatives and
    forward mode raise.

    Args:
        process_group: a `torch.distributed.ProcessGroup`, or a `DeviceMesh` of one dimension; ``None`` for all ranks.
            A loss takes either of the two as its ``group`` too, with the defaults below.
        grad_scale: what the gradients are those of. ``"ddp"``: of the loss times the number of ranks, so that after
            `DistributedDataParallel` (or FSDP) has averaged, the gradient of each parameter is that of one process with
            the whole batch. ``"sum"``: of the loss itself; added over the ranks they are the gradient of a parameter.
            With ``reduction="none"`` there is nothing to scale: the gradients are those of the sum of what the ranks
            make of their own losses.
        transport: how rows get to the other ranks. ``"gather"``: every rank keeps all rows from forward to backward,
            and they travel once. ``"ring"``: one shard at a time visits every rank, while the one before is computed
            with; three shards of memory; they travel once for energies (uniformity, SigLIP), and once more in the
            backward of the losses with a softmax. ``"auto"``: a gather while that of all rows takes at most 512 MiB.

    Raises:
        TypeError: a ``process_group`` of another type.
        ValueError: a mesh of several dimensions, an unknown ``grad_scale`` or ``transport``.
    """

    process_group: ProcessGroup | DeviceMesh | None = None
    grad_scale: str = "ddp"
    transport: str = "auto"

    def __post_init__(self) -> None:
        """Refuses what it cannot be."""
        for name, value, choices in (
            ("grad_scale", self.grad_scale, GRAD_SCALES),
            ("transport", self.transport, TRANSPORTS),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        check_process_group("process_group", self.process_group)

    def __deepcopy__(self, memo: dict[int, object]) -> "Group":
        """A copied module is in the same processes: a group has no copies."""
        return self


GroupLike: TypeAlias = Group | ProcessGroup | DeviceMesh | None


def check_process_group(name: str, value: object) -> None:
    """Raises unless ``value`` is a process group, a mesh of one dimension, or ``None``."""
    if type(value) is ProcessGroup:  # the usual one, at once: PyTorch's own isinstance of it takes several calls
        return
    if isinstance(value, DeviceMesh):
        if value.ndim != 1:
            names = value.mesh_dim_names or f"{value.ndim} without names"
            raise ValueError(f"{name} must be a mesh of one dimension, {name}=mesh[...], got one of {names}")
        if value.get_coordinate() is None:
            raise ValueError(f"{name} must be a mesh that this process belongs to, got {value}")
    elif dist.is_available() and value is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{name} must be a group that this process belongs to, got one that it does not")
    elif value is not None and not isinstance(value, ProcessGroup):
        raise TypeError(
            f"{name} must be a hyperkern.Group, a torch.distributed.ProcessGroup or a DeviceMesh, "
            f"got {type(value).__name__}"
        )


AVAILABLE = dist.is_available()
# The options of a group that comes without.
DEFAULTS = Group()


def as_group(group: GroupLike) -> Group | None:
    """What a user gave as ``group``, with its options.

    Raises:
        TypeError: none of the types.
        ValueError: a mesh of several dimensions, a group without this process.
    """
    if group is None or isinstance(group, Group):
        return group
    check_process_group("group", group)
    return Group(group)


def resolve(group: GroupLike) -> tuple[ProcessGroup, Group] | None:
    """The process group and the options; ``None`` for a batch of this process alone.

    Raises:
        TypeError: no group.
        ValueError: `torch.distributed` is not initialised, or this process is not in the group.
    """
    if group is None:
        return None
    if isinstance(group, Group):
        options, handle = group, group.process_group
    else:
        check_process_group("group", group)
        options, handle = DEFAULTS, group
    world = dist.group.WORLD if AVAILABLE else None
    if world is None:
        raise ValueError("group needs torch.distributed: call torch.distributed.init_process_group first")
    if isinstance(handle, DeviceMesh):
        handle = handle.get_group()
    return handle or world, options
