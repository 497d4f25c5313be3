"""Whether the ranks have agreed to stop, asked where training itself does not ask: between the
batches of a validation."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist


class StopAgreement:
    """Learns on all ranks whether one has been asked to stop.

    One number is reduced over all ranks each time, on a stream of its own: neither does the device
    wait for it, nor the host, which reads the answer when it asks again.
    """

    def __init__(self, device: torch.device, is_asked: Callable[[], bool]) -> None:
        """is_asked: whether this rank has been."""
        self.is_reached = False
        """Set by whoever learns it, on all ranks at the same point of the run."""
        self._is_asked = is_asked
        is_asynchronous = device.type != "cpu"
        self._stream = torch.Stream(device) if is_asynchronous else None
        self._is_copied = torch.Event(device) if is_asynchronous else None
        self._flag = torch.zeros((), device=device)
        self._on_host = torch.zeros((), pin_memory=is_asynchronous)
        self._is_sent = False

    def ask(self) -> bool:
        """`is_reached` as of the last question, before asking the next. Collective."""
        if not self.read():
            with self._stream or nullcontext():
                self._flag.fill_(self._is_asked())
                dist.all_reduce(self._flag)
                self._on_host.copy_(self._flag, non_blocking=True)
            if self._stream is not None and self._is_copied is not None:
                self._is_copied.record(self._stream)
            self._is_sent = True
        return self.is_reached

    def read(self) -> bool:
        """`is_reached`, after the answer to the last question. Collective."""
        if self._is_sent:
            if self._is_copied is not None:
                self._is_copied.synchronize()
            self.is_reached = self.is_reached or bool(self._on_host)
            self._is_sent = False
        return self.is_reached


class UntilStopLoader:
    """Stands before the configuration of a loader: what it builds ends when the ranks have agreed
    to stop, where a step of `batches_per_step` batches would begin."""

    def __init__(self, config: Any, agreement: StopAgreement, batches_per_step: int) -> None:
        self._config, self._agreement = config, agreement
        self._batches_per_step = batches_per_step
        self.was_cut = False
        """Whether the loader last built ended so."""

    def build(self, **kwargs: Any) -> Iterable[Any]:
        self.was_cut = False
        return self._until_stop(self._config.build(**kwargs))

    def _until_stop(self, batches: Iterable[Any]) -> Iterator[Any]:
        for index, batch in enumerate(batches):
            if index % self._batches_per_step == 0 and self._agreement.ask():
                self.was_cut = True
                return
            yield batch
