"""Asked to stop: by a scheduler, a person, or a terminal that closes. Free of torch.

SIGTERM and SIGINT ask, and ask again to end at once. SIGHUP, SIGUSR1 and SIGUSR2 only ask, however
often they come: a terminal that closes sends SIGHUP twice, and a scheduler that gives notice by
SIGUSR1 sends SIGTERM later. A SIGHUP that is ignored when the program starts (nohup) stays ignored.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Self

_ENDS_WHEN_REPEATED = (signal.SIGTERM, signal.SIGINT)

SIGNALS = (*_ENDS_WHEN_REPEATED, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

INTERRUPTED = 130
"""Exit code of a command that a signal ended before it was done, and that had nothing to save."""

_CLEARING_S = 30.0
"""More than clearing takes."""

Handler = Callable[[int, FrameType | None], None]


class CatchesSignals:
    """Within the context, which may be entered again inside itself, SIGNALS go to `note_signal`."""

    def __init__(self) -> None:
        self._entered: list[dict[signal.Signals, Any]] = []

    def __enter__(self) -> Self:
        self._entered.append(_catch(self.note_signal))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._entered.pop().items():
            signal.signal(number, handler)

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError


class StopRequest(CatchesSignals):
    """Within the context a signal is noted."""

    signal_name: str | None = None
    """Of the first signal; None before it."""

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        let_the_next_end_the_process(number)
        is_first, name = self.signal_name is None, signal.Signals(number).name
        self.signal_name = self.signal_name or name
        if (is_first or remark_on_next(number)) and os.environ.get("RANK", "0") == "0":
            say(f"{name}: finishing the step, then saving{remark_on_next(number)}")


class Interruption(CatchesSignals):
    """Within the context the first signal raises KeyboardInterrupt, as Ctrl-C does."""

    number: int | None = None
    """Of the signal; None before it."""

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        let_the_next_end_the_process(number)
        if self.number is None:
            self.number = number
            raise KeyboardInterrupt


class EndAtOnce(CatchesSignals):
    """Within the context a signal ends the process, also where it waits in a library for others:
    what there is to lose is saved already. The exit code is INTERRUPTED.

    A StopRequest inside takes precedence.
    """

    def __init__(self, remark: str, clear: Callable[[], None]) -> None:
        """remark: what is said of it. clear: what is done before, in another thread."""
        super().__init__()
        self.remark, self.clear = remark, clear
        self._is_ending = False

    def __enter__(self) -> Self:
        # Python calls a handler when the main thread comes to it; this pipe is written to at once.
        read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        threading.Thread(target=self._watch, args=(read_end,), daemon=True).start()
        self._previous_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._write_end)

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        # The main thread does nothing more. It may hold what clearing needs: not for ever.
        is_first, self._is_ending = not self._is_ending, True
        if is_first:
            time.sleep(_CLEARING_S)
        if is_first or number in _ENDS_WHEN_REPEATED:
            os._exit(INTERRUPTED)

    def _watch(self, read_end: int) -> None:
        with os.fdopen(read_end, "rb", buffering=0) as numbers:
            while received := numbers.read(1):
                number = received[0]
                # Not if another has taken over: that one has been, or will be, called.
                if number in SIGNALS and signal.getsignal(number) == self.note_signal:
                    self._end(number)

    def _end(self, number: int) -> None:
        try:
            if os.environ.get("RANK", "0") == "0":
                say(f"Stopped by {signal.Signals(number).name} {self.remark}")
            self.clear()
        finally:
            os._exit(INTERRUPTED)


def survive_signals(worker: int) -> None:
    """What a worker process of the data does when it starts.

    torchrun, terminals and schedulers signal whole process groups, and the step under way still
    needs its data. PyTorch's own handler would end the worker.
    """
    signal.set_wakeup_fd(-1)  # the parent's: its signals are not these
    _catch(_survive)


def let_the_next_end_the_process(number: int) -> None:
    """If `number`, which has come, is of those that do."""
    if number in _ENDS_WHEN_REPEATED:
        for repeated in _ENDS_WHEN_REPEATED:
            signal.signal(repeated, signal.SIG_DFL)


def remark_on_next(number: int) -> str:
    """What is said of another signal after `number`."""
    return "; a second ends at once" if number in _ENDS_WHEN_REPEATED else ""


def say(text: str) -> None:
    """On stderr, from a signal handler: it may have come while the log or print was writing."""
    with suppress(OSError):  # a terminal that is gone
        os.write(2, f"{text}\n".encode())


def _survive(number: int, frame: FrameType | None) -> None:
    let_the_next_end_the_process(number)


def _catch(handler: Handler) -> dict[signal.Signals, Any]:
    """The handlers before."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [n for n in SIGNALS if not (n == signal.SIGHUP and is_ignored)]
    return {number: signal.signal(number, handler) for number in numbers}
