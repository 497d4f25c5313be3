"""Counts what a process computes and holds during a step."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchtitan.trainer import Trainer


class OperationCounter(TorchDispatchMode):
    """Counts every operation that runs, by name. What checkpointing repeats counts again."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.operations[str(func)] += 1
        return func(*args, **(kwargs or {}))


class MemoryTracker(TorchDispatchMode):
    """Bytes of the tensors that operations return, as long as they live.

    PyTorch's own MemTracker refuses modules that are called more than once a step, as chunked
    losses do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = self._bytes = 0
        self._sizes: dict[int, int] = {}
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> "MemoryTracker":
        def resize(storage: torch.UntypedStorage, size: int) -> None:
            self._resize(storage, size)  # FSDP2 frees and refills gathered weights this way
            self._note(storage)

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # DTensor first turns into operations on plain tensors
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._forget, key)
        self._bytes += storage.nbytes() - self._sizes[key]
        self._sizes[key] = storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self._bytes)

    def _forget(self, key: int) -> None:
        self._bytes -= self._sizes.pop(key)


@contextmanager
def count_operations(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """A probe (see world.Case): FLOPs of matrix products, and how often each operation ran."""
    found: dict[str, Any] = {}
    # PyTorch's counter knows the other forms only.
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}
    counting = FlopCounterMode(display=False, custom_mapping=in_place)
    with counting as flops, OperationCounter() as counter:
        yield found
    found |= {"flops": flops.get_total_flops(), "operations": dict(counter.operations)}


@contextmanager
def track_memory(trainer: Trainer) -> Iterator[dict[str, Any]]:
    """A probe: the peak of what a step allocates, over what was there before it."""
    found: dict[str, Any] = {}
    with MemoryTracker() as tracker:
        yield found
    found["peak_bytes"] = tracker.peak_bytes
