"""Why a checkpoint could not be saved, in one line where DCP makes a page of it."""

import errno
import os
import shutil
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WRITERS = ("inline_container", "PytorchStreamWriter")
"""In messages of torch's file writer, which does not say what the disk said."""


def describe_failed_save(error: BaseException, path: Path) -> str:
    """What failed, where, how full the disk is, and what to do. `path` may be gone."""
    cause = _find_cause(error)
    is_full = isinstance(cause, OSError) and cause.errno in _FULL
    if isinstance(cause, OSError) and cause.strerror:
        text = cause.strerror
        if not is_full and cause.filename:
            text += f": {cause.filename}"
    elif any(name in str(cause) for name in _WRITERS):
        text, is_full = "a file could not be written to its end", True
    else:
        text = str(cause).split("\n")[0] or type(cause).__name__
    remedy = "Free space there" if is_full else "Mend that"
    return (
        f"{path} cannot be saved: {text} ({_describe_disk(path)}). {remedy}, and start the same "
        "command again."
    )


def _find_cause(error: BaseException) -> BaseException:
    """Of the ranks' errors one that names the disk, else the first."""
    if not isinstance(error, CheckpointException):
        return error
    causes = [cause for cause, _ in error.failures.values()]
    named = (cause for cause in causes if isinstance(cause, OSError) and cause.errno in _FULL)
    return next(named, causes[0])


def _describe_disk(path: Path) -> str:
    path = path.absolute()
    while not path.exists():  # with the folder of the run, for example
        path = path.parent
    usage = shutil.disk_usage(path)
    while not os.path.ismount(path):
        path = path.parent
    free, total = (f"{size / 2**30:.3g} GiB" for size in (usage.free, usage.total))
    return f"the file system at {path} has {free} of {total} free"
