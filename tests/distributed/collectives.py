"""Counts what ranks send each other: every collective and point-to-point message.

PyTorch's CommDebugMode counts operations alone: no bytes, no group, no point-to-point messages.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.distributed import ParallelDims
from torchtitan.trainer import Trainer

from recipes.parity.world import Case

# An operation's eager, functional and coalesced forms are the same kind.
KINDS = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "broadcast", "send", "recv")
# From the innermost to the outermost, as TorchTitan numbers the ranks.
AXES = ("tp", "cp", "dp_shard", "dp_replicate", "pp")


class Message(NamedTuple):
    """One operation as a rank issues it."""

    kind: str
    axis: str
    """Mesh axes along which the ranks of the group differ, e.g. `tp` or `dp_shard+cp`."""

    group_size: int
    phase: str
    """`backward`: started by autograd, recomputation included; else `forward`."""

    num_bytes: int
    """Of the whole tensor: an all-gather's output, a reduce-scatter's input."""


class MessageCounter(TorchDispatchMode):
    """Counts every message to other ranks that this process issues while the mode is active."""

    supports_higher_order_operators = True

    def __init__(self, dims: ParallelDims) -> None:
        super().__init__()
        self._dims = dims
        self.messages: Counter[Message] = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # compiled functions stay compiled while the mode is active

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # DTensor first turns into operations on plain tensors
        out = func(*args, **(kwargs or {}))
        group = _find_group(func, args) if isinstance(func, torch._ops.OpOverload) else None
        if group is not None and group.size() > 1:
            phase = "forward" if torch._C._current_graph_task_id() == -1 else "backward"
            num_bytes = max(_num_bytes(value) for value in (*args, out))
            axis = _name_axis(group, self._dims)
            self.messages[Message(_kind(func), axis, group.size(), phase, num_bytes)] += 1
        return out


@contextmanager
def count_messages(trainer: Trainer) -> Iterator[list[Any]]:
    """A probe (see world.Case). For each rank: [(*Message, number)] of its different messages."""
    ranks: list[Any] = [None] * dist.get_world_size()
    with MessageCounter(trainer.parallel_dims) as counter:
        yield ranks
    dist.all_gather_object(ranks, [(*m, number) for m, number in counter.messages.items()])


def read_messages(rows: list[Any]) -> Counter[Message]:
    """The messages of a rank that `count_messages` found."""
    return Counter({Message(*message): number for *message, number in rows})


COUNT = "tests.distributed.collectives:count_messages"


def make_pair(name: str, config: str, overrides: list[str]) -> list[Case]:
    """A run of two steps and a validation, counted, and its baseline without NITP. Neither is
    measured: test_geometry_collectives.py has what that sends."""
    on = [*overrides, "--geometry.enable=false"]
    off = [*on, "--nitp.enable=false"]
    return [
        Case(name, config, on, num_steps=2, validate=True, probe=COUNT),
        Case(f"{name}-baseline", config, off, num_steps=2, validate=True, probe=COUNT),
    ]


def _find_group(func: torch._ops.OpOverload, args: tuple[Any, ...]) -> dist.ProcessGroup | None:
    """The process group among an operation's arguments; None for what sends nothing."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.name == "process_group":
            return dist.ProcessGroup.unbox(value)
        if argument.name == "group_name":
            is_group = isinstance(value, dist.ProcessGroup)
            return value if is_group else _resolve_process_group(value)
    return None


def _name_axis(group: dist.ProcessGroup, dims: ParallelDims) -> str:
    ranks, stride, names = dist.get_process_group_ranks(group), 1, []
    for axis in AXES:
        degree = getattr(dims, axis)
        if len({rank // stride % degree for rank in ranks}) > 1:
            names.insert(0, axis)
        stride *= degree
    return "+".join(names)


def _kind(func: torch._ops.OpOverload) -> str:
    name = func._opname
    return next((k for k in KINDS if k.replace("_", "") in name.replace("_", "")), name)


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(_num_bytes, value)) if isinstance(value, list | tuple) else 0
