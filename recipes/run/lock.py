"""A run directory belongs to one job: the file run.lock in it says whose. Free of torch.

The lock is a file that only one process can create, so it needs no flock and holds between hosts
that share the directory. It appears with its owner's line in it: written under another name, and
then linked (where the file system has no hard links, created by its own). Its owner rewrites a
counter in it; whoever finds it there looks whether that moves, and trusts neither clock. It is
removed by its owner, or from an owner that is gone, and in both cases under a second such file, so
that nobody removes what another has just created.
"""

import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from recipes.config.paths import LOCK_FILE
from recipes.config.settings import SettingsError
from recipes.run.owner import Owner, format_owner, parse_owner

BEAT_S = 5.0
"""How often the owner writes."""

SAME_JOB_PATIENCE_S = 3 * BEAT_S
"""After which an owner of this SLURM job, on another host, that does not write is gone."""

PATIENCE_S = 120.0
"""The same for any other: more than a file system is away for, and than a host is busy."""

_REMOVAL_S = 30.0
"""Removing a lock takes milliseconds; a process that is stopped in the middle is given up on."""

_POLL_S = 0.1

_held: dict[str, bytes] = {}
"""Directory -> what this process has written into its lock."""


class _Verdict(NamedTuple):
    patience_s: float
    """After which an owner that does not write is gone; infinite for one that lives."""
    reason: str


class RunLock:
    """Within the context this process owns `folder`, which is created if need be.

    Entering raises SettingsError if another job owns it, OSError if no lock can be written there,
    and says on stderr when it waits or takes the lock of an owner that is gone. A folder that is
    empty at the end, and that this created, is removed with the lock.
    """

    def __init__(
        self, folder: str, option: str = "job.dump_folder", writes: Sequence[str] = ()
    ) -> None:
        """option: what the user named the folder by, for messages. writes: the paths in it that are
        to be written to, for `read_writes`."""
        self._option, self._writes = option, tuple(writes)
        self._folder = Path(os.path.abspath(folder))
        self._path = self._folder / LOCK_FILE
        self._line = b""
        self._is_over = threading.Event()

    def __enter__(self) -> "RunLock":
        self._line = format_owner(replace(_describe_self(), writes=self._writes))
        self._has_created_folder = False
        try:
            self._handle = self._create_folder_and_take()
        except OSError as error:
            raise OSError(
                f"{self._option} ({self._folder}) cannot be owned: {error}. Mend that, or name "
                f"another {self._option}."
            ) from error
        _held[str(self._folder)] = self._line
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _create_folder_and_take(self) -> int:
        while True:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                self._folder.mkdir()
                self._has_created_folder = True
            with suppress(FileNotFoundError):  # another, which had created the folder, removed it
                return _take(self._path, self._line, self._option)

    def release(self) -> None:
        """Give the directory up, from any thread; a second time does nothing."""
        if _held.pop(str(self._folder), None) is None:
            return
        self._is_over.set()
        self._thread.join(BEAT_S)
        if not self._thread.is_alive():  # else it waits for the file system with this handle
            os.close(self._handle)
        # What cannot be removed now is taken from a process that is gone.
        with suppress(OSError, SettingsError):
            _remove(self._path, self._line, self._line, self._option)
            if self._has_created_folder:
                self._folder.rmdir()

    def _beat(self) -> None:
        count = 0
        while not self._is_over.wait(BEAT_S):
            count += 1
            with suppress(OSError):  # the next beat may succeed
                os.pwrite(self._handle, _counter(count), len(self._line))
                os.fsync(self._handle)


def check_owner(folder: str) -> None:
    """Raise OSError if this process has lost the lock of `folder`, or another job owns it."""
    folder = os.path.abspath(folder)
    content, line = _read(Path(folder, LOCK_FILE)), _held.get(folder)
    if content is None and line is None:  # a program of its own, which has not asked for a lock
        return
    if content is None or line is None or not content.startswith(line):
        owner = (
            "its run.lock is gone" if content is None else f"it is of {_name(parse_owner(content))}"
        )
        raise OSError(
            f"{folder} is no longer this job's: {owner}. This job ends; it saves and deletes "
            "nothing more."
        )


def read_writes(folder: Path) -> tuple[str, ...] | None:
    """What the owner of `folder` writes in it; None if nobody owns it."""
    content = _read(folder / LOCK_FILE)
    if content is None:
        return None
    owner = parse_owner(content)
    return () if owner is None else owner.writes


def _take(path: Path, line: bytes, option: str, wait_s: float = 0.0) -> int:
    """Create the lock, or take it from an owner that is gone; the handle of the open file.

    option: what messages call its folder. Raises SettingsError if after `wait_s` a live process
    owns it; FileNotFoundError if the folder is not there.
    """
    began, changed, seen = time.monotonic(), 0.0, None
    while True:
        content = _read(path)
        if content is None:
            if path.is_symlink():  # which is there, and can neither be read nor created
                raise SettingsError(
                    f"{option} ({path.parent}) cannot be owned: {path} is a link that leads "
                    "nowhere. Remove it."
                )
            with suppress(FileExistsError):
                return _create(path, line)
            continue
        now, owner = time.monotonic(), parse_owner(content)
        patience_s, reason = _judge(owner)
        if content != seen:
            if seen is not None and owner == parse_owner(seen):
                patience_s = math.inf  # it writes
            elif 0 < patience_s < math.inf:
                _say(f"{path} is of {_name(owner)}. Waiting {patience_s:g} s for a sign of it.")
            seen, changed = content, now
        if patience_s == math.inf and now - began >= wait_s:
            raise SettingsError(
                f"{option} ({path.parent}) belongs to another job: {_name(owner)}. Wait for "
                f"its end, or name another {option}."
            )
        if now - changed >= patience_s:
            _remove(path, content, line, option)
            _say(f"Taking over {path}, of {_name(owner)}: {reason}.")
        else:
            time.sleep(_POLL_S)


def _create(path: Path, line: bytes) -> int:
    """Raises FileExistsError, and OSError if it cannot be written."""
    unlinked = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    handle = _write_new(unlinked, line)
    try:
        os.link(unlinked, path)
    except FileExistsError:
        # NFS says so as well when its answer to the first try was lost.
        if os.fstat(handle).st_nlink != 2:
            os.close(handle)
            raise
    except OSError:  # a file system without hard links
        os.close(handle)
        handle = _write_new(path, line)
    finally:
        with suppress(OSError):
            unlinked.unlink()
    return handle


def _write_new(path: Path, line: bytes) -> int:
    """A file that was not there. Raises FileExistsError; after any other error there is none."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.write(handle, line + _counter(0))
        os.fsync(handle)
    except OSError:  # no space left
        os.close(handle)
        path.unlink()
        raise
    return handle


def _remove(path: Path, beginning: bytes, line: bytes, option: str) -> None:
    """Remove the lock if it still begins with `beginning`; nobody else removes one meanwhile."""
    mutex = path.with_name(f"{path.name}.removal")
    os.close(_take(mutex, line, option, wait_s=_REMOVAL_S))
    for file, expected in ((path, beginning), (mutex, line)):
        content = _read(file)
        if content is not None and content.startswith(expected):
            file.unlink()


def _judge(owner: Owner | None) -> _Verdict:
    """How long to wait for a sign of the lock's owner, and why it is gone after that.

    None is an owner that cannot be read: one that lives writes all the same.
    """
    me = _describe_self()
    is_same_job = owner is None or (owner.slurm_job is not None and owner.slurm_job == me.slurm_job)
    patience_s = SAME_JOB_PATIENCE_S if is_same_job else PATIENCE_S
    silent = _Verdict(patience_s, f"it has not written for {patience_s:g} s")
    if owner is None:
        return silent
    if owner.machine is not None and (owner.host, owner.machine) == (me.host, me.machine):
        is_running = _is_running(owner)
        if is_running is None:
            return silent
        return _Verdict(math.inf, "") if is_running else _Verdict(0, "that process has ended")
    if is_same_job and owner.slurm_restart < me.slurm_restart:
        return _Verdict(0, "SLURM has queued that job again since")
    return silent


def _is_running(owner: Owner) -> bool | None:
    """Whether the process, of this machine, still is; None if the kernel does not show it."""
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    state, start_ticks = _read_stat(owner.pid)
    if start_ticks is None:
        return None
    return start_ticks == owner.start_ticks and state not in "ZX"  # ended, not yet waited for


def _read_stat(pid: int) -> tuple[str, int | None]:
    """State and start of a process, from /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _describe_self() -> Owner:
    machine = None
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        machine=machine,
        start_ticks=_read_stat(os.getpid())[1],
        slurm_job=os.environ.get("SLURM_JOB_ID"),
        slurm_restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def _name(owner: Owner | None) -> str:
    return "a process that cannot be read there" if owner is None else str(owner)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _counter(count: int) -> bytes:
    return b"%012d\n" % count


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
