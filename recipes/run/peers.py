"""Ranks that fail together: one report, and no rank left waiting for another that is gone.

Works through the store at which the ranks met, with torchrun or without it.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist

_POLL_S = 1.0
_GRACE_S = 5.0
"""For this rank's own error, if it has one, to end the process."""

_FAILED = "failed"


class PeerWatch:
    """Within the context this process ends soon after another rank has failed.

    A rank blocked in a collective whose peer is gone cannot end by itself until the collective's
    timeout, so a thread does it, and calls `before_end` first.
    """

    def __init__(self, before_end: Callable[[], None] = lambda: None) -> None:
        self._before_end = before_end
        self._rank = int(os.environ["RANK"])
        self._has_peers = int(os.environ["WORLD_SIZE"]) > 1
        self._is_over = threading.Event()

    def __enter__(self) -> "PeerWatch":
        if self._has_peers:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()

    def claim_report(self) -> bool:
        """Whether this rank, which has failed, is the one to say why: the first to ask."""
        self._is_over.set()  # it ends by itself, and with its own exit code
        if not self._has_peers:
            return True
        if not dist.is_initialized():  # the ranks of one machine find the same
            return os.environ["LOCAL_RANK"] == "0"
        try:
            return int(_connect().compare_set(_FAILED, "", str(self._rank))) == self._rank
        except RuntimeError:  # without torchrun the store is in the process of rank 0
            self._say("rank 0 is gone")
            return False

    def give_way_to_rank_0(self) -> None:
        """What a rank that has failed does last. Rank 0 gives up the run directory, for which a
        launcher that sees this rank gone would leave it no time."""
        if self._rank == 0 or not dist.is_initialized():
            return
        deadline = time.monotonic() + _GRACE_S + 2 * _POLL_S
        with suppress(RuntimeError):  # without torchrun the store is in the process of rank 0
            store = _connect()
            while time.monotonic() < deadline and store.check([_FAILED]):
                time.sleep(_POLL_S / 10)

    def _watch(self) -> None:
        while not dist.is_initialized():
            if self._is_over.wait(_POLL_S):
                return
        try:
            store = _connect()
            while not store.check([_FAILED]):
                if self._is_over.wait(_POLL_S):
                    return
            reason = "another rank failed"
        except RuntimeError:
            reason = "rank 0 is gone"
        if not self._is_over.wait(_GRACE_S):
            self._say(reason)
            self._before_end()
            os._exit(1)

    def _say(self, reason: str) -> None:
        print(f"rank {self._rank} ends: {reason}", file=sys.stderr, flush=True)


def _connect() -> dist.Store:
    """A connection of its own: the process group's may be busy. Names of their own for each restart
    by torchrun, whose store outlives the ranks."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=_GRACE_S),
    )
    return dist.PrefixStore(f"peers/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
