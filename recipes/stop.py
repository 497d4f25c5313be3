"""A run that is asked to stop: SIGTERM from a scheduler, Ctrl-C from a person. Free of torch."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Within the context the first SIGTERM or SIGINT is noted, a second ends the process."""

    signal_name: str | None = None
    """Of the first signal; None before it."""

    def __enter__(self) -> "StopRequest":
        self._previous: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._note) for number in SIGNALS
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        _let_the_next_end_the_process()
        self.signal_name = signal.Signals(number).name
        if os.environ.get("RANK", "0") == "0":
            # Not the log: the signal may have come while it was writing.
            text = f"{self.signal_name}: finishing the step, then saving; a second ends at once\n"
            os.write(2, text.encode())


def survive_first_signal(worker: int) -> None:
    """What a worker process of the data does when it starts.

    torchrun and terminals signal whole process groups, and the step under way still needs its data.
    PyTorch's own handler would end the worker.
    """
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: _let_the_next_end_the_process())


def _let_the_next_end_the_process() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
