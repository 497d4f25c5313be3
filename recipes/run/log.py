"""What a process of a run prints and logs: which ranks, which warnings, and when it cannot be."""

import logging
import os
import sys
import threading
import warnings
from contextlib import suppress

from torchtitan.tools.logging import init_logger, logger

STRUCTURED_LOGGER = "torchtitan.structured_logger"


def init_logging() -> None:
    """TorchTitan's log, from rank 0 and the ranks that LOG_RANK names; warnings from all."""
    init_logger()
    # torchdata and TorchTitan call what PyTorch warns of; nothing a user could do about it.
    for message in (".*set_vital.*", "To get the last learning rate computed.*"):
        warnings.filterwarnings("ignore", message=message)
    if os.environ["RANK"] not in os.environ.get("LOG_RANK", "0").split(","):
        logger.setLevel(logging.WARNING)
    report_lost_lines(logger)
    threading.excepthook = _report_thread


def report_lost_lines(log: logging.Logger) -> None:
    """Make each handler of `log` that cannot write, on a full disk for one, say so once, and the
    run go on; Python prints a page for each line."""
    for handler in log.handlers:
        handler.handleError = _Report(handler)  # type: ignore[method-assign]


class _Report:
    def __init__(self, handler: logging.Handler) -> None:
        self._name = getattr(handler, "baseFilename", "the log")
        self._is_said = False

    def __call__(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not self._is_said:
            self._is_said = True
            with suppress(OSError):  # it may be what the line could not be written to
                print(f"{self._name} is not complete: {error}", file=sys.stderr, flush=True)


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """A thread that cannot write is no bug: one line, and who waits for it learns of it."""
    if isinstance(failed.exc_value, OSError):
        name = failed.thread.name if failed.thread else "a thread"
        logger.warning(f"{name} ends: {failed.exc_value}")
    else:
        threading.__excepthook__(failed)
