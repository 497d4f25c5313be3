"""stdin, stdout and stderr of a command, which may be closed, full, or read by nobody any more.

Free of torch.
"""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

_GONE = (errno.EPIPE, errno.EIO)
"""What writing raises when the reader, or the terminal, is gone."""


class _Guarded(io.FileIO):
    """A stream whose first error in writing is its last: from then on what it gets is dropped."""

    def __init__(self, handle: int, on_error: Callable[[OSError], None]) -> None:
        super().__init__(handle, "wb", closefd=False)
        self._on_error = on_error

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _open_null(self.fileno())  # also for what libraries and other processes write to it
            self._on_error(error)
            return memoryview(data).nbytes


class Streams:
    """Guards stdout and stderr: no error in writing to them reaches the program, but SystemExit
    where stdout is what the program is for.

    exit_code: what such a program ends with; None while nothing has failed.
    """

    def __init__(self, is_output_result: bool) -> None:
        self.exit_code: int | None = None
        self._is_output_result = is_output_result
        open_closed_streams()
        sys.stdout = _guard(sys.stdout, 1, self._note)
        sys.stderr = _guard(sys.stderr, 2, lambda error: None)

    def flush(self) -> None:
        """May raise SystemExit, as writing does."""
        sys.stdout.flush()
        sys.stderr.flush()

    def _note(self, error: OSError) -> None:
        is_gone = error.errno in _GONE
        if self._is_output_result:
            self.exit_code = 128 + signal.SIGPIPE if is_gone else 1
        if not is_gone:
            word = "error" if self._is_output_result else "note"
            print(f"{word}: stdout cannot be written to: {error.strerror}.", file=sys.stderr)
        if self.exit_code is not None:
            raise SystemExit(self.exit_code)


def open_closed_streams() -> None:
    """Give those that are closed to nothing: else the next file that is opened would be one."""
    for handle, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(handle)
        except OSError:
            _open_null(handle)
        if getattr(sys, name) is None:
            setattr(sys, name, open(handle, mode, closefd=False))  # noqa: SIM115


def _guard(stream: TextIO, handle: int, on_error: Callable[[OSError], None]) -> TextIO:
    with suppress(OSError):
        stream.flush()
    raw = _Guarded(handle, on_error)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",  # a name that the terminal cannot show is no reason to fail
        line_buffering=stream.isatty() or handle == 2,
    )


def _open_null(handle: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != handle:
        os.dup2(null, handle)
        os.close(null)
    os.set_inheritable(handle, True)  # as these are
