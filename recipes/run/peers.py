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
_IS_THERE = "rank 0 is there"


def wait_for_rank_0(timeout_s: float) -> None:
    """Return on any rank when rank 0 has called this too: when it owns the run directory.

    What ranks do before they meet, TorchTitan's folder for traces among it, needs that. Raises
    RuntimeError after `timeout_s`.
    """
    # Else the store is rank 0's own, and opens only when it goes on from here.
    has_launcher_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if os.environ["RANK"] != "0":
        store = _connect(timeout_s)
        if has_launcher_store:
            store.wait([_IS_THERE], timedelta(seconds=timeout_s))
    elif has_launcher_store:
        _connect(timeout_s).set(_IS_THERE, "")


class PeerWatch:
    """Within the context this process ends soon after another rank has failed.

    A rank blocked in a collective whose peer is gone cannot end by itself until the collective's
    timeout, so a thread does it, and calls `leave` first.

    clear: what each rank does before it ends in failure; whether rank 0 is to wait until all have.
    give_up: what rank 0 does after that.
    """

    def __init__(self, clear: Callable[[], bool], give_up: Callable[[], None]) -> None:
        self._clear, self._give_up = clear, give_up
        self._rank = int(os.environ["RANK"])
        self._num_ranks = int(os.environ["WORLD_SIZE"])
        self._is_over = threading.Event()

    def __enter__(self) -> "PeerWatch":
        if self._num_ranks > 1:
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
        if self._num_ranks == 1:
            return True
        if not dist.is_initialized():  # the ranks of one machine find the same
            return os.environ["LOCAL_RANK"] == "0"
        try:
            return int(_connect().compare_set(_FAILED, "", str(self._rank))) == self._rank
        except RuntimeError:  # without torchrun the store is in the process of rank 0
            self._say("rank 0 is gone")
            return False

    def leave(self) -> None:
        """What a rank does last, whether it has failed or another.

        Rank 0 gives up the run directory when the others have cleared theirs of it, and they wait
        for that: a launcher that sees one of them gone would leave rank 0 no time.
        """
        is_awaited = self._clear()
        if self._num_ranks > 1 and dist.is_initialized():
            with suppress(RuntimeError):  # without torchrun the store is in the process of rank 0
                store = _connect()
                others = [_cleared(rank) for rank in range(1, self._num_ranks)]
                if self._rank != 0:
                    store.set(_cleared(self._rank), "")
                    _wait_while(lambda: store.check([_FAILED]))
                elif is_awaited:
                    _wait_while(lambda: not store.check(others))
        if self._rank == 0:
            self._give_up()

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
            self.leave()
            os._exit(1)

    def _say(self, reason: str) -> None:
        print(f"rank {self._rank} ends: {reason}", file=sys.stderr, flush=True)


def _cleared(rank: int) -> str:
    return f"cleared/{rank}"


def _wait_while(condition: Callable[[], bool]) -> None:
    """For as long as it takes a rank that only the watch ends, at most."""
    deadline = time.monotonic() + _GRACE_S + 2 * _POLL_S
    while time.monotonic() < deadline and condition():
        time.sleep(_POLL_S / 10)


def _connect(timeout_s: float = _GRACE_S) -> dist.Store:
    """A connection of its own: the process group's may be busy. Names of their own for each restart
    by torchrun, whose store outlives the ranks."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=timeout_s),
    )
    return dist.PrefixStore(f"peers/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
