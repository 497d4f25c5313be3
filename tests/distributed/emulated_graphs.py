"""CUDA graphs, emulated on CPU: TorchTitan's own wrapper over a graph that is a tape of operations.

What a graph does, the tape does: the captured function's Python runs once; a replay runs its
operations again on the same memory, and nothing else. What a capture refuses, the tape refuses
with CaptureError: the host reading a value, data made by the host, work whose size depends on
values, and streams that wait for uncaptured work or never rejoin (FSDP2 runs on several).
Not emulated: kernels, asynchrony, the allocator.
"""

from __future__ import annotations  # Streams.Stream is a method there

import copy
import dataclasses
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param, _fsdp_param_group
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.distributed import cudagraph
from torchtitan.trainer import Trainer

from recipes.platform import overrides

HOST_READS = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2",
    "unique_dim", "unique_consecutive", "allclose", "bincount",
}  # fmt: skip
"""Operations (aten) whose result, or its size, the host needs."""


class CaptureError(RuntimeError):
    """What CUDA would not capture."""


# ---------------------------------------------------------------------------------------- streams


class Event:
    """A point in a stream: the work that is done when it is reached."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.work: frozenset[int] = frozenset()
        self.capture: int | None = None
        """Number of the capture it was recorded in; None outside."""

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self._streams.current
        self.work, self.capture = frozenset(stream.work), stream.capture

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self._streams.current).wait_event(self)

    def synchronize(self) -> None:
        if self.capture is not None:
            raise CaptureError("the host waits for an event of a capture")


class Stream:
    def __init__(self, streams: Streams, priority: int = 0) -> None:
        self._streams = streams
        self.work: set[int] = set()
        """Numbers of the pieces of work that are done when the stream has got here."""
        self.capture: int | None = None
        """Number of the capture under way on this stream."""
        streams.all.append(self)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._streams)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if event.capture is None and self.capture is not None and event.work:
            raise CaptureError("a captured stream waits for work outside the capture")
        if event.capture is not None:
            if event.capture != self._streams.capture:
                raise CaptureError("a stream waits for an event of an earlier capture")
            self.capture = event.capture  # the fork that CUDA follows
        self.work |= event.work

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())


class Streams:
    """Stands in for `torch.cuda` where FSDP2 asks for streams and events."""

    def __init__(self) -> None:
        self.all: list[Stream] = []
        self.num_captures = 0
        self.capture: int | None = None
        self._num_pieces = 0
        self.current = Stream(self)

    def Stream(self, priority: int = 0) -> Stream:
        return Stream(self, priority)

    def Event(self, *args: Any, **kwargs: Any) -> Event:
        return Event(self)

    def current_stream(self, device: Any = None) -> Stream:
        return self.current

    def current_device(self) -> int:
        return 0

    @contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        """Whatever is done inside is work of that stream."""
        previous, self.current = self.current, stream or self.current
        self._add_work()
        try:
            yield
        finally:
            self.current = previous

    @contextmanager
    def capturing(self) -> Iterator[None]:
        self.num_captures += 1
        origin, self.capture = self.current, self.num_captures
        origin.capture, origin.work = self.capture, set()
        self._add_work()
        yield
        forked = [s for s in self.all if s.capture == self.capture and s is not origin]
        if any(not s.work <= origin.work for s in forked):
            raise CaptureError("the capture ends before a stream that it forked has rejoined")
        for stream in (origin, *forked):
            stream.capture, stream.work = None, set()
        self.capture = None

    def _add_work(self) -> None:
        self._num_pieces += 1
        self.current.work.add(self._num_pieces)


# ------------------------------------------------------------------------------------------- tape


class Tape(TorchDispatchMode):
    """Records operations with the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]]] = []
        self._sizes: dict[int, tuple[torch.UntypedStorage, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # DTensor first turns into operations on plain tensors
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        self._check(func, args)
        given = {_storage(t) for t in pytree.tree_leaves((args, kwargs)) if _is_tensor(t)}
        out = func(*args, **kwargs)
        _wait(func, out)
        leaves = [t for t in pytree.tree_leaves(out) if _is_tensor(t)]
        fresh = [t for t in leaves if _storage(t) not in given]
        for tensor in (t for t in pytree.tree_leaves((args, kwargs, out)) if _is_tensor(t)):
            storage = tensor.untyped_storage()
            self._sizes[_storage(tensor)] = (storage, storage.nbytes())
        self._steps.append((func, args, kwargs, fresh))
        if func.namespace == "c10d":
            # It has been waited for; gloo's own work would copy once more, outside the replays.
            out = pytree.tree_map_only(torch.ScriptObject, lambda work: _done(), out)
        return out

    def _check(self, func: Any, args: tuple[Any, ...]) -> None:
        name = func._schema.name.removeprefix("aten::")
        if name in HOST_READS:
            raise CaptureError(f"the host needs the result of {func}")
        if name == "lift_fresh" and args[0].dim() > 0 and not _is_in_mask():
            raise CaptureError("a tensor is made of a list of the host's")
        if name in ("index", "index_put_", "_unsafe_index"):
            is_fill = name == "index_put_" and args[2].dim() == 0  # masked_fill_ in truth
            if any(t is not None and t.dtype == torch.bool for t in args[1]) and not is_fill:
                raise CaptureError(f"the host needs the number of elements of {func}")

    @torch.no_grad()
    def replay(self) -> None:
        freed = [(s, n) for s, n in self._sizes.values() if s.nbytes() != n]
        for storage, num_bytes in freed:  # a graph's memory is its own
            storage.resize_(num_bytes)
        for func, args, kwargs, fresh in self._steps:
            out = func(*args, **kwargs)
            _wait(func, out)
            made = [t for t in pytree.tree_leaves(out) if _is_tensor(t)]
            if fresh:
                given = {_storage(t) for t in pytree.tree_leaves((args, kwargs)) if _is_tensor(t)}
                made = [t for t in made if _storage(t) not in given]
                for old, new in zip(fresh, made, strict=True):
                    old.copy_(new)
        for storage, _ in freed:
            storage.resize_(0)


def _is_in_mask() -> bool:
    """Whether the CPU's stand-in for FlexAttention builds its dense mask, which no GPU does."""
    return any(frame.name == overrides._dense_mask.__name__ for frame in traceback.extract_stack())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _wait(func: Any, out: Any) -> None:
    """Collectives on CPU ranks are asynchronous."""
    for value in pytree.tree_leaves(out):
        if func.namespace == "c10d" and isinstance(value, torch.ScriptObject):
            dist.Work.unbox(value).wait()
        elif func.namespace == "_c10d_functional" and _is_tensor(value):
            torch.ops._c10d_functional.wait_tensor(value)


def _done() -> torch.ScriptObject:
    future: torch.futures.Future[None] = torch.futures.Future()
    future.set_result(None)
    return _create_work_from_future(future).boxed()


class CUDAGraph:
    tape: Tape
    is_fresh = True

    def replay(self) -> None:
        # CUDA's capture computes nothing, and the wrapper replays at once; the tape's has computed.
        if not self.is_fresh:
            self.tape.replay()
        self.is_fresh = False


def fake_cuda(streams: Streams) -> SimpleNamespace:
    @contextmanager
    def graph(graph: CUDAGraph, **kwargs: Any) -> Iterator[None]:
        graph.tape = Tape()
        with streams.capturing(), graph.tape:
            yield

    return SimpleNamespace(
        CUDAGraph=CUDAGraph,
        Stream=streams.Stream,
        current_stream=streams.current_stream,
        stream=streams.stream,
        graph=graph,
        graph_pool_handle=object,
        is_available=lambda: True,
    )


# ------------------------------------------------------------------------------------------ probe


@contextmanager
def run_eagerly(trainer: Trainer) -> Iterator[None]:
    """A probe (see world.Case): a validation after each step, as runs have them between steps."""
    yield
    trainer.validator.validate(trainer.model_parts, trainer.step)


@contextmanager
def emulate_graphs(trainer: Trainer) -> Iterator[dict[str, int]]:
    """The same, with steps as TorchTitan runs them on a GPU. Findings: `num_captures` so far."""
    if not hasattr(trainer, "emulated_streams"):
        trainer.emulated_streams = Streams()
        _install(trainer, trainer.emulated_streams)
    streams = trainer.emulated_streams
    with ExitStack() as stack:
        for module in (_fsdp_collectives, _fsdp_param_group):
            stack.enter_context(patch.object(module, "_get_device_handle", lambda name: streams))
        free = _fsdp_param.free_storage
        # The memory of a graph is its own: what is freed while it is captured stays.
        stays = patch.object(
            _fsdp_param, "free_storage", lambda t: None if streams.capture else free(t)
        )
        stack.enter_context(stays)
        stack.enter_context(refuse_host_data(streams))
        findings: dict[str, int] = {}
        stack.enter_context(run_eagerly(trainer))
        yield findings
        findings["num_captures"] = streams.num_captures


@contextmanager
def refuse_host_data(streams: Streams) -> Iterator[None]:
    """In a capture, what copies between host and device without an operation to see on CPU."""
    methods = ((torch, "tensor"), (torch.Tensor, "tolist"), (torch.Tensor, "cpu"))
    with ExitStack() as stack:
        for owner, name in (*methods, (torch.Tensor, "numpy")):
            checked = _refuse_in_capture(streams, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, checked))
        yield


def _refuse_in_capture(streams: Streams, function: Any) -> Any:
    def checked(*args: Any, **kwargs: Any) -> Any:
        if streams.capture is not None and not _is_in_mask():
            raise CaptureError(f"{function.__name__} copies between host and device")
        return function(*args, **kwargs)

    return checked


def _install(trainer: Trainer, streams: Streams) -> None:
    for part in trainer.model_parts:
        for module in part.modules():
            if isinstance(module, FSDPModule):
                state = module._get_fsdp_state()
                state._device_handle = streams
                for group in state._fsdp_param_groups:
                    group.device_handle = streams
    fake_torch = SimpleNamespace(
        Tensor=torch.Tensor, version=SimpleNamespace(hip=None), cuda=fake_cuda(streams)
    )
    cudagraph.torch = fake_torch
    cudagraph.utils = SimpleNamespace(device_type="cuda")
    cudagraph._manager.__init__()
    training = dataclasses.replace(trainer.config.training, disable_cuda_graphs=False)
    trainer.config = copy.copy(trainer.config)
    trainer.config.training = training
    trainer.fwd_bwd_fn = cudagraph.wrap_with_cuda_graph(trainer.fwd_bwd_fn)
